"""The entry: options on both sides of the verb, errors in one line, exit statuses, quick to start."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest

import smsnapd
from smsnapd import errors
from smsnapd.cli import main as entry
from smsnapd.cli.options import Options, verb

RECOVERY_KEY = "SMSNAP-IDENTITY-1-3F7ZAM-GCBA"


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Make `snapshots` do this instead."""

    def install(function: Callable[[], int]) -> None:
        command = verb("snapshots", examples="smsnap snapshots")(function)
        monkeypatch.setattr("smsnapd.cli.snapshots.snapshots", command)

    return install


def raiser(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("place", ["before", "behind"])
def test_shared_options_before_the_verb_and_behind_it(smsnap, probe, place: str) -> None:
    seen: list[Options] = []
    probe(lambda: seen.append(click.get_current_context().obj) or 0)
    given = ["-c", "f", "--repository", "s3://b", "--path", "p", "--volume", "v", "--passphrase-file", "x",
             "--json", "-q", "-v"]  # fmt: skip
    arguments = [*given, "snapshots"] if place == "before" else ["snapshots", *given]
    assert smsnap(*arguments).status == 0
    assert seen == [Options("f", "s3://b", "p", "v", "x", True, True, 1)]


def test_behind_the_verb_wins(smsnap, probe) -> None:
    seen: list[Options] = []
    probe(lambda: seen.append(click.get_current_context().obj) or 0)
    smsnap("--volume", "before", "-v", "snapshots", "--volume", "behind", "-vv")
    assert (seen[0].volume, seen[0].verbose) == ("behind", 2)


def every_error() -> list[type[errors.SmsnapError]]:
    found, pending = [], [errors.SmsnapError]
    while pending:
        kind = pending.pop()
        found.append(kind)
        pending.extend(sub for sub in kind.__subclasses__() if sub.__module__ == "smsnapd.errors")
    return found


@pytest.mark.parametrize("kind", every_error())
def test_an_error_is_a_line_a_hint_and_a_status(smsnap, probe, kind: type[errors.SmsnapError]) -> None:
    probe(raiser(kind("open the thing", "it is\nnot there", "look elsewhere")))
    ran = smsnap("snapshots")
    assert ran.err == "smsnap: cannot open the thing: it is not there\n  look elsewhere\n"
    assert ran.out == ""
    assert ran.status == kind.exit_status
    assert smsnap("snapshots", "--json").error == {
        "error": kind.__name__, "what": "open the thing", "why": "it is\nnot there", "hint": "look elsewhere",
        "exit_status": kind.exit_status,
    }  # fmt: skip


def test_the_statuses_are_the_documented_ones() -> None:
    assert {kind.__name__: kind.exit_status for kind in every_error() if kind.exit_status != 1} == {
        "UsageError": 2, "ConfigError": 2, "NoRepositoryError": 10, "LockedError": 11, "WrongKeyError": 12,
        "DamageError": 13,
    }  # fmt: skip


def test_no_hint_no_line(smsnap, probe) -> None:
    probe(raiser(errors.VolumeError("read the volume", "it is gone")))
    assert smsnap("snapshots").err == "smsnap: cannot read the volume: it is gone\n"


def test_a_traceback_only_with_v(smsnap, probe) -> None:
    error = errors.StoreError("get x", "the network is down")
    error.__cause__ = ConnectionError("refused")
    probe(raiser(error))
    assert "Traceback" not in smsnap("snapshots").err
    verbose = smsnap("snapshots", "-v").err
    assert "Traceback" in verbose and "ConnectionError: refused" in verbose
    assert verbose.endswith("smsnap: cannot get x: the network is down\n")


def test_what_no_one_foresaw(smsnap, probe) -> None:
    probe(raiser(KeyError("x")))
    ran = smsnap("snapshots")
    assert ran.status == 1
    assert ran.err == "smsnap: cannot finish: unexpected KeyError: 'x'\n  run with -v for the traceback\n"
    assert "Traceback" in smsnap("snapshots", "-v").err
    assert smsnap("snapshots", "--json").error["error"] == "KeyError"


def test_the_end_of_a_pipe_inside_is_no_interruption(smsnap, probe) -> None:
    probe(raiser(EOFError("worker went away")))
    ran = smsnap("snapshots")
    assert (ran.status, ran.err.splitlines()[-2]) == (
        1, "smsnap: cannot finish: unexpected EOFError: worker went away",
    )  # fmt: skip


def test_a_broken_pipe_inside_is_not_hushed_up(smsnap, probe) -> None:
    probe(raiser(BrokenPipeError(32, "Broken pipe")))
    ran = smsnap("snapshots")
    assert ran.status == 1
    assert "unexpected BrokenPipeError: [Errno 32] Broken pipe" in ran.err


def test_interrupted(smsnap, probe) -> None:
    probe(raiser(KeyboardInterrupt()))
    ran = smsnap("snapshots")
    assert ran.status == 130
    assert ran.err.strip() == "smsnap: interrupted"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["frobnicate"], "no such command 'frobnicate'"),
        (["ls", "--frobnicate", "x"], "no such option '--frobnicate'"),
        (["ls"], "missing argument 'SNAPSHOT'"),
        (["diff"], "missing argument 'A'"),
        (["restore", "--target", "x", "--overwrite", "maybe"], "invalid value for '--overwrite'"),
        (["backup", "--mode", "zip"], "invalid value for '--mode'"),
        (["backup", "stray"], "got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line(smsnap, arguments: list[str], why: str) -> None:
    ran = smsnap(*arguments)
    assert ran.status == 2
    assert ran.err.startswith(f"smsnap: cannot understand the command line: {why}")
    assert "--help" in ran.err.splitlines()[1]
    assert len(ran.err.splitlines()) == 2
    assert smsnap(*arguments, "--json").error["exit_status"] == 2


def test_nothing_said_shows_the_help(smsnap) -> None:
    ran = smsnap()
    assert ran.status == 2
    assert "Verbs:" in ran.err


def test_version(smsnap) -> None:
    assert smsnap("--version").out == f"smsnap, version {smsnapd.__version__}\n"


@pytest.mark.parametrize("name", entry.VERBS)
def test_every_verb_has_help_with_examples(smsnap, name: str) -> None:
    ran = smsnap(name, "--help")
    assert ran.status == 0
    group = {"key": "list", "environment": "show"}
    if name in group:
        ran = smsnap(name, group[name], "--help")
    assert "Examples:" in ran.out and f"smsnap {name}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


HISTORY = ("find", "diff", "undelete", "drill")


@pytest.mark.parametrize(
    "name", ["backup", "snapshots", "ls", "restore", "export", "check", "init", *HISTORY]
)
def test_every_verb_that_reports_documents_its_json(smsnap, name: str) -> None:
    assert "With --json:" in smsnap(name, "--help").out


def run_alone(*arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    code = "import sys; from smsnapd.cli.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, text=True, **settings)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["restore", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from smsnapd.cli.main import main; main(sys.argv[1:]);"
        "heavy = {'boto3', 'cryptography', 'rich', 'zstandard', 'smsnapd.repository', 'smsnapd.store.s3'};"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.stderr == "" and done.returncode == 0


def test_a_reader_that_had_enough_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_alone("--help", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == ""


def test_a_full_standard_output_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = run_alone("--help", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_shell_completion_knows_the_verbs() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(smsnapd.__file__).parents[1])}
    environment |= {"_SMSNAP_COMPLETE": "bash_complete", "COMP_WORDS": "smsnap re", "COMP_CWORD": "1"}
    code = "from smsnapd.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["plain,restore"]
