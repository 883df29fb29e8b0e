"""A large file while it is written, by several processes at once, under a name of its own."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import Final

import blake3

from smsnapd.disk import Buffer, write_at
from smsnapd.errors import TargetError
from smsnapd.model import path_text
from smsnapd.volume.tarball.failure import RefusedError, abort_if_hopeless
from smsnapd.volume.tarball.marker import PARTIAL

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LargeFile:
    """A file of known size, all hole at first; `write_range` fills it, in any order.

    Close it, or use it in a `with` statement.
    """

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self._path = path

    def write_range(self, offset: int, data: Buffer) -> None:
        """Write `data` at `offset` bytes into the file. May be repeated. Raises `TargetError`."""
        try:
            write_at(self.fd, data, offset)
        except OSError as error:
            abort_if_hopeless(error, self._path)
            why = os.strerror(error.errno or 0)
            hint = "look at the target's file system"
            raise TargetError(f"write {path_text(self._path)}", why, hint) from error

    def close(self) -> None:
        """Let go of the file; it stays partial. May be called more than once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> LargeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def partial_name(path: bytes) -> bytes:
    """The name, in the same directory, of what will be `path`: every process finds the same."""
    return PARTIAL + blake3.blake3(path).hexdigest(length=12).encode()


def create_partial(folder_fd: int, name: bytes, size: int) -> int:
    """Create the partial file with its full size, instead of one that an earlier run has left."""
    try:
        fd = os.open(name, _CREATE, 0o600, dir_fd=folder_fd)
    except FileExistsError:
        os.unlink(name, dir_fd=folder_fd)
        fd = os.open(name, _CREATE, 0o600, dir_fd=folder_fd)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=folder_fd)
        raise
    return fd


def open_partial(folder_fd: int, name: bytes, size: int) -> int:
    """Open the partial file that `create_partial` made with this size.

    The name can be foreseen, so somebody else may have put another file there: a link to one outside, one
    that he can read. Raises `RefusedError` then.
    """
    fd = os.open(name, _REOPEN, dir_fd=folder_fd)
    found = os.fstat(fd)
    alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
    if not alone or found.st_size != size:
        os.close(fd)
        raise RefusedError("somebody has replaced its partial file")
    return fd
