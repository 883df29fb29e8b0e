"""A block device, read past the page cache: what a buffered read of a mounted device gives may be old."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import Mount

WINDOW: Final = 1024 * 1024
"""Bytes that are read at once for small pieces; aligned, as O_DIRECT wants offsets, lengths and memory."""

_SECTOR: Final = 4096
"""No device has larger sectors; one whose size is no multiple of it has smaller ones."""


class Device:
    """An open device, or a file that is an image of one. Not for several threads.

    With `direct` reads go to the device itself (O_DIRECT, open(2)). `tell`, if set, is called with every
    read. Raises `VolumeError` for what cannot be opened or read.
    """

    def __init__(self, path: str, *, direct: bool = True) -> None:
        self.path: Final = path
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
            self._descriptor = os.open(path, flags)
            self.size: Final = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise VolumeError(
                f"open the device {path}", error.strerror or str(error), "run this as root"
            ) from error
        self._window = memoryview(aligned_buffer(WINDOW))
        self._start = self._length = 0
        self.tell: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it. May be called more than once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`; it and `offset` are aligned to 4,096, but for an end that is the device's."""
        if self.tell is not None:
            self.tell()
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                why = f"at byte {offset + done}: {error.strerror}"
                raise VolumeError(f"read {self.path}", why, "look at the kernel's log") from error
            if not count:
                raise VolumeError(f"read {self.path}", f"it ends at byte {offset + done}", "was it resized?")
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """Any bytes; those near each other cost one read. `forget` before what may have changed."""
        pieces: list[bytes] = []
        while length:
            if not self._start <= offset < self._start + self._length:
                self._fill(offset, length)
            at = offset - self._start
            piece = bytes(self._window[at : min(at + length, self._length)])
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def forget(self) -> None:
        """Read anew from now on."""
        self._length = 0

    def _fill(self, offset: int, wanted: int) -> None:
        """Read what is wanted, and more if it lies right behind what was read before."""
        start = offset // _SECTOR * _SECTOR
        goes_on = self._length and start == self._start + self._length
        wanted = WINDOW if goes_on else -(-(offset + wanted - start) // _SECTOR) * _SECTOR
        length = min(wanted, WINDOW, self.size - start)
        if offset >= self.size:
            raise VolumeError(f"read {self.path}", f"byte {offset} is beyond its end", "was it resized?")
        self._length = 0
        self.read_into(self._window[:length], start)
        self._start, self._length = start, length


def aligned_buffer(size: int) -> mmap.mmap:
    """Memory that O_DIRECT can read into."""
    return mmap.mmap(-1, size)


def device_of(mount: Mount) -> str:
    """The path of the block device that carries a mounted file system; `VolumeError` if there is none."""
    what = f"find the device of {os.fsdecode(mount.mount_point)}"
    major, _, minor = mount.device.partition(":")
    number = os.makedev(int(major), int(minor))
    for path in _candidates(mount):
        try:
            status = os.stat(path)
        except OSError:
            continue
        # Of a file system with an anonymous number (btrfs) the source is all that is known.
        if stat.S_ISBLK(status.st_mode) and (status.st_rdev == number or major == "0"):
            return path
    raise VolumeError(what, f"no block device in /dev carries {mount.fs_type}", 'use mode = "tar"')


def _candidates(mount: Mount) -> list[str]:
    """Paths that may be the device's."""
    try:
        lines = Path(f"/sys/dev/block/{mount.device}/uevent").read_text().splitlines()
    except OSError:
        lines = []
    named = [f"/dev/{line.partition('=')[2]}" for line in lines if line.startswith("DEVNAME=")]
    return [*named, os.fsdecode(mount.source)]
