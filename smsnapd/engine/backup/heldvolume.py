"""Reading a volume while it is held read-only, as the article does: nothing is written to it meanwhile."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smsnapd.engine.restore.extras import directory_of
from smsnapd.errors import SmsnapError, UsageError
from smsnapd.state import State, is_damage, move_state
from smsnapd.volume.mounts import find_mount
from smsnapd.volume.still import held_read_only

WORKING_FILES = "/var/tmp"
"""A place on disk that is not the volume: /tmp may be memory."""


@contextmanager
def opened_state(
    state_dir: Path, repository_id: str, volume: str, root: bytes, url: str, *, read_only: bool
) -> Iterator[State]:
    """The local index, open; with `read_only` the volume under `root` is held so until the end.

    An index that lies on the volume is used from a copy then, which goes back afterwards. UsageError if the
    repository lies on the volume, VolumeError if it cannot be remounted.
    """
    if not read_only:
        with _state_in(state_dir, repository_id, volume) as state:
            yield state
        return
    mount_point = find_mount(root).mount_point
    _check_not_within(mount_point, url)
    path = State.path_of(state_dir, repository_id, volume)
    with (
        _off_the_volume(state_dir, path, root) as directory,
        _state_in(directory, repository_id, volume) as state,
        held_read_only(mount_point),
    ):
        yield state


@contextmanager
def state_away(
    state_dir: Path, repository_id: str, volume: str, root: bytes, url: str
) -> Iterator[tuple[State, Path]]:
    """The local index, open, and a directory for files, neither on the volume, which may be held meanwhile.

    Raises as `opened_state`.
    """
    _check_not_within(find_mount(root).mount_point, url)
    path = State.path_of(state_dir, repository_id, volume)
    with (
        _off_the_volume(state_dir, path, root) as directory,
        _state_in(directory, repository_id, volume) as state,
    ):
        yield state, directory


@contextmanager
def _state_in(directory: Path, repository_id: str, volume: str) -> Iterator[State]:
    """The index, open. One that turns out to be damaged is removed: the next run makes it anew."""
    state = State.open(directory, repository_id, volume)
    what = f"use the local state {state.path}"
    try:
        yield state
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # Text that cannot be decoded is of a garbled schema, which SQLite quotes.
        if isinstance(error, sqlite3.DatabaseError) and not is_damage(error):
            hint = "make room there, or set [state] dir to another place"
            raise SmsnapError(what, str(error), hint) from error
        state.remove()
        raise SmsnapError(what, str(error), "it was removed; run this again, which scans anew") from error
    finally:
        state.close()


def _check_not_within(mount_point: bytes, url: str) -> None:
    """A repository on the volume itself cannot be written to while that is read-only."""
    if any(os.path.isdir(path) and find_mount(path).mount_point == mount_point for path in directory_of(url)):
        raise UsageError(
            "hold the volume read-only",
            "the repository lies on it",
            'set consistency = "live", or keep the repository elsewhere',
        )


@contextmanager
def _off_the_volume(state_dir: Path, path: Path, root: bytes) -> Iterator[Path]:
    """A directory for the index at `path` that is not on the volume; what is in it at the end goes back."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if state_dir.stat().st_dev != os.stat(root).st_dev:
        yield state_dir
        return
    if os.stat(WORKING_FILES).st_dev == os.stat(root).st_dev:
        what = "hold the volume while it is read"
        why = f"the local state lies on it, and {WORKING_FILES} too"
        raise UsageError(what, why, "set [state] dir to a directory elsewhere")
    with tempfile.TemporaryDirectory(prefix="smsnapd-", dir=WORKING_FILES) as borrowed:
        move_state(path, Path(borrowed))
        try:
            yield Path(borrowed)
        finally:
            move_state(Path(borrowed, path.name), state_dir)
