"""The print of an environment: whether anything in it has changed, by stat alone.

What Python compiles by itself is no change: a `.pyc` in `__pycache__` whose source is there.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from smsnapd.engine.environment.reading import entries_of

FILES: Final = 1_000_000
SETTLED_NS: Final = 2_000_000_000
"""What changed less than so long ago may change again within one tick of a coarse clock."""
_KINDS: Final = (stat.S_IFREG, stat.S_IFLNK)


class Node(NamedTuple):
    """A file or link of an environment: its path there, and its lstat."""

    path: bytes
    status: os.stat_result


class Print(NamedTuple):
    """A print; `files` and `size_bytes` are all that the environment takes, `newest_ns` its latest change."""

    digest: bytes
    files: int
    size_bytes: int
    newest_ns: int


def nodes_of(prefix: bytes) -> Iterator[Node]:
    """All but directories, in an order of their own. ValueError for what no installer makes.

    That is another file system, a device, a FIFO or a socket, or more files than any environment has.
    """
    device = os.lstat(prefix).st_dev
    pending, count = [b""], 0
    while pending:
        directory = pending.pop()
        for entry in sorted(entries_of(os.path.join(prefix, directory)), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            path = os.path.join(directory, entry.name)
            if status.st_dev != device:
                raise ValueError("something is mounted in it")
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
                continue
            count += 1
            if stat.S_IFMT(status.st_mode) not in _KINDS or count > FILES:
                raise ValueError("there is something in it that no installer puts there")
            yield Node(path, status)


def source_of(path: bytes) -> bytes:
    """The source of a compiled file in `__pycache__`; b"" of anything else."""
    directory, name = os.path.split(path)
    if os.path.basename(directory) != b"__pycache__" or not name.endswith(b".pyc"):
        return b""
    return os.path.join(os.path.dirname(directory), name.partition(b".")[0] + b".py")


def take_print(prefix: bytes) -> Print:
    """The print of what lies below `prefix`. OSError, or ValueError as `nodes_of`."""
    nodes = list(nodes_of(prefix))
    paths = {node.path for node in nodes}
    digest = hashlib.blake2b(digest_size=32)
    newest_ns = 0
    for path, status in nodes:
        if source_of(path) in paths:
            continue
        target = os.readlink(os.path.join(prefix, path)) if stat.S_ISLNK(status.st_mode) else b""
        row = (path, target, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
        digest.update(repr((*row, status.st_ctime_ns, status.st_ino)).encode())
        newest_ns = max(newest_ns, status.st_ctime_ns)
    return Print(digest.digest(), len(nodes), sum(node.status.st_size for node in nodes), newest_ns)
