"""Which recovery point a person means, whatever the clocks did, and which chain makes it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.errors import DamageError, UsageError
from smsnapd.store.memory import open_memory
from tests.property.protected import VOLUME, Protected

HOUR_NS = 3600 * 10**9
NOON_NS = int(datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()) * 10**9


def backup_at(protected: Protected, hours: float, *, full: bool = False, volume: str = VOLUME) -> str:
    """A recovery point by a clock that shows so many hours past noon."""
    (protected.root / "file").write_text(f"{hours} {full} {volume}")
    with protected.repository() as repository:
        request = BackupRequest(bytes(protected.root), volume, protected.state_dir, full=full)
        now = NOON_NS + int(hours * HOUR_NS)
        outcome = run_backup(repository, protected.settings, request, Silent(), clock_ns=lambda: now)
    assert outcome.snapshot is not None
    return outcome.snapshot.id


def at(history: History, hours: float) -> str:
    return history.at((NOON_NS + int(hours * HOUR_NS)) // 1000).id


def history_of(protected: Protected, volume: str = VOLUME) -> History:
    with protected.repository() as repository:
        return History.load(repository, volume)


def test_a_time_means_the_last_recovery_point_at_or_before_it(protected: Protected) -> None:
    first, second, third = (backup_at(protected, hours) for hours in (0, 1, 2))
    history = history_of(protected)
    assert [at(history, hours) for hours in (0, 0.9, 1, 1.5, 2, 99)] == [
        first,
        first,
        second,
        second,
        third,
        third,
    ]
    with pytest.raises(UsageError, match="the first is of 2026-11-23T12:00:00"):
        at(history, -0.001)


def test_clocks_that_were_put_back(protected: Protected) -> None:
    """The order is that of the sequence: what was made later is later, by whatever clock."""
    first, second, third = (backup_at(protected, hours) for hours in (5, 1, 3))
    history = history_of(protected)
    assert [at(history, hours) for hours in (1, 2, 3, 4, 5, 6)] == [
        second,
        second,
        third,
        third,
        third,
        third,
    ]
    assert [snapshot.id for snapshot in history.snapshots] == [first, second, third]
    assert history.find("latest").id == third


def test_an_id_may_be_cut_short_as_long_as_it_is_one(protected: Protected) -> None:
    ids = [backup_at(protected, number, full=True) for number in range(20)]
    history = history_of(protected)
    for snapshot in ids:
        assert history.find(snapshot).id == history.find(snapshot[:8]).id == snapshot
    with pytest.raises(UsageError, match="snapshots begin so"):
        for digit in "0123456789abcdef":
            if sum(snapshot.startswith(digit) for snapshot in ids) > 1:
                history.find(digit)
    for wrong in ("", "nothing", ids[0] + "0", ids[0].upper() + "x"):
        with pytest.raises(UsageError, match="no snapshot has this id"):
            history.find(wrong)


def test_a_volume_without_any(protected: Protected) -> None:
    history = history_of(protected)
    assert (history.snapshots, history.damaged, history.head_name) == ((), (), None)
    with pytest.raises(UsageError, match="has none yet"):
        history.find("latest")
    with pytest.raises(UsageError, match="there is none yet"):
        at(history, 0)


def test_two_volumes_in_one_repository_know_nothing_of_each_other(protected: Protected) -> None:
    mine = [backup_at(protected, number) for number in range(3)]
    other = [backup_at(protected, number, volume="other") for number in range(2)]
    assert [snapshot.id for snapshot in history_of(protected).snapshots] == mine
    assert [snapshot.id for snapshot in history_of(protected, "other").snapshots] == other
    with pytest.raises(UsageError):
        history_of(protected).find(other[0])
    assert protected.check().findings == ()
    for snapshot in mine:
        protected.restore(protected.root.with_name(snapshot), snapshot)


def test_a_chain_begins_at_the_full_before(protected: Protected) -> None:
    ids = [backup_at(protected, number, full=number == 3) for number in range(6)]
    history = history_of(protected)
    chains = [[recorded.name.snapshot for recorded in history.chain(snapshot)] for snapshot in ids]
    assert chains == [ids[:1], ids[:2], ids[:3], ids[3:4], ids[3:5], ids[3:6]]


def test_what_is_missing_in_a_chain_is_damage_and_other_chains_are_not(protected: Protected) -> None:
    ids = [backup_at(protected, number, full=number in (0, 4)) for number in range(6)]
    names = [name.object_name() for name in history_of(protected).names]
    open_memory(protected.settings.url.removeprefix("memory://")).delete(names[1])
    history = history_of(protected)
    assert [snapshot.id for snapshot in history.snapshots] == [ids[0], *ids[2:]]
    for snapshot in ids[2:4]:
        with pytest.raises(DamageError, match="manifest 2 is missing"):
            history.chain(snapshot)
    assert [len(history.chain(snapshot)) for snapshot in (ids[0], ids[4], ids[5])] == [1, 1, 2]
    open_memory(protected.settings.url.removeprefix("memory://")).delete(names[0])
    with pytest.raises(DamageError, match="the full that it follows from is missing"):
        history_of(protected).chain(ids[3])
    assert [finding.problem for finding in protected.check().findings][:1] == ["manifests 1 to 2 are missing"]
