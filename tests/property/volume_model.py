"""A volume that lives: everything that people and programs do to a directory, step by step at random.

A step is a name of `STEPS` and a seed; it does the same to the same tree, and nothing where it does not
apply, so that any list of steps is a history.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.property.syscalls import punch, some_acl

MIB: Final = 1024 * 1024
NAMES: Final = (
    *(b"a", b"b", b"c", b"d", b"a.txt", b"A", b"a b\n", b"-rf", b"%a=b%", b"tail "),
    *(b"\xc3\xa9t\xc3\xa9", b"\xff\xfe\x01", b"n" * 255),
)
SIZES: Final = (0, 1, 511, 512, 513, 4095, 4096, 4097, 20_000, 120_000)
OWNERS: Final = (0, 1, 500, 1000, 65_534, 3_000_000)
MODES: Final = (0o644, 0o600, 0, 0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0o444, 0o070)
DEPTH: Final = 4
_CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service+ep, revision 2 (capabilities(7))."""


class Volume:
    """The tree below `root` and what may be done to it. Close it: it may hold mapped files."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self._maps: list[tuple[int, mmap.mmap]] = []
        self._steps = 0

    def close(self) -> None:
        """Let go of mapped files."""
        for fd, mapped in self._maps:
            mapped.close()
            os.close(fd)
        self._maps = []

    def step(self, name: str, seed: int) -> None:
        """Do one thing."""
        # The number of the step: hypothesis likes to give one seed many times.
        self._steps += 1
        STEPS[name](self, random.Random(f"{self._steps} {seed}"))

    # --- choosing

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path) if path else self.root

    def _paths(self, *kinds: int) -> list[bytes]:
        """The paths of these kinds (stat.S_IF…), but for the root; all without `kinds`."""
        found: list[bytes] = []
        pending = [b""]
        while pending:
            directory = pending.pop()
            for name in sorted(os.listdir(self._at(directory))):
                path = directory + b"/" + name if directory else name
                kind = stat.S_IFMT(os.lstat(self._at(path)).st_mode)
                if kind == stat.S_IFDIR:
                    pending.append(path)
                if not kinds or kind in kinds:
                    found.append(path)
        return sorted(found)

    def _one(self, rng: random.Random, *kinds: int) -> bytes | None:
        paths = self._paths(*kinds)
        return rng.choice(paths) if paths else None

    def _file(self, rng: random.Random, minimum: int = 0) -> bytes | None:
        paths = [p for p in self._paths(stat.S_IFREG) if os.lstat(self._at(p)).st_size >= minimum]
        return self._at(rng.choice(paths)) if paths else None

    def _directory(self, rng: random.Random) -> bytes:
        shallow = [path for path in self._paths(stat.S_IFDIR) if path.count(b"/") < DEPTH - 1]
        return rng.choice([b"", *shallow])

    def _place(self, rng: random.Random) -> bytes:
        """A name in some directory, which may be taken."""
        directory = self._directory(rng)
        name = rng.choice(NAMES)
        return self._at(directory + b"/" + name if directory else name)

    def _free(self, rng: random.Random) -> bytes | None:
        """A name in some directory, not taken if that can be helped."""
        for _ in range(8):
            place = self._place(rng)
            if not os.path.lexists(place):
                return place
        return None

    # --- files

    def _write(self, place: bytes, data: bytes) -> None:
        with open(place, "wb") as file:
            file.write(data)

    def create(self, rng: random.Random) -> None:
        """A new file."""
        if place := self._free(rng):
            self._write(place, rng.randbytes(rng.choice(SIZES)))

    def copy(self, rng: random.Random) -> None:
        """A new file with the content of another."""
        source, place = self._file(rng), self._free(rng)
        if source and place:
            shutil.copyfile(source, place)

    def append(self, rng: random.Random) -> None:
        """More at the end."""
        if place := self._file(rng):
            with open(place, "ab") as file:
                file.write(rng.randbytes(rng.choice(SIZES[1:])))

    def truncate(self, rng: random.Random) -> None:
        """Another length, longer (a hole) too."""
        if place := self._file(rng):
            size = os.lstat(place).st_size
            os.truncate(place, rng.choice((0, size // 2, max(0, size - 1), size + 10_000)))

    def rewrite(self, rng: random.Random) -> None:
        """Other bytes in the same place."""
        if place := self._file(rng, 1):
            size = os.lstat(place).st_size
            with open(place, "r+b") as file:
                file.seek(rng.randrange(size))
                file.write(rng.randbytes(min(size, 700)))

    def hide(self, rng: random.Random) -> None:
        """Other bytes, the same size, and the time of before put back."""
        if place := self._file(rng, 1):
            status = os.lstat(place)
            with open(place, "r+b") as file:
                file.write(rng.randbytes(min(status.st_size, 700)))
            os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))

    def replace(self, rng: random.Random) -> None:
        """A new file renamed over one, as editors save."""
        if place := self._file(rng):
            new = os.path.dirname(place) + b"/.new"
            self._write(new, rng.randbytes(rng.choice(SIZES)))
            os.rename(new, place)

    def map(self, rng: random.Random) -> None:
        """Write through a mapping that stays open."""
        place = self._file(rng, 1)
        if place and len(self._maps) < 3:
            fd = os.open(place, os.O_RDWR)
            self._maps.append((fd, mmap.mmap(fd, min(os.fstat(fd).st_size, 4096))))
            self._maps[-1][1][0] = rng.randrange(256)

    def map_again(self, rng: random.Random) -> None:
        """Write once more through a mapping: the page may be dirty still, and then no time moves."""
        if self._maps:
            fd, mapped = rng.choice(self._maps)
            # What lies behind the end of the file cannot be written to (SIGBUS).
            if os.fstat(fd).st_size:
                mapped[0] = rng.randrange(256)

    def sparse(self, rng: random.Random) -> None:
        """A file with holes."""
        if place := self._free(rng):
            with open(place, "wb") as file:
                for _ in range(rng.randrange(3)):
                    file.seek(rng.randrange(40) * 4096 + rng.choice((0, 0, 17)))
                    file.write(rng.randbytes(rng.choice((1, 4096, 9000))))
                file.truncate(rng.choice((1, 4096, 160_000, 200_001)))

    def punch(self, rng: random.Random) -> None:
        """A hole in what is there."""
        if place := self._file(rng, 4097):
            fd = os.open(place, os.O_RDWR)
            try:
                size = os.fstat(fd).st_size
                punch(fd, rng.randrange(size) // 4096 * 4096, rng.choice((4096, 8192, 5000)))
            finally:
                os.close(fd)

    def large(self, rng: random.Random) -> None:
        """A file that is cut, once in a history."""
        place = self._free(rng)
        if place and all(os.lstat(self._at(p)).st_size < MIB for p in self._paths(stat.S_IFREG)):
            block = rng.randbytes(MIB)
            with open(place, "wb") as file:
                for number in range(rng.choice((8, 9, 17))):
                    file.write(number.to_bytes(8, "little") + block[8:])
                if rng.random() < 0.5:
                    file.seek(20 * MIB + 4096)
                file.write(b"end")

    def edit_large(self, rng: random.Random) -> None:
        """One byte of a large file, or its length about the limit."""
        if place := self._file(rng, 7 * MIB):
            size = os.lstat(place).st_size
            if rng.random() < 0.2:
                os.truncate(place, rng.choice((8 * MIB - 1, 8 * MIB, 8 * MIB + 1)))
                return
            with open(place, "r+b") as file:
                file.seek(rng.randrange(size))
                file.write(b"?")

    # --- names

    def mkdir(self, rng: random.Random) -> None:
        """A new directory."""
        if place := self._free(rng):
            os.mkdir(place)

    def special(self, rng: random.Random) -> None:
        """A FIFO or a device."""
        if place := self._free(rng):
            kind = rng.choice((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK))
            os.mknod(place, kind | 0o640, os.makedev(rng.randrange(300), rng.randrange(70_000)))

    def symlink(self, rng: random.Random) -> None:
        """A symbolic link, to something or nothing."""
        if place := self._free(rng):
            target = rng.choice((b"nowhere", b"../a", b"/", b"\xff", b"t" * 101, b"x/" * 2000))
            os.symlink(target, place)

    def link(self, rng: random.Random) -> None:
        """A further name, of a symbolic link or a FIFO too."""
        source = self._one(rng, stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)
        place = self._free(rng)
        if source and place:
            os.link(self._at(source), place, follow_symlinks=False)

    def unlink(self, rng: random.Random) -> None:
        """One name away."""
        path = self._one(rng, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)
        if path:
            os.unlink(self._at(path))

    def break_link(self, rng: random.Random) -> None:
        """A name of several gets an inode of its own."""
        shared = [p for p in self._paths(stat.S_IFREG) if os.lstat(self._at(p)).st_nlink > 1]
        if shared:
            place = self._at(rng.choice(shared))
            new = os.path.dirname(place) + b"/.new"
            shutil.copyfile(place, new)
            os.rename(new, place)

    def rename(self, rng: random.Random) -> None:
        """Anything, to a name that may be taken."""
        source = self._one(rng)
        if source:
            # Into itself, over what is of another kind, over a directory that is not empty: refused.
            with _refusals(errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                os.rename(self._at(source), self._place(rng))

    def rename_directory(self, rng: random.Random) -> None:
        """A directory, to a free name."""
        source, place = self._one(rng, stat.S_IFDIR), self._free(rng)
        if source and place:
            with _refusals(errno.EINVAL):
                os.rename(self._at(source), place)

    def swap(self, rng: random.Random) -> None:
        """Two siblings change their names."""
        source = self._one(rng)
        if source:
            parent = os.path.dirname(self._at(source))
            other = parent + b"/" + rng.choice(sorted(os.listdir(parent)))
            if other != self._at(source):
                os.rename(other, parent + b"/.swap")
                os.rename(self._at(source), other)
                os.rename(parent + b"/.swap", self._at(source))

    def change_kind(self, rng: random.Random) -> None:
        """Something else under the same name."""
        path = self._one(rng)
        if path:
            place = self._at(path)
            _remove(place)
            kind = rng.randrange(5)
            if kind == 0:
                self._write(place, rng.randbytes(rng.choice(SIZES)))
            elif kind == 1:
                os.mkdir(place)
                self._write(place + b"/a", rng.randbytes(30))
            elif kind == 2:
                os.symlink(b"a", place)
            elif kind == 3:
                os.mkfifo(place)
            else:
                os.mkdir(place)

    def delete(self, rng: random.Random) -> None:
        """Something, with all that is below it."""
        path = self._one(rng)
        if path:
            _remove(self._at(path))

    def delete_and_create(self, rng: random.Random) -> None:
        """A file away and another at once: ext4 gives it the same inode."""
        path = self._one(rng, stat.S_IFREG)
        if path:
            size = os.lstat(self._at(path)).st_size
            os.unlink(self._at(path))
            self._write(self._free(rng) or self._at(path), rng.randbytes(size % MIB))

    # --- metadata

    def _any(self, rng: random.Random) -> bytes:
        return self._at(rng.choice([b"", *self._paths()]))

    def chmod(self, rng: random.Random) -> None:
        """Other mode bits."""
        place = self._any(rng)
        if not os.path.islink(place):
            os.chmod(place, rng.choice(MODES))

    def chown(self, rng: random.Random) -> None:
        """Another owner."""
        os.lchown(self._any(rng), rng.choice(OWNERS), rng.choice(OWNERS))

    def touch(self, rng: random.Random) -> None:
        """Another time, before 1970 and after 2038 too."""
        time_ns = rng.choice((-(2**30) * 10**9 + 1, -1, 0, 1, 999_999_999, 2**33 * 10**9 + 123_456_789))
        os.utime(self._any(rng), ns=(0, time_ns), follow_symlinks=False)

    def attribute(self, rng: random.Random) -> None:
        """An extended attribute, set or taken away."""
        place = self._any(rng)
        present = os.listxattr(place, follow_symlinks=False)
        if present and rng.random() < 0.4:
            os.removexattr(place, rng.choice(present), follow_symlinks=False)
            return
        name = rng.choice(("user.one", "user.\u00e9 %=", "trusted.two", "security.capability"))
        value = _CAPABILITY if name == "security.capability" else rng.randbytes(rng.choice((0, 3, 200)))
        # Symbolic links and devices take no user attributes, directories no capabilities that mean anything.
        with _refusals(errno.EPERM, errno.EINVAL):
            os.setxattr(place, name, value, follow_symlinks=False)

    def acl(self, rng: random.Random) -> None:
        """An access control list, on directories the default one too."""
        place = self._any(rng)
        if os.path.islink(place):
            return
        names = ["system.posix_acl_access"] + ["system.posix_acl_default"] * os.path.isdir(place)
        os.setxattr(place, rng.choice(names), some_acl(rng.choice(OWNERS[1:]), rng.randrange(8)))


class _refusals(contextlib.suppress):  # noqa: N801 (it reads as the function that it stands for)
    """Suppress `OSError`s of these numbers."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(OSError)
        self._numbers = numbers

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno in self._numbers


def _remove(place: bytes) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    else:
        os.unlink(place)


_COMMON: Final = (
    *("create", "copy", "rename", "rename_directory", "link", "mkdir", "delete", "hide", "change_kind"),
)
_OTHERS: Final = (
    *("append", "truncate", "rewrite", "replace", "map", "map_again", "sparse", "punch", "large"),
    *("edit_large", "special", "symlink", "unlink", "break_link", "swap", "delete_and_create"),
    *("chmod", "chown", "touch", "attribute", "acl"),
)
STEPS: Final[dict[str, Callable[[Volume, random.Random], None]]] = {
    name: getattr(Volume, name) for name in (*_COMMON, *_OTHERS)
}
STEP_NAMES: Final = (*STEPS, *_COMMON, *_COMMON, "edit_large")
"""To choose from: what makes trees and moves them about comes more often."""
