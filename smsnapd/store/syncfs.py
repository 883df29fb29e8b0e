"""syncfs(2), which Python does not have."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_WITHOUT: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


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
