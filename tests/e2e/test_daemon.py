"""The daemon as a real process: it commits, is asked, fails with its store, dies, and goes on.

Waits are generous and end as soon as what is waited for is there; no time is asserted.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smsnapd.engine.backup.snapshot import INLINE_ENTRIES
from tests.e2e.daemon import PATIENCE_S, SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook, one_line
from tests.servers import free_ports


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not yet running, with a repository."""
    notebook = Notebook(tmp_path, more=SCHEDULE)
    notebook.well("init")
    (notebook.volume / "a.txt").write_text("first\n")
    made = Daemon(notebook)
    yield made
    made.close()


def test_it_starts_and_commits_what_changes(daemon: Daemon) -> None:
    daemon.start()
    daemon.holds("a.txt", "first\n")
    volume = daemon.notebook.volume
    (volume / "a.txt").write_text("second\n")
    daemon.holds("a.txt", "second\n")
    (volume / "d" / "e").mkdir(parents=True)
    (volume / "d" / "e" / "deep").write_text("deep\n")
    daemon.holds("d/e/deep", "deep\n")
    (volume / "d").rename(volume / "f")
    daemon.holds("f/e/deep", "deep\n")
    (volume / "a.txt").unlink()
    eventually(lambda: daemon.say("ls", "latest", "a.txt").status == 2, "the deletion")
    daemon.hears("WATCHDOG=1", times=3)
    status = daemon.until("idle")
    assert status["last_recovery_point"]["id"] == daemon.snapshots()[-1]["id"]
    assert (status["volume"], status["running"], status["last_error"]) == ("nb", True, None)
    assert daemon.end() == 0
    daemon.is_whole()


def test_it_makes_way_for_others(daemon: Daemon) -> None:
    daemon.start()
    daemon.until("idle")  # a run has threads that may be gone before they are asked
    assert daemon.process is not None
    threads = [int(name) for name in os.listdir(f"/proc/{daemon.process.pid}/task")]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {10}
    told = subprocess.run(["ionice", "-p", *map(str, threads)], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) == {"idle"}


def test_the_end_commits_what_is_pending(daemon: Daemon) -> None:
    daemon.notebook.configure('[schedule]\nquiet = "1h"\nincremental = "1h"\nfull = ""\ncheck = ""\n')
    daemon.start()
    daemon.until("idle")
    (daemon.notebook.volume / "late").write_text("late\n")
    assert daemon.end() == 0
    assert daemon.notebook.well("cat", "latest", "late").text == "late\n"
    said = daemon.say("status")
    assert said.status == 1 and "no daemon is running" in said.text
    assert daemon.status()["state"] == "stopped"
    daemon.is_whole()


def test_the_end_does_not_wait_for_ever(daemon: Daemon) -> None:
    daemon.notebook.configure('[schedule]\nquiet = "1s"\nstop = "1s"\nfull = ""\ncheck = ""\n')
    hang = daemon.notebook.place / "hang"
    daemon.notebook.configure(
        '[schedule]\nquiet = "1s"\nstop = "1s"\nfull = ""\ncheck = ""\n',
        encryption=f'passphrase_command = ["sh", "-c", "touch {hang}; exec sleep 600"]',
    )
    daemon.start()
    eventually(hang.exists, "the hanging run")
    assert daemon.end() == 0
    assert "stopping before all is committed" in daemon.log.read_text()


