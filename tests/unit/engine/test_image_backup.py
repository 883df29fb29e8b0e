"""Images of a volume in use: whole, small when little changed, with deltas behind them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.history import History
from smsnapd.engine.image.restore import DeviceRequest, restore_device
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import PruneRequest, run_prune
from smsnapd.engine.retention import Policy
from smsnapd.errors import UsageError, VolumeError
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected
from tests.property.pruned import Pruned
from tests.unit.engine.images import NEEDS_LOOP, fsck, make_ext4, mounted
from tests.unit.volume.ext4 import watched_over

pytestmark = NEEDS_LOOP
MIB = 1024 * 1024


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "device", "192M", "-b", "4096")


@pytest.fixture
def volume(device: Path, tmp_path: Path) -> Iterator[Path]:
    """A volume of its own, with some files."""
    with mounted(device, tmp_path / "mounted") as root, watched_over(root):
        for number in range(120):
            place = root / f"d{number % 7}"
            place.mkdir(exist_ok=True)
            (place / f"f{number}").write_bytes(os.urandom(number * 500))
        (root / "empty").mkdir()
        (root / "large").write_bytes(os.urandom(20 * MIB))
        os.link(root / "d1" / "f1", root / "d2" / "same")
        yield root


@pytest.fixture
def imaged(volume: Path, on_disk: Protected) -> Callable[..., BackupOutcome]:
    """Back the volume up in block mode; its root is not the fixture's."""
    protected = replace(on_disk, root=volume)

    def make(**request: Any) -> BackupOutcome:
        return protected.backup(**{"mode": "block", **request})

    return make


def brought_back(protected: Protected, tmp_path: Path, snapshot: str = "latest") -> Path:
    """A recovery point, restored to a file of the image's size."""
    path = tmp_path / f"restored-{snapshot}"
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        request = DeviceRequest(bytes(path), destroy=True)
        restore_device(repository, protected.settings, history, history.find(snapshot), request, Silent())
    fsck(path)
    return path


def same_as(volume: Path, image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "looked-at", "loop,ro") as root:
        assert list(differences(observe(volume), observe(root))) == []


@pytest.mark.parametrize("consistency", ["freeze", "read-only", "live"])
def test_an_image_is_the_volume_and_the_next_one_is_small(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path, consistency: str
) -> None:
    first = imaged(consistency=consistency)
    assert first.snapshot is not None and (first.snapshot.kind, first.snapshot.mode) == ("full", "block")
    assert first.snapshot.files == 122 and first.snapshot.bytes == sum(
        path.stat().st_size for path in volume.rglob("*") if path.is_file()
    )
    same_as(volume, brought_back(on_disk, tmp_path), tmp_path)
    (volume / "d3" / "f3").write_bytes(b"changed")
    second = imaged(consistency=consistency, full=True)
    # The blocks around the file, of which the file system has more or fewer to change; live, the journal too.
    assert second.snapshot is not None and second.snapshot.stored_bytes * 20 < first.snapshot.stored_bytes
    same_as(volume, brought_back(on_disk, tmp_path), tmp_path)
    assert on_disk.check(read_data=(1, 1)).findings == ()


