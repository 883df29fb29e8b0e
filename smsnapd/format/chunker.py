"""Where chunks begin and end: packs of small files, ranges of large ones (FORMAT.md, section 9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from blake3 import blake3

from smsnapd.model import CHUNK_TARGET, Segment

PACK_MINIMUM: Final = CHUNK_TARGET // 4
PACK_MAXIMUM: Final = CHUNK_TARGET * 2

_HASH_BYTES: Final = 8
_HASH_RANGE: Final = 1 << 8 * _HASH_BYTES

_T = TypeVar("_T")


class Packer(Generic[_T]):
    """Cuts a stream of small files into packs; each pack becomes one chunk. Holds one pack.

    `boundary_key` is the volume's (32 bytes). From 2 MiB on a pack ends behind an entry whose path's keyed
    hash says so: a file that is added or gone moves no boundary but the next ones. It ends before an
    entry that would take it beyond 16 MiB.
    """

    def __init__(self, boundary_key: bytes) -> None:
        self._key = boundary_key
        self._pack: list[_T] = []
        self._size = 0

    def add(self, path: bytes, tar_bytes: int, item: _T) -> list[list[_T]]:
        """Take the next file; the packs that end with it or before it, mostly none.

        `tar_bytes` are those of its header and content, below 32 MiB; `item` stands for it in the pack.
        """
        finished = []
        if self._size + tar_bytes > PACK_MAXIMUM and self._pack:
            finished.append(self.take())
        self._pack.append(item)
        self._size += tar_bytes
        if self._size >= PACK_MINIMUM and _is_boundary(path, tar_bytes, self._key):
            finished.append(self.take())
        return finished

    def take(self) -> list[_T]:
        """The pack that has not ended yet; empty if there is none."""
        pack, self._pack, self._size = self._pack, [], 0
        return pack


def cut_ranges(size: int, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The logical ranges, start and end in bytes, of a large file; each becomes one chunk.

    They begin at the multiples of 8 MiB. `segments`, rising, is where the file has data (of a file that
    is not sparse one segment): ranges that are all hole are left out.
    """
    starts = [number * CHUNK_TARGET for number in _touched(segments)]
    return [(start, min(size, start + CHUNK_TARGET)) for start in starts]


def split_segments(segments: Iterable[Segment], lengths: Iterable[int]) -> Iterator[list[Segment]]:
    """Which stretches of a file each of its content extents holds, in order.

    `segments`, rising, is where the file has data; the extents, of `lengths` bytes, are that data joined. How
    they were cut need not be known. Padding at the end of the last one stands for nothing.
    """
    rest = iter(segments)
    offset = left = 0
    for length in lengths:
        room = length
        pieces: list[Segment] = []
        while room:
            if not left:
                offset, left = next(rest, (0, 0))
                if not left:
                    break
            taken = min(room, left)
            pieces.append(Segment(offset, taken))
            offset, left, room = offset + taken, left - taken, room - taken
        yield pieces


def _is_boundary(path: bytes, size: int, key: bytes) -> bool:
    """Whether a pack may end behind this entry: as likely as its bytes are many."""
    number = int.from_bytes(blake3(path, key=key).digest(_HASH_BYTES), "little")
    return number * CHUNK_TARGET < size * _HASH_RANGE


def _touched(segments: Iterable[Segment]) -> Iterator[int]:
    """The numbers of the ranges that hold data, rising."""
    after = 0
    for offset, length in segments:
        if length:
            first = max(after, offset // CHUNK_TARGET)
            after = max(after, (offset + length - 1) // CHUNK_TARGET + 1)
            yield from range(first, after)
