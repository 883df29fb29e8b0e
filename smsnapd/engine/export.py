"""A recovery point as a plain tar archive: the extents of its entries, joined (FORMAT.md, section 9)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.progress import Progress
from smsnapd.engine.tree import SnapshotTree
from smsnapd.model import Entry, Extent, Kind, Listing, directory_key, join_path
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener

END_MARKER: Final = bytes(1024)
CHUNKS_HELD: Final = 4


def export_tar(
    repository: Repository,
    history: History,
    snapshot: SnapshotSummary,
    write: Callable[[memoryview], object],
    progress: Progress,
) -> int:
    """Write the archive of a recovery point's tree through `write`; returns its bytes.

    GNU tar extracts it, with everything that the format can say. The catalog was checked before the
    first byte is written.
    """
    tree = SnapshotTree(repository, history.chain(snapshot.id))
    used = {
        extent.chunk
        for listing in tree.listings()
        for entry in listing.entries
        for extent in (entry.header, *entry.content)
        if extent is not None
    }
    progress.phase("export", files=snapshot.files, bytes=snapshot.bytes)
    reader = _ExtentReader(tree, tree.opener(used))
    written = 0
    for entry in tar_order(tree.listings()):
        assert entry.header is not None
        for extent in (entry.header, *entry.content):
            write(reader.read(extent))
            written += extent.length
        progress.advance(files=int(entry.kind == Kind.REGULAR), bytes=entry.size)
    write(memoryview(END_MARKER))
    return written + len(END_MARKER)


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


class _ExtentReader:
    """Reads extents; the last few chunks stay open, since neighbours mostly share them."""

    def __init__(self, tree: SnapshotTree, opener: ChunkOpener) -> None:
        self._tree = tree
        self._opener = opener
        self._held: OrderedDict[int, bytes] = OrderedDict()

    def read(self, extent: Extent) -> memoryview:
        content = self._held.get(extent.chunk)
        if content is None:
            content = self._opener.open(self._tree.chunks[extent.chunk])
            self._held[extent.chunk] = content
            if len(self._held) > CHUNKS_HELD:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(extent.chunk)
        return memoryview(content)[extent.offset : extent.offset + extent.length]
