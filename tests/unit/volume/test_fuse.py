"""The FUSE port, mounted for real and looked at with system calls."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from smsnapd.errors import DamageError, VolumeError
from smsnapd.model import Xattr
from smsnapd.volume.fuse import Attributes, FuseOptions, Name, OpenFile, check_available, mounted, mounting
from smsnapd.volume.mounts import find_mount, mount_points_below

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("fusermount3") is None or not Path("/dev/fuse").exists(), reason="needs FUSE (fuse3)"
    ),
]

PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))
STRANGE = b"\xff\xfe name\n"
BIG = 5_000_000_000
TIME_NS = 1_700_000_000_123_456_789


def pattern(offset: int, size: int) -> bytes:
    """What the big file has there: every 8 bytes are their own offset."""
    start = offset - offset % 8
    data = b"".join(number.to_bytes(8, "little") for number in range(start, offset + size + 8, 8))
    return data[offset - start : offset - start + size]


class Big:
    """Five gigabytes that are nowhere."""

    def read(self, offset: int, size: int) -> bytes:
        return pattern(offset, max(0, min(size, BIG - offset)))

    def close(self) -> None:
        pass


class Bad:
    """A file whose chunk is damaged."""

    def read(self, offset: int, size: int) -> bytes:
        raise DamageError("read chunks/ab", "its bytes are not what was stored")

    def close(self) -> None:
        pass


ENTRIES = {
    b"": Attributes(stat.S_IFDIR | 0o755, inode=1, links=3),
    b"big": Attributes(stat.S_IFREG | 0o640, BIG, 500, 501, TIME_NS, TIME_NS + 1, 7, 2, data_bytes=1 << 20),
    b"bad": Attributes(stat.S_IFREG | 0o644, 10, inode=8),
    b"link": Attributes(stat.S_IFLNK | 0o777, len(STRANGE), inode=9),
    b"sub": Attributes(stat.S_IFDIR | 0o700, inode=10),
    b"sub/" + STRANGE: Attributes(stat.S_IFREG | 0o644, 0, inode=11),
    b"dev": Attributes(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), inode=12),
}


class Sample:
    """A small tree of every kind."""

    def attributes(self, path: bytes) -> Attributes:
        if path not in ENTRIES:
            raise OSError(errno.ENOENT, "no such name")
        return ENTRIES[path]

    def names(self, path: bytes) -> Iterable[Name]:
        prefix = path + b"/" if path else b""
        for other, found in ENTRIES.items():
            if other and other.startswith(prefix) and b"/" not in other[len(prefix) :]:
                yield Name(other[len(prefix) :], found.mode, found.inode)

    def read_link(self, path: bytes) -> bytes:
        return STRANGE

    def open(self, path: bytes) -> OpenFile:
        return Bad() if path == b"bad" else Big()

    def xattrs(self, path: bytes) -> Sequence[Xattr]:
        return (Xattr(b"user.a", b"\0one"), Xattr(b"user.\xe9", b"")) if path == b"big" else ()


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "point"
    point.mkdir()
    with mounted(Sample, os.fsencode(point), FuseOptions(everyone=True)):
        yield point


def eventually(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def test_metadata_are_told_as_they_are(point: Path) -> None:
    found = (point / "big").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_size, found.st_uid, found.st_gid) == (0o640, BIG, 500, 501)
    assert (found.st_mtime_ns, found.st_ctime_ns, found.st_ino) == (TIME_NS, TIME_NS + 1, 7)
    assert (found.st_nlink, found.st_blocks) == (2, 2048)
    assert (point / "dev").lstat().st_rdev == os.makedev(1, 3)
    with pytest.raises(FileNotFoundError):
        (point / "nothing").stat()


def test_names_are_bytes(point: Path) -> None:
    root = os.fsencode(point)
    assert sorted(os.listdir(root)) == [b"bad", b"big", b"dev", b"link", b"sub"]
    assert os.listdir(root + b"/sub") == [STRANGE]
    assert os.readlink(root + b"/link") == STRANGE
    assert os.stat(root + b"/sub/" + STRANGE).st_ino == 11


def test_contents_beyond_four_gigabytes_and_at_the_end(point: Path) -> None:
    with (point / "big").open("rb") as file:
        for offset, size in ((0, 1000), (3, 300_000), ((1 << 32) + 5, 70_000), (BIG - 100, 500)):
            assert os.pread(file.fileno(), size, offset) == pattern(offset, min(size, BIG - offset))


def test_several_read_at_once(point: Path) -> None:
    failures: list[int] = []

    def read(number: int) -> None:
        with (point / "big").open("rb") as file:
            for step in range(20):
                offset = number * 100_000_003 + step * 65_537
                if os.pread(file.fileno(), 4096, offset) != pattern(offset, 4096):
                    failures.append(offset)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_extended_attributes(point: Path) -> None:
    big = os.fsencode(point / "big")
    assert [os.fsencode(name) for name in os.listxattr(big)] == [b"user.a", b"user.\xe9"]
    assert os.getxattr(big, b"user.a") == b"\0one"
    with pytest.raises(OSError) as caught:
        os.getxattr(big, b"user.none")
    assert caught.value.errno == errno.ENODATA


def logged_sample() -> Sample:
    logging.getLogger("smsnapd").addHandler(logging.StreamHandler(os.fdopen(os.dup(2), "w")))
    return Sample()


def test_damage_is_told_and_an_io_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mounted(logged_sample, os.fsencode(tmp_path)):
        with pytest.raises(OSError) as caught:
            (tmp_path / "bad").read_bytes()
        assert caught.value.errno == errno.EIO
        with (tmp_path / "big").open("rb") as file:
            assert file.read(8) == pattern(0, 8)
    told = set(capfd.readouterr().err.splitlines())  # the kernel asks again after its read-ahead failed
    assert told == {"bad: cannot read chunks/ab: its bytes are not what was stored"}


def test_nothing_can_be_written_or_run(point: Path) -> None:
    for change in (
        lambda: (point / "new").write_bytes(b""),
        lambda: (point / "big").chmod(0o777),
        lambda: (point / "big").open("r+b"),
        (point / "bad").unlink,
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(find_mount(os.fsencode(point)).options)


def test_the_mount_ends_with_the_context(tmp_path: Path) -> None:
    with mounted(Sample, os.fsencode(tmp_path)):
        assert (tmp_path / "big").exists()
        held = os.open(tmp_path / "big", os.O_RDONLY)  # who still has a file open does not keep it
    with pytest.raises(OSError, match="not connected"):
        os.close(held)
    assert not (tmp_path / "big").exists()
    assert mount_points_below(os.fsencode(tmp_path.parent)) == frozenset()


def is_gone(point: Path) -> bool:
    return os.fsencode(point.name) not in mount_points_below(os.fsencode(point.parent))


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from smsnapd.volume.fuse import mounted
from tests.unit.volume.test_fuse import Sample
with mounted(Sample, sys.argv[1].encode()):
    print("up", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("victim", ["holder", "server"])
def test_the_mount_ends_with_the_process_that_is_killed(tmp_path: Path, victim: str) -> None:
    checkout = Path(__file__).parents[3]
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path), str(checkout)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        os.kill(holder.pid if victim == "holder" else int(children[0]), signal.SIGKILL)
        eventually(lambda: is_gone(tmp_path), "the unmounting")
    finally:
        holder.kill()
        holder.communicate()


def test_a_mount_that_fails_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(VolumeError, match=r"mount on .*missing"),
        mounted(Sample, os.fsencode(tmp_path / "missing")),
    ):
        pass


def test_what_is_missing_is_named_with_its_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_available()
    monkeypatch.setattr(mounting, "_DEVICE", tmp_path / "fuse")
    with pytest.raises(VolumeError, match="modprobe fuse"):
        check_available()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VolumeError, match="install fuse3"):
        check_available()
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    with pytest.raises(VolumeError, match="smsnapd\\[mount\\]"):
        check_available()
