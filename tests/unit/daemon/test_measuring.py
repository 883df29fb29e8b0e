"""The metrics: what they say of a status and of runs, and where they can be read."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strictly_parsed
from prometheus_client.parser import text_string_to_metric_families

import smsnapd
from smsnapd.daemon import exposing
from smsnapd.daemon.board import Board
from smsnapd.daemon.exposing import Exposure
from smsnapd.daemon.measuring import Measuring
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.plan import Plan, load_plan
from smsnapd.daemon.status import (
    Failure,
    GapStatus,
    LastCheck,
    LastRun,
    NextRuns,
    Pending,
    Point,
    RepositoryStatus,
    Status,
    WatcherStatus,
    utc_text,
)
from smsnapd.daemon.telling import Notice
from smsnapd.errors import ConfigError
from smsnapd.telemetry import metrics
from smsnapd.telemetry.metrics import Exporter, write_whole
from tests.servers import free_ports
from tests.unit.daemon.fakes import logged, make_plan

T = TypeVar("T")
SCHEDULE = '[schedule]\nfull = ""\ncheck = ""\nprune = ""\n'
FRESH = Status(
    state="starting", since=utc_text(0), volume="nb", path="/v", repository=RepositoryStatus("file:///r"),
    pid=1, version="0.1.0", updated=utc_text(0),
)  # fmt: skip
FULL = msgspec.structs.replace(
    FRESH,
    state="failing",
    last_recovery_point=Point("a" * 16, utc_text(1_700_000_000.25), "full"),
    pending=Pending(3, 1, utc_text(1_700_000_100), False),
    watcher=WatcherStatus("fanotify", "it can be had", True),
    next_runs=NextRuns(incremental=utc_text(1_700_000_200), check=utc_text(1_700_086_400)),
    last_error=Failure("put", "no route", "", utc_text(9), utc_text(5), 4),
    configuration_error="wrong",
    last_run=LastRun(utc_text(9), 1.5, 7, 2, 5),
    last_check=LastCheck(utc_text(1_699_000_000), 2),
    repository=RepositoryStatus("file:///r", 11, 4096, utc_text(9)),
)
COMMITTED = Notice("success", "backup", 0.3, "b" * 16, "incremental", 7, 2, 4096, 0)

Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Read:
    """Samples by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def measured(measuring: Measuring, status: Status = FRESH) -> Read:
    return read(Exporter(lambda: measuring.families(status)).text().decode())


def value(found: Read, name: str, **labels: str) -> float:
    return found[f"smsnapd_{name}", tuple(sorted(labels.items()))]


