"""Owners under other numbers: pairs of ids, applied to users, groups and the ids in ACLs alike."""

from __future__ import annotations

import struct
from typing import Final

ACL_NAMES: Final = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))

_VERSION: Final = struct.pack("<I", 2)
_ROW: Final = struct.Struct("<HHI")
_NAMED: Final = frozenset((0x02, 0x08))
"""ACL_USER and ACL_GROUP: the rows whose id counts (linux/posix_acl_xattr.h)."""


class IdMapping:
    """Maps ids by pairs (old, new); an id in no pair stays as it is."""

    def __init__(self, pairs: tuple[tuple[int, int], ...] = ()) -> None:
        self._new = dict(pairs)

    def __bool__(self) -> bool:
        """Whether anything is mapped at all."""
        return bool(self._new)

    def id(self, number: int) -> int:
        """The user or group id to use instead of `number`."""
        return self._new.get(number, number) if self._new else number

    def attribute(self, name: bytes, value: bytes) -> bytes:
        """The value of an extended attribute; of a POSIX ACL with its ids mapped, sorted as ACLs must be.

        A value that is no ACL of version 2 is left alone.
        """
        if not self._new or name not in ACL_NAMES:
            return value
        if value[:4] != _VERSION or (len(value) - 4) % _ROW.size:
            return value
        rows = [
            (tag, self.id(number) if tag in _NAMED else number, permissions)
            for tag, permissions, number in _ROW.iter_unpack(value[4:])
        ]
        rows.sort(key=lambda row: row[:2])
        return _VERSION + b"".join(_ROW.pack(tag, permissions, number) for tag, number, permissions in rows)
