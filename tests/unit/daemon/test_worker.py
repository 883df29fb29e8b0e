"""What the worker does, when, and what it believes."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.daemon import memory, watching
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.runs import Known
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.progress import Silent
from smsnapd.errors import SmsnapError, StoreError, VolumeError
from smsnapd.volume.watch import Gap
from tests.unit.daemon.fakes import Stage, make_plan

SCAN = ("backup", None)


def hinted(*directories: bytes) -> tuple[str, frozenset[bytes]]:
    return ("backup", frozenset(directories))


class Heard:
    """Who asks and listens."""

    def __init__(self) -> None:
        self.progress = Silent()
        self.heard: list[object] = []

    def done(self, outcome: BackupOutcome) -> None:
        self.heard.append(outcome)

    def failed(self, error: SmsnapError) -> None:
        self.heard.append(error)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A worker that has just started and scanned everything."""
    made = Stage(tmp_path)
    yield made
    made.agenda.stop(0)
    made.worker.work()
    assert made.watcher.stopped or made.watching_error


@pytest.fixture
def settled(stage: Stage) -> Stage:
    assert stage.until_rest() == [SCAN]
    return stage


def test_the_first_run_looks_at_everything(stage: Stage) -> None:
    stage.watcher.hear(b"a", at=stage.now)
    assert stage.until_rest() == [SCAN]
    assert stage.until_rest() == []
    assert stage.board.status.state == "idle"


def test_changes_wait_until_it_is_quiet(settled: Stage) -> None:
    settled.watcher.hear(b"a", at=settled.now)
    assert settled.until_rest() == []
    assert settled.board.status.state == "waiting" and settled.rests[-1] == pytest.approx(5.0)
    settled.now += 4
    settled.watcher.hear(b"b", at=settled.now)
    settled.now += 4.9
    assert settled.until_rest() == []
    settled.now += 0.2
    assert settled.until_rest() == [hinted(b"a", b"b")]
    assert settled.until_rest() == []


def test_changes_without_end_are_committed_before_they_are_too_old(settled: Stage) -> None:
    began = settled.now
    while not (done := settled.until_rest()):
        settled.watcher.hear(b"busy", at=settled.now)
        settled.now += 2
    assert done == [hinted(b"busy")] and 298 <= settled.now - began <= 304


def test_a_change_during_a_run_is_in_the_next(settled: Stage) -> None:
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    settled.runs.during = lambda: settled.watcher.hear(b"b", at=settled.now)
    assert settled.until_rest() == [hinted(b"a")]
    settled.runs.during = lambda: None
    settled.now += 10
    assert settled.until_rest() == [hinted(b"b")]


def test_everything_is_looked_at_again_on_schedule(settled: Stage) -> None:
    settled.now += 6 * 3600 - 1
    assert settled.until_rest() == []
    settled.now += 2
    assert settled.until_rest() == [SCAN]
    assert settled.until_rest() == []


def test_lost_events_are_made_up_for_by_one_scan(settled: Stage) -> None:
    settled.watcher.gaps = (Gap(1, "overflow"),)
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == [SCAN]
    assert [gap.reason for gap in settled.board.status.gaps] == ["overflow"]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == [hinted(b"a")]


def test_the_hundredth_gap_is_noticed_as_the_first_is(settled: Stage) -> None:
    for number in range(150):
        settled.watcher.gaps = (*settled.watcher.gaps, Gap(number, "overflow"))[-100:]
        settled.watcher.hear(b"a", at=settled.now)
        settled.now += 10
        assert settled.until_rest() == [SCAN]


@pytest.mark.parametrize(
    "trouble", [{"is_healthy": False}, {"catches_up": False}, {"kind": "poll"}], ids=lambda it: str(*it)
)
def test_a_watcher_in_trouble_is_not_believed(settled: Stage, trouble: dict[str, object]) -> None:
    vars(settled.watcher).update(trouble)
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == [SCAN]


