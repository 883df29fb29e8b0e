"""A full scan held against the stamps of the index: what is as it was is passed over, on every core.

The way is that of `scan`, directory after directory, each found in the one above it. But what a directory
that the index knows shows now is looked up ahead, by processes if that pays; only of one that shows
something else are there entries, here and in the index, to compare.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from smsnapd.engine.backup.looks import Look, directories_among
from smsnapd.engine.pool import Pool
from smsnapd.model import Entry, directory_key
from smsnapd.state import Stamped, State
from smsnapd.volume.scan import Excludes, Scanner, ScanReport, below
from smsnapd.volume.tree import Tree

NAMES_IN_STRETCH: Final = 4096
"""Names of the directories that one job looks at, about; each directory counts as several."""
DIRECTORY_WEIGHT: Final = 4
WORTH_PROCESSES: Final = 20_000
"""From how many names on processes of its own are quicker than none."""


class Stretch(msgspec.Struct, array_like=True):
    """Directories to look at, in catalog order, with the stamp of each."""

    directories: list[bytes]
    stamps: list[bytes]


class Shown(msgspec.Struct, array_like=True, gc=False):
    """What one of them shows: the directories to go into from there, and if its stamp is another, all.

    `entries` None: it is as its stamp says. The rest is as in `ScanReport`.
    """

    directories: list[bytes] = []
    entries: list[Entry] | None = None
    skipped: list[tuple[bytes, str]] = []
    unreadable: list[tuple[bytes, str]] = []
    vanished: list[bytes] = []


@dataclass(frozen=True)
class LookTask:
    """What a process must know of the volume."""

    root: bytes
    excluded: Excludes

    job_type = Stretch
    result_type = list[Shown]

    def open(self) -> Looker:
        """Open the volume, in the process that looks at it."""
        return Looker(Tree(self.root), self.excluded)


class Looker:
    """Looks at stretches."""

    def __init__(self, tree: Tree, excluded: Excludes) -> None:
        self._tree = tree
        self._scanner = Scanner(tree, excluded)

    def handle(self, job: Stretch) -> list[Shown]:
        """What each directory shows."""
        return list(map(self._shown, job.directories, job.stamps))

    def finish(self) -> list[Shown]:
        """Nothing is under way."""
        return []

    def close(self) -> None:
        """Close the volume."""
        self._tree.close()

    def _shown(self, directory: bytes, stamp: bytes) -> Shown:
        sight = self._scanner.sight(directory) if stamp else None
        if sight is not None:
            return Shown(below(directory, sight), None if sight.stamp == stamp else sight.entries())
        report = ScanReport()
        entries, directories = self._scanner.listed(directory, report)
        return Shown(directories, entries, report.skipped, report.unreadable, report.vanished)


class _Ahead(NamedTuple):
    """A directory of the index, in catalog order, and what it was seen to show."""

    key: bytes
    directory: bytes
    shown: Shown


class StampedScan:
    """The looks of a run that looks everywhere: at the directories where something differs."""

    def __init__(
        self, tree: Tree, excluded: Excludes, report: ScanReport, state: State, workers: int
    ) -> None:
        """`report` gets what a scan would tell. `workers` is how many processes may be used, 0 for none."""
        self._tree = tree
        self._excluded = excluded
        self._scanner = Scanner(tree, excluded)
        self._report = report
        self._state = state
        few = state.counts.entries < WORTH_PROCESSES
        # A process with threads cannot be forked safely, and starting one afresh takes longer than looking.
        self._workers = 0 if few or threading.active_count() > 1 else workers
        self._moved = _Moved()

    def looks(self, each: Callable[[], Any]) -> Iterator[Look]:
        """In catalog order; `each` is called for every directory, whether there is a look at it or not."""
        self._tree.forget()
        pending = [b""]
        with Pool(LookTask(self._tree.root, self._excluded), self._workers) as pool:
            ahead = self._ahead(pool)
            known = next(ahead, None)
            while pending or known is not None:
                each()
                key = directory_key(pending[-1]) if pending else b""
                if known is not None and (not pending or known.key < key):
                    # The index knows it, and no directory leads there any more.
                    yield Look(known.directory, [], self._state.listing(known.directory))
                    known = next(ahead, None)
                    continue
                directory = pending.pop()
                moved = self._moved.covers(directory, key)
                if known is not None and known.key == key:
                    shown = self._now(directory) if moved else known.shown
                    known = next(ahead, None)
                else:
                    shown = self._now(directory)
                if shown.entries is not None and (look := self._look(directory, shown)):
                    yield look
                pending.extend(reversed(shown.directories))

    def _now(self, directory: bytes) -> Shown:
        """What shows a directory of which the index knows nothing, or nothing that would do."""
        report = ScanReport()
        entries, directories = self._scanner.listed(directory, report)
        return Shown(directories, entries, report.skipped, report.unreadable, report.vanished)

    def _ahead(self, pool: Pool[Stretch, list[Shown]]) -> Iterator[_Ahead]:
        """What all that the index knows shows now."""
        under_way: deque[Stretch] = deque()

        def jobs() -> Iterator[Stretch]:
            for stretch in stretches(self._state.stamps()):
                under_way.append(stretch)
                yield stretch

        for result in pool.run(jobs()):
            directories = under_way.popleft().directories
            for directory, shown in zip(directories, result, strict=True):
                yield _Ahead(directory_key(directory), directory, shown)

    def _look(self, directory: bytes, shown: Shown) -> Look | None:
        """Hold it against the index; None if there is nothing here and there."""
        self._report.skipped += shown.skipped
        self._report.unreadable += shown.unreadable
        self._report.vanished += shown.vanished
        indexed = self._state.listing(directory)
        entries = shown.entries or []
        before, now = directories_among(indexed), directories_among(entries)
        for path in shown.directories:
            name = path.rpartition(b"/")[2]
            if before.get(name) != now.get(name):
                self._moved.add(path)
        return Look(directory, entries, indexed) if entries or indexed else None


class _Moved:
    """Directories that took the place of others: what was seen below their paths may be of those."""

    def __init__(self) -> None:
        self._paths: set[bytes] = set()
        self._below: bytes | None = None

    def add(self, path: bytes) -> None:
        """Take note of one, before it is come to."""
        self._paths.add(path)

    def covers(self, path: bytes, key: bytes) -> bool:
        """Whether this is such a directory, or below one; asked of every one, in catalog order."""
        if path in self._paths:
            self._paths.remove(path)
            if self._below is None or not key.startswith(self._below):
                self._below = key + b"\0"
            return True
        return self._below is not None and key.startswith(self._below)


def stretches(stamps: Iterable[Stamped]) -> Iterator[Stretch]:
    """The directories of the index in jobs of about one size."""
    stretch, weight = Stretch([], []), 0
    for directory, names, stamp in stamps:
        stretch.directories.append(directory)
        stretch.stamps.append(stamp)
        weight += names + DIRECTORY_WEIGHT
        if weight >= NAMES_IN_STRETCH:
            yield stretch
            stretch, weight = Stretch([], []), 0
    if stretch.directories:
        yield stretch
