"""Places to watch, and a consumer of hints that knows nothing else, for the watcher's tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.volume.scan import VANISHED, Excludes
from smsnapd.volume.tree import Tree
from smsnapd.volume.watch import Hints, Watcher

PATIENCE_S = 60.0
KINDS = ("fanotify", "inotify")


@contextlib.contextmanager
def watching(
    root: Path, kind: Any = "auto", excluded: Excludes | None = None, **how: Any
) -> Iterator[Watcher]:
    """A watcher of `root` for as long as the context lasts."""
    watcher = Watcher(**how)
    watcher.start(os.fsencode(root), kind, excluded)
    try:
        yield watcher
    finally:
        watcher.stop()


def news(watcher: Watcher) -> Hints:
    """Everything that was hinted up to now."""
    assert watcher.catch_up(PATIENCE_S)
    return watcher.take()


@contextlib.contextmanager
def machine_wide() -> Iterator[None]:
    """Alone among test processes that change limits of the machine."""
    with Path(tempfile.gettempdir(), "smsnapd-test-limits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def sysctl(name: str, value: int) -> Iterator[Path]:
    """A limit of the kernel, other than it is, for as short as can be; the caller holds `machine_wide`."""
    path = Path("/proc/sys", *name.split("."))
    before = path.read_text()
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        pytest.skip(f"{name} cannot be set here: {error}")
    try:
        yield path
    finally:
        path.write_text(before)


Look = tuple[int, ...]


class Index:
    """What somebody believes of a tree who scanned it once and has followed hints since."""

    def __init__(self, root: Path) -> None:
        self.tree = Tree(os.fsencode(root))
        self.selves: dict[bytes, Look] = {}
        self.listings: dict[bytes, dict[bytes, Look]] = {}
        self.scan(b"")

    def follow(self, hints: Hints) -> None:
        for subtree in sorted(hints.subtrees):
            self.scan(subtree)
        for directory in sorted(hints.directories):
            self.list(directory)

    def scan(self, path: bytes) -> None:
        self._forget(path)
        pending = [path]
        while pending:
            directory = pending.pop()
            pending.extend(self.list(directory))

    def list(self, path: bytes) -> list[bytes]:
        """Look at one listing; the directories in it."""
        seen: dict[bytes, Look] = {}
        self.tree.release()
        try:
            directory = self.tree.open_directory(path)
            self.selves[path] = look(os.fstat(directory))
            for name in map(os.fsencode, os.listdir(directory)):
                with contextlib.suppress(FileNotFoundError):
                    seen[name] = look(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except OSError as error:
            assert error.errno in VANISHED
            self._forget(path)
            return []
        directories = [name for name, status in seen.items() if stat.S_ISDIR(status[0])]
        prefix = path + b"/" if path else b""
        for known in list(self.listings):
            if known != path and known.startswith(prefix):
                name = known[len(prefix) :].partition(b"/")[0]
                if name not in directories:
                    self._forget(prefix + name)
        self.listings[path] = seen
        self.selves.update((os.path.join(path, name), seen[name]) for name in directories)
        return [os.path.join(path, name) for name in directories]

    def _forget(self, path: bytes) -> None:
        for known in list(self.listings):
            if known == path or not path or known.startswith(path + b"/"):
                del self.listings[known]
                self.selves.pop(known, None)

    def entries(self) -> dict[bytes, Look]:
        """Everything believed to be there."""
        found = {b"": self.selves[b""]}
        for directory, names in self.listings.items():
            for name, status in names.items():
                path = os.path.join(directory, name)
                found[path] = self.selves[path] if stat.S_ISDIR(status[0]) else status
        return found


def look(status: os.stat_result) -> Look:
    """What a scan compares."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return (
        status.st_mode, status.st_uid, status.st_gid, size,
        status.st_ino, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
