"""Two trees compared as faithfully as a backup must restore: what `smsnap demo` judges itself by."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smsnapd.model import path_text


class Description(NamedTuple):
    """All that must come back of one path. `links` are the other names of its inode within the tree."""

    kind: int
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    device: int
    target: bytes
    content: bytes
    data: tuple[tuple[int, int], ...]
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


def describe(root: Path) -> dict[bytes, Description]:
    """Every path below `root`, the root itself as `b""`, with all that must come back of it."""
    found = dict(_walk(os.fsencode(root)))
    groups: dict[int, list[bytes]] = {}
    for path, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            groups.setdefault(status.st_ino, []).append(path)
    return {
        path: _describe(_joined(os.fsencode(root), path), status, tuple(groups.get(status.st_ino, ())))
        for path, status in found.items()
    }


def differences(expected: dict[bytes, Description], found: dict[bytes, Description]) -> list[str]:
    """One line for each thing that is not the same; none if the trees are equal."""
    lines = [f"{path_text(path)}: missing" for path in sorted(expected.keys() - found.keys())]
    lines += [f"{path_text(path)}: should not be there" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        pairs = zip(Description._fields, expected[path], found[path], strict=True)
        lines += [f"{path_text(path)}: {name} differs" for name, one, other in pairs if one != other]
    return lines


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    pending = [b""]
    while pending:
        path = pending.pop()
        status = os.lstat(_joined(root, path))
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            names = os.listdir(_joined(root, path))
            pending.extend(path + b"/" + name if path else name for name in names)


def _joined(root: bytes, path: bytes) -> bytes:
    return os.path.join(root, path) if path else root


def _describe(place: bytes, status: os.stat_result, links: tuple[bytes, ...]) -> Description:
    regular, directory = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
    names = os.listxattr(place, follow_symlinks=False)
    return Description(
        kind=stat.S_IFMT(status.st_mode),
        mode=stat.S_IMODE(status.st_mode),
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=0 if directory else status.st_size,
        device=status.st_rdev,
        target=os.readlink(place) if stat.S_ISLNK(status.st_mode) else b"",
        content=_digest(place) if regular else b"",
        data=tuple(_data_segments(place, status.st_size)) if regular else (),
        xattrs=tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(names)),
        links=tuple(sorted(links)),
    )


def _digest(place: bytes) -> bytes:
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _data_segments(place: bytes, size: int) -> Iterator[tuple[int, int]]:
    """Where data lies, begin and end, by SEEK_DATA and SEEK_HOLE of lseek(2)."""
    with open(place, "rb") as file:
        end = 0
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here to the end
                return
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield begin, end
