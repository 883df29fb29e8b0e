"""What a run remembers, and what it does when the repository or the index is not as it should be."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.history import History
from smsnapd.errors import DamageError, LockedError, StoreError
from smsnapd.model import ChunkRef
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.lease import LEASE_S, Lease
from smsnapd.state import State
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore, open_memory
from smsnapd.volume import scan as scan_module
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.test_backup_races import At, comes_back

MIB = 1024 * 1024


def remembered(protected: Protected) -> dict[int, ChunkRef]:
    with protected.repository() as repository:
        state = State.open(protected.state_dir, repository.repository_id, VOLUME)
    try:
        return state.chunks()
    finally:
        state.close()


def committed(protected: Protected) -> set[ChunkRef]:
    """Every chunk that a manifest names."""
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        return {ref for name in history.names for ref in history.record(name).manifest.chunks}


@pytest.mark.parametrize("full", [False, True])
def test_only_chunks_of_a_manifest_are_remembered(protected: Protected, full: bool) -> None:
    """Others may be pruned at any time, and must not be used again."""
    large = protected.root / "large"
    large.write_bytes(bytes(MIB))
    protected.backup()
    large.write_bytes(random.Random(1).randbytes(40 * MIB))

    def change() -> None:
        with large.open("r+b") as file:
            file.write(b"changed while it is read")

    assert protected.backup(full=full, progress=At(stored=change)).incomplete == ()
    assert set(remembered(protected).values()) <= committed(protected)
    comes_back(protected)


class Failing(MemoryStore):
    """A store in memory in which one thing after the other goes wrong."""

    def __init__(self, protected: Protected, puts: int) -> None:
        super().__init__(protected.settings.url.removeprefix("memory://"))
        self._objects = open_memory(self.url.removeprefix("memory://"))._objects
        self._puts = puts

    def put(self, name: str, data: Buffer) -> None:
        if "/chunks/" in name:
            self._puts -= 1
            if self._puts < 0:
                raise StoreError(f"store {name}", "first")
        super().put(name, data)

    def barrier(self) -> None:
        raise StoreError("make it durable", "second")


def test_what_ended_a_run_is_told_and_not_what_followed_from_it(protected: Protected) -> None:
    (protected.root / "large").write_bytes(random.Random(1).randbytes(40 * MIB))
    with pytest.raises(StoreError, match="first"):
        protected.backup(store=Failing(protected, 4))
    protected.backup()
    comes_back(protected)


class MovingClock:
    """The time of the store, put forward."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def of(self, steady: Callable[[], float]) -> StoreClock:
        return StoreClock(lambda: time.time() + self.passed_s, steady=lambda: steady() + self.passed_s)


def test_the_lease_does_not_end_during_a_long_scan(
    protected: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is soon over when everything is read again."""
    for number in range(5):
        (protected.root / f"{number}" / "inside").mkdir(parents=True)
    clock = MovingClock()
    listed = os.listdir

    def slowly(place: int) -> list[str]:
        clock.passed_s += LEASE_S / 4
        return listed(place)

    def overtake() -> None:
        store, number = repository.store, repository.id
        with pytest.raises(LockedError):
            Lease.take(store, number, VOLUME, clock=clock.of(time.monotonic), dead=lambda holder: False)

    request = BackupRequest(bytes(protected.root), VOLUME, protected.state_dir)
    with protected.repository() as repository:
        monkeypatch.setattr(scan_module.os, "listdir", slowly)
        progress = At(store=overtake)
        tenure = Tenure(repository, VOLUME, clock=clock.of(time.monotonic))
        outcome = run_backup(repository, protected.settings, request, progress, tenure=tenure)
        tenure.release()
    assert outcome.snapshot is not None


# --- a repository that is not whole


def objects(protected: Protected, kind: str) -> list[str]:
    with protected.repository() as repository:
        return [info.name for info in repository.store.list(f"volumes/{VOLUME}/{kind}/")]


def damage(protected: Protected, name: str) -> None:
    stored = open_memory(protected.settings.url.removeprefix("memory://"))._objects
    stored[name] = stored[name][:-1] + bytes([stored[name][-1] ^ 1])


@pytest.mark.parametrize("kind", ["catalogs", "manifests"])
def test_behind_damage_a_full_makes_a_new_chain(protected: Protected, kind: str) -> None:
    """Nothing is overwritten, and yet nobody is left without backups for good."""
    (protected.root / "file").write_bytes(b"content")
    protected.backup(attach=False)
    damage(protected, objects(protected, kind)[-1])
    protected.lose_state()
    (protected.root / "more").write_bytes(b"more")
    with pytest.raises(DamageError, match="smsnap backup --full"):
        protected.backup()
    outcome = protected.backup(full=True)
    assert outcome.snapshot is not None and outcome.snapshot.complete and outcome.notes
    comes_back(protected)
    (protected.root / "file").write_bytes(b"other content")
    after = protected.backup().snapshot
    assert after is not None and after.kind == "incremental"
    comes_back(protected)
    found = {finding.object for finding in protected.check().findings}
    assert all(objects(protected, "manifests")[0] in name or "/catalogs/" in name for name in found)
    assert found


def test_a_dry_run_says_how_much_it_would_read(protected: Protected) -> None:
    (protected.root / "file").write_bytes(bytes(12345))
    outcome = protected.backup(dry_run=True)
    assert (outcome.snapshot, outcome.changed, outcome.new_bytes) == (None, 2, 12345)
    assert objects(protected, "manifests") == []
