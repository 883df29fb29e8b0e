"""Runs of the daemon: the repository stays open between them, and the lease is kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from smsnapd.cli.status import contents_text
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.board import Board
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.reporting import Reporter
from smsnapd.daemon.runs import Runs
from smsnapd.daemon.status import ContentsStatus
from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.progress import Silent
from smsnapd.errors import LockedError, StoreError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.format.record import Lease as LeaseRecord
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.lease import LEASE_S, Lease
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.base import Store
from tests.fault.faulty import Call, Fault, FaultyStore
from tests.unit.daemon.fakes import FakeTeller, Stage, make_plan

LEASE = names.lease_name("nb")


@dataclass
class Rig:
    """Runs on a volume, with every store that they open noted, and the other end of the repository."""

    plan: Plan
    runs: Runs
    stores: list[FaultyStore]
    place: Path
    passed_s: float = 0.0
    fault: Fault | None = None

    def back_up(self, demand: Demand | None = None) -> BackupOutcome:
        """One run, of a change that was heard of."""
        (self.place / "volume" / "file").write_text(f"{len(self.calls)}")
        return self.runs.backup(demand or Demand(), Hints(frozenset((b"",))), Silent())

    @property
    def calls(self) -> list[str]:
        return [f"{call.method} {call.name}" for store in self.stores for call in store.calls]

    @contextlib.contextmanager
    def other(self) -> Iterator[Repository]:
        store = open_store(self.plan.settings)
        text = (self.place / "write-key").read_text()
        yield Repository.open(store, Credentials(write_key_text=text))
        store.close()

    @property
    def lease(self) -> LeaseRecord:
        with self.other() as repository:
            return LeaseRecord.decode(repository.store.get(LEASE), "nb", repository.id)

    def taken_over(self) -> Lease:
        with self.other() as repository:
            return Lease.take(repository.store, repository.id, "nb", take_over=True)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    schedule = '[schedule]\nfull = ""\ncheck = ""\nprune = ""\n'
    plan = make_plan(tmp_path, f'{schedule}[encryption]\nwrite_key_file = "write-key"\n')
    store = open_store(plan.settings)
    key = Repository.create(store, "a passphrase that nobody needs").write_key_text
    store.close()
    (tmp_path / "write-key").touch(0o600)
    (tmp_path / "write-key").write_text(key)
    stores: list[FaultyStore] = []

    def planned(call: Call) -> Fault | None:
        return made.fault if call.name == LEASE else None

    def opened(settings: StoreSettings) -> Store:
        stores.append(FaultyStore(open_store(settings), planned))
        return stores[-1]

    monkeypatch.setattr("smsnapd.daemon.runs.open_store", opened)
    made = Rig(plan, Runs(plan, {}, lambda: made.passed_s), stores, tmp_path)
    yield made
    made.fault = None
    made.runs.close()


def test_the_lease_is_kept_from_run_to_run_and_given_back_at_the_end(rig: Rig) -> None:
    assert rig.back_up().snapshot is not None
    held = rig.lease
    assert held.holder and held.generation == 1
    before = len(rig.calls)
    assert rig.back_up().snapshot is not None
    calls = [call for call in rig.calls[before:] if not call.startswith("barrier")]
    assert [call.partition(" volumes/nb/")[2].partition("/")[0] for call in calls] == ["manifests", "lease"]
    assert rig.lease == held
    rig.runs.close()
    assert rig.lease.holder == "" and len(rig.stores) == 1


def test_another_configuration_gives_it_back_too(rig: Rig) -> None:
    rig.back_up()
    rig.runs.use(rig.plan)
    assert rig.lease.holder == ""
    rig.back_up()
    assert rig.lease.generation == 2 and len(rig.stores) == 2


def test_it_is_renewed_while_nothing_is_due(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.runs.keep()
    assert not rig.stores  # nothing was opened yet, so there is nothing to keep
    monkeypatch.setattr("smsnapd.engine.backup.run.Tenure", partial(Tenure, lease_s=LEASE_S / 1e9))
    rig.back_up()
    before = rig.lease
    rig.runs.keep()
    assert rig.lease.generation == before.generation and rig.lease.expires_us > before.expires_us
    monkeypatch.setattr("smsnapd.engine.backup.run.Tenure", Tenure)
    rig.runs.close()
    rig.back_up()
    before, calls = rig.lease, len(rig.calls)
    rig.runs.keep()
    assert rig.lease == before and len(rig.calls) == calls


def test_a_failed_run_keeps_it_from_others_and_the_next_has_a_higher_generation(rig: Rig) -> None:
    rig.back_up()
    rig.runs.forget()
    held = rig.lease
    assert held.holder
    with rig.other() as repository, pytest.raises(LockedError):
        Lease.take(repository.store, repository.id, "nb", dead=lambda holder: False)
    rig.runs.keep()
    assert rig.lease == held
    assert rig.back_up().snapshot is not None
    assert rig.lease.generation == 2 and len(rig.stores) == 2
    rig.runs.forget()
    rig.runs.close()
    assert rig.lease.holder == ""


def test_once_a_day_everything_is_read_anew(rig: Rig) -> None:
    rig.back_up()
    rig.passed_s += 86401
    rig.back_up()
    assert len(rig.stores) == 2 and rig.lease.generation == 2


def test_another_disk_in_the_same_place_is_another_repository(rig: Rig) -> None:
    """Nothing that is known of the one holds for the other, the data key least of all."""
    rig.back_up()
    rig.runs.close()
    copied = rig.place / "copied"
    (rig.place / "repo").rename(copied)
    # The same repository, as it was earlier: made by copying it file by file.
    source, target = (open_store(StoreSettings(path.as_uri())) for path in (copied, rig.place / "repo"))
    for info in source.list(""):
        target.put(info.name, source.get(info.name))
    rig.back_up()
    (rig.place / "repo").rename(rig.place / "aside")
    copied.rename(rig.place / "repo")
    assert rig.back_up().snapshot is not None
    with rig.other() as repository:
        keys = {info.name.rpartition("/")[2] for info in repository.store.list("volumes/nb/keys/")}
        found = [info.name for info in repository.store.list("volumes/nb/manifests/")]
    assert len(found) == 2 and len(keys) == 2


# --- another writer


def test_one_that_is_taken_over_says_so_and_is_taken_anew_when_it_is_free(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("smsnapd"), "propagate", True)
    monkeypatch.setattr("smsnapd.engine.backup.run.Tenure", partial(Tenure, lease_s=LEASE_S / 1e9))
    rig.back_up()
    monkeypatch.setattr("smsnapd.engine.backup.run.Tenure", Tenure)
    rival = rig.taken_over()
    rig.runs.keep()
    assert "has taken the lease over" in caplog.text
    for _ in range(2):
        with pytest.raises(LockedError, match="has the lease until"):
            rig.back_up()
        rig.runs.forget()
    rival.release()
    assert rig.back_up().snapshot is not None
    assert rig.lease.generation == rival.generation + 1


def test_it_can_be_asked_to_take_over(rig: Rig) -> None:
    rig.back_up()
    rival = rig.taken_over()
    with pytest.raises(LockedError, match="has taken the lease over"):
        rig.back_up()
    outcome = rig.back_up(Demand(take_over=True))
    assert outcome.snapshot is not None and "taken over" in outcome.notes[0]
    with pytest.raises(LockedError):
        rival.confirm()
    assert rig.back_up().snapshot is not None


def test_a_store_that_fails_meanwhile_is_asked_again_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("smsnapd"), "propagate", True)
    monkeypatch.setattr("smsnapd.engine.backup.run.Tenure", partial(Tenure, lease_s=LEASE_S / 1e9))
    caplog.set_level("INFO", logger="smsnapd.daemon.runs")
    rig.back_up()
    rig.fault = Fault.LOST
    before = len(rig.calls)
    for _ in range(5):
        rig.runs.keep()
    assert len(rig.calls) == before + 1 and "was not renewed" in caplog.text
    rig.fault = None
    rig.passed_s += 121
    rig.runs.keep()
    assert rig.lease.generation == 1
    assert rig.back_up().snapshot is not None and rig.lease.generation == 1


# --- what the worker does with them


def test_the_worker_keeps_the_lease_while_it_rests_and_forgets_after_a_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.until_rest()
    kept = stage.runs.kept
    stage.until_rest()
    assert stage.runs.kept == kept + 1
    stage.runs.errors = [StoreError("put", "no route", transient=True)]
    stage.agenda.demand(Demand(take_over=True))
    stage.until_rest()
    assert (stage.runs.forgotten, stage.runs.closed) == (1, 0)
    asked: list[Demand] = []
    plain = stage.runs.backup
    stage.runs.backup = lambda demand, *more: (asked.append(demand), plain(demand, *more))[1]  # type: ignore[method-assign]
    stage.now += 301
    stage.until_rest()
    assert [replace(demand, reply=Demand().reply) for demand in asked] == [Demand()]
    stage.agenda.stop(0)
    stage.worker.work()
    assert stage.runs.closed == 1


def test_checks_read_one_share_after_the_other_and_the_status_says_since_when(rig: Rig) -> None:
    """With the write key alone nothing is opened, and that is said too."""
    rig.back_up()
    schedule = replace(rig.plan.config.schedule, check_shares=2)
    plan = replace(rig.plan, config=replace(rig.plan.config, schedule=schedule))
    rig.runs.use(plan)
    board = Board(rig.place, plan, Notifier("", None))
    reporter = Reporter(board, FakeTeller())
    assert board.status.contents == ContentsStatus(None, None)
    for read in (False, True):
        report = rig.runs.check(Silent())
        assert report.findings == () and not report.opened
        reporter.checked(report)
        assert (board.status.contents.read is not None) is read
    assert board.status.contents.opened is None
    assert "all read here since" in contents_text(board.status.contents)
    assert "never all opened here" in contents_text(board.status.contents)
    again = Board(rig.place, plan, Notifier("", None))
    assert again.status.contents == board.status.contents
    rig.runs.use(replace(plan, config=replace(plan.config, schedule=replace(schedule, check_shares=0))))
    assert rig.runs.check(Silent()).bytes_read == 0
