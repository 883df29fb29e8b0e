"""`consistency = "read-only"`: the article's remount, with our own state on the very volume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.progress import Silent
from smsnapd.errors import StoreError, UsageError, VolumeError
from smsnapd.repository import Credentials, Repository
from smsnapd.store import open_store
from smsnapd.store.base import Buffer, StoreSettings
from smsnapd.store.directory import DirectoryStore
from tests.unit.volume.ext4 import loop_ext4

pytestmark = [pytest.mark.root, pytest.mark.loop]


class Witness(DirectoryStore):
    """A directory store that notes, at every put, whether the volume takes writes; may fail at chunks."""

    def __init__(self, root: Path, volume: Path, *, broken: bool = False) -> None:
        super().__init__(os.fsencode(root))
        self._volume = volume
        self._broken = broken
        self.read_only: dict[str, bool] = {}

    def put(self, name: str, data: Buffer) -> None:
        self.read_only[name] = bool(os.statvfs(self._volume).f_flag & os.ST_RDONLY)
        if self._broken and "/chunks/" in name:
            raise StoreError(f"store {name}", "the test broke it")
        super().put(name, data)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with loop_ext4(tmp_path, "volume") as mounted:
        (mounted / "work").mkdir()
        (mounted / "work" / "notes").write_bytes(os.urandom(300_000))
        yield mounted


def request_for(volume: Path) -> BackupRequest:
    return BackupRequest(
        root=os.fsencode(volume),
        volume="nb",
        state_dir=volume / ".smsnapd",
        consistency="read-only",
    )


def backup(tmp_path: Path, volume: Path, *, broken: bool = False) -> Witness:
    root = tmp_path / "repository"
    settings = StoreSettings(url=f"file://{root}")
    if not root.exists():
        Repository.create(open_store(settings), "a passphrase").repository.close()
    store = Witness(root, volume, broken=broken)
    repository = Repository.open(store, Credentials(passphrase="a passphrase"))
    run_backup(repository, settings, request_for(volume), Silent())
    return store


def test_nothing_is_written_while_it_is_read_and_all_is_writable_behind(tmp_path: Path, volume: Path) -> None:
    store = backup(tmp_path, volume)
    chunks = [held for name, held in store.read_only.items() if "/chunks/" in name]
    assert chunks
    assert all(chunks)
    (volume / "work" / "more").write_text("the volume takes writes again")
    # The index went back to the volume: the second run finds the first one's work in it.
    second = backup(tmp_path, volume)
    assert [name for name in second.read_only if "-incremental-" in name]
    assert not [name for name in second.read_only if "/chunks/" in name]


def test_a_failure_makes_it_writable_again(tmp_path: Path, volume: Path) -> None:
    with pytest.raises(StoreError, match="the test broke it"):
        backup(tmp_path, volume, broken=True)
    (volume / "work" / "more").write_text("the volume takes writes again")
    backup(tmp_path, volume)


def test_a_file_open_for_writing_is_said(tmp_path: Path, volume: Path) -> None:
    with (volume / "work" / "notes").open("ab"), pytest.raises(VolumeError, match="open"):
        backup(tmp_path, volume)


def test_a_repository_on_the_volume_is_refused(volume: Path) -> None:
    settings = StoreSettings(url=f"file://{volume}/repository")
    repository = Repository.create(open_store(settings), "a passphrase").repository
    with pytest.raises(UsageError, match="lies on it"):
        run_backup(repository, settings, request_for(volume), Silent())
