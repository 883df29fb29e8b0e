"""Runs on a volume that moves, by users who may not read everything, and by several writers at once."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from smsnapd.errors import LockedError, VolumeError
from smsnapd.model import Entry
from smsnapd.repository.lease import Lease
from smsnapd.volume.tarball import read as read_module
from tests.property.children import run_child
from tests.property.observed import observe
from tests.property.protected import VOLUME, At, Protected, comes_back, fill

MIB = 1024 * 1024
pytestmark = [pytest.mark.root, pytest.mark.loop]


# --- what moves


def restless(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Let a file change between each two looks at it, as often as it is read."""
    original, moments, inode = read_module.is_as, itertools.count(), place.stat().st_ino

    def move_and_look(entry: Entry, status: os.stat_result) -> bool:
        if entry.inode == inode:
            os.utime(place, ns=(0, next(moments)))
            status = place.stat()
        return original(entry, status)

    monkeypatch.setattr(read_module, "is_as", move_and_look)


@pytest.mark.parametrize("size", [3000, 17 * MIB])
def test_a_file_that_will_not_hold_still_is_stored_and_named(
    protected: Protected, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fill(protected.root, 5, 100)
    place = protected.root / "restless"
    place.write_bytes(random.Random(8).randbytes(size))
    with monkeypatch.context() as context:
        restless(context, place)
        outcome = protected.backup(workers=0)
    assert [(issue.path, issue.reason) for issue in outcome.incomplete] == [
        (b"restless", "changed while read")
    ]
    assert outcome.snapshot is not None and not outcome.snapshot.complete
    restored = protected.root.with_name("restored")
    protected.restore(restored)
    assert (restored / "restless").read_bytes() == place.read_bytes()
    shutil.rmtree(restored)
    outcome = protected.backup()
    assert outcome.snapshot is not None and outcome.snapshot.complete
    comes_back(protected)


def test_what_vanishes_during_a_run_is_a_deletion(protected: Protected) -> None:
    fill(protected.root, 30, 1000)
    protected.backup()
    (protected.root / "directory-3" / "new").write_bytes(b"new")
    (protected.root / "new" / "deep").mkdir(parents=True)
    (protected.root / "new" / "deep" / "file").write_bytes(b"new")
    (protected.root / "directory-4" / "file-4").write_bytes(b"changed")

    def vanish() -> None:
        (protected.root / "directory-3" / "new").unlink()
        (protected.root / "directory-4" / "file-4").unlink()
        shutil.rmtree(protected.root / "new")

    outcome = protected.backup(progress=At(store=vanish))
    assert outcome.snapshot is not None and outcome.snapshot.complete
    restored = protected.root.with_name("restored")
    protected.restore(restored)
    assert set(observe(restored)) == set(observe(protected.root))
    shutil.rmtree(restored)
    protected.backup()
    comes_back(protected)


def test_names_of_a_file_that_parts_from_them_during_a_run(protected: Protected) -> None:
    """The first name is another file by the time it is read; the others keep their content."""
    root = protected.root
    (root / "b").write_bytes(b"shared by three")
    os.link(root / "b", root / "c")
    os.link(root / "b", root / "d")

    def part() -> None:
        (root / ".new").write_bytes(b"b's own")
        (root / ".new").rename(root / "b")

    protected.backup(progress=At(store=part))
    comes_back(protected)


def test_a_name_that_joins_a_file_during_a_run(protected: Protected) -> None:
    """Scanned as another file, stored as one of its own; by times alone nothing is wrong with it later."""
    root = protected.root
    (root / "a").write_bytes(b"shared by two")
    os.link(root / "a", root / "b")
    (root / "c").write_bytes(b"another")
    protected.backup(progress=At(store=lambda: (root / "a").rename(root / "c")))
    protected.backup()
    comes_back(protected)


def test_a_file_that_becomes_large_during_a_run(protected: Protected) -> None:
    place = protected.root / "file"
    place.write_bytes(b"small")
    (protected.root / "was-large").write_bytes(bytes(9 * MIB))

    def grow() -> None:
        place.write_bytes(random.Random(9).randbytes(9 * MIB))
        (protected.root / "was-large").write_bytes(b"small")

    protected.backup(progress=At(store=grow))
    comes_back(protected)


# --- who may


def test_what_an_ordinary_user_may_not_read_is_named_and_stays_as_it_was(protected: Protected) -> None:
    """A run as root first; then as nobody: what he cannot look at is unknown, and not gone."""
    fill(protected.root, 21, 500)
    top = protected.root.parent
    protected.backup()
    before = observe(protected.root)
    (protected.root / "directory-1" / "file-1").chmod(0o600)
    (protected.root / "directory-2").chmod(0o700)
    (protected.root / "directory-3" / "new").write_bytes(b"new")
    top.chmod(0o755)
    for path in [
        top / "state",
        top / "repository",
        *(top / "state").rglob("*"),
        *(top / "repository").rglob("*"),
    ]:
        os.chown(path, 65_534, 65_534)

    def as_nobody() -> dict[bytes, str]:
        outcome = protected.backup()
        assert outcome.snapshot is not None and not outcome.snapshot.complete
        return {issue.path: issue.reason for issue in outcome.incomplete}

    found = run_child(as_nobody, uid=65_534)
    assert found == {
        b"directory-1/file-1": "unreadable: Permission denied",
        b"directory-2": "unreadable: Permission denied",
    }
    restored = top / "restored"
    protected.restore(restored)
    after = observe(restored)
    assert after.keys() == before.keys() | {b"directory-3/new"}
    assert after[b"directory-1/file-1"].content == before[b"directory-1/file-1"].content
    assert after[b"directory-2/file-2"] == before[b"directory-2/file-2"]


def test_a_volume_whose_root_may_not_be_entered_is_no_recovery_point(protected: Protected) -> None:
    fill(protected.root, 3, 10)
    top = protected.root.parent
    protected.root.chmod(0o644)
    (top / "state").mkdir()
    top.chmod(0o755)
    for path in [top / "state", top / "repository", *(top / "repository").rglob("*")]:
        os.chown(path, 65_534, 65_534)

    def as_nobody() -> None:
        with pytest.raises(VolumeError, match="Permission denied"):
            protected.backup()

    run_child(as_nobody, uid=65_534)
    assert protected.snapshots() == ()
    protected.backup()
    comes_back(protected)


def test_one_writer_at_a_time(protected: Protected) -> None:
    fill(protected.root, 3, 10)
    with protected.repository() as repository:
        lease = Lease.take(repository.store, repository.id, VOLUME)
        with pytest.raises(LockedError):
            protected.backup()
        lease.release()
    assert protected.backup().snapshot is not None


def test_a_writer_that_lost_its_lease_commits_nothing_that_counts(protected: Protected) -> None:
    """It slept; another one took the lease and committed; then it wakes up right before its commit."""
    fill(protected.root, 3, 10)

    def overtake() -> None:
        with protected.repository() as repository:
            Lease.take(repository.store, repository.id, VOLUME, dead=lambda holder: True).release()
        protected.backup(state_dir=protected.state_dir / "other")

    with pytest.raises(LockedError):
        protected.backup(progress=At(commit=overtake))
    assert len(protected.snapshots()) == 1
    assert protected.check().findings == ()
    comes_back(protected)
    (protected.root / "more").write_bytes(b"more")
    protected.backup()
    comes_back(protected)
