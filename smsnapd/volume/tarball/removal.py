"""Removing directories with all that is in them, however deep, and nothing that lies elsewhere.

No symbolic link is followed, no other mount entered (a bind mount of the same file system is one too),
and only a bounded number of descriptors is held.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

from smsnapd.model import join_path
from smsnapd.volume.tarball.descent import proc_path
from smsnapd.volume.tarball.failure import PROBLEMS, RefusedError, reason_of

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PINNED: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD: Final = 64
MOUNTED: Final = "another file system is mounted there"


@dataclass
class Removed:
    """What was removed, or would be.

    `paths` are the topmost names, `count` all names with what was below them; `kept` are names that could
    not be removed, with the reason.
    """

    paths: list[bytes] = field(default_factory=list)
    count: int = 0
    kept: list[tuple[bytes, str]] = field(default_factory=list)


@dataclass
class _Frame:
    """A directory on the way down. `fd` is -1 while it is closed; `pending` are its directories to come."""

    name: bytes
    path: bytes
    fd: int
    identity: tuple[int, int]
    pending: list[bytes] = field(default_factory=list)


class Removal:
    """Removes names from the directory behind `fd`, which is at `directory` below the target's root.

    With `dry_run` nothing is changed and `removed` says what would be. Raises `TargetError` if the target is
    broken or read-only; all else that fails is in `removed.kept`.
    """

    def __init__(self, fd: int, directory: bytes, *, dry_run: bool = False) -> None:
        self.removed = Removed()
        self._fd = fd
        self._directory = directory
        self._dry_run = dry_run
        self._mount = mount_of(fd)
        self._frames: list[_Frame] = []

    def all_but(self, keep: Set[bytes]) -> None:
        """Remove every name that is not in `keep`."""
        listing = os.open(b".", _OPEN, dir_fd=self._fd)
        try:
            with os.scandir(listing) as found:
                directories = []
                for item in found:
                    name = os.fsencode(item.name)
                    if name in keep:
                        continue
                    if item.is_dir(follow_symlinks=False):
                        directories.append(name)
                    elif self._unlink(listing, name, join_path(self._directory, name)):
                        self.removed.paths.append(join_path(self._directory, name))
            for name in directories:
                self.tree(name)
        finally:
            os.close(listing)

    def tree(self, name: bytes) -> None:
        """Remove the directory `name` and everything in it."""
        path = join_path(self._directory, name)
        kept = len(self.removed.kept)
        try:
            self._enter(self._fd, name, path)
            while self._frames:
                frame = self._frames[-1]
                if frame.pending:
                    child = frame.pending.pop()
                    self._enter(frame.fd, child, join_path(frame.path, child))
                else:
                    self._leave()
        except PROBLEMS as problem:
            self.removed.kept.append((path, reason_of(problem, path)))
        finally:
            for frame in self._frames:
                if frame.fd >= 0:
                    os.close(frame.fd)
            self._frames.clear()
        if len(self.removed.kept) == kept:
            self.removed.paths.append(path)

    def _enter(self, parent_fd: int, name: bytes, path: bytes) -> None:
        """Open a directory and remove what is in it, but for its directories."""
        try:
            fd = self._open(parent_fd, name)
        except OSError as error:
            self.removed.kept.append((path, reason_of(error, path)))
            return
        if mount_of(fd) != self._mount:
            os.close(fd)
            self.removed.kept.append((path, MOUNTED))
            return
        found = os.fstat(fd)
        frame = _Frame(name, path, fd, (found.st_dev, found.st_ino))
        self._frames.append(frame)
        with os.scandir(fd) as items:
            for item in items:
                child = os.fsencode(item.name)
                if item.is_dir(follow_symlinks=False):
                    frame.pending.append(child)
                else:
                    self._unlink(fd, child, join_path(path, child))
        if len(self._frames) > _HELD:
            outer = self._frames[-1 - _HELD]
            os.close(outer.fd)
            outer.fd = -1

    def _leave(self) -> None:
        """Remove the innermost directory, now empty, and go back to the one above."""
        frame = self._frames.pop()
        try:
            if self._frames and self._frames[-1].fd < 0:
                self._frames[-1].fd = _climb(frame.fd, self._frames[-1].identity)
        finally:
            os.close(frame.fd)
        parent_fd = self._frames[-1].fd if self._frames else self._fd
        try:
            if not self._dry_run:
                os.rmdir(frame.name, dir_fd=parent_fd)
            self.removed.count += 1
        except OSError as error:
            # A name that was kept below it is in the list already.
            below = frame.path + b"/"
            if error.errno != errno.ENOTEMPTY or not any(p.startswith(below) for p, _ in self.removed.kept):
                self.removed.kept.append((frame.path, reason_of(error, frame.path)))

    def _unlink(self, parent_fd: int, name: bytes, path: bytes) -> bool:
        try:
            if not self._dry_run:
                os.unlink(name, dir_fd=parent_fd)
        except OSError as error:
            self.removed.kept.append((path, reason_of(error, path)))
            return False
        self.removed.count += 1
        return True

    def _open(self, parent_fd: int, name: bytes) -> int:
        """Open for reading and removing; a user may have taken these rights from himself."""
        if not self._dry_run and os.geteuid():
            make_accessible(parent_fd, name)
        return os.open(name, _OPEN, dir_fd=parent_fd)


def make_accessible(parent_fd: int, name: bytes) -> None:
    """Give the owner of a directory all rights in it, if he lacks some. Follows no symbolic link."""
    fd = os.open(name, _PINNED, dir_fd=parent_fd)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
            os.chmod(proc_path(fd), stat.S_IMODE(mode) | 0o700)
    finally:
        os.close(fd)


def _climb(fd: int, expected: tuple[int, int]) -> int:
    """Open the directory above, if it is the one that we came from."""
    above = os.open(b"..", _OPEN, dir_fd=fd)
    found = os.fstat(above)
    if (found.st_dev, found.st_ino) != expected:
        os.close(above)
        raise RefusedError("it was moved while it was being removed")
    return above


def mount_of(fd: int) -> bytes:
    """The id of the mount that the file lies on (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next(line for line in lines if line.startswith(b"mnt_id:"))
