"""Processes that hold keys leave no core dump, and other processes of their user cannot look into them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from smsnapd.cli.options import Options
from smsnapd.cli.session import Session
from smsnapd.coredumps import forbid_core_dumps
from smsnapd.engine.pool import Pool

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4


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
        os.kill(os.getpid(), signal.SIGQUIT)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status)


def test_a_crash_leaves_no_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not dumps_core(forbid=True)
    assert list(tmp_path.iterdir()) == []


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
