"""A device or file that an image is written to: whether it may be, writing it, zeroing it, reading it back.

The first mebibyte is made zero before anything else is written, and written last: a device that was cut off
on the way holds no file system, and is never taken for one that is whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.disk import write_at
from smsnapd.errors import TargetError
from smsnapd.model import path_text
from smsnapd.volume.mounts import mounted_devices

HEAD: Final = 1024 * 1024
"""Bytes at the beginning that are written last."""

_BLKFLSBUF: Final = 0x1261
_BLKZEROOUT: Final = 0x127F
"""ioctls of linux/fs.h: drop the device's cached pages; make a range of it zero (two u64: start, length)."""
_PUNCH_HOLE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""
_STRIDE: Final = 1024 * 1024 * 1024
_PIECE: Final = 4 * 1024 * 1024
_AGAIN: Final = "then run the same command again; until then it holds no file system"
_HINTS: Final = {
    errno.ENOSPC: f"make room, {_AGAIN}",
    errno.EDQUOT: f"raise the quota or make room, {_AGAIN}",
    errno.EFBIG: "its file system takes no file of this size: choose another place",
    errno.EIO: "look at the kernel's log (dmesg) for what is wrong with the device",
    errno.EACCES: "run this as root",
    errno.EPERM: "run this as root",
    errno.EBUSY: "something holds it: unmount it, or detach what lies on it; `lsblk` shows what that is",
}

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ImageTarget:
    """What an image may be written to. `size` is in bytes; `empty`: it is known to be zero everywhere."""

    path: bytes
    size: int
    is_device: bool
    empty: bool


def inspect_target(path: bytes, image_size: int, *, destroy: bool) -> ImageTarget:
    """Whether an image may be written to `path`, a block device or a file; a new or empty file is as large
    as the image. Changes nothing.

    Raises TargetError: it is mounted or otherwise in use, it holds something and `destroy` is not set, it is
    neither device nor file, it cannot be opened.
    """
    what = f"write an image to {path_text(path)}"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ImageTarget(path, image_size, is_device=False, empty=True)
    except OSError as error:
        raise _unusable(what, error) from error
    is_device = stat.S_ISBLK(status.st_mode)
    if not is_device and not stat.S_ISREG(status.st_mode):
        raise TargetError(what, "it is neither a block device nor a file", "name one, or - for a pipe")
    check_unused(path)
    if not is_device and not status.st_size:
        return ImageTarget(path, image_size, is_device=False, empty=True)
    with _opened(path, os.O_RDONLY | (os.O_EXCL if is_device else 0), what) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if not destroy and _holds_something(descriptor):
            found = f"it holds {_what_it_holds(path)}"
            raise TargetError(what, found, "add --destroy if that may be overwritten")
    return ImageTarget(path, size, is_device, empty=False)


def check_unused(path: bytes) -> None:
    """TargetError if the device or file, or a part of it, is mounted, or is attached to a loop device."""
    what = f"write an image to {path_text(path)}"
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        points = mounted_devices().get(number)
        if points:
            hint = "unmount it first, or add --remount if this program itself runs from there"
            raise TargetError(what, f"it is mounted on {path_text(points[0])}", hint)
        return
    real = os.path.realpath(path)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(FileNotFoundError):
            if os.fsencode(backing.read_text().rstrip("\n")) == real:
                device = f"/dev/{backing.parts[3]}"
                hint = f"losetup -d {device}, or write to that"
                raise TargetError(what, f"it is attached to {device}", hint)


