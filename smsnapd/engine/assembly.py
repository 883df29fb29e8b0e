"""From what the workers packed to what a snapshot records: entries, tombstones, and what was missed.

Directories come in catalog order, so a directory that vanished is known before anything below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.changes import Change, DirectoryChange
from smsnapd.format.manifest import Issue
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, join_path
from smsnapd.state import is_alias
from smsnapd.volume.tarball.read import ISSUE_CHANGED, ISSUE_LARGE, ISSUE_VANISHED, THIS_PACK, Packed

_UNSETTLED: Final = int(Flag.UNSETTLED)
_NOT_SURE: Final = int(Flag.UNSETTLED | Flag.CHANGED)


class Placed(NamedTuple):
    """What came of one changed entry, and the number of the chunk that its pack became."""

    packed: Packed
    chunk: int


class Recorded(NamedTuple):
    """One directory: what its catalog says of it, and its full listing from now on (empty if it is gone)."""

    listing: Listing
    after: Listing
    before: list[Entry]


Redo = Callable[[bytes, Entry], Placed]
"""Stores one entry again, apart: (directory, entry as scanned or as an alias) to its outcome."""


class Assembler:
    """Turns changes and their outcomes into recorded directories."""

    def __init__(self, before_of: Callable[[bytes], list[Entry]], unsettled_from_ns: int, redo: Redo) -> None:
        self._before_of = before_of
        self._unsettled_from_ns = unsettled_from_ns
        self._redo = redo
        self._removed: set[bytes] = set()
        self._lost: set[bytes] = set()
        self._first_names: dict[bytes, bytes] = {}
        self.incomplete: list[Issue] = []
        self.vanished: list[bytes] = []
        self.lost_subtree = False
        self.stored = 0
        self.deleted = 0

    def directory(
        self, change: DirectoryChange, outcomes: Iterator[Placed], settled: list[Entry]
    ) -> Recorded:
        """Record one directory; takes as many outcomes as it has changed entries."""
        directory = change.directory
        placed = [next(outcomes) for _ in change.changed]
        before = self._before_of(directory)
        after = {entry.name: entry for entry in before}
        after.update((entry.name, entry) for entry in settled if entry.name in after)
        gone = [name for name in change.gone if after.pop(name, None) is not None]
        recorded: list[Entry] = []
        if self.is_lost(directory):
            self._lose_all(directory, change)
            return Recorded(Listing(directory, []), Listing(directory, []), before)
        for item, outcome in zip(change.changed, placed, strict=True):
            entry = self._outcome(directory, item, outcome)
            if entry is not None:
                recorded.append(entry)
                after[entry.name] = entry
            elif outcome.packed.issue == ISSUE_VANISHED and after.pop(item.entry.name, None) is not None:
                gone.append(item.entry.name)
        recorded += self._tombstones(directory, gone)
        recorded.sort(key=_name)
        self._note_removed(directory, before, recorded)
        listing = Listing(directory, recorded)
        return Recorded(listing, Listing(directory, sorted(after.values(), key=_name)), before)

    def is_lost(self, directory: bytes) -> bool:
        """Whether a directory, or one that it lies in, vanished during the run."""
        while directory and self._lost:
            if directory in self._lost:
                return True
            directory = directory.rpartition(b"/")[0]
        return False

    def _lose_all(self, directory: bytes, change: DirectoryChange) -> None:
        """The directory vanished after it was scanned: nothing below it is recorded."""
        for item in change.changed:
            self.vanished.append(join_path(directory, item.entry.name))

    def _outcome(self, directory: bytes, item: Change, outcome: Placed) -> Entry | None:
        """The entry to record, None if it cannot be."""
        path = join_path(directory, item.entry.name)
        if is_alias(item.entry) and (item.entry.target in self._first_names):
            outcome = self._redo_alias(directory, item.entry)
        elif outcome.packed.issue == ISSUE_LARGE:
            outcome = self._redo(directory, item.entry)
        entry, issue = outcome.packed
        if entry is None:
            self._missing(path, item.entry, issue)
            return None
        if item.entry.links > 1 and not is_alias(item.entry) and not _leads(entry, item.entry):
            self._first_names[path] = b""
        self.stored += 1
        return self._finished(path, entry, issue, outcome.chunk)

    def _missing(self, path: bytes, entry: Entry, issue: str) -> None:
        if issue == ISSUE_VANISHED:
            self.vanished.append(path)
        else:
            self.incomplete.append(Issue(path, issue))
        if entry.kind == Kind.DIRECTORY:
            self._lost.add(path)
            self.lost_subtree = True
        elif entry.links > 1 and not is_alias(entry):
            # Its aliases would name an entry that is not there: the next of them takes its part.
            self._first_names[path] = b""

    def _redo_alias(self, directory: bytes, entry: Entry) -> Placed:
        first = self._first_names[entry.target]
        if first:
            return self._redo(directory, msgspec.structs.replace(entry, target=first))
        outcome = self._redo(directory, msgspec.structs.replace(entry, flags=0, target=b""))
        if outcome.packed.entry is not None and _leads(outcome.packed.entry, entry):
            self._first_names[entry.target] = join_path(directory, entry.name)
        return outcome

    def _finished(self, path: bytes, entry: Entry, issue: str, chunk: int) -> Entry:
        """The entry with its place, and marked if it must be looked at again."""
        flags = entry.flags
        if issue:
            self.incomplete.append(Issue(path, issue))
        if issue == ISSUE_CHANGED:
            flags |= _NOT_SURE
        elif entry.ctime_ns >= self._unsettled_from_ns and not is_alias(entry):
            flags |= _UNSETTLED
        header = entry.header
        assert header is not None
        content = entry.content
        if content and content[0].chunk == THIS_PACK:
            content = (Extent(chunk, content[0].offset, content[0].length),)
        return msgspec.structs.replace(
            entry, flags=flags, header=Extent(chunk, header.offset, header.length), content=content
        )

    def _tombstones(self, directory: bytes, gone: list[bytes]) -> list[Entry]:
        self.deleted += len(gone)
        if directory in self._removed:
            # A tombstone above, or an entry that is no directory now, removes what was below it.
            return []
        return [Entry(name, Kind.TOMBSTONE) for name in gone]

    def _note_removed(self, directory: bytes, before: list[Entry], recorded: list[Entry]) -> None:
        """Remember the directories that are none any more, so that what lay below needs no tombstones."""
        were = {entry.name for entry in before if entry.kind == Kind.DIRECTORY}
        if were and directory not in self._removed:
            were &= {entry.name for entry in recorded if entry.kind != Kind.DIRECTORY}
        self._removed.update(join_path(directory, name) for name in were)


def _leads(entry: Entry, scanned: Entry) -> bool:
    """Whether further names may be recorded as aliases of `entry`: it is still of the inode they were seen with."""
    return entry.inode == scanned.inode and entry.links > 1


def _name(entry: Entry) -> bytes:
    return entry.name