def test_deltas_follow_an_image(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    imaged()
    assert imaged().snapshot is None
    (volume / "d1" / "f1").unlink()
    (volume / "empty" / "new").write_bytes(b"new")
    (volume / "d4").rename(volume / "d5" / "d4")
    (volume / "d6" / "f6").chmod(0o600)
    (volume / "large").write_bytes(b"small")
    delta = imaged().snapshot
    assert delta is not None and (delta.kind, delta.mode) == ("incremental", "tar")
    assert delta.stored_bytes < MIB
    same_as(volume, brought_back(on_disk, tmp_path), tmp_path)
    assert imaged().snapshot is None
    assert on_disk.check().findings == ()


def test_where_the_index_is_lost_a_new_full_is_made(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    first = imaged().snapshot
    assert first is not None
    on_disk.lose_state()
    again = imaged()
    assert again.snapshot is not None and (again.snapshot.kind, again.snapshot.mode) == ("full", "block")
    assert any("local state" in note for note in again.notes)
    assert again.snapshot.stored_bytes < first.stored_bytes / 4  # chunks with the same content
    same_as(volume, brought_back(on_disk, tmp_path), tmp_path)


@pytest.mark.parametrize("lost", [True, False])
def test_where_the_digests_of_the_last_image_are_lost_it_is_told(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path, lost: bool
) -> None:
    assert not any("last image" in note for note in imaged().notes)
    (digests,) = on_disk.state_dir.rglob("*.image")
    if lost:
        digests.unlink()
    else:
        digests.write_bytes(b"damaged" + digests.read_bytes()[7:])
    (volume / "d1" / "f1").write_bytes(b"changed")
    assert any("local state does not fit the last image" in note for note in imaged(full=True).notes)
    same_as(volume, brought_back(on_disk, tmp_path), tmp_path)
    (volume / "d1" / "f1").write_bytes(b"changed again")
    assert not any("last image" in note for note in imaged(full=True).notes)


def test_an_image_behind_what_was_written_anew_is_gone_on_from(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected
) -> None:
    """Its index names nothing of what was before, whatever became of that."""
    for number in range(10):
        (volume / f"small-{number}").write_bytes(os.urandom(3000))
        imaged(mode="tar")
    asked = PruneRequest(VOLUME, 72 * 3600.0, policy=Policy(keep_within_s=1e9))
    with on_disk.repository() as repository:
        (pruned,) = run_prune(repository, asked, Silent()).volumes
    assert pruned.rewritten
    on_disk.lose_state()
    assert imaged(full=True).snapshot is not None
    assert imaged().snapshot is None


def test_a_full_of_files_behind_an_image_has_everything(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    imaged()
    (volume / "d0" / "f7").write_bytes(b"!")
    assert imaged(mode="tar").snapshot is not None
    full = imaged(mode="tar", full=True).snapshot
    assert full is not None and (full.kind, full.mode) == ("full", "tar")
    on_disk.restore(tmp_path / "files")
    assert list(differences(observe(volume), observe(tmp_path / "files"))) == []
    image = imaged(full=True).snapshot
    assert image is not None and image.stored_bytes < MIB


def test_a_dry_run_tells_what_is_in_use(imaged: Callable[..., BackupOutcome], on_disk: Protected) -> None:
    told = imaged(dry_run=True)
    assert told.snapshot is None and 20 * MIB < told.new_bytes < 60 * MIB
    assert on_disk.snapshots() == ()


@pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="needs mkfs.xfs (xfsprogs)")
def test_a_device_that_is_no_ext4_is_read_whole(on_disk: Protected, tmp_path: Path) -> None:
    path = tmp_path / "device"
    subprocess.run(["truncate", "-s", "320M", path], check=True)
    subprocess.run(["mkfs.xfs", "-q", path], check=True)
    protected = replace(on_disk, root=tmp_path / "mounted")
    with mounted(path, protected.root) as root, watched_over(root):
        (root / "file").write_bytes(os.urandom(MIB))
        first = protected.backup(mode="block").snapshot
        (root / "other").mkdir()
        (root / "other" / "file").write_bytes(b"new")
        second = protected.backup(mode="block").snapshot
        third = protected.backup(mode="block", full=True).snapshot
    assert first is not None and second is not None and third is not None
    assert (second.kind, third.kind) == ("incremental", "full")
    assert third.stored_bytes * 4 < first.stored_bytes
    restored = tmp_path / "restored"
    with on_disk.repository() as repository:
        history = History.load(repository, VOLUME)
        request = DeviceRequest(bytes(restored))
        restore_device(repository, on_disk.settings, history, history.find("latest"), request, Silent())
    with mounted(restored, tmp_path / "looked-at", "loop,nouuid") as root:
        assert (root / "other" / "file").read_bytes() == b"new"


def test_the_root_file_system_is_never_frozen(on_disk: Protected) -> None:
    with pytest.raises(VolumeError, match="root file system"):
        replace(on_disk, root=Path("/")).backup(mode="block")


def test_a_directory_is_no_device(on_disk: Protected) -> None:
    with pytest.raises(VolumeError, match="whole file system"):
        on_disk.backup(mode="block")


def test_a_repository_on_the_volume_is_refused(volume: Path, on_disk: Protected, tmp_path: Path) -> None:
    settings = replace(on_disk.settings, url=(volume / "repository").as_uri())
    protected = Protected.create(volume, tmp_path / "state", settings)
    with pytest.raises(UsageError, match="lies on it"):
        protected.backup(mode="block")


def test_the_state_may_lie_on_the_volume(
    imaged: Callable[..., BackupOutcome], volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    state = volume / ".smsnapd"
    imaged(state_dir=state, exclude=("/.smsnapd/",))
    (volume / "d2" / "new").write_bytes(b"new")
    delta = imaged(state_dir=state, exclude=("/.smsnapd/",)).snapshot
    assert delta is not None and delta.kind == "incremental"
    second = imaged(state_dir=state, exclude=("/.smsnapd/",), full=True).snapshot
    assert second is not None and second.stored_bytes < MIB
    brought_back(on_disk, tmp_path)


def test_images_go_and_those_that_stay_are_whole(volume: Path, tmp_path: Path) -> None:
    """The next image is built upon the one before, whose chunks must outlive it."""
    (tmp_path / "pruned").mkdir()
    pruned = Pruned.create(tmp_path / "pruned")
    pruned.protected = replace(pruned.protected, root=volume)
    kept: dict[str, Any] = {}
    for number in range(4):
        (volume / "large").write_bytes(os.urandom(6 * MIB))
        (volume / f"only{number}").write_bytes(b"x" * number)
        for full in (True, False):
            (volume / f"more{full}").write_bytes(os.urandom(100))
            made = pruned.protected.backup(mode="block", full=full).snapshot
            assert made is not None
            kept[made.id] = observe(volume)
        pruned.passes(30)
        pruned.thin(Policy(daily=1))
        pruned.passes(73)
        pruned.prune()
        report = pruned.protected.check(store=pruned.store, read_data=(1, 1))
        assert report.findings == ()
    there = pruned.protected.snapshots()
    assert 1 < len(there) < 8
    for number, found in enumerate(there):
        path = tmp_path / f"out{number}"
        with pruned.protected.repository(pruned.store) as repository:
            history = History.load(repository, VOLUME)
            request = DeviceRequest(bytes(path), workers=0)
            restore_device(
                repository, pruned.protected.settings, history, history.find(found.id), request, Silent()
            )
        fsck(path)
        with mounted(path, tmp_path / "looked-at", "loop,ro") as root:
            assert list(differences(kept[found.id], observe(root))) == []
        path.unlink()
