"""The floor of a backup: the volume's bytes read, hashed, compressed and sealed once, on all cores.

Each file once, whatever its names, packed into blocks of 8 MiB, by as many processes as there are cores:
simple loops, with the libraries that smsnapd uses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BLOCK = 8 << 20
Work = Callable[[memoryview], object]


class Floor(NamedTuple):
    """What one kind of work on all bytes took, reading included: seconds, of the clock and of processors."""

    work: str
    wall_s: float
    cpu_s: float


def floors(volume: Path, level: int) -> Iterator[Floor]:
    """Reading alone, then with each kind of work; `level` is that of the compression."""
    files = _files(volume)
    for work in (
        "reading",
        "and hashing (BLAKE3)",
        f"and compressing (zstd {level})",
        "and sealing (AES-GCM)",
    ):
        began_s, used_s = time.monotonic(), _children_s()
        processes = len(os.sched_getaffinity(0))
        with get_context("fork").Pool(processes) as pool:
            pool.starmap(_work, [(files[number::processes], work, level) for number in range(processes)])
            pool.close()
            pool.join()
        yield Floor(work, time.monotonic() - began_s, _children_s() - used_s)


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _files(volume: Path) -> list[str]:
    """Paths of regular files, one for each; the largest first, so that the shares are alike."""
    found: dict[int, tuple[int, str]] = {}
    for directory, _, names in os.walk(volume):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if os.path.isfile(path) and not os.path.islink(path):
                found[status.st_ino] = (status.st_blocks, path)
    return [path for _, path in sorted(found.values(), reverse=True)]


def _work(files: list[str], work: str, level: int) -> None:
    do = _worker(work, level)
    for block in _blocks(files):
        do(block)


def _worker(work: str, level: int) -> Work:
    if "hashing" in work:
        return lambda block: blake3(block).digest()
    if "compressing" in work:
        return zstandard.ZstdCompressor(level=level).compress
    if "sealing" in work:
        cipher, sealed = AESGCM(bytes(32)), bytearray(BLOCK + 16)
        return lambda block: cipher.encrypt_into(
            bytes(12), block, None, memoryview(sealed)[: len(block) + 16]
        )
    return len


def _blocks(files: list[str]) -> Iterator[memoryview]:
    """The data of the files, holes left out, in one buffer that is used again."""
    buffer = memoryview(bytearray(BLOCK))
    filled = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for start, end in _data(descriptor):
                at = start
                while at < end:
                    got = os.preadv(descriptor, [buffer[filled : filled + end - at]], at)
                    if not got:
                        break
                    at += got
                    filled += got
                    if filled == BLOCK:
                        yield buffer
                        filled = 0
        finally:
            os.close(descriptor)
    yield buffer[:filled]


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: of most it is all, which one look at the blocks tells."""
    status = os.fstat(descriptor)
    if status.st_blocks * 512 >= status.st_size:
        yield 0, status.st_size
        return
    at = 0
    while at < status.st_size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no more
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at
