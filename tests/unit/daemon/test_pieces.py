"""The small parts of the daemon: logs for journald, the status file, the listener, where things lie."""

import io
import logging
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest

from smsnapd.config import Overrides, load
from smsnapd.daemon.agenda import Agenda
from smsnapd.daemon.board import Board, summary
from smsnapd.daemon.journal import JournalFormatter, is_journal, set_up_service_logging
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.plan import load_plan
from smsnapd.daemon.progress import Counted, RunProgress
from smsnapd.daemon.runtime import SOCKET, is_there, runtime_dir
from smsnapd.daemon.service import locked
from smsnapd.daemon.status import RunStatus, Status, read_status, seconds, utc_text
from smsnapd.daemon.watching import Watching
from smsnapd.engine.progress import Silent
from smsnapd.errors import ConfigError, SmsnapError, UsageError
from tests.unit.daemon.fakes import FakeWatcher, make_plan


def test_every_line_in_the_journal_has_its_priority() -> None:
    formatter = JournalFormatter("%(message)s")
    record = logging.LogRecord("smsnapd", logging.ERROR, "", 0, "one\ntwo", (), None)
    assert formatter.format(record) == "<3>one\n<3>two"
    secret = logging.LogRecord("smsnapd", logging.INFO, "", 0, "SMSNAP-IDENTITY-1-ABCDEF", (), None)
    assert formatter.format(secret) == "<6>SMSNAP-IDENTITY-1-(withheld)"


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        name = f"{status.st_dev}:{status.st_ino}"
        assert is_journal(stream, {"JOURNAL_STREAM": name})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": name})


@pytest.mark.parametrize(("verbosity", "count"), [(-1, 1), (0, 2), (1, 3)])
def test_verbosity(verbosity: int, count: int) -> None:
    stream = io.StringIO()
    set_up_service_logging(verbosity, stream, {})
    log = logging.getLogger("smsnapd.daemon")
    log.warning("a")
    log.info("b")
    log.debug("c")
    assert len(stream.getvalue().splitlines()) == count


def test_the_status_file_is_replaced_whole_and_read_back(tmp_path: Path) -> None:
    board = Board(tmp_path, make_plan(tmp_path), Notifier("", None))
    board.change("running", run=RunStatus("backup", board.now_text()))
    first = read_status(tmp_path)
    assert first is not None and (first.state, first.volume, first.pid) == ("running", "nb", os.getpid())
    assert (tmp_path / "status.json").stat().st_mode & 0o077 == 0
    board.change("idle", run=None)
    second = read_status(tmp_path)
    assert second is not None and second.state == "idle" and second.since > first.since
    assert [path.name for path in tmp_path.iterdir() if "status" in path.name] == ["status.json"]


def test_what_is_no_news_is_not_written(tmp_path: Path) -> None:
    board = Board(tmp_path, make_plan(tmp_path), Notifier("", None))
    board.change("idle")
    inode = (tmp_path / "status.json").stat().st_ino
    for _ in range(100):
        board.change("idle", last_error=None)
    assert (tmp_path / "status.json").stat().st_ino == inode


def test_counts_are_written_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    board = Board(tmp_path, make_plan(tmp_path), Notifier("", None), monotonic=lambda: now[0])
    board.change("running", run=RunStatus("backup", board.now_text()))
    written = set()
    for number in range(1000):
        now[0] += 0.01
        board.count(Counted("store", files=number))
        written.add((tmp_path / "status.json").stat().st_mtime_ns)
    assert len(written) <= 11
    run = board.status.run
    assert run is not None and (run.phase, run.files) == ("store", 999)


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    board = Board(tmp_path / "gone", make_plan(tmp_path), Notifier("", None))
    board.change("idle")
    assert board.status.state == "idle"


def test_a_status_of_a_later_version_can_be_read(tmp_path: Path) -> None:
    board = Board(tmp_path, make_plan(tmp_path), Notifier("", None))
    shape = msgspec.json.decode(board.status.encode())
    shape["weather"] = "fine"
    assert Status.decode(msgspec.json.encode(shape)).volume == "nb"
    with pytest.raises(ValueError, match="state"):
        Status.decode(b"{}")


