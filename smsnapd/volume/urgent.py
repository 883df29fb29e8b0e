"""Working at once while others have to wait: ordinary priority for a daemon that else makes way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Final

_IOPRIO_GET: Final = {"x86_64": 252, "aarch64": 31}
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
"""The numbers of ioprio_get(2) and ioprio_set(2), for which libc has no functions."""
_WHO_PROCESS: Final = 1
_BEST_EFFORT: Final = 2 << 13 | 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def urgently() -> Iterator[None]:
    """Nice 0 and the best-effort I/O class for this thread while the context lasts, as far as allowed.

    A lower nice value takes CAP_SYS_NICE. Afterwards both are as they were.
    """
    nice, io_class = os.getpriority(os.PRIO_PROCESS, 0), _io_class()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(nice, 0))
    _set_io_class(_BEST_EFFORT)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        _set_io_class(io_class)


def _io_class() -> int:
    """Class and level of this thread, -1 if the system does not tell."""
    number = _IOPRIO_GET.get(platform.machine())
    return -1 if number is None else int(_libc.syscall(number, _WHO_PROCESS, 0))


def _set_io_class(io_class: int) -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None and io_class >= 0:
        _libc.syscall(number, _WHO_PROCESS, 0, io_class)
