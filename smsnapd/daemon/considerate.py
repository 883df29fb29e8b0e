"""Making way for others: low priority for CPU and disk, and no memory held for nothing."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import platform
from typing import Final

_NICE: Final = 10
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The number of ioprio_set(2), for which libc has no function."""
_WHO_PROCESS: Final = 1
_IDLE: Final = 3 << 13
_log = logging.getLogger(__name__)


def make_way() -> None:
    """Nice 10 and the idle I/O class, for this thread and all threads and processes that it starts later.

    On Linux both belong to a thread: call it before any other is started. It is no error if the system
    refuses.
    """
    try:
        if os.getpriority(os.PRIO_PROCESS, 0) < _NICE:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except OSError as error:
        _log.info("the CPU priority stays as it is: %s", error.strerror)
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        _log.info("the I/O priority stays as it is: not known how to set it on %s", platform.machine())
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), _WHO_PROCESS, 0, _IDLE) != 0:
        _log.info("the I/O priority stays as it is: %s", os.strerror(ctypes.get_errno()))


def give_back_memory() -> None:
    """Return what was freed to the system: the heap of a run is of no use until the next one."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # musl has no such call
        ctypes.CDLL(None).malloc_trim(0)