def test_the_age_is_that_of_the_moment(tmp_path: Path) -> None:
    from smsnapd.daemon.status import Point

    board = Board(tmp_path, make_plan(tmp_path), Notifier("", None), clock=lambda: 2000.0)
    assert board.status.age_s is None
    board.change(last_recovery_point=Point("a" * 16, utc_text(1500.0), "full"))
    assert board.status.age_s == 500.0
    assert "1970-01-01T00:25:00" in summary(board.status)


def test_times_go_there_and_back() -> None:
    assert seconds(utc_text(1_700_000_000.25)) == 1_700_000_000.25
    assert utc_text(0) == "1970-01-01T00:00:00.000000Z"


def test_progress_feeds_the_watchdog_with_every_step() -> None:
    beats, shown = [], []
    progress = RunProgress(Silent(), lambda: beats.append(1), shown.append)
    progress.phase("store", files=2)
    progress.advance(files=1, bytes=10)
    progress.advance(files=1, stored_bytes=5)
    assert len(beats) == 3
    assert shown[-1] == Counted("store", 2, 2, 10, None, 5)


def test_the_listener_wakes_the_worker_once_for_a_flood(tmp_path: Path) -> None:
    woken = threading.Semaphore(0)
    watcher = FakeWatcher()
    watching = Watching(make_plan(tmp_path), woken.release, watcher=watcher)  # type: ignore[arg-type]
    for number in range(1000):
        watcher.hear(b"%d" % number, at=time.monotonic())
    assert woken.acquire(timeout=60)
    assert not woken.acquire(timeout=0.05)
    assert len(watching.take(scan=False).taken.directories) == 1000
    watcher.hear(b"again", at=time.monotonic())
    assert woken.acquire(timeout=60)
    watching.stop()
    assert not any(thread.name == "watch-listener" for thread in threading.enumerate())


def test_a_wait_ends_when_somebody_calls() -> None:
    agenda = Agenda()
    agenda.wake()
    agenda.wait(3600)
    threading.Timer(0.01, agenda.wake).start()
    agenda.wait(3600)
    agenda.stop(5)
    agenda.wait(3600)
    assert agenda.is_stopping and agenda.time_left_s <= 5


def test_one_daemon_at_a_place(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run"),
        pytest.raises(SmsnapError, match="another daemon"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="RUNTIME_DIRECTORY"), locked(tmp_path / "file" / "run"):
        pass


def test_where_things_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_dir({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == Path("/run/smsnapd")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "smsnapd").mkdir()
    assert runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "smsnapd"
    assert runtime_dir({}) == Path("/run/smsnapd")


def test_a_daemon_may_be_there_if_its_socket_is_or_cannot_be_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_there(tmp_path)
    assert not is_there(tmp_path / "none")
    (tmp_path / SOCKET).touch()
    assert is_there(tmp_path)
    assert not is_there(tmp_path / SOCKET)

    def refused(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "lstat", refused)
    assert is_there(tmp_path / "of somebody else")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('[schedule]\nfull = "0 3 * * someday"', "schedule.full"),
        ('[schedule]\ncheck = "0 25 * * *"', "schedule.check"),
        ('[schedule]\nquiet = "soon"', "schedule.quiet"),
    ],
)
def test_what_is_wrong_is_told_before_anything_begins(tmp_path: Path, more: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_plan(tmp_path, more)


def test_a_plan_needs_neither_volume_nor_repository(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    (tmp_path / "volume").rmdir()
    again = load_plan(str(plan.config.source))
    assert again.request.root == os.fsencode(tmp_path / "volume")
    assert (again.pace.quiet_s, again.pace.incremental_s, again.pace.rescan_s) == (5.0, 300.0, 21600.0)
    assert again.stop_s == 20.0


def test_the_kinds_of_watching_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[volume]\nwatch = "telepathy"\n')
    with pytest.raises(ConfigError, match="watch"):
        load(str(file), Overrides())
