"""Processes that hold keys leave no core dump, and other processes of their user cannot look into them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from smsnapd.cli.options import Options
from smsnapd.cli.session import Session
from smsnapd.coredumps import forbid_core_dumps
from smsnapd.engine.pool import Pool
from tests.property.children import run_child

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
NOBODY = 65534
SECRET = ctypes.create_string_buffer(b"a key that a process holds")


def is_dumpable() -> bool:
    return bool(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))


@pytest.fixture(autouse=True)
def dumpable() -> Iterator[None]:
    """As a process is at its start, and no trace of it in the test's own."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    yield
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, limits)


def dumps_core(forbid: bool) -> bool:
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        if forbid:
            forbid_core_dumps()
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background jobs ignore it
        os.kill(os.getpid(), signal.SIGQUIT)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status)


def dumps_are_files_here() -> bool:
    """Whether this machine writes them into the working directory, and not to a collector or nowhere."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    return not set(pattern) & set("|/@") and resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


def test_a_crash_leaves_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if dumps_are_files_here():
        assert dumps_core(forbid=False)
        (core,) = tmp_path.iterdir()
        assert SECRET.value in core.read_bytes()
        core.unlink()
    assert not dumps_core(forbid=True)
    assert list(tmp_path.iterdir()) == []


def seen_by_another(prepare: Callable[[], object]) -> bytes:
    """What a process can read of the key that another one of its user's holds: `prepare` is its beginning."""
    reading, writing = os.pipe()
    holder = os.fork()
    if not holder:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as every program begins
        prepare()
        os.write(writing, b"ready")
        signal.pause()
    os.close(writing)
    try:
        assert os.read(reading, 5) == b"ready"
        with open(f"/proc/{holder}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), len(SECRET.value), ctypes.addressof(SECRET))
    except PermissionError:
        return b""
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


@pytest.mark.root
def test_another_process_of_the_user_cannot_look_into_memory() -> None:
    assert run_child(lambda: seen_by_another(lambda: None), uid=NOBODY) == SECRET.value
    assert run_child(lambda: seen_by_another(forbid_core_dumps), uid=NOBODY) == b""


def test_no_limit_that_a_collector_ignores_is_relied_on() -> None:
    assert is_dumpable()
    forbid_core_dumps()
    forbid_core_dumps()
    assert not is_dumpable()
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_every_verb_forbids_them_before_it_reads_a_key() -> None:
    Session(Options())
    assert not is_dumpable()


class Job(msgspec.Struct):
    """Nothing to do."""


class Result(msgspec.Struct):
    """What the worker is."""

    dumpable: bool


class Worker:
    def handle(self, job: Job) -> Result:
        return Result(is_dumpable())

    def finish(self) -> Result:
        return Result(is_dumpable())

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Task:
    job_type = Job
    result_type = Result

    def open(self) -> Worker:
        return Worker()


def test_workers_forbid_them_too() -> None:
    with Pool(Task(), workers=1) as pool:
        assert [result.dumpable for result in pool.run([Job()])] == [False]
    assert is_dumpable()
