"""Putting the service and the command in place: what is written, and a systemd that does not answer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from smsnapd.cli import install
from smsnapd.cli.firststart import FirstStart, record
from smsnapd.errors import SmsnapError


@pytest.fixture(autouse=True)
def beside_a_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program directory of its own, whose names are no programs of this machine."""
    programs = tmp_path / "it's a venv/bin"
    programs.mkdir(parents=True)
    for name in ("smsnapd", "smsnap"):
        (programs / name).write_text('#!/bin/sh\necho "$SMSNAP_CONFIG: $*"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    return programs


def test_the_command_finds_the_configuration(configured, tmp_path: Path) -> None:
    assert configured("install", "--root", "image").status == 0
    command = tmp_path / "image/usr/local/bin/smsnap"
    before = command.stat().st_ino
    assert configured("install", "--root", "image").status == 0 and command.stat().st_ino == before

    def says(**environment: str) -> str:
        return subprocess.run([command, "a b", "c"], env=environment, capture_output=True, text=True).stdout

    path = os.environ["PATH"]
    assert says(PATH=path) == f"{tmp_path / 'smsnapd.toml'}: a b c\n"
    assert says(PATH=path, SMSNAP_CONFIG="/dev/null") == "/dev/null: a b c\n"
    assert configured("uninstall", "--root", "image").status == 0
    assert not command.exists()


def test_a_command_of_somebody_elses_stays(configured, tmp_path: Path) -> None:
    command = tmp_path / "image/usr/local/bin/smsnap"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    assert configured("install", "--root", "image").status == 0
    assert configured("uninstall", "--root", "image").status == 0
    assert command.read_text() == "#!/bin/sh\n"


def test_nothing_half_restored_is_backed_up(configured, tmp_path: Path) -> None:
    start = FirstStart(1, new=True, wanted="latest", by="a tag")
    record(tmp_path, start)
    said = configured("install", "--root", "image", "--json")
    assert said.status == 1 and "half restored" in said.error["why"]
    for more in ({"done": "restored"}, {"failed": "cannot"}, {"wanted": ""}):
        record(tmp_path, msgspec.structs.replace(start, **more))
        assert configured("install", "--root", "image").status == 0


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """`systemd(script)`: what systemctl does; each call adds its arguments to the file that is returned."""
    calls = tmp_path / "calls"
    calls.touch()

    def play(script: str) -> Path:
        program = tmp_path / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return calls

    monkeypatch.setattr(install.time, "sleep", lambda _: None)
    return play


def test_a_systemd_that_is_slow_to_answer_is_asked_again(systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = systemd('test "$(wc -l <"$(dirname "$0")/calls")" -ge 3')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    install._systemctl("daemon-reload")
    assert calls.read_text() == "--quiet daemon-reload\n" * 3


def test_a_systemd_that_refuses(systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = systemd("echo 'Access denied' >&2; exit 4")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SmsnapError, match="Access denied"):
        install._systemctl("daemon-reload")
    assert calls.read_text().count("\n") == 1
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SmsnapError, match="Access denied"):
        install._systemctl("daemon-reload")
    assert calls.read_text().count("\n") == 5


def test_a_systemd_that_never_answers(systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd("exec sleep 60")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SmsnapError, match="did not answer"):
        install._systemctl("daemon-reload", timeout_s=0.1)


def test_the_daemon_is_started_without_waiting(
    systemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = systemd("true")
    monkeypatch.setattr(install, "_RUNTIME", tmp_path)
    install._start(is_new=True)
    install._start(is_new=False)
    said = ["--quiet daemon-reload", "--quiet --no-block restart smsnapd.service"]
    assert calls.read_text().splitlines() == [*said, said[0], "--quiet --no-block start smsnapd.service"]
