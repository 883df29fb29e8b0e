"""The volume as it is now, beside a stored tree: looked at by stat alone where nobody has written since."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from smsnapd.engine.lookback.diff import Pair, pairs
from smsnapd.engine.lookback.sameness import is_untouched
from smsnapd.engine.trees.placed import Placed, PlacedListing
from smsnapd.engine.trees.reading import WINDOW_BYTES, Contents
from smsnapd.model import Entry, Kind, join_path
from smsnapd.volume.scan import VANISHED, Excludes, ScanReport, entry_of, scan
from smsnapd.volume.tarball.metadata import other_entry, regular_entry
from smsnapd.volume.tree import Tree

_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)


class LiveVolume:
    """Reads the volume at `root`. `report` tells afterwards what could not be looked at. Close it."""

    def __init__(self, root: bytes, excludes: Excludes) -> None:
        self._tree = Tree(root)
        self._excludes = excludes
        self.report = ScanReport()

    def close(self) -> None:
        """Close its descriptors."""
        self._tree.close()

    def pairs(
        self, stored: Iterable[PlacedListing], left_out: Collection[bytes] = frozenset()
    ) -> Iterator[Pair]:
        """`stored` and the volume, merged by path; of what cannot be looked at there is nothing.

        Nor is there of what was left out on purpose when `stored` was made, with all that is below.
        """
        for path, before, after in pairs(stored, self._listings()):
            if before is None and left_out and _is_within(path, left_out):
                continue
            if after is None:
                if not self._is_unknown(path):
                    yield path, before, None
            elif before is not None and is_untouched(before.entry, after.entry):
                yield path, before, before._replace(first=after.first)
            else:
                yield from self._looked_at(path, before, after)

    def has(self, path: bytes) -> bool:
        """Whether something is at `path`, or may be: a directory above it cannot be looked at."""
        try:
            self._tree.stat(path)
        except OSError as error:
            return error.errno not in VANISHED
        return True

    def is_directory(self, path: bytes) -> bool:
        """Whether a directory is at `path`."""
        try:
            return stat.S_ISDIR(self._tree.stat(path).st_mode)
        except OSError:
            return False

    def untouched(self, path: bytes, stored: Entry) -> Entry | None:
        """What is at `path`, with all metadata, if nobody has written to it since it was stored."""
        try:
            now = entry_of(stored.name, self._tree.stat(path))
            return self._entry(path, now) if is_untouched(stored, now) else None
        except OSError:
            return None

    def open_file(self, path: bytes) -> int:
        """A descriptor for reading, the caller's; OSError."""
        return self._tree.open_file(path)

    def is_as(self, contents: Contents, path: bytes, stored: Placed) -> bool:
        """Whether what is at `path` is of the kind, and if a file has the bytes, of `stored`."""
        now = entry_of(stored.entry.name, self._tree.stat(path))
        if is_untouched(stored.entry, now):
            return True
        if now.kind != stored.entry.kind or now.size != stored.entry.size:
            return False
        if now.kind == Kind.SYMLINK:
            return self._tree.readlink(path) == stored.entry.target
        return now.kind != _REGULAR or self.have_same_bytes(contents, path, stored)

    def have_same_bytes(self, contents: Contents | None, path: bytes, stored: Placed) -> bool:
        """Whether the file at `path` has the bytes of `stored`; no, if these cannot be read."""
        if contents is None:
            return False
        try:
            descriptor = self._tree.open_file(path)
        except OSError as error:
            self.report.failed(path, error)
            return False
        with open(descriptor, "rb", buffering=0) as file:
            return all(_filled(file.fileno(), len(window)) == window for window in contents.windows(stored))

    def _listings(self) -> Iterator[PlacedListing]:
        firsts: dict[int, bytes] = {}
        for directory, entries in scan(self._tree, self._excludes, self.report):
            yield PlacedListing(directory, [_named(directory, entry, firsts) for entry in entries])

    def _looked_at(self, path: bytes, before: Placed | None, after: Placed) -> Iterator[Pair]:
        """With what stat does not tell: attributes, target, holes."""
        try:
            yield path, before, after._replace(entry=self._entry(path, after.entry))
        except OSError as error:
            self.report.failed(path, error)
            if error.errno in VANISHED and before is not None:
                yield path, before, None

    def _entry(self, path: bytes, scanned: Entry) -> Entry:
        if scanned.kind == _REGULAR:
            descriptor = self._tree.open_file(path)
            try:
                return regular_entry(scanned, descriptor, os.fstat(descriptor))
            finally:
                os.close(descriptor)
        directory, _, name = path.rpartition(b"/")
        found, error = other_entry(
            scanned, self._tree.open_directory(directory), name or b".", self._tree.device
        )
        if error is not None:
            self.report.failed(path, error)
        return found

    def _is_unknown(self, path: bytes) -> bool:
        return any(
            path == unread or not unread or path.startswith(unread + b"/")
            for unread, _ in self.report.unreadable
        )


def _is_within(path: bytes, places: Collection[bytes]) -> bool:
    while path and path not in places:
        path = path.rpartition(b"/")[0]
    return bool(path)


def _named(directory: bytes, entry: Entry, firsts: dict[int, bytes]) -> Placed:
    if entry.links <= 1 or entry.kind == _DIRECTORY:
        return Placed(entry, None)
    return Placed(entry, None, firsts.setdefault(entry.inode, join_path(directory, entry.name)))


def _filled(descriptor: int, count: int) -> bytes:
    """The next `count` bytes of an open file, fewer only at its end."""
    pieces = []
    while count and (piece := os.read(descriptor, count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def same_bytes(one: LiveVolume, other: LiveVolume, path: bytes) -> bool:
    """Whether a file has the same bytes in both; raises OSError."""
    with (
        open(one.open_file(path), "rb", buffering=0) as first,
        open(other.open_file(path), "rb", buffering=0) as second,
    ):
        while piece := _filled(first.fileno(), WINDOW_BYTES):
            if piece != _filled(second.fileno(), WINDOW_BYTES):
                return False
        return not _filled(second.fileno(), 1)
