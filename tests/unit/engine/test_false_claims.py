"""Ways in which a recovery point could claim more than was seen: each ends in a refusal or in the truth."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.backup import snapshot
from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupOutcome, BackupRequest, run_backup
from smsnapd.engine.progress import Silent
from smsnapd.errors import VolumeError
from smsnapd.format.manifest import Manifest
from smsnapd.repository import Repository
from smsnapd.store import open_store
from smsnapd.store.base import StoreSettings
from smsnapd.volume import scan
from tests.unit.volume.ext4 import loop_ext4


class Place:
    """A volume on a file system of its own, and a repository."""

    def __init__(self, directory: Path, volume: Path) -> None:
        self.volume = volume
        self._state = directory / "state"
        self._settings = StoreSettings(url=(directory / "repo").as_uri())
        self._store = open_store(self._settings)
        self._repository = Repository.create(self._store, "correct horse battery").repository

    def back_up(self, *hints: bytes, **more: Any) -> BackupOutcome:
        hinted = Hints(frozenset(hints)) if hints else None
        request = BackupRequest(os.fsencode(self.volume), "nb", self._state, workers=0, hints=hinted, **more)
        return run_backup(self._repository, self._settings, request, Silent())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with loop_ext4(tmp_path, "volume") as point:
        (point / "d").mkdir()
        (point / "d/file").write_text("first")
        made = Place(tmp_path, point)
        made.back_up()
        yield made


pytestmark = [pytest.mark.root, pytest.mark.loop]


def test_what_could_not_be_read_is_missed_until_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else changed, so nothing is stored: the manifest must say it all the same."""
    (place.volume / "d/file").write_text("second, and longer")
    real = os.listdir

    def failing(path: Any) -> list[Any]:
        if isinstance(path, int) and os.path.samestat(os.fstat(path), os.stat(place.volume / "d")):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(scan.os, "listdir", failing)
        missed = place.back_up(b"d").snapshot
    assert missed is not None and not missed.complete
    assert [issue.path for issue in missed.incomplete] == [b"d"]
    (place.volume / "other").touch()
    # Nobody hints at it: the run itself remembers what is to be tried again.
    mended = place.back_up(b"")
    assert mended.snapshot is not None and mended.snapshot.complete
    assert mended.changed == 3  # the root, the new file, and what was missed
    assert place.back_up(b"").snapshot is None


def test_an_empty_mount_point_is_no_new_moment_of_the_volume(place: Place, tmp_path: Path) -> None:
    subprocess.run(["umount", place.volume], check=True)
    try:
        with pytest.raises(VolumeError, match="empty, and on another file system"):
            place.back_up()
        assert place.back_up(full=True).snapshot is not None  # who says so, means it
    finally:
        subprocess.run(["mount", "-o", "loop", tmp_path / "volume.img", place.volume], check=True)


def test_what_became_writable_is_not_said_to_have_been_held(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.volume / "d/file").write_text("second")
    real = snapshot.with_report

    def meanwhile(*arguments: Any) -> Manifest:
        subprocess.run(["mount", "-o", "remount,rw", place.volume], check=True)
        return real(*arguments)

    monkeypatch.setattr(snapshot, "with_report", meanwhile)
    with pytest.raises(VolumeError, match="became writable"):
        place.back_up(consistency="read-only")
    monkeypatch.undo()
    found = place.back_up().snapshot
    assert found is not None and found.sequence == 2