def test_failures_keep_the_changes_and_wait_longer_and_longer(settled: Stage) -> None:
    settled.runs.errors = [StoreError("put", "no route", "mend it", transient=True) for _ in range(12)]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    waits = []
    while settled.runs.errors:
        assert settled.until_rest() == []
        assert settled.board.status.state == "failing"
        error = settled.board.status.last_error
        assert error is not None and (error.why, error.hint) == ("no route", "mend it")
        assert settled.board.status.pending.directories == 1
        assert settled.board.status.next_runs.retry is not None
        waits.append(settled.rests[-1])
        settled.now += 301
    assert waits[0] == 1.0 and waits == sorted(waits) and waits[-1] == 30.0
    first = settled.board.status.last_error
    assert first is not None and first.failures == 12 and first.since < first.time
    settled.watcher.hear(b"b", at=settled.now)
    assert settled.until_rest() == [hinted(b"a", b"b")]
    assert settled.board.status.last_error is None and settled.board.status.state == "idle"


def test_nothing_is_tried_before_its_time(settled: Stage) -> None:
    settled.runs.errors = [StoreError("put", "denied")]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    settled.until_rest()
    settled.now += 0.9
    assert settled.until_rest() == []
    settled.now += 0.2
    assert settled.until_rest() == [hinted(b"a")]


@pytest.mark.parametrize("error", [OSError(28, "no space"), RuntimeError("a mistake"), MemoryError()])
def test_it_outlives_what_nobody_foresaw(settled: Stage, error: Exception) -> None:
    settled.runs.errors = [error]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == []
    assert settled.board.status.last_error is not None
    settled.now += 400
    assert settled.until_rest() == [hinted(b"a")]


def test_a_volume_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.watching_error = VolumeError("watch it", "it is not mounted")
    assert stage.until_rest() == []
    assert stage.board.status.state == "failing"
    stage.watching_error = None
    stage.now += 400
    assert stage.until_rest() == [SCAN]


def test_who_asks_hears_the_end_even_while_others_wait(settled: Stage) -> None:
    settled.runs.errors = [StoreError("put", "denied"), StoreError("put", "denied again")]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    settled.until_rest()
    first, second = Heard(), Heard()
    settled.agenda.demand(Demand(reply=first))
    assert settled.until_rest() == []
    (error,) = first.heard
    assert isinstance(error, StoreError) and error.why == "denied again"
    settled.agenda.demand(Demand(full=True, reply=second))
    assert settled.until_rest() == [("full", None)]
    (outcome,) = second.heard
    assert isinstance(outcome, BackupOutcome) and outcome.snapshot is not None


def test_asked_for_a_hundred_times_by_signal_is_asked_once(settled: Stage) -> None:
    for _ in range(100):
        settled.agenda.demand(Demand())
    assert settled.until_rest() == [SCAN]


def test_a_full_that_was_missed_is_made_up_for(tmp_path: Path) -> None:
    stage = Stage(tmp_path, '[schedule]\nfull = "0 3 * * sun"\ncheck = ""\n')
    week_ago = time.time() - 8 * 86400
    stage.runs._count = 5  # there is a chain: the first run is no full
    stage.runs.known_point = Known("f" * 16, int(week_ago * 1e6), "incremental", week_ago)
    stage.board.change(last_recovery_point=None)
    assert stage.until_rest() == [SCAN, ("full", None)]
    assert stage.until_rest() == []


def test_checks_are_remembered_from_life_to_life(tmp_path: Path) -> None:
    more = '[schedule]\nfull = ""\ncheck = "0 4 * * sat"\n'
    plan = make_plan(tmp_path, more)
    memory.remember_check(plan.request.state_dir, "nb", time.time() - 8 * 86400)
    assert Stage(tmp_path, more).until_rest() == [SCAN, ("check", None)]
    again = Stage(tmp_path, more)
    assert again.until_rest() == [SCAN]
    assert again.board.status.next_runs.check is not None


def test_the_first_life_checks_when_the_calendar_says_so(tmp_path: Path) -> None:
    assert Stage(tmp_path, '[schedule]\nfull = ""\ncheck = "0 4 * * sat"\n').until_rest() == [SCAN]


