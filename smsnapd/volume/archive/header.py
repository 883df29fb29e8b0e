"""Tar header blocks: v7, ustar and GNU, and what pax records put in the place of their fields."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from smsnapd.model import BLOCK
from smsnapd.volume.archive.pax import MalformedError, Records, parse_time_ns
from smsnapd.volume.archive.pax import parse_number as parse_decimal

_HEAD: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_CHECKSUM: Final = slice(148, 156)
_BLANKS: Final = 8 * ord(" ")
_USTAR: Final = b"ustar\x0000"
_ID_MAX: Final = 2**32 - 1
_SIZE_MAX: Final = 2**63 - 1
_SECOND: Final = 1_000_000_000
_TIME_MAX: Final = _SIZE_MAX // _SECOND
_MINUS: Final = 0xFF
_BINARY: Final = 0x80


class Header(NamedTuple):
    """A header block: its fields, and itself. `form` is the type flag."""

    path: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    form: bytes
    target: bytes
    user: bytes
    group: bytes
    rdev: int
    block: bytes


def is_header(block: bytes) -> bool:
    """Whether these are a tar header: as many bytes, and with its checksum, of unsigned or signed bytes."""
    if len(block) != BLOCK:
        return False
    try:
        expected = parse_number(block[_CHECKSUM])
    except MalformedError:
        return False
    total = sum(block) - sum(block[_CHECKSUM]) + _BLANKS
    return expected == total or expected == total - 256 * sum(byte > 127 for byte in block)


def parse_header(block: bytes) -> Header:
    """The fields of a header block. `MalformedError`."""
    if not is_header(block):
        raise MalformedError("a header in it does not have the checksum that it states")
    (
        name, mode, uid, gid, size, mtime, _, form, target, magic, user, group, major, minor, prefix,
    ) = _HEAD.unpack(block)  # fmt: skip
    path, folder = _text(name), _text(prefix)
    if magic == _USTAR and folder:
        path = folder + b"/" + path
    named = magic.startswith(b"ustar")
    device = (_u32(major) << 32 | _u32(minor)) if form in (b"3", b"4") and named else 0
    return Header(
        path=path,
        mode=parse_number(mode),
        uid=parse_number(uid) & _ID_MAX,
        gid=parse_number(gid) & _ID_MAX,
        size=_natural(parse_number(size)),
        mtime_ns=_time_ns(parse_number(mtime)),
        form=form,
        target=_text(target),
        user=_text(user) if named else b"",
        group=_text(group) if named else b"",
        rdev=device,
        block=block,
    )


def with_records(header: Header, records: Records) -> Header:
    """The header with what pax records say instead. `MalformedError`."""
    if not records:
        return header
    get = records.get
    return header._replace(
        path=get(b"path", header.path),
        target=get(b"linkpath", header.target),
        size=_natural(parse_decimal(records[b"size"])) if b"size" in records else header.size,
        uid=_id(records[b"uid"]) if b"uid" in records else header.uid,
        gid=_id(records[b"gid"]) if b"gid" in records else header.gid,
        user=get(b"uname", header.user),
        group=get(b"gname", header.group),
        mtime_ns=_within(parse_time_ns(records[b"mtime"])) if b"mtime" in records else header.mtime_ns,
    )


def parse_number(field: bytes) -> int:
    """A number in octal digits, or as GNU tar writes larger ones: in base 256. `MalformedError`."""
    if field[0] in (_BINARY, _MINUS):
        return int.from_bytes(field[1:], "big") - (field[0] == _MINUS) * (1 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip(b" ")
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        raise MalformedError("a number in a header of it is malformed") from error


def _u32(field: bytes) -> int:
    return parse_number(field) & _ID_MAX


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _natural(size: int) -> int:
    if not 0 <= size <= _SIZE_MAX:
        raise MalformedError("a size in it is impossible")
    return size


def _id(text: bytes) -> int:
    number = parse_decimal(text)
    if number > _ID_MAX:
        raise MalformedError("an owner in it is impossible")
    return number


def _time_ns(seconds: int) -> int:
    return max(-_TIME_MAX, min(seconds, _TIME_MAX)) * _SECOND


def _within(time_ns: int) -> int:
    return max(-_SIZE_MAX, min(time_ns, _SIZE_MAX))
