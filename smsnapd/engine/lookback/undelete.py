"""Bringing paths back into the volume that they were lost from: to their own place, or beside what is there.

A restore makes them ready in a directory of its own on the volume; from there they get their names by calls
that replace nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress
from smsnapd.engine.restore.run import RestoreRequest, run_restore
from smsnapd.errors import TargetError
from smsnapd.format.manifest import Issue
from smsnapd.format.names import ManifestName
from smsnapd.model import path_text
from smsnapd.repository import Repository
from smsnapd.store.base import StoreSettings
from smsnapd.volume.tarball.marker import STAGING
from smsnapd.volume.tree import open_at

_NAME_LIMIT: Final = 255
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Wish(NamedTuple):
    """A path to be brought back as a recovery point has it."""

    path: bytes
    point: ManifestName


class BroughtBack(NamedTuple):
    """A path that is back, and under which name."""

    wish: Wish
    place: bytes


class Undeleted(NamedTuple):
    """What came of it. `damaged`: the repository could not give back something whole."""

    back: list[BroughtBack]
    not_restored: list[Issue]
    notes: list[str]
    damaged: bool


def bring_back(
    repository: Repository,
    settings: StoreSettings,
    history: History,
    root: bytes,
    state_dir: Path,
    wishes: Iterable[Wish],
    progress: Progress,
) -> Undeleted:
    """Bring paths back; each gets its own name if nothing has it, else one beside it that says its time.

    They are made ready in `state_dir`, which no backup has; if that is on another file system, at the root.
    Nothing is ever replaced, and no link of the volume followed. Raises what a restore raises; what is
    back by then stays.
    """
    done = Undeleted([], [], [], False)
    by_point: defaultdict[ManifestName, list[Wish]] = defaultdict(list)
    for wish in wishes:
        by_point[wish.point].append(wish)
    with _Staging(root, _staging_place(root, state_dir)) as staging:
        for point, wanted in by_point.items():
            request = RestoreRequest(staging.fresh(), tuple(wish.path for wish in wanted))
            found = history.find(point.snapshot)
            outcome = run_restore(repository, settings, history, found, request, progress)
            done.not_restored.extend(outcome.not_restored)
            done.notes.extend(outcome.notes)
            done = done._replace(damaged=done.damaged or bool(outcome.damaged))
            done.back.extend(
                BroughtBack(wish, place)
                for wish in wanted
                if (place := staging.publish(request.target, wish)) is not None
            )
    return done


def _staging_place(root: bytes, state_dir: Path) -> bytes:
    is_on_volume = state_dir.is_dir() and state_dir.stat().st_dev == os.stat(root).st_dev
    return os.fsencode(state_dir) if is_on_volume else root


class _Staging:
    """A directory on the volume, gone at the end with what is left in it."""

    def __init__(self, root: bytes, within: bytes) -> None:
        self._root = root
        self._within = within
        self._place = b""

    def __enter__(self) -> _Staging:
        try:
            self._place = tempfile.mkdtemp(prefix=STAGING, dir=self._within)
        except OSError as error:
            raise _refused("bring back what was lost", error) from error
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._place, ignore_errors=True)

    def fresh(self) -> bytes:
        """An empty directory to restore to."""
        return tempfile.mkdtemp(dir=self._place)

    def publish(self, staged: bytes, wish: Wish) -> bytes | None:
        """Give what was restored below `staged` its name in the volume; None if it was not restored."""
        try:
            with _Descent(staged) as source, _Descent(self._root) as target:
                return _publish(source, target, wish)
        except OSError as error:
            raise _refused(f"bring back {path_text(wish.path)}", error) from error


class _Descent:
    """The way down from a directory, component by component; no link is followed."""

    def __init__(self, root: bytes) -> None:
        self.descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Descent:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)

    def is_directory(self, name: bytes) -> bool:
        """Whether `name` is a directory here."""
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def enter(self, name: bytes) -> None:
        """Go down."""
        deeper = open_at(self.descriptor, name, _DIRECTORY)
        os.close(self.descriptor)
        self.descriptor = deeper


def _publish(source: _Descent, target: _Descent, wish: Wish) -> bytes | None:
    """Down to the first component that the volume has not, or that is the last: this one is moved."""
    names = wish.path.split(b"/")
    for depth, name in enumerate(names):
        is_last = depth == len(names) - 1
        if not is_last and target.is_directory(name):
            source.enter(name)
            target.enter(name)
            continue
        try:
            os.stat(name, dir_fd=source.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        for other in _names_for(name, wish.point):
            if _move(source, name, target, other):
                return b"/".join((*names[:depth], other, *names[depth + 1 :]))
    raise AssertionError("a path has a last component")


def _names_for(name: bytes, point: ManifestName) -> Iterator[bytes]:
    """The name itself, then ones that say which moment it is of: `train.restored-20261126T140002.ipynb`."""
    yield name
    stem, dot, suffix = name.rpartition(b".")
    if not stem or len(suffix) > 16:
        stem, dot, suffix = name, b"", b""
    moment = time.strftime("%Y%m%dT%H%M%S", time.localtime(point.time_us // 1_000_000)).encode()
    number = 1
    while True:
        mark = b".restored-" + moment + (b"-%d" % number if number > 1 else b"") + dot + suffix
        yield stem[: _NAME_LIMIT - len(mark)] + mark
        number += 1


def _move(source: _Descent, name: bytes, target: _Descent, other: bytes) -> bool:
    """Move a name to a free one; False if that is taken. Whatever comes in between, nothing is replaced."""
    here = {"src_dir_fd": source.descriptor, "dst_dir_fd": target.descriptor}
    if source.is_directory(name):
        try:
            os.mkdir(other, 0o700, dir_fd=target.descriptor)
        except FileExistsError:
            return False
        # A directory replaces an empty one and no other (rename(2)).
        os.rename(name, other, **here)
        return True
    try:
        os.link(name, other, follow_symlinks=False, **here)
    except FileExistsError:
        return False
    os.unlink(name, dir_fd=source.descriptor)
    return True


def _refused(what: str, error: OSError) -> TargetError:
    return TargetError(what, error.strerror or str(error), "run it as root")
