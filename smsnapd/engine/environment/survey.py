"""Where on a volume the environments, repositories, kernels and large files lie: one walk, bounded in all.

Names are looked at and contents are not; no link is followed and no other file system entered. Memory is
bounded by the widest directories along one branch.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from smsnapd.engine.environment.reading import Deadline, TimeUpError, entries_of, is_directory
from smsnapd.model import path_text

LARGE_BYTES: Final = 32 * 1024 * 1024
LARGE_FILES: Final = 2000
FOUND: Final = 2000
"""Of each kind no more are told of."""
DEPTH: Final = 64
WIDEST: Final = 2_000_000
"""Names of one directory that are looked at."""
_OWN_TREES: Final = frozenset({b".git", b"node_modules", b"__pycache__", b"lost+found"})


@dataclass
class Found:
    """Absolute paths of what was found. `large` are (bytes, path), the largest `LARGE_FILES` of them."""

    venvs: list[bytes] = field(default_factory=list)
    condas: list[bytes] = field(default_factory=list)
    repositories: list[bytes] = field(default_factory=list)
    kernels: list[bytes] = field(default_factory=list)
    large: list[tuple[int, bytes]] = field(default_factory=list)
    directories: int = 0
    notes: list[str] = field(default_factory=list)


class Survey:
    """One walk; `found` grows. `left_out` are the (device, inode) of directories not to be entered."""

    def __init__(self, left_out: Iterable[tuple[int, int]], deadline: Deadline) -> None:
        self.found = Found()
        self._left_out = frozenset(left_out)
        self._deadline = deadline
        self._seen: set[tuple[int, int]] = set()

    def walk(self, root: bytes) -> None:
        """Look at a directory and all below it; what is not there or was seen before is nothing."""
        try:
            status = os.stat(root)
        except OSError:
            return
        if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in self._seen:
            return
        self._seen.add((status.st_dev, status.st_ino))
        try:
            self._below(os.path.realpath(root), status.st_dev)
        except TimeUpError:
            self.found.notes.append(
                f"the time was up when {self.found.directories:,} directories had been looked at: "
                "there may be more than is told of"
            )

    def _below(self, root: bytes, device: int) -> None:
        pending = [(root, 0)]
        while pending:
            self._deadline.check()
            directory, depth = pending.pop()
            self.found.directories += 1
            for name in sorted(self._look(directory), reverse=True):
                path = os.path.join(directory, name)
                if depth < DEPTH and self._is_entered(path, device):
                    pending.append((path, depth + 1))

    def _look(self, directory: bytes) -> Iterable[bytes]:
        """Note what a directory is; the names of those in it to look at next."""
        files: set[bytes] = set()
        directories: set[bytes] = set()
        for number, entry in enumerate(entries_of(directory, WIDEST + 1)):
            if number == WIDEST:
                self.found.notes.append(f"{path_text(directory)}: not all of its names were looked at")
            if is_directory(entry):
                directories.add(entry.name)
            elif entry.name in _MARKS:
                files.add(entry.name)
            else:
                self._measure(entry)
        if b".git" in directories or b".git" in files or _is_bare(files, directories):
            self._note(self.found.repositories, directory)
        if b"conda-meta" in directories:
            self._note(self.found.condas, directory)
            return directories & {b"envs"}
        if b"pyvenv.cfg" in files:
            self._note(self.found.venvs, directory)
            return directories & {b"src"}
        if b"kernel.json" in files and os.path.basename(os.path.dirname(directory)) == b"kernels":
            self._note(self.found.kernels, directory)
        if _is_bare(files, directories):
            return ()
        return directories - _OWN_TREES

    def _is_entered(self, path: bytes, device: int) -> bool:
        try:
            status = os.lstat(path)
        except OSError:
            return False
        place = status.st_dev, status.st_ino
        return stat.S_ISDIR(status.st_mode) and status.st_dev == device and place not in self._left_out

    def _note(self, found: list[bytes], path: bytes) -> None:
        if len(found) < FOUND:
            found.append(path)

    def _measure(self, entry: os.DirEntry[bytes]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return
        if not stat.S_ISREG(status.st_mode) or status.st_size < LARGE_BYTES:
            return
        push = heapq.heappush if len(self.found.large) < LARGE_FILES else heapq.heappushpop
        push(self.found.large, (status.st_size, entry.path))


_MARKS: Final = frozenset({b".git", b"pyvenv.cfg", b"kernel.json", b"HEAD"})


def _is_bare(files: set[bytes], directories: set[bytes]) -> bool:
    """Whether a directory looks like a git repository without a work tree."""
    return b"HEAD" in files and {b"objects", b"refs"} <= directories
