"""Everything that is neither file nor directory: symbolic links, FIFOs, devices, and further names."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

from smsnapd.model import Entry, Kind, path_text
from smsnapd.volume.tarball.descent import Folder, proc_path
from smsnapd.volume.tarball.failure import PROBLEMS, RefusedError, reason_of
from smsnapd.volume.tarball.ownership import disinherit
from smsnapd.volume.tarball.placement import Placement, link

TYPES: Final = {
    int(Kind.REGULAR): stat.S_IFREG,
    int(Kind.DIRECTORY): stat.S_IFDIR,
    int(Kind.SYMLINK): stat.S_IFLNK,
    int(Kind.FIFO): stat.S_IFIFO,
    int(Kind.CHARACTER): stat.S_IFCHR,
    int(Kind.BLOCK): stat.S_IFBLK,
}
"""The type bits of each kind of entry (inode(7))."""

DEVICES: Final = (int(Kind.CHARACTER), int(Kind.BLOCK))

_PINNED: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Nodes:
    """Makes nodes at a placement. Methods return as those of `Target` do."""

    def __init__(self, place: Placement) -> None:
        self._place = place

    def make_symlink(self, path: bytes, entry: Entry) -> str:
        """As `Target.make_symlink`."""
        temporary = self._place.temporary
        return self._make(path, entry, lambda fd: os.symlink(entry.target, temporary, dir_fd=fd))

    def make_special(self, path: bytes, entry: Entry) -> str:
        """As `Target.make_special`."""
        temporary, mode = self._place.temporary, TYPES[entry.kind] | 0o600
        if entry.kind not in DEVICES:
            return self._make(path, entry, lambda fd: os.mknod(temporary, mode, dir_fd=fd))
        return self._make(path, entry, lambda fd: os.mknod(temporary, mode, device_of(entry), dir_fd=fd))

    def make_link(self, first_path: bytes, path: bytes, entry: Entry) -> str:
        """As `Target.make_link`."""
        place = self._place
        try:
            source, first = place.locate(first_path)
            folder, name = place.locate(path)
            found = os.stat(first, dir_fd=source.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode) or (place.never and not _may_be(found, entry)):
                return f"its first name, {path_text(first_path)}, is something else"
            try:
                link(source.fd, first, folder.fd, name)
            except FileExistsError:
                if not place.replaces:
                    raise
                self._replace_by_link(source, first, folder, name, path)
        except FileNotFoundError:
            return f"its first name, {path_text(first_path)}, or its directory is not there"
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return ""

    def remap(self, path: bytes, entry: Entry) -> str:
        """As `Target.remap`."""
        ownership = self._place.ownership
        try:
            folder, name = self._place.locate(path)
            fd = os.open(name, _PINNED, dir_fd=folder.fd)
            try:
                if not ownership.agrees(os.fstat(fd), entry) or entry.xattrs:
                    ownership.apply(proc_path(fd), path, entry)
            finally:
                os.close(fd)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return ""

    def _replace_by_link(
        self, source: Folder, first: bytes, folder: Folder, name: bytes, path: bytes
    ) -> None:
        temporary = self._place.temporary
        link(source.fd, first, folder.fd, temporary)
        try:
            self._place.publish(folder, temporary, name, path)
        finally:
            # rename(2) between two names of one inode does nothing and leaves both.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder.fd)

    def _make(self, path: bytes, entry: Entry, create: Callable[[int], None]) -> str:
        place = self._place
        try:
            folder, name = place.locate(path)
            create(folder.fd)
        except PROBLEMS as problem:
            return _node_reason(problem, path, entry)
        try:
            self._dress(folder, path, entry)
            place.publish(folder, place.temporary, name, path)
        except PROBLEMS as problem:
            return place.give_up(folder, place.temporary, problem, path)
        return ""

    def _dress(self, folder: Folder, path: bytes, entry: Entry) -> None:
        """Set metadata by a descriptor of the node itself: its name could lead elsewhere by now."""
        fd = os.open(self._place.temporary, _PINNED, dir_fd=folder.fd)
        try:
            found = os.fstat(fd)
            if stat.S_IFMT(found.st_mode) != TYPES[entry.kind] or found.st_nlink != 1:
                raise RefusedError("somebody has replaced it while it was made")
            if folder.inherits_acl and entry.kind != Kind.SYMLINK:
                disinherit(proc_path(fd), 0o600)
            self._place.ownership.apply(proc_path(fd), path, entry)
        finally:
            os.close(fd)


def device_of(entry: Entry) -> int:
    """The device number as the system calls want it."""
    return os.makedev(entry.rdev >> 32, entry.rdev & 0xFFFF_FFFF)


def _may_be(found: os.stat_result, entry: Entry) -> bool:
    """Whether a file that was kept may be the one that the entry is a further name of."""
    if stat.S_IFMT(found.st_mode) != TYPES.get(entry.kind):
        return False
    if entry.kind != Kind.REGULAR:
        return True
    # Whole seconds: not every file system keeps more.
    return found.st_size == entry.size and found.st_mtime_ns // 10**9 == entry.mtime_ns // 10**9


def _node_reason(problem: Exception, path: bytes, entry: Entry) -> str:
    if isinstance(problem, PermissionError) and entry.kind in DEVICES:
        return "only root may make devices"
    return reason_of(problem, path)
