"""The catalog of an image: its root and its pieces, with tar headers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.reuse import check_kept
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.image.storage import ImageStorage
from smsnapd.format.image import Image
from smsnapd.format.manifest import Manifest
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Listing
from smsnapd.repository import Repository
from smsnapd.volume.tarball.header import header

SEGMENT_PIECES: Final = 65_536
"""Data segments and extents of pieces after which a catalog segment ends: memory holds one's."""


def add_pieces(
    catalog: CatalogBuilder, storage: ImageStorage, image: Image, root: Entry, time_ns: int
) -> None:
    """Record the image that `storage` has taken, with `root` for the directory that its pieces lie in."""
    for entries in _batches(storage, image, root, time_ns):
        catalog.add(Listing(b"", _with_headers(storage, entries)))
        catalog.finish()


class _Graced(Protocol):
    """What is asked for: of which volume, and how long garbage stays on a list."""

    @property
    def volume(self) -> str: ...

    @property
    def grace_s(self) -> float: ...


def check_fresh(
    tenure: Tenure,
    repository: Repository,
    asked: _Graced,
    table: ChunkTable,
    catalog: CatalogBuilder,
    manifest: Manifest,
) -> None:
    """After half the grace period, see that nothing was taken for garbage that is to be referred to."""
    lasted_s = tenure.lasted_s
    if lasted_s > asked.grace_s / 2:
        fresh = [table[number] for number in catalog.rows if number >= table.first_new]
        check_kept(repository, asked.volume, fresh, manifest.catalog, lasted_s=lasted_s)


def _batches(storage: ImageStorage, image: Image, root: Entry, time_ns: int) -> Iterator[list[Entry]]:
    """The root and the pieces, as many at a time as one catalog segment is to tell."""
    batch, size = [root], 0
    for piece in storage.cells.pieces(image, time_ns):
        batch.append(piece)
        size += len(piece.segments) + len(piece.content)
        if size >= SEGMENT_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _with_headers(storage: ImageStorage, entries: list[Entry]) -> list[Entry]:
    """The entries, their tar headers stored in chunks apart from what they contain."""
    placed: list[Entry] = []
    waiting: list[tuple[Entry, bytes]] = []
    size = 0
    for entry in entries:
        head = header(entry.name, entry, b"", b"")
        if waiting and size + len(head) > CHUNK_TARGET * 2:
            placed += _placed(storage.headers(b"".join(text for _, text in waiting)), waiting)
            waiting, size = [], 0
        waiting.append((entry, head))
        size += len(head)
    if waiting:
        placed += _placed(storage.headers(b"".join(text for _, text in waiting)), waiting)
    return placed


def _placed(chunk: int, waiting: list[tuple[Entry, bytes]]) -> Iterator[Entry]:
    offset = 0
    for entry, head in waiting:
        yield msgspec.structs.replace(entry, header=Extent(chunk, offset, len(head)))
        offset += len(head)
