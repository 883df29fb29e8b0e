"""What an image holds of each cell: its units with data, their digest, and where the data lie in chunks.

The map lies in unnamed files, so memory does not grow with the device.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.format.image import Image
from smsnapd.model import Entry, Extent, Flag, Kind, Segment
from smsnapd.volume.block.cells import DIGEST, NO_DIGEST, data_length, runs
from smsnapd.volume.block.masks import CELL, UNIT, Masks, mapped_file

_PLACE: Final = struct.Struct("<II")  # number of the chunk, offset in it


class CellMap:
    """One image of a device of `size` bytes, being made; empty at first."""

    def __init__(self, size: int, directory: Path) -> None:
        self.size: Final = size
        self.masks: Final = Masks(size, directory)
        self._digests = mapped_file(self.masks.cells * DIGEST, directory)
        self._places = mapped_file(self.masks.cells * _PLACE.size, directory)

    def close(self) -> None:
        """Drop it. May be called more than once."""
        self.masks.close()
        self._digests.close()
        self._places.close()

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.masks.cells

    def digests(self, start: int, end: int) -> bytes:
        """The digests of some cells, one behind the other."""
        return self._digests[start * DIGEST : end * DIGEST]

    def set_digests(self, start: int, digests: bytes) -> None:
        """Set those of the cells from `start` on."""
        self._digests[start * DIGEST : start * DIGEST + len(digests)] = digests

    def chunk(self, cell: int) -> int:
        """The number of the chunk that has the data of a cell."""
        return _PLACE.unpack_from(self._places, cell * _PLACE.size)[0]  # type: ignore[no-any-return]

    def put(self, cell: int, mask: int, digest: bytes) -> None:
        """A cell as it was read; its data, if they are others than before, are placed then."""
        self.masks[cell] = mask
        self.set_digests(cell, digest)

    def place(self, cell: int, chunk: int, offset: int) -> int:
        """The data of a cell lie there; the offset behind them."""
        _PLACE.pack_into(self._places, cell * _PLACE.size, chunk, offset)
        return offset + self.length(cell)

    def length(self, cell: int) -> int:
        """Bytes of the data of a cell."""
        return data_length(cell, self.masks[cell], self.size)

    def forget_digests(self, chunks: set[int]) -> None:
        """Take no cell of these chunks as known: it will be stored anew."""
        for cell in range(self.cells) if chunks else ():
            if self.masks[cell] and self.chunk(cell) in chunks:
                self.set_digests(cell, NO_DIGEST)

    def pieces(self, image: Image, moment_ns: int) -> Iterator[Entry]:
        """The image's pieces, complete but for the header."""
        for number, (name, size) in enumerate(image.pieces()):
            first = number * image.piece // CELL
            last = first - (-size // CELL)
            segments = tuple(_joined(self._segments(first, last)))
            yield Entry(
                name=name,
                kind=int(Kind.REGULAR),
                flags=int(Flag.SPARSE),
                mode=0o600,
                size=size,
                mtime_ns=moment_ns,
                ctime_ns=moment_ns,
                inode=number + 1,
                segments=segments,
                content=tuple(self._extents(first, last)),
            )

    def _segments(self, first: int, last: int) -> Iterator[Segment]:
        for cell in range(first, last):
            mask = self.masks[cell]
            start = (cell - first) * CELL
            end = min(CELL, self.size - cell * CELL)
            for low, high in runs(mask) if mask else ():
                yield Segment(start + low * UNIT, min(high * UNIT, end) - low * UNIT)

    def _extents(self, first: int, last: int) -> Iterator[Extent]:
        chunk, start, end = -1, 0, 0
        for cell in range(first, last):
            if not self.masks[cell]:
                continue
            number, offset = _PLACE.unpack_from(self._places, cell * _PLACE.size)
            if (number, offset) != (chunk, end):
                if end:
                    yield Extent(chunk, start, end - start)
                chunk, start = number, offset
            end = offset + self.length(cell)
        if end:
            yield Extent(chunk, start, end - start)


def _joined(segments: Iterator[Segment]) -> Iterator[Segment]:
    """Segments, those that touch made one."""
    last: Segment | None = None
    for segment in segments:
        if last is not None and last.offset + last.length == segment.offset:
            last = Segment(last.offset, last.length + segment.length)
            continue
        if last is not None:
            yield last
        last = segment
    if last is not None:
        yield last


class Taken(NamedTuple):
    """What came of taking an image over: the bytes that it uses of each chunk, the cells left out."""

    used: dict[int, int]
    left_out: list[int]


def fill(cells: CellMap, image: Image, pieces: Iterable[Entry]) -> Taken:
    """Take over an image that was stored before; its digests are for the caller to set.

    A cell whose data do not lie in one extent, or are not whole units, is left out: it must be stored again.
    """
    taken = Taken({}, [])
    for number, piece in enumerate(pieces):
        base = number * image.piece // CELL
        for cell, mask, extent in _cells_of(piece, base, cells.size):
            if extent is None or mask is None:
                taken.left_out.append(cell)
            elif cell < cells.cells:
                cells.masks[cell] = mask
                cells.place(cell, extent.chunk, extent.offset)
                taken.used[extent.chunk] = taken.used.get(extent.chunk, 0) + extent.length
    return taken


def _cells_of(piece: Entry, base: int, size: int) -> Iterator[tuple[int, int | None, Extent | None]]:
    """Number, mask and place of each cell that a piece holds; None for what is not whole."""
    extents = iter(piece.content)
    chunk, position, left = -1, 0, 0
    for cell, mask, length in _data_cells(piece, base):
        if not left:
            chunk, position, left = next(extents, Extent(-1, 0, length))
        is_whole = mask is not None and length == data_length(cell, mask, size) and length <= left
        yield cell, mask, Extent(chunk, position, length) if is_whole else None
        rest = length
        while rest > left:
            rest -= left
            chunk, position, left = next(extents, Extent(-1, 0, rest))
        position, left = position + rest, left - rest


def _data_cells(piece: Entry, base: int) -> Iterator[tuple[int, int | None, int]]:
    """Each cell with data: its number, mask (None if that is not of whole units), and bytes of data."""
    current, mask, length, whole = -1, 0, 0, True
    for cell, at, taken in _parts(piece.segments):
        if cell != current:
            if length:
                yield base + current, mask if whole else None, length
            current, mask, length, whole = cell, 0, 0, True
        whole = whole and at % UNIT == 0
        mask |= ((1 << -(-(at + taken) // UNIT)) - 1) & -(1 << at // UNIT)
        length += taken
    if length:
        yield base + current, mask if whole else None, length


def _parts(segments: Iterable[Segment]) -> Iterator[tuple[int, int, int]]:
    """The parts of segments in each cell: its number in the piece, offset in it, length."""
    for offset, length in segments:
        start, end = offset, offset + length
        while start < end:
            cell, at = divmod(start, CELL)
            taken = min(end - start, CELL - at)
            yield cell, at, taken
            start += taken
