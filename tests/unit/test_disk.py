"""Bytes get to where they belong, whichever way they take; many of them leave the page cache alone."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd import disk
from smsnapd.disk import PAST_CACHE_FROM, aligned_memory, sync_file_system, write_at
from tests.unit.volume.ext4 import loop_ext4

PAGE = mmap.PAGESIZE
MIB = 1 << 20
SIZES = (
    *(0, 1, 4095, PAST_CACHE_FROM - 1, PAST_CACHE_FROM, PAST_CACHE_FROM + 1, 2 * MIB + 511),
    *(4 * MIB, 9 * MIB + 4097),
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with loop_ext4(tmp_path, "disk") as root:
        yield root


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def in_pages(data: bytes) -> memoryview:
    memory = aligned_memory(max(1, len(data)))
    memory[: len(data)] = data
    return memoryview(memory)[: len(data)]


def cached_bytes(path: Path) -> int:
    """How much of a file is in the page cache (mincore(2))."""
    size = path.stat().st_size
    pages = -(-size // PAGE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found) == 0
        return sum(page & 1 for page in found) * PAGE


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("offset", [0, 4096, 1000, 3 * MIB])
@pytest.mark.parametrize("prepare", [bytes, bytearray, in_pages], ids=["bytes", "bytearray", "pages"])
def test_it_is_all_there_and_nothing_else_is_touched(place: Path, offset: int, prepare: object) -> None:
    assert callable(prepare)
    for size in SIZES:
        path = place / f"{size}"
        before = noise(offset + size + 5000)
        path.write_bytes(before)
        fd = os.open(path, os.O_RDWR)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        data = noise(size + 1)[1:]
        write_at(fd, prepare(data), offset)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) == flags
        os.close(fd)
        assert path.read_bytes() == before[:offset] + data + before[offset + size :]
        path.unlink()


@pytest.mark.root
@pytest.mark.loop
def test_holes_and_new_files_are_filled(place: Path) -> None:
    data = noise(3 * MIB + 77)
    for name, size in (("new", 0), ("hole", 9 * MIB)):
        path = place / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, size)
        write_at(fd, data, MIB)
        os.close(fd)
        found = path.read_bytes()
        assert found[: MIB + len(data)] == bytes(MIB) + data
        assert not any(found[MIB + len(data) :])
        assert len(found) == max(size, MIB + len(data))


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("prepare", [bytes, in_pages], ids=["bytes", "pages"])
def test_many_bytes_leave_the_page_cache_alone(place: Path, prepare: object) -> None:
    assert callable(prepare)
    path = place / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    write_at(fd, prepare(noise(16 * MIB + 100)), 0)
    sync_file_system(fd)
    os.close(fd)
    assert cached_bytes(path) <= 2 * PAGE
    path.write_bytes(noise(MIB))
    assert cached_bytes(path) == MIB  # so that the figure above means something


@pytest.mark.parametrize("size", [1, 65536, PAST_CACHE_FROM - 1, PAST_CACHE_FROM, 9 * MIB])
def test_each_piece_that_is_taken_is_a_sign_of_life(tmp_path: Path, size: int) -> None:
    taken: list[int] = []
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    write_at(fd, bytes(size), 0, lambda: taken.append(path.stat().st_size))
    os.close(fd)
    assert len(taken) >= (3 if size > 8 * MIB else 1)
    assert taken == sorted(set(taken))
    assert taken[-1] == size


def test_what_takes_nothing_and_says_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    lives: list[int] = []
    monkeypatch.setattr(disk.os, "pwrite", lambda *_: 0)
    for size in (100, 9 * MIB):
        with pytest.raises(OSError, match="nothing more is taken"):
            write_at(fd, bytes(size), 0, lambda: lives.append(1))
    assert lives == []
    monkeypatch.undo()
    os.close(fd)


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("where", ["fcntl", "pwrite"])
def test_without_such_a_way_they_go_the_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    real_fcntl, real_pwrite = fcntl.fcntl, os.pwrite
    refused: list[str] = []

    def no_fcntl(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            refused.append("fcntl")
            raise OSError(number, "no")
        return real_fcntl(fd, command, argument)

    def no_pwrite(fd: int, data: memoryview, offset: int) -> int:
        if real_fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT and offset:
            refused.append("pwrite")
            raise OSError(number, "no")
        return real_pwrite(fd, data, offset)

    if where == "fcntl":
        monkeypatch.setattr(disk.fcntl, "fcntl", no_fcntl)
    else:
        monkeypatch.setattr(disk.os, "pwrite", no_pwrite)
    data = noise(9 * MIB + 1)
    fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
    write_at(fd, data, 0)
    assert not real_fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    os.close(fd)
    assert (place / "file").read_bytes() == data
    assert where in refused


@pytest.mark.root
@pytest.mark.loop
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "small") as root:
        room = os.statvfs(root)
        fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
        with pytest.raises(OSError, match="No space left"):
            for number in range(room.f_blocks * room.f_frsize // (4 * MIB) + 1):
                write_at(fd, noise(4 * MIB + 5), number * 4 * MIB)
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        os.close(fd)


def test_a_descriptor_for_appending_keeps_its_order(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    data = noise(2 * MIB)
    write_at(fd, data, 0)
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == data
