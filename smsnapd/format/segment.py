"""The columns of a catalog segment, and the bytes that they are (FORMAT.md, section 8).

What the values mean and which of them may be is not known here: `rules` holds them to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, compress, islice
from operator import add, ne, sub
from struct import Struct
from typing import Final

from smsnapd.format.columns import (
    MalformedError,
    Reader,
    decode_ints,
    decode_strings,
    encode_ints,
    encode_strings,
)
from smsnapd.model import BLOCK, Flag, Kind

ENTRY_LIMIT: Final = 1 << 20
"""Entries (and directories, and xattr sets) that a segment may have."""

PIECE_LIMIT: Final = 1 << 22
"""Extents that a segment may have, and data segments of sparse files: a file of 32 TiB in chunks of 8."""

CHUNK_LIMIT: Final = 32 * 1024 * 1024
"""Bytes that a chunk may have."""

CONTENT_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that a segment may have."""

_HEAD: Final = Struct("<4sB3sIII")
_MAGIC: Final = b"SMCT"
_VERSION: Final = 1
_SHIFT: Final = BLOCK.bit_length() - 1

_KIND: Final = (0, int(max(Kind)))
_FLAGS: Final = (0, int(max(Flag) * 2 - 1))
_MODE: Final = (0, 0o7777)
_U32: Final = (0, (1 << 32) - 1)
_U64: Final = (0, (1 << 64) - 1)
_I64: Final = (-(1 << 63), (1 << 63) - 1)
_NATURAL: Final = (0, (1 << 63) - 1)
_POSITIVE: Final = (1, (1 << 63) - 1)
_EXTENT: Final = (1, CHUNK_LIMIT // BLOCK)


@dataclass
class Columns:
    """The columns of a segment, in the order of FORMAT.md. Extents are in bytes, offsets not gaps."""

    directories: list[bytes]
    directory_counts: list[int]
    kinds: list[int]
    flags: list[int]
    names: list[bytes]
    mode: list[int]
    uid: list[int]
    gid: list[int]
    mtime_ns: list[int]
    ctime_ns: list[int]
    inode: list[int]
    links: list[int]
    rdev: list[int]
    targets: list[bytes]
    xattr_sets: list[bytes]
    xattr_numbers: list[int]
    piece_counts: list[int]
    piece_offsets: list[int]
    piece_lengths: list[int]
    extent_counts: list[int]
    chunks: list[int]
    offsets: list[int]
    lengths: list[int]
    slack: list[int]

    def pieces(self) -> int:
        """How many extents there are, or data segments of sparse files, if these are more."""
        return max(len(self.chunks), len(self.piece_offsets))

    def content_sizes(self) -> list[int]:
        """The bytes of each entry's content extents. There must be as many extents as the counts say."""
        ends = list(accumulate(self.lengths, initial=0))
        lasts = list(accumulate(self.extent_counts))
        return [
            ends[last] - ends[first + 1] if last > first else 0
            for first, last in zip(chain((0,), lasts), lasts, strict=False)
        ]


def join_columns(columns: Columns) -> bytes:
    """The segment that has `columns`. Raises `MalformedError` for numbers out of range."""
    c = columns
    return b"".join(
        (
            _HEAD.pack(_MAGIC, _VERSION, bytes(3), len(c.directories), len(c.names), len(c.xattr_sets)),
            encode_strings(c.directories),
            encode_ints(c.directory_counts, *_POSITIVE),
            encode_ints(c.kinds, *_KIND),
            encode_ints(c.flags, *_FLAGS),
            encode_strings(c.names),
            encode_ints(c.mode, *_MODE),
            encode_ints(c.uid, *_U32),
            encode_ints(c.gid, *_U32),
            encode_ints(c.mtime_ns, *_I64),
            encode_ints(c.ctime_ns, *_I64, c.mtime_ns),
            encode_ints(c.inode, *_U64),
            encode_ints(c.links, *_NATURAL),
            encode_ints(c.rdev, *_U64),
            encode_strings(c.targets),
            encode_strings(c.xattr_sets),
            encode_ints(c.xattr_numbers, 0, len(c.xattr_sets)),
            encode_ints(c.piece_counts, *_NATURAL),
            encode_ints(c.piece_offsets, *_NATURAL),
            encode_ints(c.piece_lengths, *_POSITIVE),
            encode_ints(c.extent_counts, *_NATURAL),
            encode_ints(c.chunks, *_U32),
            encode_ints(_blocks(_gaps(c)), *_I64),
            encode_ints(_blocks(c.lengths), *_EXTENT),
            encode_ints(c.slack, *_I64),
        )
    )


def parse_columns(data: bytes, chunks: int) -> Columns:
    """The columns of a segment, every number within its range. Raises `MalformedError`.

    `chunks` is the number of rows of the chunk table.
    """
    reader = Reader(data)
    magic, version, zero, directories, count, sets = _HEAD.unpack(reader.take(_HEAD.size))
    if magic != _MAGIC or version != _VERSION or any(zero) or len(data) > CONTENT_LIMIT:
        raise MalformedError("it is no segment of a version that is known")
    if count > ENTRY_LIMIT or max(directories, sets) > count:
        raise MalformedError("it has an impossible number of entries")
    ints = partial(decode_ints, reader, count)
    # Keyword arguments are evaluated in the order that they are written in, which is that of the columns.
    columns = Columns(
        directories=decode_strings(reader, directories),
        directory_counts=decode_ints(reader, directories, *_POSITIVE),
        kinds=ints(*_KIND),
        flags=ints(*_FLAGS),
        names=decode_strings(reader, count),
        mode=ints(*_MODE),
        uid=ints(*_U32),
        gid=ints(*_U32),
        mtime_ns=(mtime_ns := ints(*_I64)),
        ctime_ns=ints(*_I64, mtime_ns),
        inode=ints(*_U64),
        links=ints(*_NATURAL),
        rdev=ints(*_U64),
        targets=decode_strings(reader, count),
        xattr_sets=decode_strings(reader, sets),
        xattr_numbers=ints(0, sets),
        piece_counts=(piece_counts := ints(*_NATURAL)),
        piece_offsets=decode_ints(reader, pieces := _total(piece_counts), *_NATURAL),
        piece_lengths=decode_ints(reader, pieces, *_POSITIVE),
        extent_counts=(extent_counts := ints(*_NATURAL)),
        chunks=decode_ints(reader, extents := _total(extent_counts), 0, chunks - 1),
        offsets=_sizes(decode_ints(reader, extents, *_I64)),
        lengths=_sizes(decode_ints(reader, extents, *_EXTENT)),
        slack=ints(*_I64),
    )
    columns.offsets = _offsets(columns)
    if sum(columns.directory_counts) != count or reader.left:
        raise MalformedError("its entries or its bytes are more or fewer than it says")
    return columns


def _total(counts: list[int]) -> int:
    """The number of rows in the columns that `counts` counts; bounded before anything is made of it."""
    total = sum(counts)
    if total > PIECE_LIMIT:
        raise MalformedError("it has an impossible number of extents or data segments")
    return total


def _blocks(sizes: list[int]) -> list[int]:
    """Bytes as blocks."""
    if any(size % BLOCK for size in set(sizes)):
        raise MalformedError("an extent is not aligned to blocks")
    return [size >> _SHIFT for size in sizes] if any(sizes) else sizes


def _sizes(blocks: list[int]) -> list[int]:
    """Blocks as bytes."""
    return [number << _SHIFT for number in blocks] if any(blocks) else blocks


def _runs(columns: Columns) -> list[int]:
    """The first rows of the runs of extents that lie in one chunk, and the end."""
    chunks = columns.chunks
    changes = compress(range(1, len(chunks)), map(ne, chunks, islice(chunks, 1, None)))
    return [0, *changes, len(chunks)]


def _gaps(columns: Columns) -> list[int]:
    """Each extent's offset less the end of the one before it, if that lies in the same chunk."""
    offsets = columns.offsets
    ends = map(add, offsets, columns.lengths)
    gaps = [*offsets[:1], *map(sub, islice(offsets, 1, None), ends)]
    for start in islice(_runs(columns), 1, None):
        gaps[start : start + 1] = offsets[start : start + 1]
    return gaps


def _offsets(columns: Columns) -> list[int]:
    """Each extent's offset, from its gap, which stands in its place so far."""
    gaps = columns.offsets
    steps = [*gaps[:1], *map(add, islice(gaps, 1, None), columns.lengths)]
    offsets: list[int] = []
    starts = _runs(columns)
    for start, end in zip(starts, islice(starts, 1, None), strict=False):
        steps[start : start + 1] = gaps[start : start + 1]
        offsets += accumulate(steps[start:end])
    return offsets
