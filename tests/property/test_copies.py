"""Copies of histories that prunes have thinned, and of images: what is there restores as it was."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from smsnapd.engine.copy.run import CopyOutcome, CopyRequest, run_copy
from smsnapd.engine.history import History
from smsnapd.engine.image.restore import DeviceRequest, restore_device
from smsnapd.engine.progress import Silent
from smsnapd.engine.retention import Policy
from smsnapd.repository import Repository
from smsnapd.repository.tags import Tagged, put_tag
from smsnapd.store import StoreSettings, open_store
from tests.property.observed import Observed, differences, observe
from tests.property.protected import VOLUME, Protected
from tests.property.pruned import Pruned
from tests.unit.engine.images import fsck, make_ext4, mounted
from tests.unit.engine.test_prune_thins import NEWEST, grow, names_of

pytestmark = [pytest.mark.root, pytest.mark.slow]


def another(place: Path) -> Protected:
    """A repository elsewhere, with keys of its own."""
    settings = StoreSettings(f"memory://{uuid.uuid4().hex}")
    created = Repository.create(open_store(settings), None)
    return Protected(
        place / "volume", place / uuid.uuid4().hex, settings, created.recovery_key, created.write_key_text
    )


def copied(source: Protected, target: Protected) -> CopyOutcome:
    request = CopyRequest(VOLUME, VOLUME, target.state_dir)
    with source.repository() as one, target.repository(write_key=True) as other:
        return run_copy(one, other, request, Silent())


def check(target: Protected, moments: dict[str, Observed], place: Path) -> None:
    """All of `moments` restore there as they were, and nothing is wrong with the rest."""
    assert target.check().findings == ()
    assert {snapshot.id for snapshot in target.snapshots()} >= set(moments)
    for snapshot, seen in moments.items():
        restored = place / uuid.uuid4().hex
        target.restore(restored, snapshot)
        assert differences(seen, observe(restored)) == []


def keep(pruned: Pruned, *rows: int) -> None:
    """Pin recovery points by tags, so that a prune folds the others into them."""
    wanted = [names_of(pruned)[row].snapshot for row in rows]
    with pruned.protected.repository() as repository:
        for snapshot in wanted:
            put_tag(repository, VOLUME, Tagged(snapshot, "stays"), repository.write_key, is_set=True)


@pytest.mark.parametrize("attach", [True, False])
def test_a_thinned_history_is_copied_as_it_is(tmp_path: Path, attach: bool) -> None:
    pruned = Pruned.create(tmp_path)
    grow(pruned, 9, attach=attach)
    keep(pruned, 2, 5)
    assert pruned.thin(NEWEST).removed
    target = another(tmp_path)
    outcome = copied(pruned.protected, target)
    assert list(outcome.copied) == [name.snapshot for name in names_of(pruned)] and outcome.whole == ()
    check(target, pruned.moments, tmp_path)
    pruned.sweep_all()
    check(target, pruned.moments, tmp_path)


def test_what_was_copied_before_a_fold_and_after_it(tmp_path: Path) -> None:
    """The newest one there is gone here: what follows goes as a full, and what is there stays."""
    pruned = Pruned.create(tmp_path)
    grow(pruned, 6)
    target = another(tmp_path)
    copied(pruned.protected, target)
    before = dict(pruned.moments)
    grow(pruned, 4)
    keep(pruned, 2, 8)
    pruned.thin(NEWEST)
    pruned.sweep_all()
    outcome = copied(pruned.protected, target)
    assert len(outcome.whole) == 1 and outcome.whole[0] == outcome.copied[0]
    check(target, before | pruned.moments, tmp_path)
    grow(pruned, 2)
    assert copied(pruned.protected, target).whole == ()
    check(target, pruned.moments, tmp_path)


def test_the_copy_is_thinned_by_itself(tmp_path: Path) -> None:
    pruned = Pruned.create(tmp_path)
    grow(pruned, 8)
    target = another(tmp_path)
    copied(pruned.protected, target)
    there = Pruned(target, open_store(target.settings), moments=dict(pruned.moments))  # type: ignore[arg-type]
    there.thin(Policy(hourly=1))
    check(target, there.moments, tmp_path)
    grow(pruned, 3)
    copied(pruned.protected, target)
    check(target, {**there.moments, **dict(list(pruned.moments.items())[-3:])}, tmp_path)


@pytest.mark.loop
def test_an_image_and_what_follows_it(tmp_path: Path) -> None:
    device = make_ext4(tmp_path / "device", "16M", "-b", "4096")
    source = another(tmp_path)
    with mounted(device, tmp_path / "volume") as root:
        (root / "a").write_bytes(os.urandom(500_000))
        source.backup(mode="block", write_key=False)
        (root / "b").write_text("behind it")
        source.backup(write_key=False)
        seen = observe(root, leave_out=(b"lost+found",))
    target = another(tmp_path)
    outcome = copied(source, target)
    assert len(outcome.copied) == 2 and outcome.whole == ()
    assert [item.mode for item in target.snapshots()] == ["block", "tar"]
    subprocess.run(["truncate", "-s", "16M", tmp_path / "back"], check=True)
    with target.repository() as repository:
        history = History.load(repository, VOLUME)
        request = DeviceRequest(bytes(tmp_path / "back"), workers=0)
        restore_device(repository, target.settings, history, history.find("latest"), request, Silent())
    fsck(tmp_path / "back")
    with mounted(tmp_path / "back", tmp_path / "look", "loop,ro") as look:
        assert list(differences(seen, observe(look, leave_out=(b"lost+found",)))) == []
