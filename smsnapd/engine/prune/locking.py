"""Keeping what recovery points need locked, where the store locks objects: once a day, never per commit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from smsnapd.engine.prune.known_locks import KnownLocks
from smsnapd.errors import ObjectMissingError, StoreError
from smsnapd.format import names
from smsnapd.store.base import Store

AT_ONCE: Final = 12
BATCH: Final = 256
PATIENCE_S: Final = 600.0
"""Backups wait for a prune. Half of a lock's length is left: days, for the prunes that follow to go on."""
LEAST_LEFT_S: Final = 2 * 86400.0
"""A lock that ends before the next prune, or the one after it, is extended whatever its length."""


class LockTerms(NamedTuple):
    """How long locks last, and when they are renewed, in seconds; `now_s` is by the store's clock."""

    now_s: float
    lock_s: float

    @property
    def until_s(self) -> float:
        """The end of a lock that is made now."""
        return self.now_s + self.lock_s

    def is_due(self, until_s: float) -> bool:
        """Whether a lock with this end is to be extended: when half of it is over."""
        return until_s - self.now_s < max(self.lock_s / 2, LEAST_LEFT_S) and until_s < self.until_s

    def is_urgent(self, until_s: float) -> bool:
        """Whether it may be too late for one with this end at the next prune."""
        return self.is_due(until_s) and until_s - self.now_s < LEAST_LEFT_S


class _Kept(NamedTuple):
    """Until when an object is locked, and whether it was not locked for so long before."""

    until_s: float
    is_new: bool


class Locker:
    """Takes the names of objects that are needed, and extends the locks that end soon.

    A context manager: it has threads. `extended` counts; of what failed `error` is the first, if that was not
    transient, and then nothing more is tried: other objects of the bucket would be refused just so. After
    `PATIENCE_S` only what is urgent is done, and `left` counts the rest.
    """

    def __init__(
        self,
        store: Store,
        terms: LockTerms,
        known: KnownLocks,
        *,
        dry_run: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """On a `dry_run` nothing is locked, and `extended` counts what would be."""
        self._clock = clock
        self._late_s = clock() + PATIENCE_S
        self.left = 0
        self._store = store
        self._terms = terms
        self._known = known
        self._dry_run = dry_run
        self._names: list[str] = []
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lock")
        self.extended = 0
        self.error: StoreError | None = None

    def __enter__(self) -> Locker:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def add(self, name: str) -> None:
        """A recovery point needs this object."""
        known_s = self._known.until(name)
        if known_s is not None and not self._terms.is_due(known_s):
            return
        is_urgent = known_s is not None and self._terms.is_urgent(known_s)
        if not is_urgent and self._clock() > self._late_s:
            self.left += 1
            return
        self._names.append(name)
        if len(self._names) == BATCH:
            self._flush()

    def add_records(self, volume: str) -> None:
        """Without the repository's own records nothing can be opened; tags keep recovery points."""
        for prefix in ("keys/", names.tags_prefix(volume)):
            for info in self._store.list(prefix):
                self.add(info.name)
        self.add(names.REPOSITORY)

    def finish(self) -> None:
        """Do what was taken and is not done yet."""
        self._flush()

    def _flush(self) -> None:
        taken, self._names = self._names, []
        if self.error is not None:
            return
        try:
            for name, kept in zip(taken, self._threads.map(self._ensure, taken), strict=True):
                if kept is not None:
                    self._learn(name, kept)
        except StoreError as error:
            if error.transient:
                raise
            self.error = error

    def _learn(self, name: str, kept: _Kept) -> None:
        self.extended += kept.is_new
        if not self._dry_run and math.isfinite(kept.until_s):  # somebody may end a legal hold
            self._known.learn(name, kept.until_s)

    def _ensure(self, name: str) -> _Kept | None:
        """Lock one object if that is due; None if it is gone meanwhile."""
        try:
            until_s = self._store.locked_until(name)
            if not self._terms.is_due(until_s):
                return _Kept(until_s, False)
            if not self._dry_run:
                self._store.lock(name, self._terms.until_s)
        except ObjectMissingError:
            return None
        return _Kept(self._terms.until_s, True)
