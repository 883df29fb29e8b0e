"""The print of an environment: whether anything in it has changed, by stat alone.

What Python compiles by itself is no change: a `.pyc` in `__pycache__` whose source is there.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

FILES: Final = 1_000_000
SETTLED_NS: Final = 2_000_000_000
"""What changed less than so long ago may change again within one tick of a coarse clock."""
_KINDS: Final = (stat.S_IFREG, stat.S_IFLNK)


class Node(NamedTuple):
    """A file or link of an environment: its path there, its lstat, whether Python has compiled it itself."""

    path: bytes
    status: os.stat_result
    is_compiled: bool


class Print(NamedTuple):
    """A print; `files` and `size_bytes` are all that the environment takes, `newest_ns` its latest change.

    `linked` files have further names, perhaps elsewhere: through those they can be changed.
    """

    digest: bytes
    files: int
    size_bytes: int
    newest_ns: int
    linked: bool


def nodes_of(prefix: bytes) -> Iterator[Node]:
    """All but directories, in an order of their own; memory is bounded by the widest directories.

    OSError if any directory cannot be listed: what lies there is not known. ValueError for what no installer
    makes: another file system, a device, a FIFO or a socket, or more files than any environment has.
    """
    device = os.lstat(prefix).st_dev
    pending: list[tuple[bytes, frozenset[bytes]]] = [(b"", frozenset())]
    count = 0
    while pending:
        directory, sources = pending.pop()
        rows = _listed(os.path.join(prefix, directory), device)
        names = frozenset(name for name, status in rows if not stat.S_ISDIR(status.st_mode))
        for name, status in rows:
            path = os.path.join(directory, name)
            if stat.S_ISDIR(status.st_mode):
                pending.append((path, names if name == b"__pycache__" else frozenset()))
                continue
            count += 1
            if stat.S_IFMT(status.st_mode) not in _KINDS or count > FILES:
                raise ValueError("there is something in it that no installer puts there")
            yield Node(path, status, _is_compiled(name, sources))


def _listed(directory: bytes, device: int) -> list[tuple[bytes, os.stat_result]]:
    """All names of a directory, sorted, with their lstat."""
    rows = []
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if status.st_dev != device:
                raise ValueError("something is mounted in it")
            rows.append((entry.name, status))
            if len(rows) > FILES:
                raise ValueError("there is more in it than any installer puts there")
    return sorted(rows, key=lambda row: row[0])


def _is_compiled(name: bytes, sources: frozenset[bytes]) -> bool:
    """Whether it is what Python makes in `__pycache__` of a source that is there."""
    return name.endswith(b".pyc") and name.partition(b".")[0] + b".py" in sources


def take_print(prefix: bytes) -> Print:
    """The print of what lies below `prefix`. OSError and ValueError as `nodes_of`."""
    digest = hashlib.blake2b(digest_size=32)
    files = size_bytes = newest_ns = 0
    linked = False
    for path, status, is_compiled in nodes_of(prefix):
        files += 1
        size_bytes += status.st_size
        if is_compiled:
            continue
        linked = linked or status.st_nlink > 1
        target = os.readlink(os.path.join(prefix, path)) if stat.S_ISLNK(status.st_mode) else b""
        row = (path, target, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
        digest.update(repr((*row, status.st_ctime_ns, status.st_ino)).encode())
        newest_ns = max(newest_ns, status.st_ctime_ns)
    return Print(digest.digest(), files, size_bytes, newest_ns, linked)
