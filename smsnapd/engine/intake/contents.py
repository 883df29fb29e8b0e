"""What files hold, cut into chunks as it streams by: small ones packed, large ones at fixed offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, NoReturn

from smsnapd.engine.chain.chunkwriter import ChunkWriter
from smsnapd.errors import DamageError
from smsnapd.model import BLOCK, CHUNK_TARGET, Extent, Segment

PACK_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that a pack of small files may have."""

_PIECE: Final = 1024 * 1024

Read = Callable[[int], bytes]
"""At most so many bytes more, at least one; b"" only behind the data."""


class Stored(NamedTuple):
    """Where a file's data lies: `segments` of a sparse one, else None; extents by the writer's numbers."""

    segments: tuple[Segment, ...] | None
    extents: tuple[Extent, ...]


class Contents:
    """Stores the contents of files, one after the other."""

    def __init__(self, chunks: ChunkWriter, what: str) -> None:
        self._chunks = chunks
        self._what = what
        self._pack = bytearray()
        self._pack_number = 0

    def store(self, size: int, segments: tuple[Segment, ...] | None, read: Read) -> Stored:
        """Read the data of a file, that of `segments`, joined, or all of `size` bytes; store it."""
        given = (Segment(0, size),) if segments is None else segments
        kept = aligned(given, size)
        pieces = self._pieces(given, kept, read)
        count = sum(segment.length for segment in kept)
        if not count:
            extents: tuple[Extent, ...] = ()
        elif count < CHUNK_TARGET:
            extents = (self._packed(b"".join(pieces)),)
        else:
            extents = tuple(self._cut(kept, pieces))
        is_whole = segments is None or not size or kept == (Segment(0, size),)
        return Stored(None if is_whole else kept, extents)

    def finish(self) -> None:
        """Store the last pack."""
        if self._pack:
            self._chunks.put(self._pack_number, bytes(self._pack))
            self._pack.clear()

    def _packed(self, data: bytes) -> Extent:
        length = len(data) + -len(data) % BLOCK
        if len(self._pack) + length > PACK_LIMIT:
            self.finish()
        if not self._pack:
            self._pack_number = self._chunks.reserve()
        offset = len(self._pack)
        self._pack += data
        self._pack += bytes(length - len(data))
        if len(self._pack) >= CHUNK_TARGET:
            number = self._pack_number
            self.finish()
            return Extent(number, offset, length)
        return Extent(self._pack_number, offset, length)

    def _cut(self, segments: tuple[Segment, ...], pieces: Iterator[bytes]) -> Iterator[Extent]:
        left = b""
        for wanted in _range_sizes(segments):
            data = bytearray(left)
            while len(data) < wanted:
                data += next(pieces)
            left = bytes(data[wanted:])
            del data[wanted:]
            data += bytes(-wanted % BLOCK)
            yield Extent(self._chunks.add(bytes(data)), 0, len(data))

    def _pieces(self, given: tuple[Segment, ...], kept: tuple[Segment, ...], read: Read) -> Iterator[bytes]:
        """The data of `kept`: that of `given`, which is read, and zeros where these are wider."""
        rest = iter(given)
        segment = next(rest, None)
        for offset, length in kept:
            position, end = offset, offset + length
            while segment is not None and segment.offset < end:
                if segment.offset > position:
                    yield bytes(segment.offset - position)
                yield from self._exactly(segment.length, read)
                position = segment.offset + segment.length
                segment = next(rest, None)
            if position < end:
                yield bytes(end - position)

    def _exactly(self, count: int, read: Read) -> Iterator[bytes]:
        while count:
            piece = read(min(count, _PIECE))
            if not piece:
                self._short()
            count -= len(piece)
            yield piece

    def _short(self) -> NoReturn:
        raise DamageError(self._what, "a file in it ends too early")


def aligned(segments: tuple[Segment, ...], size: int) -> tuple[Segment, ...]:
    """Rising segments, widened to whole blocks or the end of the file, and joined where they touch then."""
    kept: list[Segment] = []
    for offset, length in segments:
        begin = offset - offset % BLOCK
        end = min(offset + length + -(offset + length) % BLOCK, size)
        if kept and begin <= kept[-1].offset + kept[-1].length:
            begin = kept.pop().offset
        if end > begin:
            kept.append(Segment(begin, end - begin))
    return tuple(kept)


def _range_sizes(segments: tuple[Segment, ...]) -> Iterator[int]:
    """Bytes of data in each range of 8 MiB that has any, the ranges of `format.chunker.cut_ranges`."""
    current, count = 0, 0
    for offset, length in segments:
        position, end = offset, offset + length
        while position < end:
            number = position // CHUNK_TARGET
            if number != current and count:
                yield count
                count = 0
            current = number
            stop = min(end, (number + 1) * CHUNK_TARGET)
            count += stop - position
            position = stop
    if count:
        yield count
