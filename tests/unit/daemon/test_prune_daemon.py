"""Prunes by the calendar: when, with what, and what is told of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smsnapd.daemon import memory
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.runs import Runs
from smsnapd.engine.progress import Silent
from smsnapd.errors import SmsnapError, StoreError
from smsnapd.format import names
from smsnapd.repository import Repository
from smsnapd.store import open_store
from tests.unit.daemon.fakes import Stage, logged, make_plan

PASSPHRASE = "correct horse battery staple"
DAY_S = 86400.0


def due_stage(place: Path) -> Stage:
    """A stage whose last prune is two days ago, in a schedule of prunes alone."""
    make_plan(place)
    memory.remember_prune(place / "state", "nb", time.time() - 2 * DAY_S)
    return Stage(place, '[schedule]\nfull = ""\ncheck = ""\nprune = "0 5 * * *"\n')


def settled(stage: Stage) -> Stage:
    """The first look at everything has been done."""
    for _ in range(4):
        stage.worker.turn()
    return stage


def test_a_prune_that_was_missed_is_made_up_for_once(tmp_path: Path) -> None:
    stage = settled(due_stage(tmp_path))
    assert [done for done, _ in stage.runs.done].count("prune") == 1
    assert next(done for done, _ in stage.runs.done) == "backup"
    remembered = memory.last_prune(tmp_path / "state", "nb")
    assert remembered is not None and remembered > time.time() - 60
    assert stage.board.status.next_runs.prune is not None
    assert ("success", "prune") in [(one.event, one.run) for one in stage.teller.notices]


def test_none_is_done_where_none_is_asked_for(tmp_path: Path) -> None:
    stage = settled(Stage(tmp_path))
    assert "prune" not in [done for done, _ in stage.runs.done]
    assert stage.board.status.next_runs.prune is None


def test_a_list_that_is_not_to_be_believed_is_told_as_a_failure(tmp_path: Path) -> None:
    stage = due_stage(tmp_path)
    stage.runs.pruned = replace(
        stage.runs.pruned, refused=(("volumes/nb/garbage/x", "its signature is wrong"),)
    )
    with logged() as log:
        settled(stage)
    assert "damaged: volumes/nb/garbage/x: its signature is wrong" in log.lines
    (notice,) = [one for one in stage.teller.notices if one.run == "prune" and one.event != "start"]
    assert notice.event == "failure" and "its signature is wrong" in notice.error


def test_locks_that_were_not_extended_are_told_as_a_failure(tmp_path: Path) -> None:
    stage = due_stage(tmp_path)
    error = StoreError("lock volumes/nb/chunks/x", "access is denied", "allow s3:PutObjectRetention")
    stage.runs.pruned = replace(stage.runs.pruned, lock_error=error)
    with logged() as log:
        settled(stage)
    assert str(error) in log.lines
    (notice,) = [one for one in stage.teller.notices if one.run == "prune" and one.event != "start"]
    assert notice.event == "failure" and "s3:PutObjectRetention" in notice.error


def test_a_prune_that_failed_is_tried_again_later(tmp_path: Path) -> None:
    stage = due_stage(tmp_path)
    stage.worker.turn()
    stage.runs.errors = [StoreError("list", "planned", transient=True)]
    settled(stage)
    assert "prune" not in [done for done, _ in stage.runs.done]
    assert stage.board.status.state == "failing"
    assert memory.last_prune(tmp_path / "state", "nb") < time.time() - DAY_S
    stage.now += 10_000
    settled(stage)
    assert [done for done, _ in stage.runs.done].count("prune") == 1


# --- the real thing


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    plan = make_plan(tmp_path)
    Repository.create(open_store(plan.settings), PASSPHRASE)
    made = Runs(plan, {"SMSNAP_PASSPHRASE": PASSPHRASE})
    yield made
    made.close()


def objects(runs: Any) -> set[str]:
    store = open_store(runs._plan.settings)
    return {info.name for info in store.list(names.volume_prefix("nb"))}


def test_a_prune_between_backups_that_keep_the_lease(runs: Runs, tmp_path: Path) -> None:
    """It lists under a lease of its own, and then the lease is the daemon's again."""
    (tmp_path / "volume" / "file").write_bytes(b"content" * 999)
    runs.backup(Demand(), None, Silent())
    orphan = names.chunk_name("nb", b"o" * 32, b"k" * 16)
    open_store(runs._plan.settings).put(orphan, b"orphan")
    done = runs.prune(Silent())
    assert done.marked and done.listed.objects == 1 and not done.notes
    assert runs._tenure is not None and runs._tenure._is_sound
    (tmp_path / "volume" / "file").write_bytes(b"other content" * 999)
    assert runs.backup(Demand(), None, Silent()).snapshot is not None
    assert orphan in objects(runs)


def test_a_prune_keeps_locked_what_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path)
    Repository.create(open_store(plan.settings), PASSPHRASE)
    settings = replace(plan.settings, object_lock="GOVERNANCE", object_lock_days=7)
    asked: list[Any] = []

    def note(repository: object, request: Any, progress: object) -> Any:
        asked.append(request)
        raise StoreError("prune", "noted")

    monkeypatch.setattr("smsnapd.daemon.runs.run_prune", note)
    with pytest.raises(StoreError, match="noted"):
        Runs(replace(plan, settings=settings), {"SMSNAP_PASSPHRASE": PASSPHRASE}).prune(Silent())
    assert asked[0].lock_s == 7 * DAY_S


def test_a_data_key_that_was_listed_is_used_no_more(runs: Runs, tmp_path: Path) -> None:
    """One that a failed run has left behind: it is kept in memory for a day, but not beyond a prune."""
    (tmp_path / "volume" / "file").write_bytes(b"content" * 999)
    runs.backup(Demand(), None, Silent())
    assert runs._tenure is not None
    key = runs._tenure.data_key()
    runs.prune(Silent())
    assert runs._tenure.data_key().id != key.id


def test_what_keeps_a_volume_from_being_pruned_is_a_failure_of_the_run(runs: Runs, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "volume" / "file").write_bytes(b"%d" % number)
        runs.backup(Demand(), None, Silent())
    second = next(name for name in objects(runs) if "/manifests/0000000002" in name)
    open_store(runs._plan.settings).delete(second)
    with pytest.raises(SmsnapError, match="manifest 2 is missing"):
        runs.prune(Silent())
