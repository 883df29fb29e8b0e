"""The control socket: who may ask, what comes back, and clients that are slow or odd."""

import contextlib
import json
import os
import socket
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.asking import NotAllowedError, ask_backup, ask_status
from smsnapd.daemon.control import SOCKET, Answers, ControlServer, Request
from smsnapd.daemon.status import RepositoryStatus, Status
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.history import SnapshotSummary
from smsnapd.errors import LockedError, SmsnapError
from smsnapd.format.manifest import Issue
from tests.e2e.daemon import eventually

ISSUE = Issue(b"odd-\xff", "unreadable")
SNAPSHOT = SnapshotSummary("a" * 16, "nb", 1, "full", "tar", None, 1, 2, 3, False, (ISSUE,), 1)
OUTCOME = BackupOutcome(SNAPSHOT, 1, 2, 3, 4, 5, (ISSUE,), ("a note",))
STATUS = Status(
    state="idle", since="2026-11-02T00:00:00.000000Z", volume="nb", path="/v", pid=1, version="0",
    updated="2026-11-02T00:00:00.000000Z", repository=RepositoryStatus("file:///r"),
)  # fmt: skip
REQUEST = Request("backup", "nb", "/v", "file:///r")


class Service:
    """Answers as a test wants."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.error: SmsnapError | None = None
        self.lines = 1
        self.has_room = True

    def status(self) -> Status:
        return STATUS

    def serves(self, volume: str, path: str, url: str) -> bool:
        return (volume, path, url) == ("nb", "/v", "file:///r")

    def demand(self, demand: Demand) -> bool:
        self.demands.append(demand)
        if self.has_room:
            threading.Thread(target=self._work, args=(demand,)).start()
        return self.has_room

    def _work(self, demand: Demand) -> None:
        for number in range(self.lines):
            demand.reply.progress.phase(f"phase {number}", 2, 512)
            demand.reply.progress.advance(2, 512, 100)
        demand.reply.progress.note("a note")
        if self.error:
            demand.reply.failed(self.error)
        else:
            demand.reply.done(OUTCOME)


class Seen:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None, int | None]] = []
        self.counts = [0, 0, 0]
        self.notes: list[str] = []

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        self.phases.append((name, files, bytes))
        self.counts = [0, 0, 0]

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        self.counts = [self.counts[0] + files, self.counts[1] + bytes, self.counts[2] + stored_bytes]

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def directory(tmp_path: Path, service: Service) -> Iterator[Path]:
    server = ControlServer(tmp_path, service, os.geteuid)
    yield tmp_path
    server.close()
    assert not (tmp_path / SOCKET).exists()


class NaiveHandler(socketserver.StreamRequestHandler):
    """Answers whoever asks, one after the other."""

    def handle(self) -> None:
        if self.rfile.readline():
            self.wfile.write(STATUS.encode() + b"\n")


@contextlib.contextmanager
def naive_server(directory: Path) -> Iterator[None]:
    """A few lines that speak the same, look at nobody's credentials and wait for every client."""
    with socketserver.UnixStreamServer(str(directory / SOCKET), NaiveHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    (directory / SOCKET).unlink()


def said(directory: Path, data: bytes) -> list[dict[str, object]]:
    """What the server says to raw bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(directory / SOCKET))
        connection.sendall(data)
        with connection.makefile("rb") as lines:
            return [json.loads(line) for line in lines]


def test_the_status_comes_as_it_is(directory: Path) -> None:
    assert ask_status(directory) == STATUS


def test_a_backup_with_its_progress_and_its_outcome(directory: Path, service: Service) -> None:
    seen = Seen()
    request = Request("backup", "nb", "/v", "file:///r", full=True, reread=True, take_over=True)
    assert ask_backup(directory, request, seen) == OUTCOME
    (demand,) = service.demands
    assert (demand.full, demand.reread, demand.take_over) == (True, True, True)
    assert seen.phases == [("phase 0", 2, 512)]
    assert (seen.counts, seen.notes) == ([2, 512, 100], ["a note"])


def test_an_error_is_the_error_that_it_was(directory: Path, service: Service) -> None:
    service.error = LockedError("write", "another has the lease", "wait")
    with pytest.raises(LockedError) as caught:
        ask_backup(directory, REQUEST, Seen())
    error = caught.value
    assert (error.what, error.why, error.hint) == ("write", "another has the lease", "wait")


def test_an_unknown_error_is_an_error_all_the_same(directory: Path, service: Service) -> None:
    service.error = type("StrangeError", (SmsnapError,), {})("a", "b", "c")
    with pytest.raises(SmsnapError, match="b"):
        ask_backup(directory, REQUEST, Seen())


@pytest.mark.parametrize(
    "request_",
    [
        Request("backup", "other", "/v", "file:///r"),
        Request("backup", "nb", "/w", "file:///r"),
        Request("backup", "nb", "/v", "file:///s"),
    ],
)
def test_another_volume_or_repository_is_elsewhere(directory: Path, request_: Request) -> None:
    assert ask_backup(directory, request_, Seen()) is None


def test_no_daemon(tmp_path: Path) -> None:
    assert ask_status(tmp_path) is None
    assert ask_backup(tmp_path, REQUEST, Seen()) is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))  # a socket that nobody listens on
    assert ask_status(tmp_path) is None


def test_a_socket_that_was_left_is_replaced(tmp_path: Path, service: Service) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    server = ControlServer(tmp_path, service, os.geteuid)
    assert ask_status(tmp_path) == STATUS
    server.close()


def test_a_daemon_that_takes_no_more(directory: Path, service: Service) -> None:
    service.has_room = False
    with pytest.raises(SmsnapError, match="stopping"):
        ask_backup(directory, REQUEST, Seen())


@pytest.mark.parametrize(
    "data", [b"nonsense\n", b"\n", b'{"request": 5}\n', b'{"request": "format"}\n', b"[]\n"]
)
def test_what_is_not_understood_is_refused(directory: Path, service: Service, data: bytes) -> None:
    (answer,) = said(directory, data)
    assert answer["event"] == "failed" and not service.demands
    assert ask_status(directory) == STATUS


def test_only_root_and_the_owner_may_connect(directory: Path) -> None:
    assert stat.S_IMODE((directory / SOCKET).stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_peer_is_looked_at_whatever_the_mode(tmp_path: Path, service: Service) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if stat.S_IMODE(directory.stat().st_mode) == 0o700:  # pytest's own
            directory.chmod(0o755)
    with naive_server(tmp_path):
        (tmp_path / SOCKET).chmod(0o666)
        assert as_user(tmp_path, 1001) == "served"
    server = ControlServer(tmp_path, service, lambda: 1000)
    assert (tmp_path / SOCKET).stat().st_uid == 1000
    (tmp_path / SOCKET).chmod(0o666)
    assert as_user(tmp_path, 1000) == "served"
    assert as_user(tmp_path, 0) == "served"
    assert as_user(tmp_path, 1001) == "refused"
    (tmp_path / SOCKET).chmod(0o600)
    assert as_user(tmp_path, 1000) == "served"
    assert as_user(tmp_path, 1001) == "not allowed"
    server.close()


def as_user(directory: Path, user: int) -> str:
    """What a process of this user comes to. It becomes that user late: this Python may be root's alone."""
    script = (
        "import json, os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n s.connect(sys.argv[1])\n"
        "except PermissionError:\n print('not allowed'); sys.exit()\n"
        's.sendall(b\'{"request": "status"}\\n\')\n'
        "answer = json.loads(s.makefile().readline())\n"
        "print('refused' if answer.get('event') == 'failed' else 'served')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(directory / SOCKET), str(user)],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_worker_never_waits_for_who_looks_on() -> None:
    answers = Answers()
    for number in range(5000):
        answers.progress.phase(f"phase {number}")
        answers.progress.note("x" * 1000)
    answers.done(OUTCOME)
    lines = []
    while (line := answers.next()) is not None:
        lines.append(json.loads(line))
    assert len(lines) <= 1000 and lines[-1]["event"] == "done"


def answers(directory: Path) -> bool:
    """Whether there is a slot for who asks: those before may still be on their way out."""
    with contextlib.suppress(SmsnapError, OSError):
        return ask_status(directory) == STATUS
    return False


def test_a_client_that_goes_away_does_no_harm(directory: Path, service: Service) -> None:
    service.lines = 2000
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(directory / SOCKET))
            with contextlib.suppress(OSError):  # there may be no slot for it
                connection.sendall(
                    b'{"request": "backup", "volume": "nb", "path": "/v", "url": "file:///r"}\n'
                )
    service.lines = 1
    eventually(lambda: answers(directory), "an answer")


def test_not_allowed_has_a_name_of_its_own() -> None:
    assert issubclass(NotAllowedError, SmsnapError)


def test_a_silent_client_is_in_nobody_s_way(tmp_path: Path, service: Service) -> None:
    with naive_server(tmp_path), socket.socket(socket.AF_UNIX) as asking:
        with socket.socket(socket.AF_UNIX) as silent:
            for client in (silent, asking):
                client.connect(str(tmp_path / SOCKET))
            asking.sendall(b'{"request": "status"}\n')
            asking.settimeout(0.1)
            with pytest.raises(TimeoutError):
                asking.recv(1)
        asking.settimeout(60)
        assert asking.recv(1)  # as soon as the silent one has gone
    server = ControlServer(tmp_path, service, os.geteuid)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / SOCKET))
        assert ask_status(tmp_path) == STATUS
    server.close()


def test_silent_clients_take_no_more_than_their_slots(directory: Path) -> None:
    """Fifty that say nothing: most are let go at once, and those who ask come in behind them."""
    silent = []
    for _ in range(50):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / SOCKET))
        client.settimeout(60)
        silent.append(client)
    served = [thread for thread in threading.enumerate() if thread.name == "control-client"]
    assert len(served) <= 8
    assert all(client.recv(1) == b"" for client in silent[8:])
    for client in silent:
        client.close()
    for thread in served:
        thread.join(60)
    eventually(lambda: answers(directory), "an answer")
