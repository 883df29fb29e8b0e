"""Catalogs: listings to segments and back, cut at a size that a reader can hold (FORMAT.md, section 8)."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, compress, islice, repeat
from operator import itemgetter, sub
from struct import Struct
from typing import Final

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.columns import MalformedError, Reader
from smsnapd.format.rules import check_columns, check_places
from smsnapd.format.segment import (
    CONTENT_LIMIT,
    ENTRY_LIMIT,
    PIECE_LIMIT,
    Columns,
    join_columns,
    parse_columns,
)
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, Segment, Xattr, directory_key

SEGMENT_ENTRIES: Final = 32_768
"""Entries of a finished segment, at most."""

SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a finished segment, about and at most; an entry that is larger has a segment of its own."""

_NAME_SIZE: Final = Struct("<H")
_VALUE_SIZE: Final = Struct("<I")
_TOMBSTONE: Final = int(Kind.TOMBSTONE)
_SYMLINK: Final = int(Kind.SYMLINK)
_ALIAS: Final = int(Flag.ALIAS)
_WRITE: Final = "write a catalog segment"
_NAME_LIMIT: Final = (1 << 16) - 1


class OversizeError(SmsnapError):
    """Entries do not fit into one segment."""


def encode_segment(listings: Sequence[Listing], rows: dict[int, int] | None = None) -> bytes:
    """The segment that holds `listings`, which are in catalog order.

    Chunk numbers are rows of the chunk table; or, if `rows` is given, any numbers: it maps them to rows, and
    a number that it lacks gets the next one. Digests are left out, xattrs are sorted, and nothing but
    the name of a tombstone is kept. Raises `OversizeError` for more than one segment may have, and
    `SmsnapError` for entries that no catalog may have.
    """
    try:
        columns, sizes = _gather(listings)
        if rows is not None:
            columns.chunks = _renumbered(columns.chunks, rows)
        data = join_columns(columns)
        check_columns(columns, sizes)
    except MalformedError as error:
        raise SmsnapError(_WRITE, str(error)) from error
    if len(data) > CONTENT_LIMIT or len(sizes) > ENTRY_LIMIT or columns.pieces() > PIECE_LIMIT:
        raise OversizeError(_WRITE, "its extents, data segments or bytes are more than a segment may have")
    return data


def decode_segment(
    data: bytes, chunk_base: int = 0, chunks: int = 1 << 32, contents: Sequence[int] | None = None
) -> list[Listing]:
    """The listings of a segment, with `chunk_base` added to their chunk numbers.

    `chunks` is the number of rows of the chunk table that it goes with, `contents` the bytes of the content
    of each, which no extent goes beyond. Raises `DamageError` for bytes that are no segment or break a
    rule of FORMAT.md; needs at most about 1 GB for the worst of them.
    """
    try:
        columns = parse_columns(data, chunks)
        sizes = _sizes(columns)
        check_columns(columns, sizes)
        if contents is not None:
            check_places(columns, contents)
        return _listings(columns, sizes, chunk_base)
    except MalformedError as error:
        raise DamageError("read a catalog segment", str(error)) from error