def test_a_new_configuration_and_a_wrong_one(daemon: Daemon) -> None:
    daemon.start()
    daemon.holds("a.txt", "first\n")
    daemon.notebook.configure('[schedule]\nquiet = "often"\n')
    daemon.send(signal.SIGHUP)
    daemon.hears("READY=1", times=2)
    assert "quiet" in daemon.status()["configuration_error"]
    (daemon.notebook.volume / "a.txt").write_text("still here\n")
    daemon.notebook.configure(SCHEDULE)
    daemon.holds("a.txt", "still here\n")
    daemon.notebook.configure(SCHEDULE + "[volume2]\n")
    daemon.send(signal.SIGHUP)
    daemon.hears("READY=1", times=3)
    assert "volume2" in daemon.status()["configuration_error"]
    file = daemon.notebook.place / "smsnapd.toml"
    daemon.notebook.configure(SCHEDULE)
    file.write_text(file.read_text().replace('name = "nb"', 'name = "nb"\nexclude = ["*.tmp"]'))
    daemon.send(signal.SIGHUP)
    daemon.hears("READY=1", times=4)
    eventually(lambda: daemon.status()["configuration_error"] is None, "the new configuration")
    (daemon.notebook.volume / "x.tmp").write_text("no\n")
    (daemon.notebook.volume / "x.txt").write_text("yes\n")
    daemon.holds("x.txt", "yes\n")
    assert daemon.say("ls", "latest", "x.tmp").status == 2
    assert daemon.end() == 0


def test_a_wrong_configuration_at_the_start_is_told(daemon: Daemon) -> None:
    daemon.notebook.configure('[schedule]\nfull = "0 3 * * someday"\n')
    with pytest.raises(AssertionError):
        daemon.start()
    assert daemon.process is not None and daemon.process.wait(PATIENCE_S) == 2
    assert "schedule.full" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_a_signal_and_a_verb_ask_for_a_backup_now(daemon: Daemon) -> None:
    daemon.notebook.configure('[schedule]\nquiet = "1h"\nincremental = "1h"\nfull = ""\ncheck = ""\n')
    daemon.start()
    daemon.until("idle")
    (daemon.notebook.volume / "by signal").write_text("1\n")
    daemon.send(signal.SIGUSR1)
    daemon.holds("by signal", "1\n")
    (daemon.notebook.volume / "by verb").write_text("2\n")
    said = daemon.say("backup", "--json")
    assert said.status == 0 and said.json["id"] == daemon.status()["last_recovery_point"]["id"]
    events = [json.loads(line) for line in said.err.splitlines()]
    assert {"scan", "store"} <= {event.get("phase") for event in events}
    assert daemon.notebook.well("cat", "latest", "by verb").text == "2\n"
    assert daemon.say("backup", "--json").json is None
    assert daemon.say("backup", "--full", "--json").json["kind"] == "full"
    assert daemon.say("backup", "--dry-run").status == 0
    assert "asked for" in daemon.log.read_text()


def test_the_verb_works_alone_where_the_daemon_serves_another(daemon: Daemon) -> None:
    daemon.start()
    daemon.until("idle")
    said = daemon.say("backup", "--volume", "other", "--json")
    assert said.status == 0 and said.json["volume"] == "other"


