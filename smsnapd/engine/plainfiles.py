"""A recovery point as plain files, and a sidecar of what these cannot carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from smsnapd.engine.export import ExtentReader
from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.format.chunker import split_segments
from smsnapd.model import Entry, Flag, Kind, data_segments, join_path
from smsnapd.repository import Repository
from smsnapd.volume.archive.compress import Packing
from smsnapd.volume.archive.sidecar import entry_line, head_line, object_key

LOSSES: Final = (
    "hard links",
    "extended attributes",
    "empty directories",
    "symbolic links",
    "special files",
    "holes",
)
"""What plain files cannot carry, in the order in which it is told."""

_ZEROS: Final = memoryview(bytes(1024 * 1024))


class Sink(Protocol):
    """Where plain files go. Raises `SmsnapError`; nothing is overwritten unless it was told so."""

    def file(self, key: str, entry: Entry, pieces: Iterable[memoryview]) -> None:
        """Write a file: its key below the prefix, its metadata, its contents, holes as zeros."""

    def finish(self) -> None:
        """Return when every file is there."""

    def sidecar(self, write_into: Callable[[Callable[[memoryview], object]], None]) -> None:
        """Write the sidecar with what `write_into` gives to the function that it is called with."""


class Exported(NamedTuple):
    """What was written, and how many of each kind the plain files alone cannot carry."""

    files: int
    bytes: int
    lost: Mapping[str, int]


def datasync_metadata(entry: Entry) -> dict[str, str]:
    """An object's metadata, under the keys that AWS DataSync, Storage Gateway and FSx for Lustre use."""
    return {
        "file-permissions": f"{entry.mode:04o}",
        "file-owner": str(entry.uid),
        "file-group": str(entry.gid),
        "file-mtime": f"{entry.mtime_ns}ns",
        "user-agent": "smsnapd",
    }


class PlainFiles:
    """The plain files of a recovery point."""

    def __init__(self, repository: Repository, history: History, snapshot: SnapshotSummary) -> None:
        self._tree = SnapshotTree(repository, history.chain(snapshot.id))
        self._snapshot = snapshot

    def write(self, sink: Sink, progress: Progress) -> Exported:
        """Write them all, and behind them the sidecar: where that is, everything is."""
        progress.phase("export", files=self._snapshot.files, bytes=self._snapshot.bytes)
        used, firsts = self._survey()
        reader = ExtentReader(self._tree, self._tree.opener(used))
        files = size = 0
        for path, entry in self._entries():
            if entry.kind != Kind.REGULAR:
                continue
            content = firsts[entry.target] if entry.flags & Flag.ALIAS else entry
            sink.file(object_key(path), entry, _contents(reader, content))
            files, size = files + 1, size + entry.size
            progress.advance(files=1, bytes=entry.size)
        sink.finish()
        sink.sidecar(self._write_sidecar)
        return Exported(files, size, self._losses())

    def _entries(self) -> Iterator[tuple[bytes, Entry]]:
        for listing in self._tree.listings():
            for entry in listing.entries:
                yield join_path(listing.directory, entry.name), entry

    def _survey(self) -> tuple[set[int], dict[bytes, Entry]]:
        """The chunks that are needed; the first names of files that have several."""
        used: set[int] = set()
        firsts: dict[bytes, Entry] = {}
        for path, entry in self._entries():
            used.update(extent.chunk for extent in entry.content)
            if entry.kind == Kind.REGULAR and entry.links > 1 and not entry.flags & Flag.ALIAS:
                firsts[path] = entry
        return used, firsts

    def _losses(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        filled: set[bytes] = set()
        directories: list[bytes] = []
        for listing in self._tree.listings():
            filled.add(listing.directory)
            for entry in listing.entries:
                counts.update(_losses_of(entry))
                if entry.kind == Kind.DIRECTORY and entry.name:
                    directories.append(join_path(listing.directory, entry.name))
        counts["empty directories"] = sum(path not in filled for path in directories)
        return {kind: counts[kind] for kind in LOSSES if counts[kind]}

    def _write_sidecar(self, write: Callable[[memoryview], object]) -> None:
        packing = Packing("gzip", write)
        try:
            users, groups = self._tree.owners()
            head = head_line(self._snapshot.volume, self._snapshot.id, users, groups)
            packing.write(memoryview(head))
            for path, entry in self._entries():
                packing.write(memoryview(entry_line(path, entry)))
            packing.finish()
        finally:
            packing.close()


def _losses_of(entry: Entry) -> Iterator[str]:
    if entry.flags & Flag.ALIAS:
        yield "hard links"
    if entry.xattrs:
        yield "extended attributes"
    if entry.flags & Flag.SPARSE:
        yield "holes"
    if entry.kind == Kind.SYMLINK:
        yield "symbolic links"
    if entry.kind in (Kind.FIFO, Kind.CHARACTER, Kind.BLOCK):
        yield "special files"


def _contents(reader: ExtentReader, entry: Entry) -> Iterator[memoryview]:
    position = 0
    pieces = split_segments(data_segments(entry), (extent.length for extent in entry.content))
    for extent, stretches in zip(entry.content, pieces, strict=True):
        content, start = reader.read(extent), 0
        for offset, length in stretches:
            yield from _zeros(offset - position)
            yield content[start : start + length]
            start, position = start + length, offset + length
    yield from _zeros(entry.size - position)


def _zeros(count: int) -> Iterator[memoryview]:
    while count > 0:
        piece = _ZEROS[:count]
        yield piece
        count -= len(piece)
