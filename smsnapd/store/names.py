"""Which names objects may have: the same rule on the way in and on the way out.

The rule is the intersection of what a POSIX file system and S3 servers keep unchanged.
"""

from __future__ import annotations

import re
from typing import Final

from smsnapd.errors import StoreError

TEMPORARY: Final = "tmp"
"""First component that no object has: the directory store works there."""

MAX_NAME_BYTES: Final = 512
"""Leaves half of S3's 1,024 bytes of key to the prefix in the URL."""

_SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]{1,255}"
_is_path: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*").fullmatch
_is_prefix: Final = re.compile(rf"(?:{_SEGMENT}/)*[A-Za-z0-9._-]{{0,255}}").fullmatch
_reserved: Final = (TEMPORARY, TEMPORARY + "/")


def is_name(name: str) -> bool:
    """Whether an object may be called `name`. Everything else in a listing is somebody else's."""
    return (
        len(name) <= MAX_NAME_BYTES
        and _is_path(name) is not None
        and name != _reserved[0]
        and not name.startswith(_reserved[1])
    )


def is_chunk(name: str) -> bool:
    """Whether `name` is that of a chunk (FORMAT.md, section 2): most of all bytes, and never replaced."""
    return name.startswith("volumes/") and name.split("/")[2:3] == ["chunks"]


def is_lasting(name: str) -> bool:
    """Whether recovery points need the object `name`, or may: it is neither a lease nor a garbage list."""
    inside = name.split("/")[2:3] if name.startswith("volumes/") else []
    return inside not in (["lease"], ["garbage"])


def check_name(doing: str, name: str) -> None:
    """Raise a permanent `StoreError` ("cannot `doing` `name`…") if no object may be called `name`."""
    if not is_name(name):
        raise StoreError(
            f"{doing} {name!r}", "that is no object name", "the program or the repository is damaged"
        )


def check_prefix(prefix: str) -> None:
    """Raise a permanent `StoreError` if no object's name can begin with `prefix`; "" begins all."""
    if len(prefix) > MAX_NAME_BYTES or _is_prefix(prefix) is None:
        raise StoreError(
            f"list {prefix!r}", "that begins no object name", "names have letters, digits, . _ - /"
        )
