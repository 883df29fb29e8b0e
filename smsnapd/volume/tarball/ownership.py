"""Metadata of one restored file, in the order in which nothing undoes another.

chown(2) clears set-id bits and capabilities, so owners come first; extended attributes next (an ACL
changes mode bits); then the mode; times last.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Final

from smsnapd.model import Entry, Kind
from smsnapd.volume.tarball.mapping import ACL_NAMES, IdMapping

UNFINISHED: Final = b"user.smsnap.unfinished"
"""Marks a directory that a restore made and that has no metadata of its own yet."""

_MODE: Final = 0o7777
_SYMLINK: Final = int(Kind.SYMLINK)
_NOT_OURS: Final = frozenset((errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EACCES))
_NOT_TAKEN: Final = frozenset(
    (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENODATA)
)


@dataclass
class Notes:
    """What could not be kept though the entries are there: counts, and the path of a first example."""

    owners_not_set: int = 0
    owner_example: bytes = b""
    xattrs_not_set: int = 0
    xattr_example: bytes = b""
    modes_reduced: int = 0
    mode_example: bytes = b""

    def merge(self, other: Notes) -> None:
        """Add what another worker has noted."""
        self.owner_example = self.owner_example or other.owner_example
        self.xattr_example = self.xattr_example or other.xattr_example
        self.mode_example = self.mode_example or other.mode_example
        self.owners_not_set += other.owners_not_set
        self.xattrs_not_set += other.xattrs_not_set
        self.modes_reduced += other.modes_reduced


class Ownership:
    """Sets owner, attributes, mode and times, and counts in `notes` what the kernel refuses.

    A handle is a descriptor, or a path that leads to the very file (`descent.proc_path`).
    """

    def __init__(self, mapping: IdMapping, *, privileged: bool) -> None:
        self.notes = Notes()
        self.mapping = mapping
        self._privileged = privileged
        self._user = os.geteuid()
        self._group = os.getegid()
        self._groups = frozenset((os.getegid(), *os.getgroups()))
        self._refused: dict[tuple[int, int], int] = {}
        # The access time is the restore's: it is in no backup, and under relatime an older one would be
        # written again at the first read.
        self._now_ns = time.time_ns()

    def apply(
        self, handle: int | bytes, path: bytes, entry: Entry, *, as_created: bool = False, new: bool = True
    ) -> None:
        """Give the file behind `handle` the metadata of `entry`.

        `as_created`: it has its mode already. `new`: it has no attributes but those of this restore; else
        those that the entry does not have are removed. Raises `OSError` for anything but a refusal.
        """
        permitted = self._own(handle, path, entry)
        if not new:
            self._remove_strange(handle, path, entry)
        if entry.xattrs:
            self._set_attributes(handle, path, entry)
        if not as_created and entry.kind != _SYMLINK:
            mode = entry.mode & permitted & _MODE
            if mode != entry.mode & _MODE:
                self.notes.modes_reduced += 1
                self.notes.mode_example = self.notes.mode_example or path
            os.chmod(handle, mode)
        os.utime(handle, ns=(self._now_ns, entry.mtime_ns))

    def agrees(self, found: os.stat_result, entry: Entry) -> bool:
        """Whether owner and mode are those that `apply` would have set."""
        user, group = self.mapping.id(entry.uid), self.mapping.id(entry.gid)
        same_user = found.st_uid == user
        same_group = found.st_gid == group
        if not same_user and (self._privileged or user == self._user):
            return False
        if not same_group and (self._privileged or group in self._groups):
            return False
        if entry.kind == _SYMLINK:
            return True
        permitted = _permitted(same_user, same_group)
        return found.st_mode & _MODE == entry.mode & permitted & _MODE

    def attributes_agree(self, path: bytes, entry: Entry) -> bool:
        """Whether the file at `path` (a link is not followed) has the attributes that we could set."""
        wanted = {n: self.mapping.attribute(n, v) for n, v in entry.xattrs if self._settable(n)}
        names = [name for name in _names_of(path) if self._settable(name)]
        return len(names) == len(wanted) and all(
            wanted.get(name) == os.getxattr(path, name, follow_symlinks=False) for name in names
        )

    def _settable(self, name: bytes) -> bool:
        if name.startswith(b"user.") or name in ACL_NAMES:
            return True
        return self._privileged and (name.startswith(b"trusted.") or name == b"security.capability")

    def _own(self, handle: int | bytes, path: bytes, entry: Entry) -> int:
        """Set user and group; returns the mode bits that may follow."""
        user, group = self.mapping.id(entry.uid), self.mapping.id(entry.gid)
        if user == self._user and group == self._group and _is_of(handle, user, group):
            return _MODE
        permitted = self._refused.get((user, group), -1)
        if permitted < 0:
            try:
                os.chown(handle, user, group)
                return _MODE
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
        self.notes.owners_not_set += 1
        self.notes.owner_example = self.notes.owner_example or path
        if permitted < 0 or permitted & 0o2000:
            permitted = self._own_group(handle, user, group)
            self._refused[user, group] = permitted
        return permitted

    def _own_group(self, handle: int | bytes, user: int, group: int) -> int:
        """Set at least the group, for a user who is a member of it."""
        if group not in self._groups:
            return _permitted(user == self._user, False)
        try:
            os.chown(handle, -1, group)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            return _permitted(user == self._user, False)
        return _permitted(user == self._user, True)

    def _set_attributes(self, handle: int | bytes, path: bytes, entry: Entry) -> None:
        for name, value in entry.xattrs:
            try:
                os.setxattr(handle, name, self.mapping.attribute(name, value))
            except OSError as error:
                if not _is_refusal(error, handle):
                    raise
                self._note_attribute(path)

    def _remove_strange(self, handle: int | bytes, path: bytes, entry: Entry) -> None:
        """Remove attributes that the entry does not have; labels of security modules are the machine's."""
        wanted = {name for name, _ in entry.xattrs}
        for name in _names_of(handle):
            if name in wanted or (name.startswith(b"security.") and name != b"security.capability"):
                continue
            try:
                os.removexattr(handle, name)
            except OSError as error:
                if error.errno not in _NOT_TAKEN:
                    raise
                self._note_attribute(path)

    def _note_attribute(self, path: bytes) -> None:
        self.notes.xattrs_not_set += 1
        self.notes.xattr_example = self.notes.xattr_example or path


