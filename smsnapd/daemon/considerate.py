"""Making way for others: low priority for CPU and disk, and no memory held for nothing.

Python's own allocator returns memory in whole pieces of 1 MiB. A run that looks at everything fills dozens,
and a few objects that stay hold most of them for good: 40 MB of nothing. malloc(3) returns every free page.
Where Python makes many objects it takes half as much CPU time again, which is seconds of a full; and the
daemon rests for hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import MutableMapping
from typing import Final

_NICE: Final = 10
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The number of ioprio_set(2), for which libc has no function."""
_WHO_PROCESS: Final = 1
_IDLE: Final = 3 << 13
_ALLOCATOR: Final = "PYTHONMALLOC"
_MXFAST: Final = 1
_ARENA_MAX: Final = -8
"""M_MXFAST and M_ARENA_MAX of mallopt(3)."""
_log = logging.getLogger(__name__)


def use_malloc(environment: MutableMapping[str, str]) -> None:
    """Have all memory come from malloc(3), in one heap for all threads, if it can return every free page.

    Python takes its allocator when it starts, so this program starts again, as it was started, unless the
    environment says already which allocator to take. To be called before any thread is started. Processes
    that are started later have Python's own.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):  # musl
        return
    if _ALLOCATOR not in environment:
        environment[_ALLOCATOR] = "malloc"
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(environment))
    if environment[_ALLOCATOR] == "malloc":
        del environment[_ALLOCATOR]
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MXFAST, 0)  # small blocks are joined as they are freed: less is torn, and it is quicker


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
    """Return what was freed to the system: the heap of a run is of no use until the next one.

    It helps where `use_malloc` was called.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # musl has no such call
        ctypes.CDLL(None).malloc_trim(0)