def eventually(look: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return found


def test_a_status_as_metrics() -> None:
    found = measured(Measuring(), FULL)
    expected = {
        "last_recovery_point_timestamp_seconds": 1_700_000_000.25, "pending_directories": 3,
        "pending_since_timestamp_seconds": 1_700_000_100, "watcher_healthy": 1, "failing": 1,
        "consecutive_failures": 4, "configuration_error": 1, "incomplete_files": 5,
        "last_check_timestamp_seconds": 1_699_000_000, "last_check_findings": 2,
        "repository_objects": 11, "repository_stored_bytes": 4096,
    }  # fmt: skip
    assert {name: value(found, name) for name in expected} == expected
    assert value(found, "watcher_info", kind="fanotify") == 1
    assert value(found, "build_info", version="0.1.0", volume="nb") == 1
    assert value(found, "next_run_timestamp_seconds", run="incremental") == 1_700_000_200
    assert value(found, "next_run_timestamp_seconds", run="check") == 1_700_086_400
    assert 10e6 < value(found, "resident_memory_bytes") < 10e9
    states = {labels: held for (name, labels), held in found.items() if name == "smsnapd_state"}
    assert len(states) == 7 and [labels for labels, held in states.items() if held] == [
        (("state", "failing"),)
    ]


def test_what_is_not_known_is_left_out() -> None:
    names = {name for name, _ in measured(Measuring())}
    for absent in (
        "last_recovery_point_timestamp_seconds", "last_run_timestamp_seconds", "incomplete_files",
        "pending_since_timestamp_seconds", "watcher_info", "next_run_timestamp_seconds",
        "repository_stored_bytes", "repository_objects", "last_check_timestamp_seconds",
        "last_check_findings",
    ):  # fmt: skip
        assert f"smsnapd_{absent}" not in names
    found = measured(Measuring())
    assert value(found, "watcher_healthy") == value(found, "failing") == 0
    assert value(found, "runs_total", kind="check", result="failure") == 0


def test_runs_are_counted() -> None:
    now = [1000.0]
    measuring = Measuring(lambda: now[0])
    measuring.tell(Notice("start", "backup"))
    measuring.tell(COMMITTED)
    now[0] = 2000.0
    measuring.tell(Notice("success", "backup", 0.1, changed=0, deleted=0, stored_bytes=0))
    measuring.tell(Notice("success", "full", 100.0, "c" * 16, "full", 100, 0, 10_000, 1))
    measuring.tell(Notice("success", "check", 99999.0))
    now[0] = 3000.0
    measuring.tell(Notice("failure", "backup", 3.0, error="no route"))
    found = measured(measuring)
    runs = {labels: count for (name, labels), count in found.items() if name == "smsnapd_runs_total"}
    assert sum(runs.values()) == 5 and len(runs) == 8
    assert value(found, "runs_total", kind="backup", result="success") == 2
    assert value(found, "runs_total", kind="backup", result="failure") == 1
    assert value(found, "last_run_timestamp_seconds", result="success") == 2000
    assert value(found, "last_run_timestamp_seconds", result="failure") == 3000
    assert value(found, "snapshots_total", kind="full") == 1
    assert value(found, "snapshots_total", kind="incremental") == 1
    counts = ("changed_entries_total", "deleted_entries_total", "stored_bytes_total")
    assert [value(found, name) for name in counts] == [107, 2, 14_096]
    assert value(found, "run_duration_seconds_bucket", kind="backup", le="0.1") == 1
    assert value(found, "run_duration_seconds_bucket", kind="backup", le="0.5") == 2
    assert value(found, "run_duration_seconds_bucket", kind="full", le="60.0") == 0
    assert value(found, "run_duration_seconds_bucket", kind="check", le="7200.0") == 0
    assert value(found, "run_duration_seconds_bucket", kind="check", le="+Inf") == 1
    assert value(found, "run_duration_seconds_count", kind="backup") == 2
    assert value(found, "run_duration_seconds_sum", kind="backup") == pytest.approx(0.4)


def gaps(*numbers: int) -> tuple[GapStatus, ...]:
    return tuple(GapStatus(utc_text(number), "overflow") for number in numbers)


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        ([(), gaps(1)], 1),
        ([gaps(1, 2), gaps(1, 2), gaps(1, 2, 3)], 3),
        ([gaps(1, 1), gaps(1, 1, 1)], 3),
        ([gaps(*range(20)), gaps(*range(5, 25))], 25),
        ([gaps(*range(20)), gaps(*range(100, 120))], 40),
        ([gaps(1, 2, 3), (), gaps(4)], 4),  # another watcher begins anew
        ([gaps(1, 2, 3), gaps(4)], 4),
    ],
)
def test_gaps_are_counted_once(seen: list[tuple[GapStatus, ...]], count: int) -> None:
    measuring = Measuring()
    watcher = WatcherStatus("inotify", "", True)
    for found in seen:
        measuring.saw(msgspec.structs.replace(FRESH, watcher=watcher, gaps=found))
    read = measured(measuring)
    assert value(read, "watcher_gaps_total", kind="inotify") == count
    assert value(read, "watcher_gaps_total", kind="fanotify") == 0


def test_a_volume_s_strange_name_is_escaped() -> None:
    # No name is as strange as that today; a label must not depend on it.
    status = msgspec.structs.replace(FRESH, volume='n"b\\\n')
    assert value(measured(Measuring(), status), "build_info", version="0.1.0", volume='n"b\\\n') == 1


# --- where they can be read


