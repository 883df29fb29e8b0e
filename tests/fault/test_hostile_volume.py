"""A user of the notebook against root's daemon that reads the volume: it reads nothing outside, nor waits.

Each attack works on a reader that goes by path; both are tried under the same race.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smsnapd.model import CHUNK_TARGET
from smsnapd.store import StoreSettings
from tests.property.observed import observe
from tests.property.protected import Protected, comes_back
from tests.unit.volume.test_tree import deep_directory

pytestmark = [pytest.mark.root, pytest.mark.slow]
SECRET = b"of root, outside the volume\n"
RUNS = 8
TRIES = 20_000

SWAPPER = """
import itertools, os, sys
one, other = sys.argv[1:]
print("begun", flush=True)
for _ in itertools.count():
    os.rename(one, one + "~")
    os.rename(other, one)
    os.rename(one, other)
    os.rename(one + "~", one)
    if os.getppid() == 1:
        break
"""


NAIVE_OPEN = """
import contextlib, os, stat, sys
for _ in range(1_000_000_000):
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.lstat(sys.argv[1]).st_mode):
            open(sys.argv[1]).close()
    if _ % 1000 == 0:
        print(".", end="", flush=True)
"""


@pytest.fixture
def protected(memory: Path) -> Iterator[Protected]:
    """On tmpfs, where a file may have petabytes. Beside it, on another file system, lies what is root's."""
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        place = Path(directory)
        (place / "outside").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", place / "outside"], check=True)
        (place / "outside/inner").write_bytes(SECRET)
        (place / "volume/directory").mkdir(parents=True)
        (place / "volume/directory/inner").write_bytes(b"inside\n")
        (place / "volume/file").write_bytes(b"inside\n")
        settings = StoreSettings((place / "repository").as_uri())
        try:
            yield Protected.create(place / "volume", place / "state", settings)
        finally:
            subprocess.run(["umount", "--lazy", place / "outside"], check=True)


@contextmanager
def swapped(one: Path, other: Path) -> Iterator[None]:
    """Two names change places all the time, as fast as a process can."""
    command = [sys.executable, "-c", SWAPPER, str(one), str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        try:
            yield
        finally:
            process.kill()


def naive_contents(root: Path) -> list[bytes]:
    """What a reader finds that walks a tree and opens what it has looked at, by path."""
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not os.path.islink(os.path.join(directory, name))]
        for name in files:
            path = os.path.join(directory, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    found.append(Path(path).read_bytes())
            except OSError:
                pass
    return found


def backed_up(protected: Protected, runs: int = RUNS) -> None:
    """Several runs, each with something to do, so that it reads what is being changed."""
    for number in range(runs):
        (protected.root / "change").write_bytes(b"%d" % number)
        protected.backup(workers=0, write_key=False, full=number % 2 == 0, reread=number % 4 == 0)


def stored(protected: Protected) -> Iterator[bytes]:
    """The contents of every file of every recovery point."""
    for number, snapshot in enumerate(protected.snapshots()):
        target = protected.root.with_name(f"restored-{number}")
        protected.restore(target, snapshot.id, workers=0)
        for path in target.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


@pytest.mark.parametrize(
    ("victim", "aim"), [("directory", "../outside"), ("file", "../outside/inner")], ids=["directory", "file"]
)
def test_what_turns_into_a_link_leads_nowhere(protected: Protected, victim: str, aim: str) -> None:
    (protected.root / "link").symlink_to(aim)
    with swapped(protected.root / victim, protected.root / "link"):
        assert any(SECRET in naive_contents(protected.root) for _ in range(TRIES))
        backed_up(protected)
    contents = set(stored(protected))
    assert SECRET not in contents and b"inside\n" in contents


def test_what_turns_into_a_fifo_makes_nobody_wait(protected: Protected) -> None:
    os.mkfifo(protected.root / "fifo")
    command = [sys.executable, "-c", NAIVE_OPEN, protected.root / "file"]
    with swapped(protected.root / "file", protected.root / "fifo"):
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=5)
        backed_up(protected)
    assert b"inside\n" in set(stored(protected))


