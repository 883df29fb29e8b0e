"""Extended attributes, POSIX ACLs as text, and the names behind numeric owners."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import struct
from typing import Final

from smsnapd.model import Xattr

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"

_NO_ATTRIBUTES: Final = frozenset({errno.ENOTSUP, errno.ENOSYS})
_ACL_VERSION: Final = 2
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_TAGS: Final = {
    0x01: "user::",
    0x02: "user:{}:",
    0x04: "group::",
    0x08: "group:{}:",
    0x10: "mask::",
    0x20: "other::",
}
"""The tags of linux/posix_acl.h with their names in acl(5)'s long text form."""
_ACL_LETTERS: Final = {"u": (0x01, 0x02), "g": (0x04, 0x08), "m": (0x10, 0x10), "o": (0x20, 0x20)}
"""How a tag's name begins; the tag without and with a name."""
_ACL_FIELDS: Final = 3
_ACL_NOBODY: Final = 0xFFFFFFFF


def read_xattrs(target: int | bytes) -> tuple[Xattr, ...]:
    """All extended attributes of an open file, or of the name `target` itself (no link is followed), sorted.

    Those of every namespace that the system lists (xattr(7)), of `system` the POSIX ACLs only. A file system
    without attributes has none. Raises `OSError` as getxattr(2) does.
    """
    follow = isinstance(target, int)
    try:
        listed = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return ()
        raise
    if not listed:
        return ()
    return _values(target, sorted(os.fsencode(name) for name in listed), follow)


def name_target(directory: int, name: bytes) -> bytes:
    """A path for `read_xattrs` to a name in an open directory, for what cannot or should not be opened.

    It is short however deep the directory lies (proc_pid_fd(5)). `name` may be `b"."`.
    """
    return b"/proc/self/fd/%d/%b" % (directory, name)


def acl_text(value: bytes) -> str:
    """A POSIX ACL in acl(5)'s text form, numeric ids, a line feed after each entry, as GNU tar writes it.

    `value` is that of the xattr `system.posix_acl_access` or `…_default` (linux/posix_acl_xattr.h). Raises
    `ValueError` if it is not of that form.
    """
    if len(value) % _ACL_ENTRY.size != _ACL_HEADER.size or _ACL_HEADER.unpack_from(value) != (_ACL_VERSION,):
        raise ValueError("not a POSIX ACL of version 2")
    lines = []
    for tag, permissions, owner in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        if tag not in _ACL_TAGS:
            raise ValueError(f"unknown tag {tag:#x} in a POSIX ACL")
        letters = "".join(
            letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        lines.append(f"{_ACL_TAGS[tag].format(owner)}{letters}\n")
    return "".join(lines)


def acl_value(text: str) -> bytes:
    """The xattr of a POSIX ACL in acl(5)'s text form, long or short: what `acl_text` is of.

    Names that are no numbers are looked up here, unless a fourth field has the number, as star writes it.
    Raises `ValueError` if it is not of that form, or nobody has such a name.
    """
    entries = []
    for line in text.replace(",", "\n").splitlines():
        entry = line.partition("#")[0].strip()
        if entry:
            entries.append(_acl_entry(entry))
    return _ACL_HEADER.pack(_ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in sorted(entries))


def _acl_entry(line: str) -> tuple[int, int, int]:
    """Tag, permissions and id of one entry."""
    fields = [field.strip() for field in line.split(":")]
    if len(fields) < _ACL_FIELDS or fields[0][:1] not in _ACL_LETTERS:
        raise ValueError("an entry of an ACL is malformed")
    unnamed, named = _ACL_LETTERS[fields[0][:1]]
    permissions = sum({"r": 4, "w": 2, "x": 1}.get(letter, 0) for letter in set(fields[2]))
    if not fields[1]:
        return unnamed, permissions, _ACL_NOBODY
    number = fields[3] if len(fields) > _ACL_FIELDS else fields[1]
    if not number.isdecimal():
        try:
            number = str(pwd.getpwnam(number).pw_uid if fields[0][0] == "u" else grp.getgrnam(number).gr_gid)
        except KeyError as error:
            raise ValueError(f"nobody here is called {number[:100]}") from error
    return named, permissions, int(number)


class Owners:
    """Names of users and groups, each looked up once; `b""` where an id has none."""

    def __init__(self) -> None:
        """Know nobody yet."""
        self._users: dict[int, bytes] = {}
        self._groups: dict[int, bytes] = {}

    def user(self, uid: int) -> bytes:
        """The name of a user."""
        name = self._users.get(uid)
        if name is None:
            try:
                name = os.fsencode(pwd.getpwuid(uid).pw_name)
            except KeyError:
                name = b""
            self._users[uid] = name
        return name

    def group(self, gid: int) -> bytes:
        """The name of a group."""
        name = self._groups.get(gid)
        if name is None:
            try:
                name = os.fsencode(grp.getgrgid(gid).gr_name)
            except KeyError:
                name = b""
            self._groups[gid] = name
        return name


def _values(target: int | bytes, names: list[bytes], follow: bool) -> tuple[Xattr, ...]:
    """The attributes of these names; one that was removed meanwhile is left out."""
    found = []
    for name in names:
        if name.startswith(b"system.") and name not in (ACL_ACCESS, ACL_DEFAULT):
            continue
        try:
            found.append(Xattr(name, os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    return tuple(found)
