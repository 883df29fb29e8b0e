"""Bytes on their way to a disk: past the page cache if they are many, and durable when that is asked for.

Copying into the page cache costs the processor a hundred times what handing the same pages to the disk does,
and drives out of memory what others work with.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

Buffer = bytes | bytearray | memoryview | mmap.mmap

PAST_CACHE_FROM: Final = 128 * 1024
"""Bytes that are worth a wait for the disk."""

_ALIGNMENT: Final = max(4096, mmap.PAGESIZE)
"""What offset, length and memory of a direct write are multiples of: blocks of disks, as open(2) asks, and
pages, so that no other process has one of them in the cache because of its own part of it."""
_AT_ONCE: Final = 4 * 1024 * 1024
_WITHOUT: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_SYNC_FILE_RANGE_WRITE: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)
_own: Final = threading.local()


def write_at(fd: int, data: Buffer, offset: int, written: Callable[[], None] | None = None) -> None:
    """Write all of `data` (contiguous) at `offset` bytes into a file or device, however many calls it takes.

    Many bytes go past the page cache where file system and offset allow it; durable they are after a sync
    only, like others. `written` is called whenever the kernel has taken some. Raises `OSError`.
    """
    count = len(data)
    rest = memoryview(data)
    done = _write_past_cache(fd, rest, offset, written) if count >= PAST_CACHE_FROM else 0
    while done < count:
        taken = os.pwrite(fd, rest[done : done + _AT_ONCE], offset + done)
        if not taken:
            raise OSError(errno.EIO, "nothing more is taken, and nothing said why")
        done += taken
        if written is not None:
            written()


def aligned_memory(size: int) -> mmap.mmap:
    """Memory that begins with a page, all zero. Untouched it costs neither time nor memory."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def sync_file_system(fd: int) -> None:
    """Return when all that was written to the file system of `fd` is durable (syncfs(2)).

    Raises `OSError` if something could not be written since `fd` was opened (Linux 5.8 on). Where
    syncfs is missing everything is synced by sync(2), which reports no errors.
    """
    try:
        syncfs = _libc.syncfs
    except AttributeError:
        os.sync()
        return
    if syncfs(fd) == 0:
        return
    number = ctypes.get_errno()
    if number not in _WITHOUT:
        raise OSError(number, os.strerror(number))
    os.sync()


def start_writing_back(fd: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a part of a file to its disk or server; promises nothing.

    Where it cannot, it does so when it likes, as without this. What fails is told by fsync and syncfs.
    """
    try:
        sync_file_range = _libc.sync_file_range
    except AttributeError:
        return
    sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def _write_past_cache(fd: int, data: memoryview, offset: int, written: Callable[[], None] | None) -> int:
    """Write with O_DIRECT what can be: the bytes of `data` that are written, from its beginning."""
    if offset % _ALIGNMENT:
        return 0
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_APPEND:
        return 0
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:  # EINVAL: this file system has no such way
        return 0
    done, whole = 0, len(data) // _ALIGNMENT * _ALIGNMENT
    try:
        while done < whole and not done % _ALIGNMENT:
            with _aligned(data[done : min(whole, done + _AT_ONCE)]) as piece:
                taken = os.pwrite(fd, piece, offset + done)
            if not taken:  # the other way is told why
                break
            done += taken
            if written is not None:
                written()
    except OSError as error:
        if error.errno not in _WITHOUT:  # those: it wants more than is known here, or has no such way
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


def _aligned(piece: memoryview) -> memoryview:
    """The bytes of `piece` at the beginning of a page: itself, or a copy that holds until the next call."""
    if not piece.readonly and ctypes.addressof(ctypes.c_char.from_buffer(piece)) % _ALIGNMENT == 0:
        return memoryview(piece)
    room: mmap.mmap | None = getattr(_own, "room", None)
    if room is None:
        room = _own.room = aligned_memory(_AT_ONCE)
    copy = memoryview(room)[: len(piece)]
    copy[:] = piece
    return copy
