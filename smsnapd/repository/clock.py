"""The store's clock, without a request each time: it is kept by a clock of this machine that never jumps.

>>> clock = StoreClock(lambda: 1_800_000_000.0, steady=lambda: 50.0, wall=lambda: 0.0)
>>> clock.now()
1800000000.0
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

MEASURED_EVERY_S: Final = 86400.0
"""Clocks drift: a measure is good for so long."""

JUMP_S: Final = 5.0
"""The wall clock moved by this against the steady one: it was set, or this machine was held unawares."""


def steady_s() -> float:
    """Seconds since boot, those of a suspended machine included; nobody can set it (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Measure(NamedTuple):
    """What all three clocks said at one moment."""

    store_s: float
    steady_s: float
    wall_s: float


class StoreClock:
    """One store's clock. For one thread."""

    def __init__(
        self,
        ask: Callable[[], float],
        *,
        steady: Callable[[], float] = steady_s,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`ask` is the store's `now`; it is called when the time is first wanted."""
        self._ask = ask
        self.steady = steady
        self._wall = wall
        self._measure: _Measure | None = None

    def now(self) -> float:
        """Seconds since the epoch, by the store's clock. StoreError if that must be asked and cannot be."""
        measure = self._measure
        if measure is None or not self._holds(measure):
            return self.ask()
        return measure.store_s + self.steady() - measure.steady_s

    def ask(self) -> float:
        """The same, asked just now.

        The answer is of a moment before it arrived, and may be rounded down. So the time is never ahead: a
        lease seems to last too long rather than too short to others.
        """
        store_s = self._ask()
        self._measure = _Measure(store_s, self.steady(), self._wall())
        return store_s

    def _holds(self, measure: _Measure) -> bool:
        elapsed_s = self.steady() - measure.steady_s
        jumped_s = self._wall() - measure.wall_s - elapsed_s
        return elapsed_s <= MEASURED_EVERY_S and abs(jumped_s) <= JUMP_S
