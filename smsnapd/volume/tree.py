"""Opening names below the volume's root, component by component, following no symbolic link.

Every name is opened relative to the descriptor of its directory (openat(2) with O_NOFOLLOW), so paths may be
longer than PATH_MAX and nobody can lead a reader out of the volume by swapping a directory for a link.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Final, Self

from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import mount_points_below

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""O_NONBLOCK: a FIFO that took the place of a file must not hang the reader."""


def open_at(directory: int, name: bytes, flags: int = _FILE_FLAGS) -> int:
    """Open `name` in the directory open as `directory`; the descriptor is the caller's.

    Access times stay as they are where that is allowed (O_NOATIME is the owner's and root's).
    """
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


class Tree:
    """A directory and what lies below it on the same file system.

    Paths are relative to the root (`b""`). A method that is given one raises `OSError` as the system call
    does; of a directory on another file system, or with anything mounted on it, errno is EXDEV. Descriptors
    of the directories used last are kept, so names visited in catalog order cost one openat each. `forget`
    drops them: a directory that was renamed meanwhile would still be seen under its old path. Not for
    several threads.
    """

    def __init__(self, root: bytes, *, kept_descriptors: int = 128) -> None:
        """Open `root`, an existing directory (a symbolic link to one is followed), else `VolumeError`."""
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise VolumeError(
                f"open the volume {os.fsdecode(root)}", error.strerror or str(error), "is it mounted?"
            ) from error
        self.root: Final = os.path.realpath(root)
        self.device: Final = os.fstat(self._root).st_dev
        self._kept_descriptors = kept_descriptors
        self._kept: dict[bytes, int] = {}
        self._last = b""
        self._last_descriptor = self._root
        self._look_for_mounts()

    def __enter__(self) -> Self:
        """The tree itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close all descriptors. May be called more than once; nothing else may be called after it."""
        self.release()
        if self._root >= 0:
            os.close(self._root)
            self._root = self._last_descriptor = -1

    def forget(self) -> None:
        """Close the directories kept open, and look again at what is mounted where."""
        self.release()
        self._look_for_mounts()

    def _look_for_mounts(self) -> None:
        self._mount_points = mount_points_below(self.root)
        self._mounted_in = {path.rpartition(b"/")[0] for path in self._mount_points}

    def release(self) -> None:
        """Close the directories kept open; the next look opens them anew, whatever has their names then."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()
        self._last, self._last_descriptor = b"", self._root

    def is_mount_point(self, path: bytes) -> bool:
        """Whether something was mounted on `path` when the tree was opened or last forgot.

        This knows bind mounts of the same file system, which no device number gives away.
        """
        return path in self._mount_points

    def is_mounted_in(self, directory: bytes) -> bool:
        """Whether a name in this directory is a mount point."""
        return directory in self._mounted_in

    def open_directory(self, path: bytes) -> int:
        """A descriptor of the directory, which stays the tree's: good until the next call of any method."""
        if path == self._last:
            return self._last_descriptor
        # Finding may close the last one, and then fail.
        self._last, self._last_descriptor = b"", self._root
        descriptor = self._find(path)
        self._last, self._last_descriptor = path, descriptor
        return descriptor

    def open_file(self, path: bytes) -> int:
        """A descriptor for reading `path`, which is the caller's; opening a FIFO does not wait."""
        directory, _, name = path.rpartition(b"/")
        return open_at(self.open_directory(directory), name)

    def stat(self, path: bytes) -> os.stat_result:
        """The metadata of `path` itself, be it a symbolic link (lstat)."""
        if not path:
            return os.fstat(self._root)
        directory, _, name = path.rpartition(b"/")
        return os.stat(name, dir_fd=self.open_directory(directory), follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        """The target of the symbolic link `path`."""
        directory, _, name = path.rpartition(b"/")
        return os.readlink(name, dir_fd=self.open_directory(directory))

    def _find(self, path: bytes) -> int:
        """The kept descriptor of a directory, or a new one, opened from its nearest ancestor that is kept."""
        if not path:
            return self._root
        kept = self._kept
        if (descriptor := kept.pop(path, -1)) >= 0:
            kept[path] = descriptor
            return descriptor
        missing: list[bytes] = []
        ancestor, descriptor = path, -1
        while ancestor and descriptor < 0:
            ancestor, _, name = ancestor.rpartition(b"/")
            missing.append(name)
            descriptor = kept.get(ancestor, -1)
        if descriptor < 0:
            descriptor = self._root
        for name in reversed(missing):
            ancestor = ancestor + b"/" + name if ancestor else name
            descriptor = self._step(descriptor, name, ancestor)
        return descriptor

    def _step(self, parent: int, name: bytes, path: bytes) -> int:
        """Open the directory `path`, `name` in `parent`, and keep it in place of the one unused longest."""
        if path in self._mount_points:
            raise OSError(errno.EXDEV, "something is mounted on it")
        descriptor = open_at(parent, name, _DIRECTORY_FLAGS)
        if os.fstat(descriptor).st_dev != self.device:
            os.close(descriptor)
            raise OSError(errno.EXDEV, "it is on another file system")
        if len(self._kept) >= self._kept_descriptors:
            oldest = next(iter(self._kept))
            os.close(self._kept.pop(oldest))
        self._kept[path] = descriptor
        return descriptor
