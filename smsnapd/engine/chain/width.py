"""How many puts at once: more where they are quick, one at a time where they are slow.

A slow way becomes no wider by several puts on it. Each of them only takes longer, until a server or a
timeout has no patience any more, and all that it has sent was in vain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_QUICK_S: Final = 5.0
_SLOW_S: Final = 20.0


class Width:
    """A number of puts at once, from 1 to `most`, that follows how long they take. For several threads.

    It begins with 1, grows by one with each quick put, and is halved by each slow one. `clock` gives seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self.now = 1
        """How many to have under way."""

    def timed(self, put: Callable[[], T]) -> T:
        """What `put` returns; how long it took counts, and if it raises it counts as slow."""
        began_s = self._clock()
        took_s = _SLOW_S
        try:
            result = put()
            took_s = self._clock() - began_s
        finally:
            self._follow(took_s)
        return result

    def _follow(self, took_s: float) -> None:
        with self._lock:
            if took_s < _QUICK_S:
                self.now = min(self.now + 1, self._most)
            elif took_s >= _SLOW_S:
                self.now = max(self.now // 2, 1)