class OpenTarget:
    """A target that is being written. Every method raises TargetError that says what to do."""

    def __init__(self, target: ImageTarget, descriptor: int) -> None:
        self.target = target
        self._descriptor = descriptor
        self._what = f"write an image to {path_text(target.path)}"

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`."""
        write_range(self._descriptor, self.target.path, offset, data)

    def zero(self, start: int, end: int) -> None:
        """Make a range zero, without writing where the device or file system knows a way."""
        with self._translated():
            while start < end:
                length = min(end - start, _STRIDE)
                if not _zero_quickly(self._descriptor, self.target.is_device, start, length):
                    _zero_by_writing(self._descriptor, start, length)
                start += length

    def sync(self) -> None:
        """Return when everything is durable."""
        with self._translated():
            os.fsync(self._descriptor)

    def forget(self) -> None:
        """Have the next reads come from the device, as far as the kernel lets go of what it has cached."""
        self.sync()
        with self._translated():
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if self.target.is_device:
                fcntl.ioctl(self._descriptor, _BLKFLSBUF, 0)

    def read(self, offset: int, length: int) -> bytes:
        """What is there; TargetError if that cannot be read, or is cut off."""
        with self._translated():
            data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise TargetError(self._what, f"it ends at {offset + len(data)}", "is its size right?")
        return data

    def is_zero(self, start: int, end: int) -> bool:
        """Whether a range reads as zero; holes of files are not read."""
        while start < end:
            if not self.target.is_device:
                start = _next_data(self._descriptor, start, end)
            length = min(end - start, _PIECE)
            if self.read(start, length) != bytes(length):
                return False
            start += length
        return True

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unusable(self._what, error) from error


@contextlib.contextmanager
def opened_target(target: ImageTarget) -> Iterator[OpenTarget]:
    """The target, held for this process alone (a device; nobody can mount it), for as long as the context.

    A file that is not there is made, 0600, and given its size.
    """
    what = f"write an image to {path_text(target.path)}"
    flags = os.O_RDWR | (os.O_EXCL if target.is_device else os.O_CREAT)
    with _opened(target.path, flags, what) as descriptor:
        if not target.is_device:
            try:
                os.ftruncate(descriptor, target.size)
            except OSError as error:
                raise _unusable(what, error) from error
        yield OpenTarget(target, descriptor)


def open_for_writing(path: bytes) -> int:
    """A descriptor for another process that helps to write a target that is held; the caller's."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(f"write an image to {path_text(path)}", error) from error


def write_range(descriptor: int, path: bytes, offset: int, data: bytes | memoryview) -> None:
    """Write all of `data` at `offset` of a target, however many calls it takes."""
    try:
        write_at(descriptor, data, offset)
    except OSError as error:
        raise _unusable(f"write an image to {path_text(path)}", error) from error


@contextlib.contextmanager
def _opened(path: bytes, flags: int, what: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(what, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unusable(what: str, error: OSError) -> TargetError:
    return TargetError(what, error.strerror or str(error), _HINTS.get(error.errno or 0, ""))


def _holds_something(descriptor: int) -> bool:
    """Whether the first mebibyte, where every file system and partition table shows, is not zero."""
    found = os.pread(descriptor, HEAD, 0)
    return found != bytes(len(found))


def _what_it_holds(path: bytes) -> str:
    """What blkid(8) says is there, for people."""
    with contextlib.suppress(OSError):
        found = subprocess.run(
            ["blkid", "-p", "-o", "export", path], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        lines = (line.partition("=") for line in found.stdout.decode(errors="replace").splitlines())
        told = {name: value for name, _, value in lines}
        if kind := told.get("TYPE") or told.get("PTTYPE"):
            return f"{kind}, {told['LABEL']}" if told.get("LABEL") else kind
    return "something that is not zero"


def _zero_quickly(descriptor: int, is_device: bool, start: int, length: int) -> bool:
    """Zero a range by BLKZEROOUT or by punching a hole; False if that is not to be had here."""
    if is_device:
        # A loop device over one that is mounted refuses with EIO; if the device is broken, writing tells.
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", start, length))
            return True
        return False
    size = ctypes.c_longlong
    if _libc.fallocate(descriptor, _PUNCH_HOLE, size(start), size(length)) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number))
    return False


def _zero_by_writing(descriptor: int, start: int, length: int) -> None:
    zeros = memoryview(bytes(min(length, _PIECE)))
    while length:
        written = os.pwrite(descriptor, zeros[: min(length, _PIECE)], start)
        start, length = start + written, length - written


def _next_data(descriptor: int, start: int, end: int) -> int:
    """Where a file's data goes on, `end` at most."""
    try:
        return min(os.lseek(descriptor, start, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end