def test_a_second_daemon_does_not_start(daemon: Daemon) -> None:
    daemon.start()
    done = subprocess.run(
        [sys.executable, "-m", "smsnapd.daemon.main"],
        cwd=daemon.notebook.place,
        env=daemon.notebook._environment({"RUNTIME_DIRECTORY": str(daemon.run)}),
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1 and "another daemon is running" in done.stderr
    daemon.until("idle")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_refused(daemon: Daemon) -> None:
    os.chown(daemon.notebook.volume, 1000, 1000)
    daemon.start()
    daemon.until("idle")
    place = daemon.run / "control.sock"
    assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (1000, 0o600)
    for directory in (daemon.run, daemon.notebook.place, *daemon.notebook.place.parents):
        if stat.S_IMODE(directory.stat().st_mode) == 0o700:  # pytest's own
            directory.chmod(0o755)
    place.chmod(0o666)
    assert asked_by(place, 1000)["state"] == "idle"
    assert asked_by(place, 0)["state"] == "idle"
    refused = asked_by(place, 1001)
    assert refused["event"] == "failed" and "may not" in refused["why"]


def asked_by(place: Path, user: int) -> dict[str, Any]:
    """What a user is answered who asks for the status."""
    script = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        's.sendall(b\'{"request": "status"}\\n\')\n'
        "print(s.makefile().readline())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(place), str(user)], capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_store_that_fails_for_a_while(daemon: Daemon) -> None:
    daemon.start()
    daemon.holds("a.txt", "first\n")
    daemon.until("idle")
    repo, away = daemon.notebook.repo, daemon.notebook.place / "away"
    repo.rename(away)
    (daemon.notebook.volume / "a.txt").write_text("meanwhile\n")
    failing = daemon.until("failing")
    assert failing["last_error"]["since"] and failing["last_error"]["hint"]
    assert failing["pending"]["directories"] == 1 and failing["next_runs"]["retry"]
    said = daemon.say("status")
    assert said.status == 1 and "failing:" in said.text
    (daemon.notebook.volume / "b.txt").write_text("also\n")
    one_line(daemon.say("backup"), 10, "none")
    assert not repo.exists()
    away.rename(repo)
    daemon.holds("a.txt", "meanwhile\n")
    daemon.holds("b.txt", "also\n")
    assert daemon.until("idle")["last_error"] is None
    assert daemon.end() == 0
    daemon.is_whole()


def test_killed_and_started_again_the_chain_goes_on(daemon: Daemon) -> None:
    for number in range(4):
        daemon.start()
        (daemon.notebook.volume / "counter").write_text(f"{number}\n")
        (daemon.notebook.volume / f"bulk{number}").write_bytes(os.urandom(4_000_000))
        if number % 2:
            daemon.holds("counter", f"{number}\n")
        assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        # What changes while nobody watches is found by the next.
        (daemon.notebook.volume / f"unwatched{number}").write_text("x\n")
    daemon.start()
    daemon.holds("unwatched3", "x\n")
    daemon.until("idle")
    assert daemon.end() == 0
    daemon.is_whole()


def test_a_directory_that_is_moved_in_is_all_there(daemon: Daemon) -> None:
    outside = daemon.notebook.place / "outside"
    (outside / "deep" / "er").mkdir(parents=True)
    (outside / "deep" / "er" / "file").write_text("moved in\n")
    daemon.start()
    daemon.holds("a.txt", "first\n")
    daemon.until("idle")
    outside.rename(daemon.notebook.volume / "inside")
    daemon.holds("inside/deep/er/file", "moved in\n")
    assert daemon.end() == 0
    daemon.is_whole()


def metrics(text: str) -> dict[str, float]:
    """Prometheus text as `name{label="value"}` and values."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = "".join(f'{{{key}="{value}"}}' for key, value in sorted(sample.labels.items()))
            found[sample.name + labels] = sample.value
    return found


def test_metrics_and_the_hook_tell_how_it_goes_while_nobody_answers_pings(daemon: Daemon) -> None:
    place = daemon.notebook.place
    (port, nobody) = free_ports(2)
    (place / "hook").write_text(
        'echo "$SMSNAP_EVENT $SMSNAP_RUN $SMSNAP_SNAPSHOT_KIND $SMSNAP_ERROR" >> told'
    )
    telemetry = f'[telemetry]\nmetrics_file = "m.prom"\nmetrics_port = {port}\nhook = "sh hook"\n'
    daemon.notebook.configure(f'{SCHEDULE}{telemetry}ping_url = "http://127.0.0.1:{nobody}/token-1234"\n')
    daemon.start()
    daemon.holds("a.txt", "first\n")

    def in_file(name: str, value: float) -> None:
        def look() -> bool:
            return (place / "m.prom").exists() and metrics((place / "m.prom").read_text()).get(name) == value

        eventually(look, f"{name} {value}")

    def hook_told(line: str) -> None:
        eventually(lambda: (place / "told").exists() and line in (place / "told").read_text(), line)

    in_file('smsnapd_state{state="idle"}', 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        scraped = metrics(answer.read().decode())
    point = daemon.status()["last_recovery_point"]["time"]
    moment = datetime.fromisoformat(point).timestamp()
    assert scraped["smsnapd_last_recovery_point_timestamp_seconds"] == moment
    assert scraped['smsnapd_snapshots_total{kind="full"}'] == 1 and scraped["smsnapd_stored_bytes_total"] > 0
    assert scraped["smsnapd_watcher_healthy"] == 1
    hook_told("start backup")
    hook_told("success backup full")
    (error,) = eventually(lambda: daemon.status()["telemetry_errors"], "the ping's failure")
    assert error == "the ping to 127.0.0.1 failed: Connection refused"

    daemon.notebook.repo.rename(place / "away")
    (daemon.notebook.volume / "a.txt").write_text("second\n")
    in_file("smsnapd_failing", 1)
    hook_told("failure backup  cannot ")
    (place / "away").rename(daemon.notebook.repo)
    daemon.holds("a.txt", "second\n")
    hook_told("success backup incremental")
    in_file("smsnapd_failing", 0)

    daemon.notebook.configure(SCHEDULE + telemetry.replace("m.prom", "n.prom"))
    daemon.send(signal.SIGHUP)
    eventually((place / "n.prom").exists, "the other file")
    eventually(lambda: not daemon.status()["telemetry_errors"], "an end of pings")
    assert not (place / "m.prom").exists()
    (daemon.notebook.volume / "a.txt").write_text("third\n")
    assert daemon.end() == 0
    left = metrics((place / "n.prom").read_text())
    assert left['smsnapd_state{state="stopped"}'] == 1 and left["smsnapd_pending_directories"] == 0
    log = daemon.log.read_text()
    assert "token" not in log and "Traceback" not in log and log.count("WARNING: the ping to") == 1
    daemon.is_whole()


def test_a_hook_that_hangs_holds_up_neither_backups_nor_the_end(daemon: Daemon) -> None:
    place = daemon.notebook.place
    (place / "hook").write_text("echo $$ > pid.new; mv pid.new pid; exec sleep 600")
    more = SCHEDULE.replace("[schedule]\n", '[schedule]\nstop = "1s"\n')
    daemon.notebook.configure(more + '[telemetry]\nhook = "sh hook"\n')
    daemon.start()
    eventually((place / "pid").exists, "the hook")
    for number in range(3):
        (daemon.notebook.volume / "a.txt").write_text(f"{number}\n")
        daemon.holds("a.txt", f"{number}\n")
    assert daemon.end() == 0
    hook = Path("/proc") / (place / "pid").read_text().strip()
    eventually(lambda: not hook.exists(), "the hook's end")
    assert "not told" in daemon.log.read_text()
    daemon.is_whole()


def test_without_a_daemon_the_status_says_so(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    said = notebook.say("status", RUNTIME_DIRECTORY=str(tmp_path / "none"))
    assert said.status == 1 and "no daemon is running" in said.text
    shape = notebook.say("status", "--json", RUNTIME_DIRECTORY=str(tmp_path / "none")).json
    assert (shape["state"], shape["running"], shape["last_recovery_point"]) == ("stopped", False, None)


def test_install_writes_the_unit_once_and_uninstall_removes_it(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    if not (Path(sys.executable).parent / "smsnapd").exists():
        one_line(notebook.say("install", "--root", str(tmp_path / "root")), 2, "smsnapd")
        pytest.skip("smsnapd is not installed beside this Python")
    root = str(tmp_path / "root")
    assert "installed" in notebook.well("install", "--root", root).text
    unit = tmp_path / "root/etc/systemd/system/smsnapd.service"
    assert f"--config {notebook.place / 'smsnapd.toml'}" in unit.read_text()
    before = unit.stat().st_ino
    assert "unchanged" in notebook.well("install", "--root", root).text
    assert unit.stat().st_ino == before
    wants = unit.parent / "multi-user.target.wants" / "smsnapd.service"
    assert wants.is_symlink()
    assert "removed" in notebook.well("uninstall", "--root", root).text
    assert not unit.exists() and not wants.is_symlink()
    assert "not there" in notebook.well("uninstall", "--root", root).text


def test_nobody_but_the_daemon_itself_is_there_when_it_rests(daemon: Daemon) -> None:
    for number in range(INLINE_ENTRIES + 1):  # more than it stores without others
        (daemon.notebook.volume / f"file-{number}").touch()
    daemon.start()
    daemon.until("idle")
    assert daemon.process is not None
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    assert [(task / "children").read_text() for task in tasks if (task / "children").read_text()] == []
