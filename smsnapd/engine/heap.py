"""The C library's heap in a process that fills and drops buffers of a chunk's size all the time."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
"""mallopt(3), malloc.h."""

_LARGEST: Final = 32 * 1024 * 1024
"""The most that glibc takes for the second: HEAP_MAX_SIZE / 2, and as much as a chunk has."""

KEPT: Final = 16 * 1024 * 1024
"""Bytes that are kept for the next chunk: enough for whoever seals one."""

KEPT_FOR_OPENING: Final = 64 * 1024 * 1024
"""Enough for a chunk as it is stored, opened and decompressed."""


def keep_freed_memory(kept: int = KEPT) -> None:
    """Let buffers be taken from memory that was used before.

    By itself the heap gives each large buffer back to the kernel, and the next one costs a page fault and
    zeroing for every page of it: a fifth of a restore. What is kept, `kept` bytes at most, was in use at once
    before. May be called again. Does nothing with a C library other than glibc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 1)  # each would keep such buffers of its own
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, kept)