class Stand:
    """A board whose metrics are exposed."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.board = Board(place, make_plan(place, SCHEDULE), Notifier("", None))
        self.measuring = Measuring()
        self.exposure = Exposure(self.board, self.measuring)
        self.board.show_to(self.exposure.saw)
        self.file = place / "out" / "smsnapd.prom"
        self.file.parent.mkdir()

    def plan(self, telemetry: str) -> Plan:
        return make_plan(self.place, f"{SCHEDULE}[telemetry]\n{telemetry}\n")

    def use(self, telemetry: str) -> None:
        self.exposure.use(self.plan(telemetry))

    def says(self, state: str, file: Path | None = None) -> None:
        """Wait until the file says so."""
        path = file or self.file
        eventually(
            lambda: path.exists() and value(read(path.read_text()), "state", state=state) == 1,
            f"state {state}",
        )


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.exposure.close()


@pytest.fixture
def free_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture
def naive_port() -> Iterator[int]:
    """The library's server as it comes: on every address, and it waits for any number of clients for ever."""
    server, thread = start_http_server(0, registry=CollectorRegistry())
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def scrape(port: int, **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_the_file_follows_every_change(stand: Stand) -> None:
    before = os.umask(0o077)
    try:
        stand.use('metrics_file = "out/smsnapd.prom"')
        stand.says("starting")
    finally:
        os.umask(before)
    assert stand.file.stat().st_mode & 0o777 == 0o644
    stand.board.change("idle")
    stand.says("idle")
    stand.measuring.tell(COMMITTED)
    stand.board.change("stopped")
    stand.exposure.close()
    found = read(stand.file.read_text())
    assert value(found, "state", state="stopped") == 1 and value(found, "stored_bytes_total") == 4096
    assert os.listdir(stand.file.parent) == ["smsnapd.prom"]


def test_the_file_is_written_when_nothing_happens(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposing, "_AT_LEAST_EVERY_S", 0.01)
    stand.use('metrics_file = "out/smsnapd.prom"')
    stand.says("starting")
    first = stand.file.stat().st_mtime_ns
    eventually(lambda: stand.file.stat().st_mtime_ns != first, "another writing")


def test_a_file_that_cannot_be_written_is_told_once(stand: Stand) -> None:
    stand.file.parent.rmdir()
    with logged() as log:
        stand.use('metrics_file = "out/smsnapd.prom"')
        (error,) = eventually(lambda: stand.board.status.telemetry_errors, "the trouble")
        assert str(stand.file) in error and "No such file" in error
        for state in ("idle", "waiting", "running"):
            stand.board.change(state)  # type: ignore[arg-type]
        stand.file.parent.mkdir()
        stand.board.change("failing")
        stand.says("failing")
        eventually(lambda: not stand.board.status.telemetry_errors, "the end of the trouble")
        stand.exposure.close()
    assert log.levels == ["WARNING", "INFO"]


def test_another_file_replaces_the_one_before(stand: Stand) -> None:
    stand.use('metrics_file = "out/smsnapd.prom"')
    stand.says("starting")
    stand.use('metrics_file = "out/other.prom"')
    stand.says("starting", stand.file.with_name("other.prom"))
    assert not stand.file.exists()
    stand.use("")
    assert os.listdir(stand.file.parent) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "m.prom"
    victim.write_text("precious")
    (tmp_path / ".m.prom.new").symlink_to(victim)
    write_whole(path, b"first\n")
    assert (victim.read_text(), path.read_bytes(), path.is_symlink()) == ("precious", b"first\n", False)
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "directory", b"second\n")
    assert sorted(os.listdir(tmp_path)) == ["directory", "m.prom", "victim"]


def test_the_port_answers_on_this_machine_alone(stand: Stand, free_port: int) -> None:
    stand.use(f"metrics_port = {free_port}")
    stand.measuring.tell(COMMITTED)
    stand.board.change("waiting", watcher=WatcherStatus("fanotify", "", True), gaps=gaps(1))
    found = read(scrape(free_port))
    assert value(found, "state", state="waiting") == 1 and value(found, "changed_entries_total") == 7
    assert value(found, "watcher_gaps_total", kind="fanotify") == 1
    strict = scrape(free_port, Accept="application/openmetrics-text; version=1.0.0")
    assert {family.name for family in strictly_parsed(strict)} >= {"smsnapd_runs", "smsnapd_build"}
    # All of 127.0.0.0/8 is this machine: a socket that listens on every address would answer here.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", free_port), 60)
    stand.exposure.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port), 60)


def test_of_a_naive_port_it_is_another_address_too(naive_port: int) -> None:
    socket.create_connection(("127.0.0.2", naive_port), 60).close()


