"""What has to be looked at again, collected from several threads in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

EVERYTHING: Final = b""
"""The subtree that is the whole volume."""


class Hints(NamedTuple):
    """Where something has changed, or may have; paths are relative to the watched root, which is `b""`.

    `directories` are those whose listing must be looked at again: every event on a name in a directory gives
    the directory. Its own times change with its listing and are told nowhere else, so the entry *of* the
    directory belongs to the look. `subtrees` must be scanned with all that lies below; no path of either kind
    lies in one of them. `events` is how many the kernel told (equal ones merged), 0 if no change is known and
    only a poll is due. Times are of `time.monotonic()`: `first_event_s` when the oldest of these hints came
    (0.0 if there is none), `last_event_s` when the kernel last told of a change, these or earlier ones (0.0
    if never).
    """

    directories: frozenset[bytes] = frozenset()
    subtrees: frozenset[bytes] = frozenset()
    events: int = 0
    first_event_s: float = 0.0
    last_event_s: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.directories or self.subtrees)

    def covers(self, directory: bytes) -> bool:
        """Whether the listing of `directory` will be looked at by whoever follows these hints."""
        return directory in self.directories or is_below(directory, self.subtrees)


class Counts(NamedTuple):
    """How much is pending; times as in `Hints`. `directories` counts those in pending subtrees too."""

    directories: int
    subtrees: int
    events: int
    first_event_s: float
    last_event_s: float


class Found:
    """What an emitter has found and not said yet, and why events were lost (`gaps`). For one thread."""

    def __init__(self) -> None:
        self.directories: set[bytes] = set()
        self.subtrees: set[bytes] = set()
        self.events = 0
        self.gaps: list[str] = []

    def __len__(self) -> int:
        """How many paths these are."""
        return len(self.directories) + len(self.subtrees)


def make_hints(directories: Iterable[bytes], subtrees: Iterable[bytes], events: int) -> Hints:
    """Hints of this moment. `events` of 0 means a look that is due with no change known of."""
    now = time.monotonic()
    return Hints(frozenset(directories), frozenset(subtrees), events, now, now if events else 0.0)


def is_below(path: bytes, subtrees: frozenset[bytes] | set[bytes]) -> bool:
    """Whether `path` is one of the subtrees or lies in one."""
    if not subtrees:
        return False
    if EVERYTHING in subtrees or path in subtrees:
        return True
    while path:
        path = path.rpartition(b"/")[0]
        if path in subtrees:
            return True
    return False


class Pending:
    """Hints that nobody has taken yet. For several threads.

    Once more than `limit` paths are pending they collapse into one subtree that is everything: memory stays
    bounded, and a scan of everything is cheaper then anyway.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._directories: set[bytes] = set()
        self._subtrees: set[bytes] = set()
        self._events = 0
        self._first_event_s = 0.0
        self._last_event_s = 0.0

    def merge(self, hints: Hints) -> None:
        """Take in hints as they are, new ones or ones whose backup has failed."""
        with self._changed:
            if EVERYTHING not in self._subtrees:
                self._directories |= hints.directories
                self._subtrees |= hints.subtrees
                self._bound()
            self._events += hints.events
            self._last_event_s = max(self._last_event_s, hints.last_event_s)
            if hints and not 0.0 < self._first_event_s <= hints.first_event_s:
                self._first_event_s = hints.first_event_s
            if self._has_any():
                self._changed.notify_all()

    def take(self) -> Hints:
        """All that is pending, which is pending no longer."""
        with self._changed:
            subtrees = _outermost(self._subtrees)
            hints = Hints(
                frozenset(path for path in self._directories if not is_below(path, subtrees)),
                subtrees,
                self._events,
                self._first_event_s,
                self._last_event_s,
            )
            self._directories, self._subtrees = set(), set()
            self._events, self._first_event_s = 0, 0.0
        return hints

    def counts(self) -> Counts:
        """How much is pending."""
        with self._changed:
            return Counts(
                len(self._directories),
                len(self._subtrees),
                self._events,
                self._first_event_s,
                self._last_event_s,
            )

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until something is pending, at most this long (None: for ever); whether something is."""
        with self._changed:
            return self._changed.wait_for(self._has_any, timeout_s)

    def _has_any(self) -> bool:
        return bool(self._directories or self._subtrees)

    def _bound(self) -> None:
        """Collapse what is too much, or said by the one subtree that is everything."""
        too_many = len(self._directories) + len(self._subtrees) > self._limit
        if too_many or EVERYTHING in self._subtrees:
            self._directories, self._subtrees = set(), {EVERYTHING}


def _outermost(subtrees: set[bytes]) -> frozenset[bytes]:
    """The subtrees that lie in no other one."""
    return frozenset(
        path for path in subtrees if not path or not is_below(path.rpartition(b"/")[0], subtrees)
    )
