"""Tar headers: of one entry the pax extended header, the ustar header and the map of a sparse file.

POSIX.1-2001 pax with the extensions of GNU tar 1.2x and later for xattrs, ACLs and sparse files (FORMAT.md,
section 9). What fits a ustar header goes there alone; the rest goes into pax records. Paths
that are not UTF-8 stand in them as they are, without `hdrcharset`, which is what GNU tar restores.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Final
from zlib import adler32

from smsnapd.model import BLOCK, Entry, Flag, Kind, Segment
from smsnapd.volume.attributes import ACL_ACCESS, ACL_DEFAULT, acl_text

_SECOND: Final = 1_000_000_000
_OCTAL_11: Final = 0o77777777777
"""The largest number in the size and mtime fields."""
_OCTAL_7: Final = 0o7777777
"""The largest number in the mode, uid, gid and device fields."""
_NAME_FIELD: Final = 100
_OWNER_FIELD: Final = 31
_RECENT_NS: Final = 10**18
"""From this time on, 9 September 2001, a time in nanoseconds has 19 digits."""
_LATE_NS: Final = (_OCTAL_11 + 1) * _SECOND
"""The first time that the mtime field cannot hold, in the year 2242."""
_BLANK_SUM: Final = 8 * ord(" ")
"""What the checksum field counts for in the checksum."""
_ZERO_BLOCK: Final = bytes(BLOCK)
_PLAIN: Final = bytes(byte if byte < 0x80 else ord("?") for byte in range(256))
_ALIAS: Final = int(Flag.ALIAS)
_SPARSE: Final = int(Flag.SPARSE)
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_SYMLINK: Final = int(Kind.SYMLINK)
_ODD: Final = int(Flag.ALIAS | Flag.SPARSE)
_REGULAR_FORM: Final = b"0"
_DIRECTORY_FORM: Final = b"5"
_FORMS: Final[dict[int, bytes]] = {
    Kind.REGULAR: _REGULAR_FORM,
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: _DIRECTORY_FORM,
    Kind.FIFO: b"6",
}
"""The ustar typeflag of each kind; a further name of an inode is `1`."""
_ACL_RECORDS: Final = {ACL_ACCESS: b"SCHILY.acl.access", ACL_DEFAULT: b"SCHILY.acl.default"}


def header(path: bytes, entry: Entry, user: bytes, group: bytes) -> bytes:
    """The header extent of an entry: whole blocks, to be followed by its content padded to `BLOCK`.

    `path` is the entry's, relative to the root; `user` and `group` are names of its owner, `b""` if
    unknown. Of the entry everything but `header`, `content` and `digest` must be set: xattrs, segments and
    the target in particular. An alias is a link to its target's path, of size 0 and without xattrs.
    """
    time_ns, flags, size, name, form = entry.mtime_ns, entry.flags, entry.size, path, _REGULAR_FORM
    if entry.kind == _DIRECTORY:
        size, name, form = 0, path + b"/" if path else b"./", _DIRECTORY_FORM
    elif entry.kind != _REGULAR or flags & _ODD:
        return _general(path, entry, user, group)
    ids, tail, more, fixed_sum = _fixed(entry.mode, entry.uid, entry.gid, form, user, group, entry.rdev)
    if (
        more
        or entry.xattrs
        or size > _OCTAL_11
        or len(name) > _NAME_FIELD
        or not name.isascii()
        or not _RECENT_NS <= time_ns < _LATE_NS
    ):
        return _general(path, entry, user, group)
    seconds, fraction = divmod(time_ns, _SECOND)
    numbers = b"%011o\0%011o\0" % (size, seconds)
    checksum = _checksum(fixed_sum + adler32(name + numbers) & 0xFFFF)
    if not fraction:
        return b"".join((name.ljust(100, b"\0"), ids, numbers, checksum, tail))
    time, field = b"%d" % time_ns, name.ljust(100, b"\0")
    return b"".join((_TIME_HEAD, time[:10], b".", time[10:], _TIME_TAIL, field, ids, numbers, checksum, tail))


def _general(path: bytes, entry: Entry, user: bytes, group: bytes) -> bytes:
    """`header` of any entry, at a third of the speed."""
    records: list[bytes] = []
    name, target, size, sparse_map, form = _described(path, entry, records)
    seconds, fraction = divmod(entry.mtime_ns, _SECOND)
    if fraction or not 0 <= seconds <= _OCTAL_11:
        records.append(_time_record(entry.mtime_ns))
        seconds = min(max(seconds, 0), _OCTAL_11)
    if entry.xattrs and not entry.flags & _ALIAS:
        records += _xattr_records(entry)
    if len(name) > _NAME_FIELD or not name.isascii():
        records.append(_record(b"path", name))
        name = name.translate(_PLAIN)[:_NAME_FIELD]
    if size > _OCTAL_11:
        records.append(_record(b"size", b"%d" % size))
        size = 0
    ids, tail, more, _ = _fixed(entry.mode, entry.uid, entry.gid, form, user, group, entry.rdev)
    if target:
        tail = _linked(tail, target, records)
    block = _sealed(name, ids, size, seconds, tail)
    if records or more:
        return b"%b%b%b" % (_extended(b"".join(records) + more), block, sparse_map)
    return block


def _described(path: bytes, entry: Entry, records: list[bytes]) -> tuple[bytes, bytes, int, bytes, bytes]:
    """Name, link's target, size of what follows, sparse map and typeflag; records of a sparse file."""
    kind = entry.kind
    name = path + b"/" if kind == _DIRECTORY else path
    if not path:
        name = b"./"
    if entry.flags & _ALIAS:
        return name, entry.target, 0, b"", b"1"
    if entry.flags & _SPARSE:
        sparse_map = _sparse_map(entry.segments, entry.size)
        records += _sparse_records(name, entry.size)
        size = len(sparse_map) + sum(segment.length for segment in entry.segments)
        stand_in = b"GNUSparseFile.0/" + name.rpartition(b"/")[2].translate(_PLAIN)[:80]
        return stand_in, b"", size, sparse_map, _REGULAR_FORM
    target = entry.target if kind == _SYMLINK else b""
    return name, target, entry.size if kind == _REGULAR else 0, b"", _FORMS[kind]