def test_a_new_configuration_watches_anew_and_looks_at_everything(settled: Stage, tmp_path: Path) -> None:
    other = make_plan(tmp_path, '[schedule]\nquiet = "1s"\nfull = ""\ncheck = ""\n')
    settled.agenda.replace(other)
    assert settled.until_rest() == [SCAN]
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 1.1
    assert settled.until_rest() == [hinted(b"a")]


def test_the_status_goes_by_the_same_clock(settled: Stage) -> None:
    """Which is not that of the machine: how long that has been up must not matter."""
    assert not settled.board.status.pending.rescan
    settled.now += 10**9
    settled.runs.errors = [StoreError("put", "no route", transient=True)]
    settled.worker.turn()
    assert settled.board.status.pending.rescan


def test_the_end_commits_what_is_pending(settled: Stage) -> None:
    settled.watcher.hear(b"a", at=settled.now)
    settled.agenda.stop(20)
    settled.worker.work()
    assert settled.runs.done[-1] == hinted(b"a") and settled.watcher.stopped
    assert settled.board.status.pending.directories == 0


def test_the_end_does_nothing_where_nothing_is_pending(settled: Stage) -> None:
    count = len(settled.runs.done)
    settled.agenda.stop(20)
    settled.worker.work()
    assert len(settled.runs.done) == count


def test_the_end_tries_once_and_says_what_is_left(settled: Stage) -> None:
    settled.runs.errors = [StoreError("put", "no route", transient=True) for _ in range(3)]
    settled.watcher.hear(b"a", at=settled.now)
    settled.agenda.stop(20)
    settled.worker.work()
    assert len(settled.runs.errors) == 2
    assert settled.worker.abandoned() == "1 directories"
    assert settled.board.status.last_error is not None


def test_who_asks_at_the_end_is_told(settled: Stage) -> None:
    late = Heard()
    settled.agenda.demand(Demand(reply=late))
    settled.agenda.stop(20)
    settled.worker.work()
    assert len(late.heard) == 1
    assert not settled.agenda.demand(Demand())


def test_the_size_is_in_the_status(settled: Stage) -> None:
    repository = settled.board.status.repository
    assert (repository.objects, repository.stored_bytes) == (7, 4096)


def test_the_history_is_learned_where_nothing_was_stored(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.runs.backup = lambda *_: BackupOutcome(None, 0, 0, 0, 0, 0, ())  # type: ignore[method-assign]
    stage.runs.known_point = Known("f" * 16, 1_700_000_000_000_000, "incremental", 1_699_000_000.0)
    stage.until_rest()
    point = stage.board.status.last_recovery_point
    assert point is not None and (point.id, point.time) == ("f" * 16, "2023-11-14T22:13:20.000000Z")
    assert stage.board.status.age_s is not None and stage.board.status.age_s > 0


def test_another_directory_in_the_volumes_place_is_watched_anew(settled: Stage) -> None:
    volume = Path(os.fsdecode(settled.plan.request.root))
    volume.rename(volume.with_name("before"))
    volume.mkdir()
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == [("backup", None)]
    assert settled.watcher.stopped


def test_what_is_mounted_below_meanwhile_is_not_told_by_hints(
    settled: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = [b"data"]
    monkeypatch.setattr(watching, "mount_points_below", lambda root: below)
    for expected in (None, frozenset((b"a",))):
        settled.watcher.hear(b"a", at=settled.now)
        settled.now += 10
        assert settled.until_rest() == [("backup", expected)]
    below.clear()
    settled.watcher.hear(b"a", at=settled.now)
    settled.now += 10
    assert settled.until_rest() == [("backup", None)]


def test_who_cannot_know_whether_anything_is_pending_looks_before_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.until_rest()
    stage.watcher.catches_up = False
    done = len(stage.runs.done)
    stage.agenda.stop(60)
    stage.worker.work()
    assert stage.runs.done[done:] == [("backup", None)]
