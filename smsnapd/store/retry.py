"""Trying again: exponential backoff with full jitter, for transient errors only.

Full jitter spreads the writers that a busy server turned away together (AWS Architecture Blog,
"Exponential Backoff And Jitter", 2015).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from smsnapd.errors import StoreError

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """How often and how long: wait `n` is between 0 and `base_s * 2**n` seconds, at most `cap_s`.

    `jitter` gives numbers in [0, 1). `sleep` may raise, to give up while waiting.
    """

    attempts: int = 8
    base_s: float = 0.2
    cap_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def run(self, call: Callable[[], T]) -> T:
        """What `call` returns; it is repeated while it raises transient `StoreError`s.

        After `attempts` the last error is raised, and says how many there were.
        """
        for attempt in range(self.attempts - 1):
            try:
                return call()
            except StoreError as error:
                if not error.transient:
                    raise
            self.sleep(self.jitter() * min(self.cap_s, self.base_s * 2**attempt))
        try:
            return call()
        except StoreError as error:
            if not error.transient or self.attempts < 2:
                raise
            why = f"{error.why}; tried {self.attempts} times"
            raise StoreError(error.what, why, error.hint, transient=True) from error
