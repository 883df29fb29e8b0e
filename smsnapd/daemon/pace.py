"""How soon changes are committed, and how long a failure waits: monotonic times alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 300.0
_DOUBLINGS: Final = 16


class Pace(NamedTuple):
    """Changes are committed `quiet_s` after the last one, and at most `incremental_s` after the first."""

    quiet_s: float
    incremental_s: float
    rescan_s: float

    def due_s(self, first_s: float, last_s: float) -> float:
        """When changes of which the first and the last came at these times are due."""
        return min(last_s + self.quiet_s, first_s + self.incremental_s)


class Retry:
    """When to try again what failed: exponential backoff with full jitter, from 1 s to 5 minutes."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        """`jitter` gives numbers in [0, 1)."""
        self._jitter = jitter
        self.failures = 0
        self.at_s: float | None = None
        """When to try again, None if nothing failed."""

    def failed(self, now_s: float) -> float:
        """It failed; returns how long to wait, in seconds."""
        self.failures += 1
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self.failures, _DOUBLINGS))
        wait_s = max(_FIRST_WAIT_S, self._jitter() * longest)
        self.at_s = now_s + wait_s
        return wait_s

    def succeeded(self) -> None:
        """It went well."""
        self.failures = 0
        self.at_s = None

    def is_waiting(self, now_s: float) -> bool:
        """Whether it is too early to try again."""
        return self.at_s is not None and now_s < self.at_s
