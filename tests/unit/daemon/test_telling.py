"""Who is told of runs, when, and what happens to those who do not listen."""

import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from smsnapd.daemon import ping
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.board import Board
from smsnapd.daemon.hook import Hook
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.ping import Pinger
from smsnapd.daemon.standing import Standing
from smsnapd.daemon.telling import Notice, Outbox, Sparing, Telling
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.check import CheckReport, Finding
from smsnapd.errors import ConfigError, StoreError
from tests.unit.daemon.fakes import Logged, Stage, logged, make_plan

T = TypeVar("T")
TOKEN = "a1b2c3-token"
SCHEDULE = '[schedule]\nfull = ""\ncheck = ""\nprune = ""\n'
STORED = Notice("success", "backup", 0.3, "b" * 16, "incremental", 7, 2, 4096, 1)
NOTHING = Notice("success", "backup", 0.1, changed=0, deleted=0, stored_bytes=0, incomplete=0)
START = Notice("start", "backup")
FAILED = Notice("failure", "backup", 1.0, error="cannot put: no route (mend it)")


def eventually(look: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return found


@pytest.fixture
def log() -> Iterator[Logged]:
    with logged() as found:
        yield found


class Shown:
    """A standing, and what it shows."""

    def __init__(self) -> None:
        self.trouble: list[str | None] = []
        self.standing = Standing("it", "it", lambda _, text: self.trouble.append(text))


@pytest.fixture
def shown() -> Shown:
    return Shown()


# --- when


class Tale:
    """Notices at times; those that pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sparing = Sparing(lambda: self.now)

    def passed(self, *notices: Notice) -> list[Notice]:
        return [notice for notice in notices if self.sparing.passes(notice)]


def test_whatever_is_stored_or_fails_is_told() -> None:
    tale = Tale()
    assert tale.passed(START, STORED) == [START, STORED]
    assert tale.passed(START, STORED, START, STORED) == [STORED, STORED]
    assert tale.passed(START, FAILED, START, FAILED) == [FAILED, FAILED]


def test_runs_that_find_nothing_are_told_once_a_minute() -> None:
    tale = Tale()
    assert tale.passed(START, NOTHING) == [START, NOTHING]
    told = []
    for _ in range(119):
        tale.now += 1
        told += tale.passed(START, NOTHING)
    assert told == [START, NOTHING]


def test_who_heard_of_a_start_hears_of_the_end() -> None:
    tale = Tale()
    assert tale.passed(START) == [START]
    tale.now += 3600
    assert tale.passed(NOTHING) == [NOTHING]


def test_a_success_after_a_failure_is_told_at_once() -> None:
    tale = Tale()
    assert tale.passed(START, FAILED, START, NOTHING, START, NOTHING) == [START, FAILED, NOTHING]


def test_fulls_and_checks_are_always_told() -> None:
    tale = Tale()
    notices = [Notice(event, run) for run in ("full", "check") for event in ("start", "success")]  # type: ignore[arg-type]
    assert tale.passed(START, STORED, *notices) == [START, STORED, *notices]


# --- in order, and not without end


class Task:
    """An errand that a test holds up."""

    def __init__(self, done: list[str], name: str) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.abandoned = False
        self._done, self._name = done, name

    def run(self) -> None:
        self.begun.set()
        self.gate.wait(60)
        if not self.abandoned:
            self._done.append(self._name)

    def abandon(self) -> None:
        self.abandoned = True
        self.gate.set()


def test_errands_are_done_in_order_and_the_oldest_are_dropped(log: Logged) -> None:
    done: list[str] = []
    outbox = Outbox("test", 3)
    tasks = [Task(done, str(number)) for number in range(10)]
    outbox.put(tasks[0])
    tasks[0].begun.wait(60)
    for task in tasks[1:]:
        outbox.put(task)
    for task in tasks:
        task.gate.set()
    outbox.end()
    outbox.join(60)
    assert done == ["0", "7", "8", "9"]
    assert log.levels == ["WARNING"]
    outbox.put(Task(done, "late"))
    assert len(done) == 4


def test_what_is_not_done_in_time_is_abandoned(log: Logged) -> None:
    done: list[str] = []
    outbox = Outbox("test", 8)
    tasks = [Task(done, str(number)) for number in range(3)]
    for task in tasks:
        outbox.put(task)
    tasks[0].begun.wait(60)
    outbox.end()
    outbox.join(0)
    assert done == [] and all(task.abandoned for task in tasks)
    assert "3 not told" in log.text
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]


class Broken:
    """An errand that breaks its word."""

    def run(self) -> None:
        raise RuntimeError("a mistake")

    def abandon(self) -> None:
        """Nothing to abandon."""


def test_an_errand_that_is_a_mistake_harms_no_other(log: Logged) -> None:
    done: list[str] = []
    outbox, last = Outbox("test", 8), Task(done, "last")
    last.gate.set()
    outbox.put(Broken())
    outbox.put(last)
    outbox.end()
    outbox.join(60)
    assert done == ["last"] and "a mistake" in log.text


def test_nobody_to_tell_is_no_thread() -> None:
    outbox = Outbox("test", 8)
    outbox.end()
    outbox.join(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]


# --- pings


class Server(http.server.ThreadingHTTPServer):
    """Writes down what it is asked and answers as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, bytes]] = []
        self.answers: list[tuple[int, str]] = []
        self.scheme = "http"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.server_port}/{TOKEN}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust us leaves."""

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        code, location = self.server.answers.pop(0) if self.server.answers else (200, "")
        self.send_response(code)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "_PAUSES_S", (0.0, 0.0))


def test_pings_go_where_healthchecks_expects_them(server: Server, shown: Shown) -> None:
    pinger = Pinger(server.url, shown.standing)
    for notice in (START, STORED, FAILED, NOTHING, Notice("success", "check")):
        pinger.errand(notice).run()
    assert [(method, path) for method, path, _ in server.asked] == [
        ("GET", f"/{TOKEN}/start"), ("POST", f"/{TOKEN}"), ("POST", f"/{TOKEN}/fail"),
        ("POST", f"/{TOKEN}"), ("POST", f"/{TOKEN}"),
    ]  # fmt: skip
    bodies = [body.decode() for _, _, body in server.asked]
    assert bodies[1] == (
        f"backup: stored incremental {'b' * 16}: 7 changed, 2 deleted, 4096 bytes stored, in 0.3 s;"
        " 1 files were missed"
    )
    assert bodies[2:] == [
        "backup: cannot put: no route (mend it)", "backup: nothing changed", "check: no damage found",
    ]  # fmt: skip
    assert shown.trouble == []


def test_a_query_stays_behind_the_path(server: Server, shown: Shown) -> None:
    Pinger(f"{server.url}/?create=1", shown.standing).errand(START).run()
    assert server.asked == [("GET", f"/{TOKEN}/start?create=1", b"")]


def test_a_body_is_short_and_holds_no_key(server: Server, shown: Shown) -> None:
    error = "SMSNAP-WRITE-KEY-1-ABCDEFGH\n\x1b[2J\udcff" + "é" * 20_000
    Pinger(server.url, shown.standing).errand(Notice("failure", "full", error=error)).run()
    ((_, _, body),) = server.asked
    assert len(body) == 10_000
    assert b"ABCDEFGH" not in body and b"\x1b" not in body and b"(withheld)" in body


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_refuses_is_told_of_once(server: Server, shown: Shown, log: Logged) -> None:
    pinger = Pinger(server.url, shown.standing)
    server.answers = [(404, "")] * 5
    for _ in range(5):
        pinger.errand(STORED).run()
    assert len(server.asked) == 5  # it would answer the same again
    pinger.errand(STORED).run()
    assert log.levels == ["WARNING", "INFO"]
    assert shown.trouble == ["it failed: it answered 404", None]
    assert TOKEN not in log.text


@pytest.mark.usefixtures("no_pauses")
def test_a_hiccup_is_no_trouble(server: Server, shown: Shown) -> None:
    server.answers = [(503, ""), (500, ""), (200, "")]
    Pinger(server.url, shown.standing).errand(STORED).run()
    assert len(server.asked) == 3 and shown.trouble == []


@pytest.mark.usefixtures("no_pauses")
def test_who_heard_too_often_has_heard(server: Server, shown: Shown) -> None:
    server.answers = [(429, "")]
    Pinger(server.url, shown.standing).errand(STORED).run()
    assert len(server.asked) == 1 and shown.trouble == []


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_is_down(server: Server, shown: Shown, log: Logged) -> None:
    url = server.url
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        pinger = Pinger(url.replace(str(server.server_port), str(closed.getsockname()[1])), shown.standing)
        pinger.errand(FAILED).run()
    assert shown.trouble == ["it failed: Connection refused"]
    server.answers = [(503, "")] * 3
    pinger = Pinger(url, shown.standing)
    pinger.errand(FAILED).run()
    assert len(server.asked) == 1  # known to be down, it gets one try
    assert TOKEN not in log.text


@pytest.mark.usefixtures("no_pauses")
def test_a_server_that_says_nothing(shown: Shown) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}"
        Pinger(url, shown.standing, timeout_s=0.05).errand(START).run()
    assert shown.trouble == ["it failed: it did not answer in time"]


def test_nothing_is_tried_again_once_it_is_abandoned(server: Server, shown: Shown) -> None:
    server.answers = [(503, "")] * 3
    errand = Pinger(server.url, shown.standing).errand(STORED)
    errand.abandon()
    errand.run()
    assert len(server.asked) == 1 and len(shown.trouble) == 1


def test_redirects_are_followed_within_the_scheme(server: Server, shown: Shown) -> None:
    server.answers = [(302, server.url + "/elsewhere")]
    Pinger(server.url, shown.standing).errand(START).run()
    assert [path for _, path, _ in server.asked] == [f"/{TOKEN}/start", f"/{TOKEN}/elsewhere"]
    assert shown.trouble == []


@pytest.mark.parametrize("target", ["https://localhost/x", "file:///etc/passwd", "ftp://localhost/x"])
def test_redirects_to_another_scheme_are_not(server: Server, shown: Shown, target: str) -> None:
    server.answers = [(302, target)]
    Pinger(server.url, shown.standing).errand(START).run()
    assert len(server.asked) == 1 and "redirect" in str(shown.trouble)


def own_certificate(place: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (place / "tls.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "tls.pem")
    return context


@pytest.mark.usefixtures("no_pauses")
def test_tls_is_verified(
    server: Server, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.socket = own_certificate(tmp_path).wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    Pinger(server.url, shown.standing).errand(START).run()
    assert server.asked == [] and "not trusted" in str(shown.trouble)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.pem"))
    Pinger(server.url, shown.standing).errand(START).run()
    assert len(server.asked) == 1 and shown.trouble[-1] is None


# --- hooks


def script(place: Path, text: str) -> tuple[str, ...]:
    file = place / "hook.sh"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return (str(file),)


def hook_of(place: Path, shown: Shown, text: str, longest_s: float = 60) -> Hook:
    environment = {"PATH": os.environ["PATH"]}
    return Hook(script(place, text), environment, place, shown.standing, longest_s)


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_hook_is_told_by_its_environment_and_gets_no_secret(tmp_path: Path, shown: Shown) -> None:
    script(tmp_path, 'env -0 > env; pwd > pwd; cat > stdin; echo "$0 $#" > arguments')
    telemetry = '[telemetry]\nhook = ["./hook.sh", "a b", "$HOME; exit 1"]\n'
    plan = make_plan(tmp_path, SCHEDULE + telemetry)
    environment = {
        "PATH": os.environ["PATH"], "HOME": "/home/me", "SMSNAP_PASSPHRASE": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "secret", "LD_PRELOAD": "secret",
    }  # fmt: skip
    Hook.of(plan, environment, shown.standing).errand(STORED).run()
    told = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().split("\0") if line)
    for added in ("PWD", "OLDPWD", "SHLVL", "_"):  # by the shell
        told.pop(added, None)
    assert told == {
        "PATH": os.environ["PATH"], "HOME": "/home/me", "LANG": "C.UTF-8", "SMSNAP_VOLUME": "nb",
        "SMSNAP_EVENT": "success", "SMSNAP_RUN": "backup", "SMSNAP_SNAPSHOT": "b" * 16,
        "SMSNAP_SNAPSHOT_KIND": "incremental", "SMSNAP_CHANGED": "7", "SMSNAP_DELETED": "2",
        "SMSNAP_STORED_BYTES": "4096", "SMSNAP_INCOMPLETE": "1", "SMSNAP_ERROR": "",
    }  # fmt: skip
    assert (tmp_path / "pwd").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "stdin").read_bytes() == b""
    assert (tmp_path / "arguments").read_text() == "./hook.sh 2\n"
    assert shown.trouble == []


def test_a_hook_hears_what_failed(tmp_path: Path, shown: Shown) -> None:
    error = "cannot read b\0\udcff\nx: SMSNAP-WRITE-KEY-1-ABCDEFGH " + "y" * 20_000
    notice = Notice("failure", "check", error=error)
    hook_of(tmp_path, shown, 'set -u; printf %s "$SMSNAP_EVENT:$SMSNAP_CHANGED:$SMSNAP_ERROR" > told').errand(
        notice
    ).run()
    told = (tmp_path / "told").read_text()
    assert told.startswith("failure::cannot read b") and "ABCDEFGH" not in told and "\n" not in told
    assert 10_000 <= len(told) <= 10_020


def test_what_a_hook_prints_is_logged_line_by_line(tmp_path: Path, shown: Shown, log: Logged) -> None:
    hook_of(tmp_path, shown, "echo one; echo two >&2; printf 'three\\377'").errand(START).run()
    assert log.lines == ["hook: one", "hook: two", "hook: three\ufffd"]


@pytest.mark.parametrize("flood", ["yes a line", "yes | tr -d '\\n'"], ids=["lines", "one line"])
def test_a_flood_is_cut_short(tmp_path: Path, shown: Shown, log: Logged, flood: str) -> None:
    hook_of(tmp_path, shown, f"{flood} | head -c 5000000").errand(START).run()
    assert 1 <= len(log.records) <= 51 and len(log.text) < 60_000
    assert shown.trouble == []


def test_a_hook_that_fails_is_told_of_once(tmp_path: Path, shown: Shown, log: Logged) -> None:
    hook = hook_of(tmp_path, shown, "exit 3")
    hook.errand(START).run()
    hook.errand(STORED).run()
    script(tmp_path, "exit 0")
    hook.errand(START).run()
    assert shown.trouble == ["it failed: it ended with status 3", None]
    assert log.levels == ["WARNING", "INFO"]
    script(tmp_path, "kill -TERM $$")
    hook.errand(START).run()
    assert shown.trouble[-1] == "it failed: it ended by signal 15"


@pytest.mark.parametrize("command", [("/no/such/hook",), ("no-such-hook-anywhere",), ("/",), ("a\0b",)])
def test_a_hook_that_is_not_there(tmp_path: Path, shown: Shown, command: tuple[str, ...]) -> None:
    Hook(command, {"PATH": os.environ["PATH"]}, tmp_path, shown.standing).errand(START).run()
    assert len(shown.trouble) == 1


def test_a_hook_that_hangs_is_killed_with_all_its_group(tmp_path: Path, shown: Shown) -> None:
    text = "trap '' TERM; sleep 600 & echo $! > child; exec sleep 600"
    hook_of(tmp_path, shown, text, longest_s=5).errand(START).run()
    assert shown.trouble == ["it failed: it took longer than 5 s and was killed"]
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not alive(child), "the child's end")


@pytest.mark.parametrize("closing", ["", "exec >&- 2>&-;"], ids=["output open", "output closed"])
def test_a_hook_is_killed_when_it_is_abandoned(tmp_path: Path, shown: Shown, closing: str) -> None:
    hook = hook_of(tmp_path, shown, f"{closing} echo $$ > pid.new; mv pid.new pid; exec sleep 600")
    errand = hook.errand(START)
    thread = threading.Thread(target=errand.run)
    thread.start()
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the hook"))
    errand.abandon()
    thread.join(60)
    assert not alive(pid) and shown.trouble == []
    later = hook.errand(START)
    later.abandon()
    (tmp_path / "pid").unlink()
    later.run()
    assert not (tmp_path / "pid").exists()


def test_what_a_hook_leaves_behind_ends_with_it(tmp_path: Path, shown: Shown) -> None:
    text = "sleep 600 >/dev/null 2>&1 & echo $! > child"
    hook_of(tmp_path, shown, text).errand(START).run()
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not alive(child), "the child's end")
    assert shown.trouble == []


def test_a_hook_is_not_waited_for_where_another_group_holds_its_output(tmp_path: Path, shown: Shown) -> None:
    text = "setsid sleep 600 & echo $! > child"
    hook_of(tmp_path, shown, text, longest_s=5).errand(START).run()
    child = int((tmp_path / "child").read_text())
    assert alive(child) and "longer" in str(shown.trouble)
    os.kill(child, 9)


# --- all of it


def board_of(place: Path) -> Board:
    return Board(place, make_plan(place, SCHEDULE), Notifier("", None))


def test_a_configuration_tells_whom_it_names_and_in_order(tmp_path: Path, server: Server) -> None:
    board = board_of(tmp_path)
    script(tmp_path, 'echo "$SMSNAP_EVENT $SMSNAP_RUN $1" >> told')
    telling = Telling(dict(os.environ), board.trouble)
    telling.tell(START)
    telemetry = f'[telemetry]\nping_url = "{server.url}"\nhook = "./hook.sh first"\n'
    telling.use(make_plan(tmp_path, SCHEDULE + telemetry))
    full = [Notice("start", "full"), Notice("success", "full", 1.0, "f" * 16, "full", 1, 0, 1, 0)]
    for notice in (*full, FAILED):
        telling.tell(notice)
    telling.use(make_plan(tmp_path, SCHEDULE + telemetry.replace("first", "'the second'")))
    telling.tell(STORED)
    telling.use(make_plan(tmp_path, SCHEDULE))
    telling.tell(STORED)
    telling.close(60)
    assert (tmp_path / "told").read_text().splitlines() == [
        "start full first", "success full first", "failure backup first", "success backup the second",
    ]  # fmt: skip
    suffixes = [path.removeprefix(f"/{TOKEN}") for _, path, _ in server.asked]
    assert suffixes == ["/start", "", "/fail", ""]
    assert board.status.telemetry_errors == ()


def test_trouble_is_in_the_status_until_it_is_over_or_not_wanted(tmp_path: Path) -> None:
    board = board_of(tmp_path)
    telling = Telling(dict(os.environ), board.trouble)
    plan = make_plan(tmp_path, SCHEDULE + '[telemetry]\nhook = "./hook.sh"\n')
    telling.use(plan)
    telling.tell(STORED)
    (error,) = eventually(lambda: board.status.telemetry_errors, "the trouble")
    assert error.startswith("the hook failed: No such file")
    script(tmp_path, "exit 0")
    telling.tell(STORED)
    eventually(lambda: not board.status.telemetry_errors, "the end of the trouble")
    script(tmp_path, "exit 1")
    telling.tell(STORED)
    eventually(lambda: board.status.telemetry_errors, "the trouble")
    telling.use(make_plan(tmp_path, SCHEDULE))
    assert board.status.telemetry_errors == ()
    telling.close(60)


def test_the_end_waits_for_nobody_who_hangs(tmp_path: Path) -> None:
    script(tmp_path, "echo $$ > pid.new; mv pid.new pid; exec sleep 600")
    telling = Telling(dict(os.environ), lambda *_: None)
    telling.use(make_plan(tmp_path, SCHEDULE + '[telemetry]\nhook = "./hook.sh"\n'))
    telling.tell(FAILED)
    telling.tell(FAILED)
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the hook"))
    telling.close(0)
    assert not alive(pid)
    assert not [thread for thread in threading.enumerate() if thread.name == "hook"]


@pytest.mark.parametrize(
    "url",
    [
        "https://[x",
        "https://me:token@host/token",
        "http://host:99999/token",
        "http://:80/token",
        "http://é/token",
    ],
)
def test_an_address_that_cannot_be_asked_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="ping_url") as caught:
        make_plan(tmp_path, f'{SCHEDULE}[telemetry]\nping_url = "{url}"\n')
    assert "token" not in str(caught.value)


# --- what the worker tells


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.agenda.stop(0)
    made.worker.work()


def test_the_worker_tells_of_its_runs(stage: Stage) -> None:
    stage.until_rest()
    snapshot = stage.board.status.last_recovery_point
    assert snapshot is not None
    assert stage.teller.notices == [
        START, Notice("success", "backup", 0.0, snapshot.id, "full", 1, 0, 1, 0),
    ]  # fmt: skip
    stage.runs.backup = lambda *_: BackupOutcome(None, 0, 0, 0, 0, 0, ())  # type: ignore[method-assign]
    stage.agenda.demand(Demand(full=True))
    stage.until_rest()
    assert stage.teller.notices[2:] == [
        Notice("start", "full"),
        Notice("success", "full", changed=0, deleted=0, stored_bytes=0, incomplete=0),
    ]


def test_the_worker_tells_of_failures(stage: Stage) -> None:
    stage.runs.errors = [StoreError("put", "no route", "mend it"), RuntimeError("a mistake")]
    stage.runs.during = lambda: setattr(stage, "now", stage.now + 2.0)
    stage.until_rest()
    stage.now += 300
    stage.until_rest()
    assert stage.teller.notices == [
        START, Notice("failure", "backup", 2.0, error="cannot put: no route (mend it)"),
        START, Notice(
            "failure", "backup", 2.0,
            error="cannot finish the run: unexpected RuntimeError: a mistake (the log says more)",
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("findings", [(), (Finding("chunk/1", "is missing"), Finding("chunk/2", "is cut"))])
def test_a_check_that_finds_damage_is_a_failure(stage: Stage, findings: tuple[Finding, ...]) -> None:
    stage.runs.check = lambda _: CheckReport(findings, (), 1, 1, 0, False, ())  # type: ignore[method-assign]
    stage.until_rest()
    stage.worker._do_check()
    start, end = stage.teller.notices[2:]
    assert start == Notice("start", "check")
    if findings:
        assert end == Notice("failure", "check", error="2 damaged, the first is chunk/1: is missing")
    else:
        assert end == Notice("success", "check")
    check = stage.board.status.last_check
    assert check is not None and check.findings == len(findings) and stage.board.status.state == "idle"


def test_the_last_run_is_told_too(stage: Stage) -> None:
    stage.until_rest()
    stage.watcher.hear(b"a", at=stage.now)
    stage.agenda.stop(20)
    stage.worker.work()
    assert [notice.event for notice in stage.teller.notices[2:]] == ["start", "success"]
    assert stage.board.status.state == "stopping"


def test_another_configuration_is_another_to_tell(stage: Stage, tmp_path: Path) -> None:
    stage.until_rest()
    other = make_plan(tmp_path, SCHEDULE)
    stage.agenda.replace(other)
    stage.until_rest()
    assert stage.teller.plans == [other]
