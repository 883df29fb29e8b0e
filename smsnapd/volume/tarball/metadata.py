"""The entry of one name as it is at this moment: all metadata, xattrs, target, segments, but no content."""

from __future__ import annotations

import os
import stat
from typing import Final

from msgspec.structs import replace

from smsnapd.model import Entry, Flag, Kind, Xattr
from smsnapd.volume.attributes import name_target, read_xattrs
from smsnapd.volume.scan import entry_of
from smsnapd.volume.tarball.sparse import find_segments

_REGULAR: Final = int(Kind.REGULAR)
_ALIAS: Final = int(Flag.ALIAS)
_UNSETTLED: Final = int(Flag.UNSETTLED)
_SPARSE: Final = int(Flag.SPARSE)
BLOCK_OF_STAT: Final = 512
"""The unit of `st_blocks`, whatever the file system's own (stat(2))."""
SIMPLE: Final = 4 * 4096
"""Bytes up to which an inode of ext4 needs no block for its extents."""


def regular_entry(scanned: Entry, descriptor: int, status: os.stat_result) -> Entry:
    """The entry of an open regular file, `status` being its fstat. Raises `OSError`."""
    flags, segments = flags_now(scanned, status), None
    mode, inode, _, links, uid, gid, size, _, _, _ = status
    xattrs = read_xattrs(descriptor)
    # Blocks of attributes and of many extents count in st_blocks too, and may make up for a hole.
    if size and (status.st_blocks * BLOCK_OF_STAT < size or xattrs or size > SIMPLE):
        segments = find_segments(descriptor, size)
    return Entry(
        scanned.name, _REGULAR, flags if segments is None else flags | _SPARSE, mode & 0o7777, uid, gid, size,
        status.st_mtime_ns, status.st_ctime_ns, inode, links, 0, b"", xattrs, segments or (),
    )  # fmt: skip


def other_entry(scanned: Entry, directory: int, name: bytes, device: int) -> tuple[Entry, OSError | None]:
    """The entry of `name`, no regular file, in an open directory; of a regular one the kind alone is right.

    It may have moved while it was looked at: `is_as` tells. If the xattrs of a directory may not be read, the
    entry lacks them, and the refusal comes with it. Everything else that is refused raises `OSError`.
    """
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    entry = entry_of(scanned.name, status, flags_now(scanned, status))
    if entry.kind in (_REGULAR, Kind.TOMBSTONE) or status.st_dev != device:
        # What is mounted over a directory is another volume's, and so are its attributes.
        return entry, None
    if entry.kind == Kind.SYMLINK:
        target = os.readlink(name, dir_fd=directory)
        entry = replace(entry, target=target, size=len(target))
    try:
        xattrs: tuple[Xattr, ...] = read_xattrs(name_target(directory, name))
    except PermissionError as error:
        if entry.kind != Kind.DIRECTORY:
            raise
        return entry, error
    return replace(entry, xattrs=xattrs) if xattrs else entry, None


def alias_entry(scanned: Entry, status: os.stat_result) -> Entry | None:
    """The entry of a further name of the scanned inode by its lstat, None if it is one of another inode."""
    if status.st_ino != scanned.inode:
        return None
    flags = flags_now(scanned, status) | _ALIAS
    return replace(entry_of(scanned.name, status, flags), target=scanned.target)


def flags_now(scanned: Entry, status: os.stat_result) -> int:
    """`Flag.UNSETTLED` if the scan set it or the inode was touched, or replaced, since; else none."""
    if status.st_ctime_ns != scanned.ctime_ns:
        return _UNSETTLED
    return scanned.flags & _UNSETTLED


def is_as(entry: Entry, status: os.stat_result) -> bool:
    """Whether a name is still as its entry says: by inode, ctime, mtime and, of a regular file, size."""
    return (
        status.st_ctime_ns == entry.ctime_ns
        and status.st_mtime_ns == entry.mtime_ns
        and status.st_ino == entry.inode
        and (status.st_size == entry.size or not stat.S_ISREG(status.st_mode))
    )
