"""The tree of a volume at the moment of its image: scanned before, mended where it moved since."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from smsnapd.engine.spool import Spool
from smsnapd.model import Entry, Flag, Kind, Listing, directory_key, join_path
from smsnapd.volume.scan import Excludes, ScanReport, list_directory, scan
from smsnapd.volume.tree import Tree


class Names:
    """Every name in the tree, with what lstat tells of it at that moment or some time before.

    Deltas are told by it: what it has older than it was in the image is stored again, which does no harm. But
    it has all names of the image, so that each that goes is missed.
    """

    def __init__(self, tree: Tree, excludes: Excludes, directory: Path) -> None:
        """`directory` is for unnamed files."""
        self._tree = tree
        self._excludes = excludes
        self._spool = Spool(Listing, directory)
        self._empty = Spool(Listing, directory)
        self._inodes = array("Q")
        self._places = array("q")
        self._mended: dict[bytes, list[Entry]] = {}
        self._replaced: set[bytes] = set()
        self._fresh: set[bytes] = set()
        self.report = ScanReport()

    def close(self) -> None:
        """Drop it. May be called more than once."""
        self._spool.close()
        self._empty.close()

    def scan(self) -> None:
        """Look at everything."""
        # The way that the scan takes: what it passes by without a word is empty.
        ahead = [(b"", self._tree.stat(b"").st_ino)]
        for listing in scan(self._tree, self._excludes, self.report):
            while ahead:
                path, inode = ahead.pop()
                if path == listing.directory:
                    self._note(inode, self._spool.add(listing))
                    break
                self._note_empty(path, inode)
            below = _directories(listing.entries).items()
            ahead += [(join_path(listing.directory, name), inode) for name, inode in below][::-1]
        for path, inode in ahead:
            self._note_empty(path, inode)
        self._sort()

    def _note(self, inode: int, place: int) -> None:
        self._inodes.append(inode)
        self._places.append(place)

    def _note_empty(self, path: bytes, inode: int) -> None:
        self._note(inode, -1 - self._empty.add(Listing(path, [])))

    def _sort(self) -> None:
        order = sorted(range(len(self._inodes)), key=self._inodes.__getitem__)
        self._inodes = array("Q", map(self._inodes.__getitem__, order))
        self._places = array("q", map(self._places.__getitem__, order))

    def scan_again(self, beat: Callable[[], None]) -> None:
        """Look at everything anew, and forget what was seen; `beat` is called now and then."""
        self._mended, self.report = {}, ScanReport()
        self._replaced = {b""}
        self._take(b"", self.report, beat)

    def mend(self, moved: Iterable[int], beat: Callable[[], None]) -> None:
        """Look again at the directories with these inode numbers, and at what is new in them."""
        self._tree.forget()
        report = ScanReport()
        for inode in moved:
            for listing in self._known(inode):
                self._look_again(listing, report, beat)
        self.report.unreadable += report.unreadable

    def add(self, moved: Iterable[int]) -> None:
        """Look again, in a volume in use, at the directories with these inode numbers and at new ones.

        What is gone stays: it may be in the image. What was there before stays as it was seen first.
        """
        self._tree.forget()
        report = ScanReport()
        for listing in [listing for inode in moved for listing in self._known(inode)]:
            known = _directories(listing.entries)
            self._join(listing, list_directory(self._tree, self._excludes, report, listing.directory).entries)
            for name in _directories(self._mended[listing.directory]).keys() - known.keys():
                self._fresh.add(join_path(listing.directory, name))
        for path in sorted(self._fresh):
            for listing in scan(self._tree, self._excludes, report, path):
                self._join(Listing(listing.directory, []), listing.entries)
        self.report.unreadable += report.unreadable

    def _join(self, before: Listing, now: list[Entry]) -> None:
        known = {entry.name: entry for entry in self._mended.get(before.directory, before.entries)}
        for entry in now:
            if entry.name not in known or known[entry.name].kind != entry.kind:
                known[entry.name] = entry
        self._mended[before.directory] = sorted(known.values(), key=lambda entry: entry.name)

    def _known(self, inode: int) -> Iterator[Listing]:
        row = bisect_left(self._inodes, inode)
        while row < len(self._inodes) and self._inodes[row] == inode:
            place = self._places[row]
            yield self._spool.at(place) if place >= 0 else self._empty.at(-1 - place)
            row += 1

    def _take(self, below: bytes, report: ScanReport, beat: Callable[[], None]) -> None:
        for listing in scan(self._tree, self._excludes, report, below):
            self._mended[listing.directory] = listing.entries
            beat()

    def _look_again(self, before: Listing, report: ScanReport, beat: Callable[[], None]) -> None:
        beat()
        directory = before.directory
        entries = list_directory(self._tree, self._excludes, report, directory).entries
        self._mended[directory] = entries
        known, now = _directories(before.entries), _directories(entries)
        for name in known.keys() | now.keys():
            if known.get(name) != now.get(name):
                path = join_path(directory, name)
                self._replaced.add(path)
                if name in now:
                    self._take(path, report, beat)

    def listings(self, unsettled_from_ns: int) -> Iterator[Listing]:
        """The tree in catalog order; what was changed since then is marked as unsettled."""
        mended = sorted(self._mended, key=directory_key, reverse=True)
        for listing in self._spool:
            key = directory_key(listing.directory)
            while mended and directory_key(mended[-1]) < key:
                yield from self._marked(mended.pop(), unsettled_from_ns)
            if mended and mended[-1] == listing.directory:
                yield from self._marked(mended.pop(), unsettled_from_ns)
            elif not self._is_replaced(listing.directory):
                yield Listing(listing.directory, _marked(listing.entries, unsettled_from_ns))
        for directory in reversed(mended):
            yield from self._marked(directory, unsettled_from_ns)

    def _marked(self, directory: bytes, unsettled_from_ns: int) -> Iterator[Listing]:
        entries = self._mended[directory]
        if entries:
            yield Listing(directory, _marked(entries, unsettled_from_ns))

    def _is_replaced(self, directory: bytes) -> bool:
        while self._replaced and directory not in self._replaced:
            if not directory:
                return False
            directory = directory.rpartition(b"/")[0]
        return bool(self._replaced)


def _directories(entries: Iterable[Entry]) -> dict[bytes, int]:
    """The directories among entries, with their inodes."""
    return {entry.name: entry.inode for entry in entries if entry.kind == Kind.DIRECTORY and entry.name}


def _marked(entries: list[Entry], unsettled_from_ns: int) -> list[Entry]:
    return [
        msgspec.structs.replace(entry, flags=int(entry.flags | Flag.UNSETTLED))
        if entry.ctime_ns >= unsettled_from_ns
        else entry
        for entry in entries
    ]