def _linked(tail: bytes, target: bytes, records: list[bytes]) -> bytes:
    """The fields from the type on, with a link's target in place; a record of it if it does not fit."""
    if len(target) > _NAME_FIELD or not target.isascii():
        records.append(_record(b"linkpath", target))
        target = target.translate(_PLAIN)[:_NAME_FIELD]
    return tail[:1] + target.ljust(_NAME_FIELD, b"\0") + tail[1 + _NAME_FIELD :]


def _sealed(name: bytes, ids: bytes, size: int, seconds: int, tail: bytes) -> bytes:
    """A header block of these fields, with its checksum."""
    numbers = b"%011o\0%011o\0" % (size, seconds)
    checksum = _checksum(adler32(b"%b%b%b%b" % (name, ids, numbers, tail)) + _BLANK_SUM & 0xFFFF)
    return b"".join((name.ljust(100, b"\0"), ids, numbers, checksum, tail))


@lru_cache(maxsize=1 << 16)
def _checksum(total: int) -> bytes:
    """The checksum field of a header whose bytes, the field itself taken as spaces, sum up to `total - 1`.

    Sums come from Adler-32, whose lower half is one more than the sum of the bytes modulo 65,521. All our
    bytes are below 128: 512 of them stay under that.
    """
    return b"%06o\0 " % (total - 1)


@lru_cache(maxsize=4096)
def _fixed(
    mode: int, uid: int, gid: int, typeflag: bytes, user: bytes, group: bytes, rdev: int
) -> tuple[bytes, bytes, bytes, int]:
    """What many headers share: bytes 100 to 124, bytes 156 to 512 without a link's name, pax records.

    And the sum of these bytes and of the checksum field's spaces.
    """
    records = [
        _record(keyword, b"%d" % number)
        for keyword, number in ((b"uid", uid), (b"gid", gid))
        if number > _OCTAL_7
    ]
    fields = []
    for keyword, owner in ((b"uname", user), (b"gname", group)):
        fits = owner.isascii() and len(owner) <= _OWNER_FIELD
        if not fits:
            records.append(_record(keyword, owner))
        fields.append(owner if fits else b"")
    ids = b"%07o\0%07o\0%07o\0" % (mode, uid if uid <= _OCTAL_7 else 0, gid if gid <= _OCTAL_7 else 0)
    tail = b"%b%bustar\00000%b%b%07o\0%07o\0%b" % (
        typeflag, bytes(100), fields[0].ljust(32, b"\0"), fields[1].ljust(32, b"\0"),
        rdev >> 32, rdev & 0xFFFFFFFF, bytes(167),
    )  # fmt: skip
    return ids, tail, b"".join(records), sum(ids) + sum(tail) + _BLANK_SUM


def _extended(records: bytes) -> bytes:
    """An extended header of these records: a header block of its own, and the records padded."""
    return b"%b%b%b" % (_extended_block(len(records)), records, _ZERO_BLOCK[: -len(records) % BLOCK])


@lru_cache(maxsize=1024)
def _extended_block(size: int) -> bytes:
    """The header block before `size` bytes of pax records."""
    ids, tail, _, _ = _fixed(0o644, 0, 0, b"x", b"", b"", 0)
    return _sealed(b"././@PaxHeader", ids, size, 0, tail)


def _record(keyword: bytes, value: bytes) -> bytes:
    """One pax record, `<length> <keyword>=<value>` and a line feed, its length counting itself."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def _time_record(time_ns: int) -> bytes:
    """The pax record of a modification time: decimal, nine places if it has a fraction."""
    seconds, fraction = divmod(abs(time_ns), _SECOND)
    sign = b"-" if time_ns < 0 else b""
    places = b".%09d" % fraction if fraction else b""
    return _record(b"mtime", b"%b%d%b" % (sign, seconds, places))


def _xattr_records(entry: Entry) -> list[bytes]:
    """The records of extended attributes; ACLs as text, anything that only looks like one as it is."""
    records = []
    for name, value in entry.xattrs:
        record = _record(b"SCHILY.xattr." + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value)
        if name in _ACL_RECORDS:
            with contextlib.suppress(ValueError):
                record = _record(_ACL_RECORDS[name], acl_text(value).encode())
        records.append(record)
    return records


def _sparse_records(name: bytes, size: int) -> list[bytes]:
    """The records that make a file a sparse one of GNU's format 1.0."""
    return [
        _record(b"GNU.sparse.major", b"1"),
        _record(b"GNU.sparse.minor", b"0"),
        _record(b"GNU.sparse.name", name),
        _record(b"GNU.sparse.realsize", b"%d" % size),
    ]


def _sparse_map(segments: tuple[Segment, ...], size: int) -> bytes:
    """The map before a sparse file's data: count, offsets and lengths, and an empty segment at the end."""
    numbers = [len(segments) + 1]
    for offset, length in segments:
        numbers += (offset, length)
    numbers += (size, 0)
    text = b"%b\n" % b"\n".join([b"%d" % number for number in numbers])
    return text + _ZERO_BLOCK[: -len(text) % BLOCK]


_TIME_HEAD: Final = _extended_block(30) + b"30 mtime="
_TIME_TAIL: Final = b"\n" + bytes(BLOCK - 30)
"""What stands before and after the digits of a recent time, when that is the only pax record."""
