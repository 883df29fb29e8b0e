"""What the tests of applying share: entries, ACLs, an ordinary user, and a look at what is on the disk."""

from __future__ import annotations

import os
import pickle
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from smsnapd.model import Entry, Flag, Kind, Segment, Xattr
from smsnapd.volume.tarball.apply import ApplyOptions, Target

NOBODY: Final = 65534
MTIME: Final = 1_700_000_000_123_456_789
OPTIONS: Final = ApplyOptions(overwrite="fresh", privileged=os.geteuid() == 0)


def options(overwrite: str = "fresh", **more: Any) -> ApplyOptions:
    more.setdefault("privileged", os.geteuid() == 0)
    return ApplyOptions(overwrite=overwrite, **more)  # type: ignore[arg-type]


def entry(kind: Kind, **more: Any) -> Entry:
    defaults: dict[str, Any] = {"mode": 0o644, "uid": os.geteuid(), "gid": os.getegid(), "mtime_ns": MTIME}
    return Entry(more.pop("name", b"x"), int(kind), **{**defaults, **more})


def regular(data: bytes, **more: Any) -> Entry:
    return entry(Kind.REGULAR, size=len(data), **more)


def directory(**more: Any) -> Entry:
    return entry(Kind.DIRECTORY, **{"mode": 0o755, **more})


def symlink(target: bytes, **more: Any) -> Entry:
    return entry(Kind.SYMLINK, target=target, size=len(target), mode=0o777, **more)


def sparse(size: int, *segments: tuple[int, int], **more: Any) -> Entry:
    pieces = tuple(Segment(*segment) for segment in segments)
    return entry(Kind.REGULAR, size=size, flags=int(Flag.SPARSE), segments=pieces, **more)


def alias(first: bytes, **more: Any) -> Entry:
    return entry(Kind.REGULAR, flags=int(Flag.ALIAS), target=first, **more)


def xattrs(**pairs: bytes) -> tuple[Xattr, ...]:
    return tuple(sorted(Xattr(name.replace("__", ".").encode(), value) for name, value in pairs.items()))


def acl(user: int, permissions: int = 6, *, group_object: int = 4, mask: int = 6, other: int = 0) -> bytes:
    """A POSIX ACL with one named user, as the kernel has it in the attribute."""
    nobody = 0xFFFF_FFFF
    rows = [
        (1, 6, nobody),
        (2, permissions, user),
        (4, group_object, nobody),
        (0x10, mask, nobody),
        (0x20, other, nobody),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
"""cap_net_raw+ep, revision 2 (linux/capability.h)."""


def attributes(path: bytes) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }


def picture(root: bytes) -> dict[bytes, tuple[Any, ...]]:
    """Everything below `root` (no link followed) that a restore could spoil."""
    seen: dict[bytes, tuple[Any, ...]] = {}
    for place, directories, files in os.walk(root):
        for name in [b".", *directories, *files]:
            path = os.path.join(place, name)
            found = os.lstat(path)
            content = b""
            if stat.S_ISREG(found.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            seen[path] = (
                found.st_mode, found.st_uid, found.st_gid, found.st_ino, found.st_mtime_ns, found.st_nlink,
                content, attributes(path),
            )  # fmt: skip
    return seen


def names(path: bytes) -> set[bytes]:
    return set(os.listdir(path))


def put(target: Target, path: bytes, data: bytes, **more: Any) -> None:
    """Write a small file that must succeed."""
    assert target.write_small(path, regular(data, **more), memoryview(data)) == ""


def as_user(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` returns in a process of an ordinary user without further groups."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(readable)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                answer: tuple[bool, Any] = (True, function(*args))
            except BaseException as error:
                answer = (False, error)
            with os.fdopen(writable, "wb") as out:
                pickle.dump(answer, out)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    with os.fdopen(readable, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(text)
    if not succeeded:
        raise value
    return value


@contextmanager
def mounted(kind: str, where: Path, *mount_options: str, source: str = "none") -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    flags = ["--bind"] if kind == "bind" else ["-t", kind]
    extra = ["-o", ",".join(mount_options)] if mount_options else []
    subprocess.run(["mount", *flags, *extra, source, str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)
