"""A real ext4 on a loop device, for tests that must not depend on what carries the temporary directory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PR_SET_DUMPABLE = 4


@contextlib.contextmanager
def loop_ext4(directory: Path, name: str, options: str = "loop", size: str = "128M") -> Iterator[Path]:
    """Mount a new ext4 at `directory/name` for as long as the context lasts."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and mkfs.ext4")
    image, point = directory / f"{name}.img", directory / name
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "ea_inode", "-m", "0", image], check=True)
    point.mkdir()
    subprocess.run(["mount", "-o", options, image, point], check=True)
    try:
        (point / "lost+found").rmdir()
        yield point
    finally:
        if subprocess.run(["umount", point], check=False, capture_output=True).returncode != 0:
            subprocess.run(["umount", "-l", point], check=True)


@contextlib.contextmanager
def watched_over(point: Path, limit_s: int = 300) -> Iterator[Path]:
    """A process beside the test thaws what is mounted at `point` when the test ends, however, or hangs."""
    script = 'read -t "$2" line; while fsfreeze -u "$1"; do :; done'
    watchdog = subprocess.Popen(
        ["bash", "-c", script, "watchdog", point, str(limit_s)],
        stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        yield point
    finally:
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        watchdog.wait()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user without rights for a while; what is open stays open."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.setegid(65534)
    os.seteuid(65534)
    # A change of user makes /proc/self root's.
    assert ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
