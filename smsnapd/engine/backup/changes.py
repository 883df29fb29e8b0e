"""What differs between the volume now and the last commit: a scan held against the local index.

The scan is one pass; what it finds is spooled to an unnamed file, so memory does not grow with the
tree. A second pass (`ChangeSet.directories`) settles what needs the whole picture: which name of
a hard-link group comes first, and what was only renamed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.backup.looks import Look
from smsnapd.engine.spool import Spool
from smsnapd.model import (
    CHUNK_TARGET,
    Entry,
    Flag,
    Kind,
    directory_key,
    join_path,
)
from smsnapd.state import State, has_names, is_alias
from smsnapd.volume.tarball.read import HEADER, READ

# Plain integers where millions of entries pass: arithmetic of IntFlag is Python code.
_ALIAS: Final = int(Flag.ALIAS)
_NOT_SURE: Final = int(Flag.UNSETTLED | Flag.CHANGED)
_REGULAR: Final = int(Kind.REGULAR)


class Change(NamedTuple):
    """A new or changed entry as scanned, and what the index has for it.

    `mode` is READ, or HEADER if `entry` is complete but for its header: nothing but its place changed.
    """

    entry: Entry
    previous: Entry | None
    mode: int = READ


class DirectoryChange(NamedTuple):
    """What changed in one directory: entries sorted by name, and the names that are gone."""

    directory: bytes
    changed: list[Change]
    gone: list[bytes]


Recheck = Callable[[bytes, Entry, Entry], Entry | None]
"""Reads an unsettled entry again: (directory, scanned, indexed) to its settled form, None if it differs."""


Restat = Callable[[bytes, Entry], Entry | None]
"""Looks at one name now: (path, indexed entry) to the entry, None if it is gone."""


class _Names:
    """The names of inodes with several, as the looks of a hinted run met them."""

    def __init__(self) -> None:
        self.links: dict[int, int] = {}
        self.seen: dict[int, set[bytes]] = {}
        self.gone: dict[int, set[bytes]] = {}

    def meet(self, entry: Entry, path: bytes) -> None:
        if has_names(entry):
            self.links[entry.inode] = entry.links
            self.seen.setdefault(entry.inode, set()).add(path)

    def miss(self, entry: Entry, path: bytes) -> None:
        if has_names(entry):
            self.gone.setdefault(entry.inode, set()).add(path)


class _GoneFiles:
    """Regular files that are gone, by inode: a file that was renamed finds its content here.

    They lie in a spool; memory holds 16 bytes for each.
    """

    def __init__(self, spool: Spool[Entry]) -> None:
        self._spool = spool
        self._inodes = array("Q")
        self._places = array("Q")
        self._sorted = True

    def add(self, entry: Entry) -> None:
        """Take note of one."""
        self._inodes.append(entry.inode)
        self._places.append(self._spool.add(entry))
        self._sorted = False

    def find(self, inode: int) -> Entry | None:
        """One with this inode, None if there is none."""
        if not self._sorted:
            order = sorted(range(len(self._inodes)), key=self._inodes.__getitem__)
            self._inodes = array("Q", map(self._inodes.__getitem__, order))
            self._places = array("Q", map(self._places.__getitem__, order))
            self._sorted = True
        row = bisect_left(self._inodes, inode)
        found = row < len(self._inodes) and self._inodes[row] == inode
        return self._spool.at(self._places[row]) if found else None


class _Groups:
    """The first name of each inode that has several."""

    def __init__(self) -> None:
        self._by_moment: dict[tuple[int, int], bytes] = {}
        self._changed: dict[int, bytes] = {}

    def first(self, path: bytes, entry: Entry, *, known: bool) -> bytes:
        """The first name of the group of `path`; that itself if it is the first.

        One that is `known` from the index alone may be in a directory that cannot be looked at: it shares
        what has its ctime, too. All else that was scanned under one inode is one file.
        """
        moment = entry.inode, entry.ctime_ns
        first = self._by_moment.get(moment) or (not known and self._changed.get(entry.inode)) or path
        self._by_moment.setdefault(moment, first)
        if not known:
            self._changed.setdefault(entry.inode, first)
        return first


class ChangeSet:
    """The differences found by one scan."""

    def __init__(self, state: State, *, reread: bool = False, restat: Restat | None = None) -> None:
        """With `reread` no entry is taken as unchanged for its stat alone: all are read again.

        `restat` is for looks that do not go everywhere: it looks at further names of an inode.
        """
        self._restat = restat
        self._names = _Names()
        self._state = state
        self._reread = reread
        directory = state.path.parent
        self._found = Spool(DirectoryChange, directory)
        self._gone = Spool(Entry, directory)
        self._gone_files = _GoneFiles(self._gone)
        # Inodes with names that changed, and the latest ctime that a look saw of them.
        self._touched: dict[int, int] = {}
        # Unchanged by stat, and yet different: their inode must not vouch for them.
        self._differs: set[bytes] = set()
        self._kept: Callable[[bytes], bool] = lambda path: False
        self._left: frozenset[int] = frozenset()
        self.changed = 0
        self.deleted = 0
        self.files_to_read = 0
        self.bytes_to_read = 0
        self.bytes_to_compare = 0
        """Those among them of large files that are in the index under the same inode."""
        self.settled: dict[bytes, list[Entry]] = {}

    def leave(self, chunks: frozenset[int]) -> None:
        """What lies in these chunks of the index is to be read and stored anew, changed or not."""
        self._left = chunks

    @property
    def takes_stat_for_it(self) -> bool:
        """Whether what `stat` shows as unchanged is: else every entry is to be looked at."""
        return not self._reread and not self._left

    def close(self) -> None:
        """Drop the spools. May be called more than once."""
        self._found.close()
        self._gone.close()

    def look_ahead(self, entries: int, size: int, renew: Callable[[], None]) -> None:
        """All is known already."""

    @property
    def is_counted(self) -> bool:
        """Whether the counts are final."""
        return True

    @property
    def empty(self) -> bool:
        """Whether nothing differs."""
        return not self.changed and not self.deleted

    def compare(
        self,
        looks: Iterable[Look],
        kept: Callable[[bytes], bool],
        recheck: Recheck,
    ) -> None:
        """Hold what the looks found against the index.

        `kept` says of a path that it could not be looked at: what the index has of it and below stays.
        """
        self._kept = kept
        for directory, now, indexed in looks:
            if now or not kept(directory):
                self._directory(directory, now, indexed, recheck)

    def _directory(self, directory: bytes, new: list[Entry], old: list[Entry], recheck: Recheck) -> None:
        before = {entry.name: entry for entry in old}
        changed: list[Change] = []
        settled: list[Entry] = []
        for entry in new:
            previous = before.pop(entry.name, None)
            if previous is not None and self._left and _lies_in(previous, self._left):
                changed.append(Change(entry, None))
            elif previous is None or not same_stat(entry, previous):
                changed.append(Change(entry, previous))
            elif self._reread or previous.flags & _NOT_SURE:
                fresh = recheck(directory, entry, previous)
                if fresh is None:
                    self._differs.add(join_path(directory, entry.name))
                    changed.append(Change(entry, previous))
                elif fresh.flags != previous.flags:
                    settled.append(fresh)
        if settled:
            self.settled[directory] = settled
        for name in [name for name in before if self._kept(join_path(directory, name))]:
            del before[name]
        if changed or before:
            self._record(directory, changed, before)

    def _record(self, directory: bytes, changed: list[Change], gone: dict[bytes, Entry]) -> None:
        if self._restat is not None:
            self._note_names(directory, changed, gone)
        for entry, previous, _ in changed:
            self._touch(entry, entry.ctime_ns)
            if previous is not None:
                self._touch(previous)
            if entry.kind == _REGULAR:
                self.files_to_read += 1
                self.bytes_to_read += entry.size
                if entry.size >= CHUNK_TARGET and previous is not None and previous.inode == entry.inode:
                    self.bytes_to_compare += entry.size
        for entry in gone.values():
            self._touch(entry)
            if entry.kind == Kind.REGULAR and (entry.content or is_alias(entry)):
                self._gone_files.add(entry)
        self.changed += len(changed)
        self.deleted += len(gone)
        self._found.add(DirectoryChange(directory, changed, sorted(gone)))

    def _note_names(self, directory: bytes, changed: list[Change], gone: dict[bytes, Entry]) -> None:
        for entry, previous, _ in changed:
            self._names.meet(entry, join_path(directory, entry.name))
            if previous is not None and previous.inode != entry.inode:
                self._names.miss(previous, join_path(directory, entry.name))
        for entry in gone.values():
            self._names.miss(entry, join_path(directory, entry.name))

    def lacks_names(self) -> bool:
        """Whether some inode has a name that neither the looks nor the index know: only a scan finds it.

        Names that were unknown before, outside of the volume or left out, do not count.
        """
        for inode, links in self._names.links.items():
            known = set(self._state.names_of(inode))
            before = next((self._state.entry(path) for path in known), None)
            unknown_before = max(before.links - len(known), 0) if before is not None else 0
            now = (known - self._names.gone.get(inode, set())) | self._names.seen[inode]
            if links - len(now) > unknown_before:
                return True
        return False

    def _touch(self, entry: Entry, seen_ns: int = 0) -> None:
        if has_names(entry):
            self._touched[entry.inode] = max(seen_ns, self._touched.get(entry.inode, 0))

    def directories(self) -> Iterator[DirectoryChange]:
        """The changes in catalog order, complete: first names and aliases told apart, renames found."""
        groups = _Groups()
        for directory, changed, gone in self._with_forced():
            changes = [self._settle(directory, change, groups) for change in changed]
            yield DirectoryChange(directory, changes, gone)

    def _with_forced(self) -> Iterator[DirectoryChange]:
        """The changes, with the unchanged names of inodes whose set of names changed, in catalog order."""
        rest = sorted(self._forced(), key=directory_key, reverse=True)
        for change in self._found:
            while rest and directory_key(rest[-1]) < directory_key(change.directory):
                yield self._force(DirectoryChange(rest.pop(), [], []))
            if rest and rest[-1] == change.directory:
                rest.pop()
                yield self._force(change)
            else:
                yield change
        for directory in reversed(rest):
            yield self._force(DirectoryChange(directory, [], []))

    def _forced(self) -> set[bytes]:
        """The directories of all indexed names of inodes that were touched."""
        return {path.rpartition(b"/")[0] for inode in self._touched for path in self._state.names_of(inode)}

    def _force(self, change: DirectoryChange) -> DirectoryChange:
        """The change of a directory, and the touched names in it that are neither changed nor gone."""
        directory, changed, gone = change
        present = {item.entry.name for item in changed} | set(gone)
        together, missing = list(changed), list(gone)
        for entry in self._state.listing(directory):
            if entry.inode in self._touched and has_names(entry) and entry.name not in present:
                now = self._as_it_is(directory, entry)
                if now is None:
                    # Gone, or another file, since the looks: it cannot stay a name of a file that changed.
                    missing.append(entry.name)
                else:
                    together.append(Change(now, entry))
        together.sort(key=lambda item: item.entry.name)
        return DirectoryChange(directory, together, sorted(missing))

    def _as_it_is(self, directory: bytes, indexed: Entry) -> Entry | None:
        """A name that the looks did not show as changed; looks that did not go there look at it now."""
        path = join_path(directory, indexed.name)
        now = _scanned(indexed) if self._restat is None else self._restat(path, indexed)
        return _scanned(indexed) if now is None and self._kept(path) else now

    def _settle(self, directory: bytes, change: Change, groups: _Groups) -> Change:
        entry, previous, _ = change
        path = join_path(directory, entry.name)
        differs = path in self._differs
        if has_names(entry):
            known = previous is not None and same_stat(entry, previous) and self._kept(path)
            first = groups.first(path, entry, known=known)
            if first != path:
                alias = msgspec.structs.replace(entry, flags=_ALIAS, target=first)
                return Change(alias, None, READ)
            # It may have changed after the look at this name: a look at another of its names saw that.
            differs = differs or (not known and self._touched.get(entry.inode, 0) > entry.ctime_ns)
        previous = self._origin(entry, previous)
        vouched = not (self._reread or differs)
        if previous is not None and vouched and _same_content(entry, previous):
            return Change(_moved(entry, previous), previous, HEADER)
        return Change(entry, previous, READ)

    def _origin(self, entry: Entry, previous: Entry | None) -> Entry | None:
        """The indexed entry that may hold this entry's content: the same inode's, by whatever name."""
        if previous is None or previous.inode != entry.inode:
            previous = self._gone_files.find(entry.inode) or previous
        if previous is not None and is_alias(previous):
            previous = self._state.entry(previous.target)
        if previous is None or previous.kind != entry.kind or is_alias(previous):
            return None
        return previous


def _scanned(entry: Entry) -> Entry:
    """An indexed entry as a scan would have shown it."""
    return msgspec.structs.replace(
        entry, flags=0, target=b"", xattrs=(), segments=(), header=None, content=(), digest=b""
    )


def _lies_in(entry: Entry, chunks: frozenset[int]) -> bool:
    """Whether anything of an entry lies in one of these chunks; no large file is read for its end's sake."""
    if entry.size >= CHUNK_TARGET:
        return False
    places = (entry.header, *entry.content) if entry.header else ()
    return any(extent.chunk in chunks for extent in places)


def same_stat(entry: Entry, indexed: Entry) -> bool:
    """Whether `stat` shows no difference; ctime moves with every change that `stat` can show."""
    return (
        entry.ctime_ns == indexed.ctime_ns
        and entry.inode == indexed.inode
        and entry.mtime_ns == indexed.mtime_ns
        and (entry.size == indexed.size or entry.kind != Kind.REGULAR)
        and entry.mode == indexed.mode
        and entry.kind == indexed.kind
        and entry.uid == indexed.uid
        and entry.gid == indexed.gid
        and entry.links == indexed.links
        and entry.rdev == indexed.rdev
    )


def _same_content(entry: Entry, previous: Entry) -> bool:
    """Whether the inode is untouched since it was stored as `previous`: only its place may differ."""
    return previous.header is not None and not previous.flags & _NOT_SURE and same_stat(entry, previous)


def _moved(entry: Entry, previous: Entry) -> Entry:
    """`previous`, complete, under the name of `entry`."""
    return msgspec.structs.replace(previous, name=entry.name, header=None)


def is_large(entry: Entry) -> bool:
    """Whether a scanned entry's content goes into chunks of its own."""
    return entry.size >= CHUNK_TARGET and entry.kind == _REGULAR and not is_alias(entry)
