"""Whether something that is beside the work works: told when that changes, and not every time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

ShowTrouble = Callable[[str, str | None], None]
"""Given a key and what is wrong there, None if nothing is: for the status. Must be quick and not raise."""
_log = logging.getLogger(__name__)


class Standing:
    """One such thing. For several threads."""

    def __init__(self, key: str, name: str, show: ShowTrouble) -> None:
        """`name` is it in a sentence; `show` is called when it fails and when it works again."""
        self._key = key
        self._name = name
        self._show = show
        self._lock = threading.Lock()
        self._fails = False
        self._has_ended = False

    @property
    def fails(self) -> bool:
        """Whether it did not work the last time."""
        return self._fails

    def failed(self, why: str) -> None:
        """It does not work."""
        text = f"{self._name} failed: {why}"
        with self._lock:
            is_news = not (self._fails or self._has_ended)
            self._fails = True
            if is_news:
                self._show(self._key, text)
        if is_news:
            _log.warning("%s", text)
        else:
            _log.debug("%s", text)

    def works(self) -> None:
        """It works."""
        with self._lock:
            is_news, self._fails = self._fails and not self._has_ended, False
            if is_news:
                self._show(self._key, None)
        if is_news:
            _log.info("%s works again", self._name)

    def end(self) -> None:
        """It is not wanted any more, so it is no trouble either."""
        with self._lock:
            if self._fails and not self._has_ended:
                self._show(self._key, None)
            self._has_ended = True
