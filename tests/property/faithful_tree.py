"""One tree with everything that a volume may hold, and every change that a backup must see."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.property.syscalls import punch, some_acl
from tests.property.volume_model import MIB

SOCKET = b"socket"
MOUNTS = (b"mounted", b"bound")
DEEP = b"deep"
"""Below it is what others cannot read: paths longer than PATH_MAX, a file of 3 TiB."""

_random = random.Random(20_261_123)
_CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)


@contextmanager
def faithful_tree(root: Path) -> Iterator[None]:
    """Make the tree in an empty directory; its mounts are there as long as the context lasts."""
    here = os.fsencode(root) + b"/"
    _modes_and_owners(here + b"modes/")
    _times(here + b"times/")
    _names(here + b"names/")
    _links(here + b"links/")
    _attributes(here + b"attributes/")
    _sparse(here + b"sparse/")
    _contents(here + b"contents/")
    _moving(here)
    _deep(here + DEEP)
    for number in range(3):
        _mkdir(here + b"empty/%d" % number)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(here + SOCKET)
    with _mounts(here):
        yield


def _mkdir(place: bytes) -> None:
    os.makedirs(place, exist_ok=True)


def _write(place: bytes, data: bytes = b"content") -> None:
    with open(place, "wb") as file:
        file.write(data)


def _modes_and_owners(here: bytes) -> None:
    _mkdir(here)
    for mode in (0, 0o111, 0o444, 0o600, 0o640, 0o755, 0o1755, 0o2755, 0o4755, 0o6711, 0o7777):
        _write(here + b"file-%o" % mode)
        _mkdir(here + b"directory-%o/inside" % mode)
        for place in (here + b"file-%o" % mode, here + b"directory-%o" % mode):
            os.chmod(place, mode)
    for uid, gid in ((500, 500), (1000, 100), (65_534, 0), (4_000_000_000, 3_000_000_000)):
        place = here + b"owner-%d" % uid
        _write(place)
        os.symlink(b"x", place + b"-link")
        os.mkfifo(place + b"-fifo")
        for name in (place, place + b"-link", place + b"-fifo"):
            os.lchown(name, uid, gid)
        os.chmod(place, 0o4751)
    os.mknod(here + b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here + b"disk", stat.S_IFBLK | 0o600, os.makedev(259, 1_000_003))


def _times(here: bytes) -> None:
    _mkdir(here)
    for number, time_ns in enumerate(
        (-1, -(2**30) * 10**9 + 7, 0, 1, 999_999_999, 2**33 * 10**9 + 123_456_789)
    ):
        for kind in (b"file", b"link", b"directory"):
            place = here + b"%s-%d" % (kind, number)
            if kind == b"file":
                _write(place)
            elif kind == b"link":
                os.symlink(b"../nowhere", place)
            else:
                _mkdir(place)
            os.utime(place, ns=(1, time_ns), follow_symlinks=False)


def _names(here: bytes) -> None:
    _mkdir(here)
    names = [
        b"\xff\xfe",
        b"\xc3",
        b"caf\xc3\xa9",
        b"new\nline",
        b"tab\t",
        b"back\\slash",
        b"\x01\x7f\x80",
        b"-rf",
    ]
    names += [
        b" ",
        b"*",
        b"a=b",
        b"%",
        b"...",
        b"~",
        b"x" * 255,
        b"\xe2\x82\xac" * 85,
        b"GNUSparseFile.0",
        b"lost+found",
    ]
    for name in names:
        _write(here + name, name)
        _mkdir(here + b"below/" + name)
        os.symlink(name, here + b"below/" + name + b"/" + name)
    _mkdir(here + b"lost+found-")
    # These sort differently as strings and component by component.
    for name in (b"a/x", b"a.d/x", b"a b/x", b"a/b/x", b"A/x"):
        _mkdir(here + b"order/" + name)


def _links(here: bytes) -> None:
    for name in (b"one", b"two", b"zero"):
        _mkdir(here + name)
    _write(here + b"one/first", _random.randbytes(5000))
    os.symlink(b"target of several", here + b"one/symlink")
    os.mkfifo(here + b"one/fifo")
    os.mknod(here + b"one/device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    for name in (b"first", b"symlink", b"fifo", b"device"):
        for other in (b"two/" + name, b"zero/0-" + name, b"one/0-" + name):
            os.link(here + b"one/" + name, here + other, follow_symlinks=False)
    for length in (1, 100, 101, 255, 256, 1024, 4095):
        os.symlink((b"t/" * 2048)[:length], here + b"long-%d" % length)
    os.symlink(b"\xff\n", here + b"strange")
    os.symlink(b"/etc/passwd", here + b"absolute")
    os.symlink(b"one", here + b"to-a-directory")


def _attributes(here: bytes) -> None:
    _mkdir(here + b"directory")
    for name in (b"file", b"directory"):
        os.setxattr(
            here + name if name == b"directory" else _new(here + name), "user.one", b"\x00\xff binary\n"
        )
    file = here + b"file"
    for key, value in (
        ("user.empty", b""),
        ("user.a=b%c", b"="),
        ("trusted.two", b"2"),
        ("user.big", bytes(60_000)),
    ):
        os.setxattr(file, key, value)
    os.setxattr(here + b"directory", "trusted.two", b"2")
    os.setxattr(_new(here + b"capable"), "security.capability", _CAPABILITY)
    os.chown(_new(here + b"capable-owned"), 1000, 1000)
    os.setxattr(here + b"capable-owned", "security.capability", _CAPABILITY)
    os.symlink(b"x", here + b"symlink")
    os.setxattr(here + b"symlink", "trusted.link", b"3", follow_symlinks=False)
    os.mkfifo(here + b"fifo")
    os.setxattr(here + b"fifo", "trusted.fifo", b"4")
    for number in range(30):
        os.setxattr(_new(here + b"same-%d" % number), "user.same", b"same")
    os.setxattr(_new(here + b"acl"), "system.posix_acl_access", some_acl(1000, 6))
    _mkdir(here + b"acls")
    os.setxattr(here + b"acls", "system.posix_acl_access", some_acl(1000, 7))
    os.setxattr(here + b"acls", "system.posix_acl_default", some_acl(500, 5))
    _new(here + b"acls/inherits")
    _mkdir(here + b"acls/inherits-too/and-on")
    os.removexattr(_new(here + b"acls/plain"), "system.posix_acl_access")


def _new(place: bytes) -> bytes:
    _write(place)
    return place


def _sparse(here: bytes) -> None:
    _mkdir(here)
    block = _random.randbytes(4096)
    layouts: dict[bytes, tuple[int, tuple[int, ...]]] = {
        b"start": (3 * 4096, (2,)),
        b"middle": (3 * 4096, (0, 2)),
        b"end": (3 * 4096 + 1, (0,)),
        b"all": (10 * MIB + 7, ()),
        b"tiny": (1, ()),
        b"many": (4 * MIB, tuple(range(0, 1024, 2))),
        b"large": (64 * MIB, tuple(range(100, 3000))),
    }
    for name, (size, blocks) in layouts.items():
        with open(here + name, "wb") as file:
            for number in blocks:
                os.pwrite(file.fileno(), block, number * 4096)
            file.truncate(size)
    with open(here + b"covered", "wb") as file:
        file.truncate(4096)
    # A block of attributes counts in st_blocks: as many blocks as a file without holes has.
    os.setxattr(here + b"covered", "user.block", bytes(3000))
    _write(here + b"punched", _random.randbytes(50_000))
    with open(here + b"punched", "r+b") as file:
        punch(file.fileno(), 8192, 12_288)
    _write(here + b"zeros", bytes(100_000))


def _contents(here: bytes) -> None:
    _mkdir(here)
    for size in (0, 1, 511, 512, 513, 4096, 100_000, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1):
        _write(here + b"%d" % size, _random.randbytes(size))
    _write(here + b"large", _random.randbytes(19 * MIB + 5))
    for number in range(300):
        _write(here + b"small-%d" % number, _random.randbytes(number * 7))
    shutil.copyfile(here + b"large", here + b"large copy")


def _moving(here: bytes) -> None:
    """What `change` will change."""
    _mkdir(here + b"tree/of/directories")
    for number in range(40):
        _write(here + b"tree/of/file-%d" % number, _random.randbytes(50_000))
    for name in (
        b"edited",
        b"hidden",
        b"renamed",
        b"deleted",
        b"metadata",
        b"to-directory",
        b"to-symlink",
        b"owner",
    ):
        _write(here + name, _random.randbytes(3000))
    _mkdir(here + b"to-file/with/content")
    _write(here + b"to-file/with/content/file")
    _mkdir(here + b"deleted-tree/with/content")
    _write(here + b"deleted-tree/with/content/file")
    os.symlink(b"a", here + b"link-to-file")
    os.symlink(b"a", here + b"link-to-link")
    os.mkfifo(here + b"fifo-to-file")


def _deep(here: bytes) -> None:
    """Twenty-five directories of 200 bytes each, with files on the way."""
    os.mkdir(here)
    with open(here + b"/huge", "wb") as file:
        for offset in (20_000, 1 << 33, (3 << 40) - 9000):
            os.pwrite(file.fileno(), b"data", offset)
        file.truncate(3 << 40)
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(25):
        name = b"%02d" % level + b"d" * 198
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        with open(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
            file.write(b"%d" % level)
        os.setxattr(b"/proc/self/fd/%d/file" % fd, "user.level", b"%d" % level)
        os.link(b"file", b"link", src_dir_fd=fd, dst_dir_fd=fd)
        os.symlink(b"file", b"symlink", dir_fd=fd)
    os.close(fd)


@contextmanager
def _mounts(here: bytes) -> Iterator[None]:
    """Another file system, and a bind mount of this one, below the root."""
    for name in MOUNTS:
        _mkdir(here + name)
    subprocess.run(["mount", "-t", "tmpfs", "none", here + MOUNTS[0]], check=True)
    _write(here + MOUNTS[0] + b"/not-backed-up")
    subprocess.run(["mount", "--bind", here + b"tree", here + MOUNTS[1]], check=True)
    try:
        yield
    finally:
        for name in MOUNTS:
            subprocess.run(["umount", here + name], check=True)


def change(root: Path) -> None:
    """Every change of the list: each in its own place."""
    here = os.fsencode(root) + b"/"
    _write(here + b"added", b"new")
    _mkdir(here + b"added-tree/deep")
    _write(here + b"added-tree/deep/file")
    os.unlink(here + b"deleted")
    shutil.rmtree(here + b"deleted-tree")
    os.rename(here + b"renamed", here + b"names/renamed")
    os.rename(here + b"links/one", here + b"links/renamed")
    _change_kinds(here)
    _change_metadata(here)
    _change_contents(here)
    _change_links(here + b"links/")


def _change_kinds(here: bytes) -> None:
    os.unlink(here + b"to-directory")
    _mkdir(here + b"to-directory/with")
    _write(here + b"to-directory/with/file")
    shutil.rmtree(here + b"to-file")
    _write(here + b"to-file")
    os.unlink(here + b"to-symlink")
    os.symlink(b"somewhere", here + b"to-symlink")
    for name in (b"link-to-file", b"fifo-to-file"):
        os.unlink(here + name)
        _write(here + name, b"a file now")
    os.unlink(here + b"link-to-link")
    os.symlink(b"b", here + b"link-to-link")


def _change_metadata(here: bytes) -> None:
    os.chmod(here + b"metadata", 0o4711)
    os.chown(here + b"owner", 1000, 1000)
    os.utime(here + b"times/file-0", ns=(0, 1_234_567_890_123_456_789))
    os.utime(here + b"times/link-1", ns=(0, -5), follow_symlinks=False)
    os.chmod(here + b"empty/1", 0o2750)
    os.removexattr(here + b"attributes/file", "user.empty")
    os.setxattr(here + b"attributes/file", "trusted.two", b"other")
    os.removexattr(here + b"attributes/acls", "system.posix_acl_default")
    os.setxattr(here + b"attributes/acl", "system.posix_acl_access", some_acl(1001, 4))
    os.setxattr(here + b"attributes/symlink", "trusted.link", b"other", follow_symlinks=False)
    os.chmod(here, 0o750)


def _change_contents(here: bytes) -> None:
    with open(here + b"edited", "ab") as file:
        file.write(b"more")
    status = os.stat(here + b"hidden")
    with open(here + b"hidden", "r+b") as file:
        file.write(b"other")
    os.utime(here + b"hidden", ns=(status.st_atime_ns, status.st_mtime_ns))
    with open(here + b"contents/large", "r+b") as file:
        file.seek(9 * MIB)
        file.write(b"!")
    os.truncate(here + b"contents/%d" % (8 * MIB), 8 * MIB - 512)
    os.truncate(here + b"contents/%d" % (8 * MIB - 1), 8 * MIB + 512)
    with open(here + b"sparse/large", "r+b") as file:
        punch(file.fileno(), 4 * MIB, 4 * MIB)
        os.pwrite(file.fileno(), b"in a hole", 60 * MIB)
    with open(here + DEEP + b"/huge", "r+b") as file:
        os.pwrite(file.fileno(), b"further", 2 << 40)


def _change_links(here: bytes) -> None:
    """One broken, one moved, one more; of symbolic links too."""
    shutil.copy2(here + b"two/first", here + b"new")
    os.rename(here + b"new", here + b"two/first")
    os.rename(here + b"zero/0-symlink", here + b"moved-symlink")
    os.link(here + b"renamed/fifo", here + b"a-fifo")
    os.unlink(here + b"renamed/0-device")
