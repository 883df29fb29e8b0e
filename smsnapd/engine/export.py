"""A recovery point as a plain tar archive: the extents of its entries, joined (FORMAT.md, section 9)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.model import Entry, Extent, Kind, Listing, directory_key, join_path
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener

END_MARKER: Final = bytes(1024)
CHUNKS_HELD: Final = 4


class TarArchive:
    """The archive of a recovery point's tree. GNU tar extracts it, with all that the format can say.

    The catalog has been checked when this is made; `size` is the archive's, in bytes.
    """

    def __init__(self, repository: Repository, history: History, snapshot: SnapshotSummary) -> None:
        self._tree = SnapshotTree(repository, history.chain(snapshot.id))
        self._snapshot = snapshot
        self._used: set[int] = set()
        self.size = len(END_MARKER)
        for listing in self._tree.listings():
            for entry in listing.entries:
                for extent in _extents(entry):
                    self._used.add(extent.chunk)
                    self.size += extent.length

    def write(self, write: Callable[[memoryview], object], progress: Progress) -> None:
        """Write it, piece by piece."""
        progress.phase("export", files=self._snapshot.files, bytes=self._snapshot.bytes)
        reader = ExtentReader(self._tree, self._tree.opener(self._used))
        for entry in tar_order(self._tree.listings()):
            for extent in _extents(entry):
                write(reader.read(extent))
            progress.advance(files=int(entry.kind == Kind.REGULAR), bytes=entry.size)
        write(memoryview(END_MARKER))


def export_tar(
    repository: Repository,
    history: History,
    snapshot: SnapshotSummary,
    write: Callable[[memoryview], object],
    progress: Progress,
) -> int:
    """Write the archive of a recovery point's tree through `write`; returns its bytes."""
    archive = TarArchive(repository, history, snapshot)
    archive.write(write, progress)
    return archive.size


def _extents(entry: Entry) -> tuple[Extent, ...]:
    assert entry.header is not None
    return (entry.header, *entry.content)


def tar_order(listings: Iterable[Listing]) -> Iterator[Entry]:
    """Entries in catalog order, but each directory right before the first entry below it.

    GNU tar sets a directory's times and mode when it comes to a member outside of it, so all of a
    directory must be in one piece.
    """
    waiting: list[tuple[bytes, Entry]] = []
    for directory, entries in listings:
        key = directory_key(directory)
        for entry in entries:
            if entry.kind == Kind.DIRECTORY:
                heapq.heappush(waiting, (directory_key(join_path(directory, entry.name)), entry))
        while waiting and waiting[0][0] <= key:
            yield heapq.heappop(waiting)[1]
        yield from (entry for entry in entries if entry.kind != Kind.DIRECTORY)
    while waiting:
        yield heapq.heappop(waiting)[1]


class ExtentReader:
    """Reads extents; the last few chunks stay open, since neighbours mostly share them."""

    def __init__(self, tree: SnapshotTree, opener: ChunkOpener) -> None:
        self._tree = tree
        self._opener = opener
        self._held: OrderedDict[int, bytes] = OrderedDict()

    def read(self, extent: Extent) -> memoryview:
        """The bytes of an extent."""
        content = self._held.get(extent.chunk)
        if content is None:
            content = self._opener.open(self._tree.chunks[extent.chunk])
            self._held[extent.chunk] = content
            if len(self._held) > CHUNKS_HELD:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(extent.chunk)
        return memoryview(content)[extent.offset : extent.offset + extent.length]
