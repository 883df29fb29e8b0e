"""Where a run looks: pairs of what a directory holds now and what the index has for it, in catalog order.

A full scan looks everywhere; a hinted run only where something was told to have changed, and where
what it finds there leads it: into directories that are new, and into what the index has below those gone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from smsnapd.model import Entry, Kind, Listing, directory_key, join_path
from smsnapd.state import State
from smsnapd.volume.scan import Excludes, ScanReport, entry_of, list_directory, scan
from smsnapd.volume.tree import Tree


class Look(NamedTuple):
    """One directory: entries now, and entries in the index, both sorted by name.

    Of a directory of which only some names were looked at, both lists have these names alone.
    """

    directory: bytes
    now: list[Entry]
    indexed: list[Entry]


class Hints(NamedTuple):
    """Where something may have changed; paths are relative to the root.

    `directories` are looked at with their own entry, `subtrees` with all that is below them. What changed
    before `as_of_ns` (nanoseconds since the epoch) is named; later changes may be. None is the run's begin.
    """

    directories: frozenset[bytes]
    subtrees: frozenset[bytes] = frozenset()
    as_of_ns: int | None = None


def look_everywhere(scanned: Iterator[Listing], indexed: Iterator[Listing]) -> Iterator[Look]:
    """Every directory that is now or was before."""
    new, old = next(scanned, None), next(indexed, None)
    while new is not None or old is not None:
        new_key = directory_key(new.directory) if new is not None else None
        old_key = directory_key(old.directory) if old is not None else None
        if new is not None and (old_key is None or (new_key is not None and new_key < old_key)):
            yield Look(new.directory, new.entries, [])
            new = next(scanned, None)
        elif old is not None and new_key != old_key:
            yield Look(old.directory, [], old.entries)
            old = next(indexed, None)
        else:
            assert new is not None
            assert old is not None
            yield Look(new.directory, new.entries, old.entries)
            new, old = next(scanned, None), next(indexed, None)


class HintedLooks:
    """The looks of a hinted run. `covered` tells afterwards what was looked at."""

    def __init__(
        self, tree: Tree, excluded: Excludes, report: ScanReport, state: State, hints: Hints
    ) -> None:
        self._tree = tree
        self._excluded = excluded
        self._report = report
        self._state = state
        self._whole: set[bytes] = set()
        self._names: dict[bytes, set[bytes]] = {}
        self._subtrees: set[bytes] = set()
        self._queue: list[tuple[bytes, bytes]] = []
        for directory in hints.directories:
            self._add_whole(directory)
        for subtree in hints.subtrees:
            self._add_hinted_subtree(subtree)
        for path in state.unsettled():
            self._add_name(path)

    def __iter__(self) -> Iterator[Look]:
        """In catalog order; may be iterated once."""
        self._tree.forget()
        done: bytes | None = None
        below: bytes | None = None
        while self._queue:
            key, directory = heapq.heappop(self._queue)
            if key == done or (below is not None and _is_within(key, below)):
                continue
            done = key
            if directory in self._subtrees:
                below = key
                yield from self._subtree(directory)
            else:
                look = self._look(directory)
                self._follow(look)
                yield look

    def covered(self, path: bytes) -> bool:
        """Whether the entry at `path` was looked at."""
        directory, _, name = path.rpartition(b"/")
        if directory in self._whole or name in self._names.get(directory, ()):
            return True
        while True:
            if directory in self._subtrees:
                return True
            if not directory:
                return False
            directory = directory.rpartition(b"/")[0]

    def _add_whole(self, directory: bytes) -> None:
        """Look at a directory that the index knows; another is left out, or new, and shows in its parent."""
        known = self._state.entry(directory)
        if known is not None and known.kind == Kind.DIRECTORY:
            self._whole.add(directory)
            self._push(directory)
            self._add_name(directory)

    def _add_hinted_subtree(self, directory: bytes) -> None:
        known = self._state.entry(directory)
        if known is not None and known.kind == Kind.DIRECTORY:
            self._add_subtree(directory)
            self._add_name(directory)
        else:
            # New, so its parent shows it, and leads below it.
            self._add_whole(directory.rpartition(b"/")[0])

    def _add_name(self, path: bytes) -> None:
        """Look at one entry in its directory."""
        directory, _, name = path.rpartition(b"/")
        self._names.setdefault(directory, set()).add(name)
        self._push(directory)

    def _add_subtree(self, directory: bytes) -> None:
        self._subtrees.add(directory)
        self._push(directory)

    def _push(self, directory: bytes) -> None:
        heapq.heappush(self._queue, (directory_key(directory), directory))

    def _subtree(self, directory: bytes) -> Iterator[Look]:
        scanned = scan(self._tree, self._excluded, self._report, directory)
        return look_everywhere(scanned, self._state.listings(directory))

    def _look(self, directory: bytes) -> Look:
        indexed = self._state.listing(directory)
        if directory in self._whole:
            now = list_directory(self._tree, self._excluded, self._report, directory).entries
            return Look(directory, now, indexed)
        names = self._names[directory]
        indexed = [entry for entry in indexed if entry.name in names]
        found = [
            stat_entry(self._tree, self._report, join_path(directory, known.name), known) for known in indexed
        ]
        now = [entry for entry in found if entry is not None]
        return Look(directory, now, indexed)

    def _follow(self, look: Look) -> None:
        """Go into directories that are new here, and into what was below those that are gone."""
        now = directories_among(look.now)
        indexed = directories_among(look.indexed)
        for name in now.keys() | indexed.keys():
            if name and now.get(name) != indexed.get(name):
                self._add_subtree(join_path(look.directory, name))


def stat_entry(tree: Tree, report: ScanReport, path: bytes, indexed: Entry) -> Entry | None:
    """An entry of the index as it is now, None if it is gone or of a kind that is not stored."""
    try:
        entry = entry_of(indexed.name, tree.stat(path))
    except OSError as error:
        report.failed(path, error)
        return None
    return entry if entry.kind != Kind.TOMBSTONE else None


def directories_among(entries: Iterable[Entry]) -> dict[bytes, int]:
    """The directories among entries, with their inodes."""
    return {entry.name: entry.inode for entry in entries if entry.kind == Kind.DIRECTORY}


def _is_within(key: bytes, ancestor: bytes) -> bool:
    return not ancestor or key == ancestor or key.startswith(ancestor + b"\0")
