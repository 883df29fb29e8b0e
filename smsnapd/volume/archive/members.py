"""A tarball taken apart: v7, ustar, pax and GNU members, one after the other, as they stream by.

Sources: POSIX pax(1), and GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files". What a header
says is believed as far as it can be true; headers are held to a few MiB, whatever they say of themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from smsnapd.errors import DamageError
from smsnapd.model import BLOCK, Kind, Segment, Xattr
from smsnapd.volume.archive import pax
from smsnapd.volume.archive.header import Header, parse_header, parse_number, with_records
from smsnapd.volume.archive.pax import MalformedError, Records
from smsnapd.volume.archive.stream import PIECE_BYTES, Peekable

EXTENDED_LIMIT: Final = 8 * 1024 * 1024
"""Bytes that an extended header, a long name or a sparse map may have; GNU tar's largest are far smaller."""

SEGMENT_LIMIT: Final = 1 << 18
"""Segments that a sparse file may have here: with its attributes its header must fit a chunk."""

_KINDS: Final = {
    b"0": Kind.REGULAR, b"\0": Kind.REGULAR, b"7": Kind.REGULAR, b"S": Kind.REGULAR,
    b"2": Kind.SYMLINK, b"3": Kind.CHARACTER, b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY, b"D": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip
_SIZE_MAX: Final = 2**63 - 1
_OLD_SPARSE: Final = struct.Struct("12s12s")
_OLD_IN_HEAD: Final = 4
_OLD_IN_MORE: Final = 21


@dataclass(frozen=True)
class Member:
    """One member. `path` and `target` are as they stand in the archive.

    `is_link` says that it is a further name of the member that `target` names. `size` is that of the file;
    the data that follows is that of `segments`, joined, or all of it if they are None. `lost` tells what of
    it could not be understood.
    """

    path: bytes
    kind: Kind
    is_link: bool
    mode: int
    uid: int
    gid: int
    user: bytes
    group: bytes
    mtime_ns: int
    size: int
    target: bytes
    rdev: int
    xattrs: tuple[Xattr, ...]
    segments: tuple[Segment, ...] | None
    lost: tuple[str, ...] = ()


class TarReader:
    """Iterates over members; what of a member's data was not read when the next is asked for is passed over.

    `DamageError` if the archive is not whole: it must have its end mark. Behind that everything is read
    to the end, so that what it lies in is checked to its own end.
    """

    def __init__(self, source: Peekable, what: str) -> None:
        self._source = source
        self._what = what
        self._left = 0
        self._globals: Records = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._checked()) is not None:
            padding = -(self._left) % BLOCK
            yield member
            self._skip(self._left + padding)
        while self._source.read(PIECE_BYTES):
            pass

    def read(self, size: int) -> bytes:
        """At most `size` bytes more of the member's data, at least one; b"" only behind them."""
        piece = self._source.read(min(size, self._left)) if self._left else b""
        if self._left and not piece:
            self._cut_off()
        self._left -= len(piece)
        return piece

    def _checked(self) -> Member | None:
        try:
            return self._next()
        except MalformedError as error:
            raise DamageError(self._what, str(error), "it is damaged, or no tarball; get it again") from error

    def _next(self) -> Member | None:
        """The next member, with whatever headers stand before it; None at the end mark."""
        records: Records = {}
        long_names: dict[bytes, bytes] = {}
        while (block := self._exactly(BLOCK)).strip(b"\0"):
            fields = parse_header(block)
            if fields.form in (b"x", b"X"):
                records |= pax.parse_records(self._extended(fields))
            elif fields.form == b"g":
                self._globals |= pax.parse_records(self._extended(fields))
            elif fields.form in (b"L", b"K", b"V"):  # a long name, a long target, the archive's label
                long_names[fields.form] = self._extended(fields).partition(b"\0")[0]
            else:
                said = self._globals | records if self._globals else records
                fields = fields._replace(
                    path=long_names.get(b"L", fields.path), target=long_names.get(b"K", fields.target)
                )
                return self._member(fields, said)
        return None

    def _member(self, fields: Header, records: Records) -> Member:
        fields = with_records(fields, records)
        if fields.form == b"M":
            raise MalformedError("it is one part of an archive in several volumes: join them first")
        kind = _KINDS.get(fields.form, Kind.REGULAR)  # of what is not known, what pax(1) says
        is_link = fields.form == b"1"
        if kind == Kind.REGULAR and fields.path.endswith(b"/") and not is_link:
            kind = Kind.DIRECTORY  # as v7 told them
        has_data = not is_link and (kind == Kind.REGULAR or fields.form == b"D")
        self._left = fields.size if has_data else 0
        size, segments = self._left, None
        if kind == Kind.REGULAR and not is_link:
            size, segments = self._sparse(fields, records)
        lost: list[str] = []
        return Member(
            path=records.get(b"GNU.sparse.name", fields.path),
            kind=kind,
            is_link=is_link,
            mode=fields.mode & 0o7777,
            uid=fields.uid,
            gid=fields.gid,
            user=fields.user,
            group=fields.group,
            mtime_ns=fields.mtime_ns,
            size=size if kind == Kind.REGULAR and not is_link else 0,
            target=fields.target if is_link or kind == Kind.SYMLINK else b"",
            rdev=fields.rdev if kind in (Kind.CHARACTER, Kind.BLOCK) else 0,
            xattrs=pax.xattrs_in(records, lost),
            segments=segments,
            lost=tuple(lost),
        )

    # --- sparse files: GNU's old format and its three in pax

    def _sparse(self, fields: Header, records: Records) -> tuple[int, tuple[Segment, ...] | None]:
        """The size of a regular file and where its data lies, None if everywhere."""
        if fields.form == b"S":
            found, size = self._old_map(fields.block)
        elif records.get(b"GNU.sparse.major") == b"1":
            found, size = self._map_before_data(), pax.parse_number(records.get(b"GNU.sparse.realsize", b""))
        elif pax.SPARSE_MAP in records:
            size = pax.parse_number(records.get(b"GNU.sparse.size", b""))
            found = pax.parse_map(records[pax.SPARSE_MAP])
        else:
            return self._left, None
        segments = tuple(segment for segment in found if segment.length)
        end = 0
        for offset, length in segments:
            if offset < end or offset + length > size:
                raise MalformedError("a sparse map in it is impossible")
            end = offset + length
        if sum(segment.length for segment in segments) != self._left or size > _SIZE_MAX:
            raise MalformedError("a sparse file in it has other data than its map says")
        return size, segments

    def _old_map(self, block: bytes) -> tuple[list[Segment], int]:
        segments = list(_old_segments(block, 386, _OLD_IN_HEAD))
        more, size = block[482], parse_number(block[483:495])
        while more:
            block = self._exactly(BLOCK)
            segments += _old_segments(block, 0, _OLD_IN_MORE)
            more = block[504]
            _check_count(len(segments))
        return segments, size

    def _map_before_data(self) -> list[Segment]:
        """The map of format 1.0: decimal numbers in lines, padded to blocks, at the start of the data."""
        numbers = self._lines_of_numbers()
        count = next(numbers)
        _check_count(count)
        return [Segment(next(numbers), next(numbers)) for _ in range(count)]

    def _lines_of_numbers(self) -> Iterator[int]:
        text = b""
        while self._left >= BLOCK and len(text) < BLOCK:
            *lines, text = (text + self._exactly(BLOCK)).split(b"\n")
            self._left -= BLOCK
            yield from map(pax.parse_number, lines)
        raise MalformedError("a sparse map in it is malformed")

    # --- bytes

    def _extended(self, fields: Header) -> bytes:
        """The data of a member that is itself a header."""
        if fields.size > EXTENDED_LIMIT:
            raise MalformedError(f"a header in it has {fields.size} bytes, more than any needs")
        return self._exactly(fields.size + -fields.size % BLOCK)[: fields.size]

    def _exactly(self, size: int) -> bytes:
        piece = self._source.read(size)
        if len(piece) == size:
            return piece
        pieces, missing = [piece], size - len(piece)
        while missing and (piece := self._source.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if missing:
            self._cut_off()
        return b"".join(pieces)

    def _skip(self, size: int) -> None:
        while size:
            piece = self._source.read(min(size, PIECE_BYTES))
            if not piece:
                self._cut_off()
            size -= len(piece)

    def _cut_off(self) -> NoReturn:
        why = "it is cut off: the archive ends before its end mark"
        raise DamageError(self._what, why, "compare its size with the original's; nothing was kept of it")


def _old_segments(block: bytes, start: int, count: int) -> Iterator[Segment]:
    for offset, length in _OLD_SPARSE.iter_unpack(block[start : start + count * _OLD_SPARSE.size]):
        if offset[:1] != b"\0" or length[:1] != b"\0":
            yield Segment(parse_number(offset), parse_number(length))


def _check_count(count: int) -> None:
    if count > SEGMENT_LIMIT:
        raise MalformedError(f"a sparse file in it has {count} pieces, more than any needs")
