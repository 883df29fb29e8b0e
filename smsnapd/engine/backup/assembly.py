"""From what the workers packed to what a snapshot records: entries, tombstones, and what was missed.

Directories come in catalog order, so a directory that vanished is known before anything below it, and the
first name of a file before its others. What is recorded is a tree, whatever happened since the scan: each
entry lies in a directory, and each alias has a first name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.backup.changes import DirectoryChange
from smsnapd.errors import VolumeError
from smsnapd.format.manifest import Issue
from smsnapd.model import Entry, Flag, Kind, Listing, join_path
from smsnapd.state import has_names, is_alias
from smsnapd.volume.tarball.read import (
    HEADER,
    ISSUE_CHANGED,
    ISSUE_LARGE,
    ISSUE_VANISHED,
    READ,
    Packed,
)

_TOMBSTONE: Final = int(Kind.TOMBSTONE)
_UNSETTLED: Final = int(Flag.UNSETTLED)
_CHANGED: Final = int(Flag.CHANGED)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)
_NOT_SURE: Final = int(Flag.UNSETTLED | Flag.CHANGED)


class Recorded(NamedTuple):
    """One directory: what its catalog says of it, and its full listing from now on (empty if it is gone)."""

    listing: Listing
    after: Listing
    before: list[Entry]


Redo = Callable[[bytes, Entry, int], Packed]
"""Stores one entry again, apart: (directory, entry as scanned or complete, READ or HEADER) to its outcome."""


class Assembler:
    """Turns changes and their outcomes into recorded directories."""

    def __init__(self, before_of: Callable[[bytes], list[Entry]], unsettled_from_ns: int, redo: Redo) -> None:
        self._before_of = before_of
        self._unsettled_from_ns = unsettled_from_ns
        self._redo = redo
        # Directories that are none any more, so that what lay below needs no tombstones.
        self._removed: set[bytes] = set()
        # New directories that vanished: nothing below them can be recorded.
        self._lost: set[bytes] = set()
        # First names, as scanned, that do not lead their group: the names that do instead, b"" if none yet.
        self._leaders: dict[bytes, bytes] = {}
        # First names, as indexed, that lead their group no more; and who has their content now.
        self._parted: set[bytes] = set()
        self._heirs: dict[bytes, bytes] = {}
        self.incomplete: list[Issue] = []
        self.vanished: list[bytes] = []
        self.stored = 0
        self.deleted = 0

    def directory(self, change: DirectoryChange, packed: list[Packed], settled: list[Entry]) -> Recorded:
        """Record one directory, by what became of each of its changed entries."""
        directory = change.directory
        before = self._before_of(directory)
        if self._is_lost(directory):
            self._lose(directory, change)
            return Recorded(Listing(directory, []), Listing(directory, []), before)
        if not before:
            listing = Listing(directory, list(self._recorded(change, packed, {})))
            return Recorded(listing, listing, before)
        after = {entry.name: entry for entry in before}
        after.update((entry.name, entry) for entry in settled if entry.name in after)
        recorded = [Entry(name, _TOMBSTONE) for name in change.gone if name in after]
        self._note(directory, recorded, after)
        for entry in self._recorded(change, packed, after):
            self._note(directory, [entry], after)
            recorded.append(entry)
        listing = Listing(directory, self._needed(directory, recorded))
        self._note_removed(directory, before, recorded)
        return Recorded(listing, Listing(directory, sorted(after.values(), key=_name)), before)

    def _recorded(
        self, change: DirectoryChange, packed: list[Packed], before: dict[bytes, Entry]
    ) -> Iterator[Entry]:
        """What to record of the changed entries, in their order; most are as they were scanned."""
        directory, settled_before_ns = change.directory, self._unsettled_from_ns
        for (scanned, _, _), outcome in zip(change.changed, packed, strict=True):
            entry, issue = outcome
            if (
                issue
                or entry is None
                or entry.ctime_ns >= settled_before_ns
                or entry.flags & _NOT_SURE
                or entry.kind != scanned.kind
                or (entry.flags & _ALIAS and self._leaders)
                or not (
                    entry.links == scanned.links == 1 or entry.kind == _DIRECTORY or _leads(entry, scanned)
                )
            ):
                entry = self._outcome(directory, scanned, outcome, before.get(scanned.name))
                if entry is None:
                    continue
            else:
                self.stored += 1
            yield entry

    def _is_lost(self, directory: bytes) -> bool:
        while directory and self._lost:
            if directory in self._lost:
                return True
            directory = directory.rpartition(b"/")[0]
        return False

    def _lose(self, directory: bytes, change: DirectoryChange) -> None:
        """The directory is new, and vanished after it was scanned: nothing below it is recorded."""
        for item in change.changed:
            path = join_path(directory, item.entry.name)
            self.vanished.append(path)
            self._leads_not(path, item.entry)

    def _note(self, directory: bytes, recorded: list[Entry], after: dict[bytes, Entry]) -> None:
        """Take `recorded` into the directory as it will be; note first names that lead no group any more."""
        for entry in recorded:
            old = after.pop(entry.name, None)
            if entry.kind:
                after[entry.name] = entry
            led = old is not None and has_names(old) and not is_alias(old)
            if old is not None and led and (is_alias(entry) or not _leads(entry, old)):
                self._parted.add(join_path(directory, entry.name))

    def _outcome(self, directory: bytes, scanned: Entry, outcome: Packed, old: Entry | None) -> Entry | None:
        """What to record: the entry, a tombstone if it is gone, None if what the index has stays."""
        path = join_path(directory, scanned.name)
        if is_alias(scanned) and scanned.target in self._leaders:
            outcome = self._redo_alias(directory, scanned)
        elif outcome.issue == ISSUE_LARGE:
            outcome = self._redo(directory, scanned, READ)
        entry, issue = outcome
        if entry is None or (entry.kind != scanned.kind == Kind.DIRECTORY):
            self._leads_not(path, scanned)
            return self._missing(directory, scanned, issue or ISSUE_VANISHED, old)
        if not _leads(entry, scanned):
            self._leads_not(path, scanned)
        return self._finished(path, entry, issue)

    def _leads_not(self, path: bytes, scanned: Entry) -> None:
        """Nothing can be an alias of `path`: the next name of its group takes its part."""
        if has_names(scanned) and not is_alias(scanned):
            self._leaders[path] = b""

    def _missing(self, directory: bytes, scanned: Entry, issue: str, old: Entry | None) -> Entry | None:
        """What to record of an entry that could not be stored.

        A directory that was there before stays, as it was scanned, and with it what is unchanged below: when
        the run began it was there. Its absence is for the next scan to see, and what has taken its place.
        """
        path = join_path(directory, scanned.name)
        if not path and old is None:
            # Without it there is no tree, and the recovery point would be none.
            why = issue.removeprefix("unreadable: ")
            raise VolumeError("read the root of the volume", why, "run this as a user who may enter it")
        if issue == ISSUE_VANISHED:
            self.vanished.append(path)
        else:
            self.incomplete.append(Issue(path, issue))
        if scanned.kind == Kind.DIRECTORY:
            if old is not None and old.kind == Kind.DIRECTORY:
                return self._as_scanned(directory, scanned, old) if issue == ISSUE_VANISHED else None
            self._lost.add(path)
        if old is None:
            return None
        if issue == ISSUE_VANISHED:
            return Entry(old.name, _TOMBSTONE)
        return self._kept(directory, scanned, old)

    def _as_scanned(self, directory: bytes, scanned: Entry, old: Entry) -> Entry:
        """What to record of a directory that the scan saw and that is gone: nobody can ask for its xattrs."""
        xattrs = old.xattrs if scanned.inode == old.inode else ()
        outcome = self._redo(directory, msgspec.structs.replace(scanned, xattrs=xattrs), HEADER)
        assert outcome.entry is not None
        return self._finished(join_path(directory, scanned.name), outcome.entry, "")

    def _kept(self, directory: bytes, scanned: Entry, old: Entry) -> Entry | None:
        """What to record of a name that cannot be read: nothing, unless it is an alias of what has parted."""
        if not is_alias(old) or old.target not in self._parted:
            return None
        leader = scanned.target if is_alias(scanned) and scanned.inode == old.inode else b""
        leader = self._leaders.get(leader, leader) or self._heirs.get(old.target, b"")
        if leader:
            entry = msgspec.structs.replace(old, target=leader)
        else:
            entry = msgspec.structs.replace(self._indexed(old.target), name=old.name)
            self._heirs[old.target] = join_path(directory, old.name)
        outcome = self._redo(directory, entry, HEADER)
        assert outcome.entry is not None
        return self._finished(join_path(directory, old.name), outcome.entry, "")

    def _indexed(self, path: bytes) -> Entry:
        directory, _, name = path.rpartition(b"/")
        return next(entry for entry in self._before_of(directory) if entry.name == name)

    def _redo_alias(self, directory: bytes, scanned: Entry) -> Packed:
        leader = self._leaders[scanned.target]
        if leader:
            return self._redo(directory, msgspec.structs.replace(scanned, target=leader), READ)
        outcome = self._redo(directory, msgspec.structs.replace(scanned, flags=0, target=b""), READ)
        if outcome.entry is not None and _leads(outcome.entry, scanned):
            self._leaders[scanned.target] = join_path(directory, scanned.name)
        return outcome

    def _finished(self, path: bytes, entry: Entry, issue: str) -> Entry:
        """The entry, marked if it must be looked at again."""
        flags = entry.flags
        if not issue and flags & _CHANGED:
            # A large file that would not hold still: its content was stored before its header was.
            issue = ISSUE_CHANGED
        if issue:
            self.incomplete.append(Issue(path, issue))
        if issue == ISSUE_CHANGED:
            flags |= _NOT_SURE
        elif entry.ctime_ns >= self._unsettled_from_ns and not is_alias(entry):
            flags |= _UNSETTLED
        self.stored += 1
        return entry if flags == entry.flags else msgspec.structs.replace(entry, flags=flags)

    def _needed(self, directory: bytes, recorded: list[Entry]) -> list[Entry]:
        """`recorded` in order, without tombstones where something above removes what was below it anyway."""
        self.deleted += sum(entry.kind == _TOMBSTONE for entry in recorded)
        if directory in self._removed:
            recorded = [entry for entry in recorded if entry.kind]
        return sorted(recorded, key=_name)

    def _note_removed(self, directory: bytes, before: list[Entry], recorded: list[Entry]) -> None:
        were = {entry.name for entry in before if entry.kind == Kind.DIRECTORY}
        if were and directory not in self._removed:
            were &= {entry.name for entry in recorded if entry.kind != Kind.DIRECTORY}
        self._removed.update(join_path(directory, name) for name in were)


def _leads(entry: Entry, scanned: Entry) -> bool:
    """Whether further names may be aliases of `entry`: it is still of the inode that they were seen with."""
    return entry.inode == scanned.inode and entry.links > 1


def _name(entry: Entry) -> bytes:
    return entry.name