def _is_of(handle: int | bytes, user: int, group: int) -> bool:
    """Whether an open file has this owner. Asking costs half of what chown(2) does, which journals an inode
    even if nothing changes. Not so by a path, which may be that of a link.
    """
    if not isinstance(handle, int):
        return False
    found = os.fstat(handle)
    return found.st_uid == user and found.st_gid == group


def disinherit(handle: int | bytes, mode: int) -> None:
    """Remove the ACLs that a new file got from its directory, and what they made of its mode."""
    for name in ACL_NAMES:
        try:
            os.removexattr(handle, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EACCES):
                raise
    os.chmod(handle, mode)


def _permitted(same_user: bool, same_group: bool) -> int:
    """The mode bits that are safe: no set-id bit with an owner that it was not given for."""
    return 0o1777 | (0o4000 if same_user else 0) | (0o2000 if same_group else 0)


def _names_of(handle: int | bytes) -> list[bytes]:
    try:
        if isinstance(handle, int):
            return [os.fsencode(name) for name in os.listxattr(handle)]
        return [os.fsencode(name) for name in os.listxattr(handle, follow_symlinks=False)]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def _is_refusal(error: OSError, handle: int | bytes) -> bool:
    """Whether an attribute is one that this file system or user may not have.

    ENOSPC is one too if there is room left: then the attribute is too large for its place in the inode.
    """
    if error.errno == errno.ENOSPC:
        space = os.statvfs(handle)
        return (space.f_bavail if os.geteuid() else space.f_bfree) > 0
    return error.errno in _NOT_TAKEN
