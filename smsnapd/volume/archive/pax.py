"""Pax extended headers (POSIX, pax(1)), in the dialects of GNU tar, star and libarchive."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from smsnapd.model import Segment, Xattr
from smsnapd.volume.attributes import ACL_ACCESS, ACL_DEFAULT, acl_value

Records = dict[bytes, bytes]
"""Keyword to value. GNU's sparse format 0.0 repeats keywords: `SPARSE_MAP` has their numbers joined."""

SPARSE_MAP: Final = b"GNU.sparse.map"

_DECIMAL: Final = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_REPEATED: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_ACLS: Final = {b"SCHILY.acl.access": ACL_ACCESS, b"SCHILY.acl.default": ACL_DEFAULT}
_OTHER_XATTRS: Final = {b"RHT.security.selinux": b"security.selinux"}
_SECOND: Final = 1_000_000_000
_NAME_MAX: Final = 255
_VALUE_MAX: Final = 65_536
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h."""


class MalformedError(ValueError):
    """These bytes are not what the format says."""


def parse_records(data: bytes) -> Records:
    """The records of an extended header; of a keyword that comes twice the last. `MalformedError`."""
    records: Records = {}
    repeated: list[bytes] = []
    for keyword, value in _split(data):
        if keyword in _REPEATED:
            repeated.append(value)
        else:
            records[keyword] = value
    if repeated:
        records[SPARSE_MAP] = b",".join(repeated)
    return records


def _split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position < len(data) and data[position]:
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise MalformedError("an extended header in it is malformed")
        yield data[space + 1 : equals], data[equals + 1 : end - 1]
        position = end


def parse_time_ns(text: bytes) -> int:
    """A decimal number of seconds in nanoseconds, rounded down. `MalformedError`."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise MalformedError("a time in it is malformed")
    sign, whole, places = match[1], match[2], match[3] or b""
    time_ns = int(whole) * _SECOND + int(places[:9].ljust(9, b"0") or 0)
    if not sign:
        return time_ns
    return -time_ns - bool(places[9:].strip(b"0"))


def parse_number(text: bytes) -> int:
    """A natural number of at most 19 digits. `MalformedError`."""
    if not (0 < len(text) <= 19 and text.isdigit()):
        raise MalformedError("a number in it is malformed")
    return int(text)


def parse_map(text: bytes) -> list[Segment]:
    """A sparse map, "offset,length,…". `MalformedError`."""
    numbers = [parse_number(number) for number in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise MalformedError("a sparse map in it is malformed")
    return [Segment(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def xattrs_in(records: Records, lost: list[str]) -> tuple[Xattr, ...]:
    """The extended attributes, sorted by name; what cannot be one is told in `lost`."""
    found: dict[bytes, bytes] = {}
    for keyword, text in records.items():
        try:
            named = _xattr(keyword, text)
        except ValueError as error:
            lost.append(f"its {keyword[:100].decode('ascii', 'backslashreplace')} cannot be used: {error}")
            continue
        if named is None:
            continue
        if is_possible(named):
            found[named.name] = named.value
        else:
            lost.append("one of its extended attributes is larger than any can be")
    return tuple(Xattr(name, found[name]) for name in sorted(found))


def is_possible(xattr: Xattr) -> bool:
    """Whether Linux could have this attribute."""
    return 0 < len(xattr.name) <= _NAME_MAX and b"\0" not in xattr.name and len(xattr.value) <= _VALUE_MAX


def _xattr(keyword: bytes, text: bytes) -> Xattr | None:
    """The attribute that a record stands for, None if for none."""
    if keyword in _ACLS:
        return Xattr(_ACLS[keyword], acl_value(text.decode()))
    if keyword.startswith(b"SCHILY.xattr."):
        name = keyword.removeprefix(b"SCHILY.xattr.")
        return Xattr(name.replace(b"%3D", b"=").replace(b"%25", b"%"), text)
    if keyword.startswith(b"LIBARCHIVE.xattr."):
        try:
            value = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error as error:
            raise ValueError("it is not base64") from error
        return Xattr(unquote_to_bytes(keyword.removeprefix(b"LIBARCHIVE.xattr.")), value)
    if keyword in _OTHER_XATTRS:
        return Xattr(_OTHER_XATTRS[keyword], text + b"\0")
    return None
