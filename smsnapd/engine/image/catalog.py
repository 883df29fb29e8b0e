"""The catalog of an image: its root and its pieces, with tar headers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.image.storage import ImageStorage
from smsnapd.format.image import Image
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Listing
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
