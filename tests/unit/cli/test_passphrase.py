"""Where a passphrase comes from, in which order, and what is wrong with the ones that are none."""

import getpass
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.cli.passphrase import ask
from smsnapd.config import EncryptionConfig
from smsnapd.daemon.passphrase import find_passphrase, is_recovery_key, read_write_key
from smsnapd.errors import SmsnapError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(b"of the file\r\nanother line\n")
    path.chmod(0o600)
    return path


def test_nothing_named_is_nothing_found() -> None:
    assert find_passphrase(False, EncryptionConfig(), {}) is None
    assert find_passphrase(False, EncryptionConfig(), {"SMSNAP_PASSPHRASE": ""}) is None


def test_command_line_then_environment_then_configuration(file: Path) -> None:
    environment = {"SMSNAP_PASSPHRASE": "of the environment"}
    encryption = EncryptionConfig(passphrase_file=file)
    assert find_passphrase(True, encryption, environment) == "of the file"
    assert find_passphrase(False, encryption, environment) == "of the environment"
    assert find_passphrase(False, encryption, {}) == "of the file"


@pytest.mark.parametrize(
    "command",
    [
        ("printf", "of the command\nmore"),
        ("printf", "of the command"),
        (sys.executable, "-c", "print('of the command')"),
    ],
)
def test_a_command(command: tuple[str, ...]) -> None:
    assert find_passphrase(False, EncryptionConfig(passphrase_command=command), {}) == "of the command"


def test_a_command_has_no_shell(tmp_path: Path) -> None:
    assert find_passphrase(False, EncryptionConfig(passphrase_command=("echo", "$HOME;ls")), {}) == "$HOME;ls"


@pytest.mark.parametrize(("command", "why"), [("false", "status 1"), ("/no/such/thing", "No such file")])
def test_a_command_that_fails(command: str, why: str) -> None:
    with pytest.raises(SmsnapError, match="passphrase_command") as caught:
        find_passphrase(False, EncryptionConfig(passphrase_command=(command,)), {})
    assert why in caught.value.why


@pytest.mark.parametrize(("content", "why"), [(b"", "empty"), (b"\nx", "empty"), (b"\xff\n", "UTF-8")])
def test_a_file_without_a_passphrase(file: Path, content: bytes, why: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        find_passphrase(False, EncryptionConfig(passphrase_file=file), {})
    assert str(file) in caught.value.what


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        find_passphrase(True, EncryptionConfig(passphrase_file=tmp_path / "none"), {})


def test_a_file_that_others_can_read_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    find_passphrase(False, EncryptionConfig(passphrase_file=file), {})
    assert not caplog.records
    file.chmod(0o640)
    find_passphrase(False, EncryptionConfig(passphrase_file=file), {})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text and "chmod 600" in caplog.text and "of the file" not in caplog.text


def test_a_write_key_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "write-key"
    path.write_text("SMSNAP-WRITE-KEY-1-ABC\n")
    path.chmod(0o600)
    assert read_write_key(path) == "SMSNAP-WRITE-KEY-1-ABC"
    assert not caplog.records
    path.chmod(0o644)
    read_write_key(path)
    assert "chmod 600" in caplog.text and "ABC" not in caplog.text
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="no write key file"):
        read_write_key(path)
    with pytest.raises(UsageError, match="No such file"):
        read_write_key(tmp_path / "none")


@pytest.mark.parametrize("text", ["SMSNAP-IDENTITY-1-ABC", " smsnap-identity-1-abc", "SMSNAP IDENTITY1abc"])
def test_a_recovery_key_is_known_however_it_is_typed(text: str) -> None:
    assert is_recovery_key(text)


@pytest.mark.parametrize("text", ["", "correct horse", "SMSNAP-WRITE-KEY-1-ABC"])
def test_a_passphrase_is_no_recovery_key(text: str) -> None:
    assert not is_recovery_key(text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """A person at a terminal who types these answers, then ends the input."""

    def type_(*answers: str) -> list[str]:
        prompts: list[str] = []
        waiting: Iterator[str] = iter(answers)

        def getpass_(prompt: str) -> str:
            prompts.append(prompt)
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(getpass, "getpass", getpass_)
        return prompts

    return type_


def test_asked_once_for_an_old_one(typed) -> None:
    prompts = typed("mine")
    assert ask("open it", twice=False) == "mine"
    assert len(prompts) == 1


def test_asked_twice_for_a_new_one(typed) -> None:
    prompts = typed("mine", "mine")
    assert ask("make it", twice=True) == "mine"
    assert len(prompts) == 2


@pytest.mark.parametrize(
    ("answers", "twice", "why"),
    [
        (("a", "b"), True, "differ"),
        (("", ""), True, "empty"),
        (("",), False, "empty"),
        ((), False, "no passphrase"),
    ],
)
def test_answers_that_are_none(typed, answers: tuple[str, ...], twice: bool, why: str) -> None:
    typed(*answers)
    with pytest.raises(UsageError, match=why):
        ask("open it", twice=twice)


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("typed ahead\n"))
    with pytest.raises(UsageError, match="no terminal") as caught:
        ask("open it", twice=False)
    assert "SMSNAP_PASSPHRASE" in caught.value.hint
