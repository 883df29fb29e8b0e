"""What a tree is, as the system calls show it: the oracle of the restores. Uses nothing of smsnapd.

Everything is reached relative to directory descriptors, so paths may be longer than PATH_MAX.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

Observed = dict[bytes, "Seen"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 24
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME


@dataclass(frozen=True)
class Seen:
    """All that must come back of one name.

    `group` is the set of names of its inode; `data` where its data lies, and `content` a hash of that.
    """

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int = 0
    device: int = 0
    target: bytes = b""
    content: str = ""
    data: tuple[tuple[int, int], ...] = ()
    xattrs: tuple[tuple[str, bytes], ...] = ()
    group: tuple[bytes, ...] = ()


def observe(root: bytes | Path, leave_out: Collection[bytes] = ()) -> Observed:
    """Every path below `root` but those to leave out, and the root as `b""`. Sockets are no part of it."""
    found: Observed = {}
    names: dict[int, list[bytes]] = defaultdict(list)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found[b""] = _seen(fd, b".", os.fstat(fd))
        for path, status, seen in _below(fd, b"", leave_out):
            found[path] = seen
            if not stat.S_ISDIR(status.st_mode):
                names[status.st_ino].append(path)
    finally:
        os.close(fd)
    for group in names.values():
        for path in group:
            found[path] = replace(found[path], group=tuple(sorted(group)))
    return found


def differences(expected: Observed, found: Observed) -> list[str]:
    """One line for each thing that is not the same."""
    lines = [f"{path!r}: missing" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path!r}: should not be there" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        one, other = expected[path], found[path]
        lines += [
            f"{path!r}: {name} is {getattr(other, name)!r:.300} and should be {getattr(one, name)!r:.300}"
            for name in Seen.__dataclass_fields__
            if getattr(one, name) != getattr(other, name)
        ]
    return lines


def data_map(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of data (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only hole from here on
            return
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end


def _below(
    fd: int, directory: bytes, leave_out: Collection[bytes]
) -> Iterator[tuple[bytes, os.stat_result, Seen]]:
    for name in sorted(os.fsencode(item) for item in os.listdir(fd)):
        path = directory + b"/" + name if directory else name
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISSOCK(status.st_mode) or path in leave_out:
            continue
        yield path, status, _seen(fd, name, status)
        if stat.S_ISDIR(status.st_mode):
            deeper = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                yield from _below(deeper, path, leave_out)
            finally:
                os.close(deeper)


def _seen(fd: int, name: bytes, status: os.stat_result) -> Seen:
    mode = status.st_mode
    place = b"/proc/self/fd/%d/%s" % (fd, name)
    seen = Seen(
        kind=stat.S_IFMT(mode),
        mode=0 if stat.S_ISLNK(mode) else stat.S_IMODE(mode),
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        device=status.st_rdev,
        xattrs=tuple(
            (key, os.getxattr(place, key, follow_symlinks=False))
            for key in sorted(os.listxattr(place, follow_symlinks=False))
        ),
    )
    if stat.S_ISLNK(mode):
        return replace(seen, target=os.readlink(name, dir_fd=fd))
    if not stat.S_ISREG(mode):
        return seen
    with open(os.open(name, _FILE, dir_fd=fd), "rb") as file:
        data = tuple(data_map(file.fileno(), status.st_size))
        digest = hashlib.blake2b()
        for begin, end in data:
            for offset in range(begin, end, _PIECE):
                digest.update(os.pread(file.fileno(), min(_PIECE, end - offset), offset))
    return replace(seen, size=status.st_size, content=digest.hexdigest(), data=data)
