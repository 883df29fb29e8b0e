"""Keeping a run alive while its puts are slow: the lease renewed and progress told, as long as bytes move.

A put may take longer than a lease or a watchdog lasts. Where nothing moves nothing is done either: what
hangs is left to whoever watches the run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from smsnapd.engine.progress import Progress
from smsnapd.errors import SmsnapError

EVERY_S: Final = 5.0
_log = logging.getLogger(__name__)


class Vigil:
    """A thread that looks now and then whether `moved` has become another number.

    `renew` renews the lease if it is time to; it need not be for several threads if the run calls it by
    `Vigil.renew` alone, until it takes the lease back.
    """

    def __init__(self, moved: Callable[[], int], renew: Callable[[], None], progress: Progress) -> None:
        self._moved = moved
        self._renew = renew
        self._progress = progress
        self._seen = moved()
        self._has_lease = True
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="vigil", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread, and wait for it."""
        self._over.set()
        self._thread.join()

    def renew(self) -> None:
        """The run's own renewal, at each result; raises what is wrong with the lease."""
        with self._lock:
            self._renew()

    def take_lease_back(self) -> None:
        """From now on the run alone uses the lease, as it must to commit."""
        with self._lock:
            self._has_lease = False

    def look(self) -> None:
        """Look once; the thread does it every few seconds."""
        moved = self._moved()
        if moved == self._seen:
            return
        self._seen = moved
        self._progress.advance()
        with self._lock:
            if self._has_lease:
                self._renew_quietly()

    def _renew_quietly(self) -> None:
        try:
            self._renew()
        except SmsnapError as error:
            # The run's own renewal, with the next result or before it commits, raises what is wrong.
            _log.info("the lease could not be renewed meanwhile: %s", error)

    def _keep(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()
