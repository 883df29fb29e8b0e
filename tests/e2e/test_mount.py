"""`smsnap mount` as people run it: in the foreground until Ctrl-C, in the background until unmounted."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smsnapd.cli.comparison import describe, differences
from smsnapd.volume.mounts import mount_points_below
from tests.e2e.transcript import Notebook, one_line

PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path)
    made.well("init")
    (made.volume / "d").mkdir()
    (made.volume / "d" / "a.txt").write_text("first\n")
    (made.volume / "big.bin").write_bytes(os.urandom(20 << 20))
    os.link(made.volume / "big.bin", made.volume / "d" / "same.bin")
    with (made.volume / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"x" * 4096, 32 << 20)
    made.well("backup")
    (made.volume / "d" / "a.txt").write_text("second\n")
    made.well("backup")
    point(made).mkdir()
    yield made
    subprocess.run(["umount", "-l", point(made)], capture_output=True)


def point(notebook: Notebook) -> Path:
    return notebook.place / "history"


def is_mounted(notebook: Notebook) -> bool:
    return b"history" in mount_points_below(os.fsencode(notebook.place))


def eventually(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def unmount(notebook: Notebook) -> None:
    eventually(lambda: subprocess.run(["umount", point(notebook)], capture_output=True).returncode == 0)


def test_in_the_background(notebook: Notebook) -> None:
    said = notebook.say_alone("mount", "--background", str(point(notebook)))
    assert (said.status, said.out, said.err) == (0, b"", "")
    names = sorted(os.listdir(point(notebook)))
    assert len(names) == 3 and names[-1] == "latest"
    first, latest = point(notebook) / names[0], point(notebook) / "latest"
    assert (first / "d" / "a.txt").read_text() == "first\n"
    assert (latest / "d" / "a.txt").read_text() == "second\n"
    one, other = (latest / "big.bin").stat(), (latest / "d" / "same.bin").stat()
    assert one.st_ino == other.st_ino != (first / "big.bin").stat().st_ino and one.st_nlink == 2
    assert (latest / "sparse").stat().st_blocks * 512 == 4096
    with (latest / "sparse").open("rb") as file:
        assert os.pread(file.fileno(), 4098, (32 << 20) - 1) == b"\0" + b"x" * 4096 + b"\0"
    unmount(notebook)
    eventually(lambda: not is_mounted(notebook))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground(notebook: Notebook, number: signal.Signals) -> None:
    process = notebook.start("mount", "history", stdout=subprocess.PIPE)
    try:
        eventually(lambda: is_mounted(notebook))
        copied = notebook.place / "copied"
        subprocess.run(["cp", "-a", "--sparse=always", f"{point(notebook)}/latest/", copied], check=True)
        found = [line for line in differences(describe(notebook.volume), describe(copied)) if line[0] != "."]
        assert [line for line in found if "data" not in line] == []  # cp makes holes of its own
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, b"")
    assert err.decode().startswith(f"smsnap: mounted on {point(notebook)}; Ctrl-C or ")
    assert not is_mounted(notebook)


def test_only_what_is_read_is_fetched_and_damage_is_an_error(notebook: Notebook) -> None:
    """All chunks but the pack are gone: what is not read is not missed."""
    chunks = sorted(notebook.repo.glob("volumes/nb/chunks/*/*"), key=lambda path: path.stat().st_size)
    for chunk in chunks[-3:]:
        chunk.unlink()
    process = notebook.start("mount", "history", "-q", stdout=subprocess.PIPE)
    try:
        eventually(lambda: is_mounted(notebook))
        latest = point(notebook) / "latest"
        assert (latest / "d" / "a.txt").read_text() == "second\n"
        assert (latest / "big.bin").stat().st_size == 20 << 20
        with pytest.raises(OSError) as caught:
            (latest / "big.bin").read_bytes()
        assert caught.value.errno == errno.EIO
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert b"big.bin: cannot read volumes/nb/chunks/" in err and b"the object is missing" in err


def test_what_cannot_be_mounted(notebook: Notebook) -> None:
    one_line(notebook.say_alone("mount", "nowhere"), 2, "no directory", "mkdir")
    for more in ([], ["--background"]):
        said = notebook.say_alone("mount", "history", *more, "--repository", "file:///nowhere")
        one_line(said, 10, "there is none")
    notebook.configure(encryption="")
    one_line(notebook.say_alone("mount", "--background", "history"), 2, "passphrase")
    assert not is_mounted(notebook)