def test_a_port_in_use_is_no_more_than_trouble(stand: Stand, free_port: int) -> None:
    telemetry = f'metrics_file = "out/smsnapd.prom"\nmetrics_port = {free_port}'
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        stand.use(telemetry)
        (error,) = stand.board.status.telemetry_errors
        assert str(free_port) in error and "in use" in error
        stand.says("starting")
    stand.use(telemetry)  # a reload tries again
    assert stand.board.status.telemetry_errors == ()
    assert value(read(scrape(free_port)), "state", state="starting") == 1


def test_a_silent_client_is_let_go(
    stand: Stand,
    free_port: int,
    naive_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(metrics, "_CLIENT_S", 0.05)
    stand.use(f"metrics_port = {free_port}")
    with socket.create_connection(("127.0.0.1", naive_port), 60) as kept:
        with socket.create_connection(("127.0.0.1", free_port), 60) as silent:
            assert silent.recv(1) == b""
        kept.setblocking(False)
        with pytest.raises(BlockingIOError):
            kept.recv(1)
    assert capfd.readouterr().err == ""


@contextmanager
def silent_clients(port: int, count: int) -> Iterator[None]:
    """They are connected and say nothing, and each has a thread that waits for it."""
    eventually(partial(serves, 0), "the end of those before")
    with ExitStack() as stack:
        for number in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            eventually(partial(serves, number + 1), "a thread for it")
        yield
    eventually(partial(serves, 0), "their end")


def serves(count: int) -> bool:
    """Whether so many threads serve clients of any port."""
    return count == sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_silent_clients_take_no_more_than_their_slots(
    stand: Stand, free_port: int, naive_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_clients(naive_port, 30):
        pass
    monkeypatch.setattr(metrics, "_CLIENT_S", 600.0)
    stand.use(f"metrics_port = {free_port}")
    with silent_clients(free_port, 8):
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", free_port), 60) as one_more:
                assert one_more.recv(1) == b""
        assert serves(8)
    assert value(read(scrape(free_port)), "state", state="starting") == 1


def test_a_request_without_end_is_cut_off(stand: Stand, free_port: int) -> None:
    """A naive reader takes whatever comes before the end of the line."""
    stand.use(f"metrics_port = {free_port}")
    endless = b"GET /" + b"a" * 70_000
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as naive:
        ours.sendall(endless)
        ours.shutdown(socket.SHUT_WR)
        assert naive.readline() == endless
    with socket.create_connection(("127.0.0.1", free_port), 60) as client:
        client.sendall(endless)
        assert b" 414 " in client.recv(1000)


def test_who_wants_no_metrics_loads_nothing(tmp_path: Path) -> None:
    make_plan(tmp_path, SCHEDULE)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from smsnapd.daemon.notify import Notifier\n"
        "from smsnapd.daemon.plan import load_plan\n"
        "from smsnapd.daemon.service import Service\n"
        "plan = load_plan(sys.argv[1])\n"
        "service = Service(sys.argv[1], plan, Path(sys.argv[2]), Notifier('', None), {})\n"
        "service._board.show_to(service._exposure.saw)\n"
        "service._tellers.use(plan)\n"
        "names = ('prometheus_client', 'http.server', 'smsnapd.daemon.hook', 'smsnapd.daemon.ping')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "smsnapd.toml"), str(tmp_path)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["volume/m.prom", "volume/a/b/m.prom", "linked/m.prom"])
def test_a_file_that_would_be_backed_up_without_end_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "volume")
    with pytest.raises(ConfigError, match="metrics_file"):
        make_plan(tmp_path, f'{SCHEDULE}[telemetry]\nmetrics_file = "{name}"\n')


def test_a_file_in_a_directory_that_is_left_out_is_fine(tmp_path: Path) -> None:
    make_plan(tmp_path, SCHEDULE + '[telemetry]\nmetrics_file = "m.prom"\n')
    file = tmp_path / "smsnapd.toml"
    text = file.read_text().replace('name = "nb"', 'name = "nb"\nexclude = ["/out/"]')
    file.write_text(text.replace("m.prom", "volume/out/deep/m.prom"))
    assert load_plan(str(file)).config.telemetry.metrics_file == tmp_path / "volume/out/deep/m.prom"
