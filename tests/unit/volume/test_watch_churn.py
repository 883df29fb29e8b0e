"""Whoever scans once and then follows hints alone ends up believing what is there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.volume.ext4 import loop_ext4
from tests.unit.volume.watched import KINDS, Index, machine_wide, news, sysctl, watching

pytestmark = [pytest.mark.root, pytest.mark.loop]

CHURN = """
import contextlib, os, random, sys
sys.path[:0] = sys.argv[3].split(os.pathsep)
from tests.unit.volume.test_watch_churn import churn
from pathlib import Path
churn(Path(sys.argv[1]), random.Random(int(sys.argv[2])), int(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def volume() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, loop_ext4(Path(name), "volume", size="1G") as point:
        yield point


def churn(root: Path, chance: random.Random, steps: int) -> None:
    """Change things below `root` without end or aim; `root/../beside` is where things come from and go to."""
    beside = root.parent / "beside"
    directories = [root]
    for _ in range(steps):
        directory = chance.choice(directories)
        name, other = f"{chance.randrange(6)}", chance.choice(directories) / f"{chance.randrange(6)}"
        with contextlib.suppress(OSError):
            one_step(chance, directory / name, other, beside)
        if chance.random() < 0.05:
            directories = [Path(path) for path, _, _ in os.walk(root)]
            if len(directories) > 60:
                shutil.rmtree(root / f"{chance.randrange(6)}", ignore_errors=True)
                shutil.rmtree(beside / f"{chance.randrange(6)}", ignore_errors=True)


def one_step(chance: random.Random, path: Path, other: Path, beside: Path) -> None:
    match chance.randrange(14):
        case 0 | 1:
            path.write_bytes(chance.randbytes(chance.randrange(2000)))
        case 2:
            with path.open("ab") as file:
                file.write(b"more")
        case 3 | 4:
            path.mkdir()
        case 5:
            (path / "a" / "b").mkdir(parents=True)
            (path / "a" / "b" / "file").write_bytes(b"deep")
        case 6 | 7:
            path.rename(other)
        case 8:
            path.rmdir() if path.is_dir() else path.unlink()
        case 9:
            path.chmod(chance.choice((0o700, 0o755, 0o777)))
        case 10:
            path.symlink_to(other)
        case 11:
            path.rename(beside / path.name)
        case 12:
            (beside / path.name).rename(path)
        case _:
            os.utime(path, ns=(chance.randrange(10**18), chance.randrange(10**18)), follow_symlinks=False)


def start_churn(root: Path, seed: int, steps: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHURN, str(root), str(seed), os.pathsep.join(sys.path), str(steps)]
    )


def make_place(volume: Path, name: str) -> Path:
    root = volume / name / "root"
    root.mkdir(parents=True)
    (root.parent / "beside").mkdir()
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_missed_while_everything_changes(volume: Path, kind: str, seed: int) -> None:
    root = make_place(volume, f"{kind}-{seed}")
    churn(root, random.Random(seed), 300)
    with watching(root, kind) as watcher:
        index = Index(root)
        churners = [start_churn(root, seed * 2 + number, 700) for number in range(2)]
        while any(churner.poll() is None for churner in churners):
            watcher.wait(0.05)
            index.follow(watcher.take())
        assert [churner.returncode for churner in churners] == [0, 0]
        index.follow(news(watcher))
        assert index.entries() == Index(root).entries()
        assert not watcher.gaps
        assert watcher.is_healthy


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_has_everything_looked_at_and_is_told(volume: Path, kind: str) -> None:
    root = make_place(volume, f"overflow-{kind}")
    with contextlib.ExitStack() as stack:
        # A queue keeps the limit that it was made with; those of other tests shall not get this one.
        with machine_wide(), sysctl(f"fs.{kind}.max_queued_events", 32):
            watcher = stack.enter_context(watching(root, kind, unlimited_queue=False))
        storm = "import os\nfor i in range(20000):\n    os.close(os.open(f'f{i}', os.O_CREAT))\n"
        storm += "    i % 500 or os.makedirs(f'd{i}/x')\n"
        index = Index(root)
        assert subprocess.run([sys.executable, "-c", storm], cwd=root).returncode == 0
        hints = news(watcher)
        assert b"" in hints.subtrees
        assert watcher.gaps
        assert all("overflow" in gap.reason for gap in watcher.gaps)
        index.follow(hints)
        assert index.entries() == Index(root).entries()
        assert watcher.is_healthy
        # What came up in the storm is watched like everything else.
        (root / "d19500" / "x" / "file").touch()
        assert news(watcher).covers(b"d19500/x")


def test_an_unlimited_queue_does_not_overflow(volume: Path) -> None:
    root = make_place(volume, "unlimited")
    with contextlib.ExitStack() as stack:
        with machine_wide(), sysctl("fs.fanotify.max_queued_events", 32):
            watcher = stack.enter_context(watching(root, "fanotify"))
        for number in range(5000):
            (root / f"f{number}").touch()
        assert news(watcher).directories == {b""}
        assert not watcher.gaps
