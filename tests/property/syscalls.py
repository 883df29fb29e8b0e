"""What Python has no call for: holes punched into files, access control lists."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_FALLOC_FL_PUNCH_HOLE, _FALLOC_FL_KEEP_SIZE = 2, 1
_ACL_UNDEFINED: Final = 0xFFFFFFFF
_libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole (fallocate(2))."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as acl(5) lies in an attribute, of (tag, permissions, id)."""
    rows = sorted(entries, key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def some_acl(user: int, permissions: int) -> bytes:
    """An ACL with a named user and a mask."""
    base = ((0x01, 7, _ACL_UNDEFINED), (0x04, 5, _ACL_UNDEFINED), (0x20, 4, _ACL_UNDEFINED))
    return acl(*base, (0x02, permissions, user), (0x10, 7, _ACL_UNDEFINED))