def halve_segment(data: bytes) -> tuple[bytes, bytes] | None:
    """The content of a segment as two, in order, for who cannot use it as it is; None if it has one entry.

    `data` is what `encode_segment` made.
    """
    listings = decode_segment(data)
    count = sum(len(listing.entries) for listing in listings)
    if count < 2:
        return None
    left, right = _halves(listings, count // 2)
    return encode_segment(left), encode_segment(right)


class Order:
    """Holds a stream of listings to catalog order: each behind all that came before it.

    That the entries of a listing are in order themselves is for `encode_segment` and `decode_segment`.
    """

    def __init__(self, what: str = "read the catalog") -> None:
        self._what = what
        self._last: tuple[bytes, bytes] | None = None

    def check(self, listing: Listing) -> None:
        """Raise `DamageError` unless `listing` comes behind all listings given before."""
        if not listing.entries:
            return
        key = directory_key(listing.directory)
        if self._last is not None and (key, listing.entries[0].name) <= self._last:
            raise DamageError(self._what, "its entries are not in order")
        self._last = key, listing.entries[-1].name


class CatalogWriter:
    """Cuts a stream of listings into segments. Holds one segment's entries at a time.

    A segment has at most `entry_limit` entries, and at most `byte_limit` bytes unless a single
    entry has more. `rows` is as for `encode_segment`, for all segments together.
    """

    def __init__(
        self,
        entry_limit: int = SEGMENT_ENTRIES,
        byte_limit: int = SEGMENT_BYTES,
        rows: dict[int, int] | None = None,
    ) -> None:
        self._entry_limit = entry_limit
        self._byte_limit = byte_limit
        self._rows = rows
        self._order = Order("write the catalog")
        self._pending: list[Listing] = []
        self._count = 0

    def add(self, listing: Listing) -> list[bytes]:
        """Take the next listing in catalog order; returns the segments that are finished, mostly none.

        Raises `DamageError` if the listing is out of order, and what `encode_segment` raises.
        """
        self._order.check(listing)
        finished: list[bytes] = []
        rest = listing
        while self._count + len(rest.entries) > self._entry_limit:
            head, rest = _split(rest, self._entry_limit - self._count)
            self._pending.append(head)
            finished += self.finish()
        self._pending.append(rest)
        self._count += len(rest.entries)
        return finished

    def finish(self) -> list[bytes]:
        """The segments of what was not given out yet."""
        pending = self._pending
        self._pending, self._count = [], 0
        return self._segments(pending)

    def _segments(self, listings: list[Listing]) -> list[bytes]:
        """`listings` as one segment, or as several if one were too large."""
        count = sum(len(listing.entries) for listing in listings)
        if not count:
            return []
        try:
            segment = encode_segment(listings, self._rows)
            if count == 1 or len(segment) <= self._byte_limit:
                return [segment]
        except OversizeError:
            if count == 1:
                raise
        left, right = _halves(listings, count // 2)
        return self._segments(left) + self._segments(right)


def _split(listing: Listing, count: int) -> tuple[Listing, Listing]:
    """The first `count` entries of a listing, and the others."""
    directory, entries = listing
    return Listing(directory, entries[:count]), Listing(directory, entries[count:])


def _halves(listings: list[Listing], count: int) -> tuple[list[Listing], list[Listing]]:
    """The first `count` entries of `listings`, and the others."""
    for row, listing in enumerate(listings):
        if count <= len(listing.entries):
            first, second = _split(listing, count)
            return [*listings[:row], first], [second, *listings[row + 1 :]]
        count -= len(listing.entries)
    return listings, []


def _gather(listings: Sequence[Listing]) -> tuple[Columns, list[int]]:
    """The columns of `listings`, and the sizes of their entries."""
    directories, counts = _directories(listings)
    entries = list(chain.from_iterable([listing.entries for listing in listings]))
    kinds = [e.kind for e in entries]
    if _TOMBSTONE in kinds:
        entries = [e if e.kind else Entry(e.name, _TOMBSTONE) for e in entries]
    sets, numbers = _xattr_sets(entries)
    pieces = [e.segments for e in entries]
    flat_pieces = list(chain.from_iterable(pieces))
    # A header of None is missing in the count of extents, which is right for tombstones alone.
    placed = [(e.header, *e.content) if e.header else e.content for e in entries]
    extents = list(chain.from_iterable(placed))
    sizes = [e.size for e in entries]
    columns = Columns(
        directories=directories,
        directory_counts=counts,
        kinds=kinds,
        flags=[e.flags for e in entries],
        names=[e.name for e in entries],
        mode=[e.mode for e in entries],
        uid=[e.uid for e in entries],
        gid=[e.gid for e in entries],
        mtime_ns=[e.mtime_ns for e in entries],
        ctime_ns=[e.ctime_ns for e in entries],
        inode=[e.inode for e in entries],
        links=[e.links for e in entries],
        rdev=[e.rdev for e in entries],
        targets=[e.target for e in entries],
        xattr_sets=sets,
        xattr_numbers=numbers,
        piece_counts=list(map(len, pieces)),
        piece_offsets=list(map(itemgetter(0), flat_pieces)),
        piece_lengths=list(map(itemgetter(1), flat_pieces)),
        extent_counts=list(map(len, placed)),
        chunks=list(map(itemgetter(0), extents)),
        offsets=list(map(itemgetter(1), extents)),
        lengths=list(map(itemgetter(2), extents)),
        slack=[],
    )
    columns.slack = list(map(sub, columns.content_sizes(), sizes))
    for row in _symlinks(columns):
        columns.slack[row] += len(columns.targets[row])
    return columns, sizes


def _renumbered(chunks: list[int], rows: dict[int, int]) -> list[int]:
    """`chunks` as rows of a chunk table; `rows` gets those that it has not."""
    for chunk in dict.fromkeys(chunks):
        rows.setdefault(chunk, len(rows))
    return list(map(rows.__getitem__, chunks))


def _directories(listings: Sequence[Listing]) -> tuple[list[bytes], list[int]]:
    """The directories that have entries, and how many; one that continues counts once."""
    directories: list[bytes] = []
    counts: list[int] = []
    for directory, entries in listings:
        if directories and directories[-1] == directory:
            counts[-1] += len(entries)
        elif entries:
            directories.append(directory)
            counts.append(len(entries))
    return directories, counts


def _sizes(columns: Columns) -> list[int]:
    """The size of each entry."""
    sizes = list(map(sub, columns.content_sizes(), columns.slack))
    for row in _symlinks(columns):
        sizes[row] += len(columns.targets[row])
    return sizes


def _symlinks(columns: Columns) -> Iterator[int]:
    """The rows of the symlinks that are no aliases."""
    if _SYMLINK in columns.kinds:
        for row in compress(range(len(columns.kinds)), map(_SYMLINK.__eq__, columns.kinds)):
            if not columns.flags[row] & _ALIAS:
                yield row


def _xattr_sets(entries: list[Entry]) -> tuple[list[bytes], list[int]]:
    """The different xattr sets in the form of the format, and each entry's: 0 none, i + 1."""
    numbers: dict[tuple[Xattr, ...], int] = {(): 0}
    rows = [numbers.setdefault(e.xattrs, len(numbers)) if e.xattrs else 0 for e in entries]
    return [_encode_xattrs(xattrs) for xattrs in islice(numbers, 1, None)], rows


def _encode_xattrs(xattrs: tuple[Xattr, ...]) -> bytes:
    pieces: list[bytes] = []
    for name, value in sorted(xattrs):
        if not 0 < len(name) <= _NAME_LIMIT:
            raise MalformedError("the name of an extended attribute is empty or too long")
        pieces += (_NAME_SIZE.pack(len(name)), name, _VALUE_SIZE.pack(len(value)), value)
    return b"".join(pieces)


def _decode_xattrs(data: bytes) -> tuple[Xattr, ...]:
    reader = Reader(data)
    xattrs: list[Xattr] = []
    while reader.left or not xattrs:
        name = reader.take(*_NAME_SIZE.unpack(reader.take(_NAME_SIZE.size)))
        value = reader.take(*_VALUE_SIZE.unpack(reader.take(_VALUE_SIZE.size)))
        if not name or b"\0" in name or (xattrs and name <= xattrs[-1].name):
            raise MalformedError("extended attributes are not in order or have no name")
        xattrs.append(Xattr(name, value))
    return tuple(xattrs)


def _listings(columns: Columns, sizes: list[int], chunk_base: int) -> list[Listing]:
    """The listings of columns that were checked."""
    ends = list(accumulate(columns.directory_counts, initial=0))
    rows = zip(columns.directories, ends, islice(ends, 1, None), strict=False)
    with _collector_at_rest():
        entries = _entries(columns, sizes, chunk_base)
        if _TOMBSTONE in columns.kinds:
            entries = [e if e.kind else Entry(e.name, _TOMBSTONE) for e in entries]
        return [Listing(directory, entries[start:end]) for directory, start, end in rows]


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """No garbage collection meanwhile: it doubles the time for so many tuples, and finds nothing."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _entries(columns: Columns, sizes: list[int], chunk_base: int) -> list[Entry]:
    """All entries; of a tombstone's, only name and kind mean something."""
    c = columns
    chunks = [chunk + chunk_base for chunk in c.chunks] if chunk_base else c.chunks
    # tuple.__new__ makes an Extent at half the price of Extent(): its own constructor is Python.
    made: Iterable[Extent] = map(
        tuple.__new__, repeat(Extent), zip(chunks, c.offsets, c.lengths, strict=True)
    )
    extents: tuple[Extent | None, ...] = (*made, None)
    lasts = list(accumulate(c.extent_counts))
    firsts = [0, *lasts][:-1]
    headers = map(extents.__getitem__, firsts)
    contents = [extents[first + 1 : last] for first, last in zip(firsts, lasts, strict=True)]
    xattrs = _spread([_decode_xattrs(data) for data in c.xattr_sets], c.xattr_numbers)
    pieces = _pieces(c)
    metadata = (c.mode, c.uid, c.gid, sizes, c.mtime_ns, c.ctime_ns, c.inode, c.links, c.rdev, c.targets)
    return list(map(Entry, c.names, c.kinds, c.flags, *metadata, xattrs, pieces, headers, contents))


def _spread(sets: list[tuple[Xattr, ...]], numbers: list[int]) -> Iterable[tuple[Xattr, ...]]:
    """The xattrs of each entry."""
    return map([(), *sets].__getitem__, numbers) if sets else repeat(())


def _pieces(columns: Columns) -> Iterable[tuple[Segment, ...]]:
    """The data segments of each entry."""
    if not columns.piece_offsets:
        return repeat(())
    pieces = tuple(map(Segment, columns.piece_offsets, columns.piece_lengths))
    lasts = list(accumulate(columns.piece_counts))
    return map(pieces.__getitem__, map(slice, [0, *lasts], lasts))
