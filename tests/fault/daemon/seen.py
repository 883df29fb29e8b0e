"""What a path is, as system calls show it: on the volume after every operation, and where it was restored."""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from blake3 import blake3

PAGE: Final = 4096
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC

Content = tuple[int, tuple[bytes, ...]]
"""The size of a file, and a hash of each of its pages: a write is atomic within a page and nowhere else."""

EMPTY: Final[Content] = (0, ())


class Seen(NamedTuple):
    """All of an inode that a backup has to bring back."""

    kind: int
    mode: int
    mtime_ns: int
    content: Content = EMPTY
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()


def content_of(data: bytes | memoryview) -> Content:
    """Data as content."""
    view = memoryview(data)
    pages = (blake3(view[place : place + PAGE]).digest(12) for place in range(0, len(view), PAGE))
    return len(view), tuple(pages)


def see(path: bytes) -> Seen:
    """What is there now; a symbolic link is not followed."""
    status = os.lstat(path)
    if stat.S_ISREG(status.st_mode):
        descriptor = os.open(path, _FILE)
        try:
            return see_open(descriptor)
        finally:
            os.close(descriptor)
    target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
    return _seen(status, EMPTY, target, path)


def see_open(descriptor: int) -> Seen:
    """What is open there."""
    status = os.fstat(descriptor)
    return _seen(status, content_of(os.pread(descriptor, status.st_size, 0)), b"", descriptor)


def see_below(root: bytes) -> tuple[dict[bytes, Seen], dict[bytes, int]]:
    """Every path below `root` and the root as b"": what it is, and its inode."""
    seen, inodes, pending = {b"": see(root)}, {b"": os.stat(root).st_ino}, [b""]
    while pending:
        directory = pending.pop()
        for name in os.listdir(os.path.join(root, directory)):
            path = os.path.join(directory, name)
            seen[path] = see(os.path.join(root, path))
            inodes[path] = os.lstat(os.path.join(root, path)).st_ino
            if stat.S_ISDIR(seen[path].kind):
                pending.append(path)
    return seen, inodes


def _seen(status: os.stat_result, content: Content, target: bytes, place: bytes | int) -> Seen:
    # Of a descriptor there is no link to follow, and Python does not take the word for it.
    how = {} if isinstance(place, int) else {"follow_symlinks": False}
    names = sorted(os.listxattr(place, **how))
    xattrs = tuple((name, os.getxattr(place, name, **how)) for name in names)
    mode = status.st_mode
    return Seen(stat.S_IFMT(mode), stat.S_IMODE(mode), status.st_mtime_ns, content, target, xattrs)
