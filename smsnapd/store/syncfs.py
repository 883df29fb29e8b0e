"""syncfs(2) and sync_file_range(2), which Python does not have."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_WITHOUT: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_SYNC_FILE_RANGE_WRITE: Final = 2


def sync_file_system(descriptor: int) -> None:
    """Return when all that was written to the file system of `descriptor` is durable.

    Raises `OSError` if something could not be written since `descriptor` was opened (Linux 5.8 on).
    Where syncfs is missing everything is synced by sync(2), which reports no errors.
    """
    try:
        syncfs = _libc.syncfs
    except AttributeError:
        os.sync()
        return
    if syncfs(descriptor) == 0:
        return
    number = ctypes.get_errno()
    if number not in _WITHOUT:
        raise OSError(number, os.strerror(number))
    os.sync()


def start_writing_back(descriptor: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a part of a file to its disk or server; promises nothing.

    Where it cannot, it does so when it likes, as without this. What fails is told by fsync and syncfs.
    """
    try:
        sync_file_range = _libc.sync_file_range
    except AttributeError:
        return
    sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)
