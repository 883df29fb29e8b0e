"""How many requests may be under way at once: fewer when the server asks for it, slowly more again.

Additive increase, multiplicative decrease, as congestion control does it (RFC 5681, section 3.1): a server
that turns away what is too much for it gets half as many at a time, and each round of answers allows one
more. What waits is a thread with its one object, so memory stays what it was.

>>> throttle = Throttle(16)
>>> with throttle.turn() as turn:
...     turn.refuse()
>>> throttle.window
8
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

_LEAST: Final = 1.0
_log = logging.getLogger(__name__)


class Turn:
    """A request under way."""

    def __init__(self) -> None:
        self.is_refused = False
        self.number_of_cuts = 0

    def refuse(self) -> None:
        """The server has answered that there are too many requests."""
        self.is_refused = True


class Throttle:
    """Hands out turns, first come, first served: at most `window` at a time, `most` at the best of times.

    For several threads. A thread must not ask for a turn while it has one.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._window = float(most)
        self._under_way = 0
        self._cuts = 0
        self._waiting: deque[Turn] = deque()
        self._changed = threading.Condition()

    @property
    def window(self) -> int:
        """How many may be under way at the moment."""
        return int(self._window)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """One request; it succeeded unless it is refused, or left with an error, which says nothing."""
        turn = Turn()
        self._begin(turn)
        try:
            yield turn
        except BaseException:
            self._end(turn, succeeded=False)
            raise
        self._end(turn, succeeded=True)

    def _begin(self, turn: Turn) -> None:
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._under_way < self.window)
                self._under_way += 1
                turn.number_of_cuts = self._cuts
            finally:  # whoever is interrupted must not stand in the others' way
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _end(self, turn: Turn, *, succeeded: bool) -> None:
        with self._changed:
            self._under_way -= 1
            if turn.is_refused:
                self._cut(turn)
            elif succeeded:
                self._window = min(self._most, self._window + 1 / self._window)
            self._changed.notify_all()

    def _cut(self, turn: Turn) -> None:
        """Halve the window, once for all that were under way together: they are one answer."""
        if turn.number_of_cuts == self._cuts:
            self._cuts += 1
            self._window = max(_LEAST, self._window / 2)
            _log.debug("the server asks for fewer requests: %d at a time", self.window)