def test_a_mount_over_a_directory_is_not_the_volume(protected: Protected) -> None:
    outside = protected.root.with_name("outside")
    subprocess.run(["mount", "--bind", outside, protected.root / "directory"], check=True)
    try:
        assert SECRET in naive_contents(protected.root)
        backed_up(protected, runs=2)
    finally:
        subprocess.run(["umount", protected.root / "directory"], check=True)
    assert SECRET not in set(stored(protected))


def test_a_mount_that_comes_and_goes(protected: Protected) -> None:
    outside, victim = protected.root.with_name("outside"), protected.root / "directory"
    over = threading.Event()

    def mounting() -> None:
        while not over.is_set():
            subprocess.run(["mount", "--bind", outside, victim], check=True)
            subprocess.run(["umount", "--lazy", victim], check=True)

    thread = threading.Thread(target=mounting)
    thread.start()
    try:
        assert any(SECRET in naive_contents(protected.root) for _ in range(TRIES))
        backed_up(protected)
    finally:
        over.set()
        thread.join()
    assert SECRET not in set(stored(protected))


def test_petabytes_that_are_all_hole_take_no_time(protected: Protected) -> None:
    size = 1 << 50
    with (protected.root / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size - 5)
        file.write(b"end.\n")
    read = 0
    with (protected.root / "sparse").open("rb") as file:
        while read < 1 << 28 and (piece := file.read(1 << 20)):
            read += len(piece)
    assert read < size  # whoever reads it through is at it for a week
    protected.backup(workers=0, write_key=False)
    target = protected.root.with_name("restored")
    protected.restore(target, workers=0)
    restored = (target / "sparse").stat()
    assert (restored.st_size, restored.st_blocks < 1000) == (size, True)
    with (target / "sparse").open("rb") as file:
        file.seek(size - 5)
        assert file.read() == b"end.\n"


def naive_length(path: Path, readings: int) -> int | None:
    """How long a file is to who reads it to its end; None if that has not come after so many readings."""
    length = 0
    with path.open("rb") as file:
        for _ in range(readings):
            count = os.preadv(file.fileno(), [bytearray(4096)], length)
            if not count:
                return length
            length += count
    return None


@pytest.mark.parametrize("size", [4096, 2 * CHUNK_TARGET + 4096], ids=["small", "large"])
def test_a_file_that_grows_for_ever_has_an_end(
    protected: Protected, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Whenever a piece of it was read, another one is there."""
    victim, read, readings = protected.root / "file", os.preadv, 0
    victim.write_bytes(b"x" * size)

    def read_and_grow(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        nonlocal readings
        count = read(descriptor, buffers, offset)
        if os.path.samestat(os.fstat(descriptor), victim.stat()):
            readings += 1
            with victim.open("ab") as file:
                file.write(b"x" * 4096)
        return count

    assert naive_length(victim, 10_000) == size
    monkeypatch.setattr(os, "preadv", read_and_grow)
    assert naive_length(victim, 10_000) is None
    victim.write_bytes(b"x" * size)
    readings = 0
    outcome = protected.backup(workers=0, write_key=False)
    assert [(issue.path, issue.reason) for issue in outcome.incomplete] == [(b"file", "changed while read")]
    assert 0 < readings < 20
    monkeypatch.undo()
    protected.restore(protected.root.with_name("restored"), workers=0)
    restored = (protected.root.with_name("restored") / "file").stat().st_size
    assert size <= restored <= size + 4096 * readings == victim.stat().st_size


def test_no_path_is_too_long(protected: Protected) -> None:
    """A user makes it step by step, and who goes by path does not get there."""
    path = deep_directory(protected.root / "directory", 40)
    assert len(path) > os.pathconf(protected.root, "PC_PATH_MAX")
    try:
        assert naive_contents(protected.root).count(b"found") == 0
        assert path + b"/file" in observe(protected.root / "directory")
        (protected.root / ("n" * 255)).write_bytes(b"inside\n")
        assert protected.backup(workers=0, write_key=False).incomplete == ()
        comes_back(protected, workers=0)
    finally:
        subprocess.run(["rm", "-rf", protected.root / "directory"], check=True)
