"""Worker processes: results in order, errors whole, nobody waits for ever, nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smsnapd.engine.pool import WINDOW_PER_WORKER, Pool
from smsnapd.errors import DamageError, SmsnapError
from smsnapd.store.activity import uploading
from smsnapd.store.counting import Requests, made

LOCK = threading.Lock()
WORKERS = (0, 1, 3)


class Job(msgspec.Struct, array_like=True):
    number: int
    does: str = ""
    data: bytes = b""


class Done(msgspec.Struct, array_like=True):
    number: int
    pid: int
    data: bytes = b""


class StubbornError(Exception):
    """Pickles, and cannot be made again of what was pickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Jobber:
    def __init__(self) -> None:
        self._handled = 0

    def handle(self, job: Job) -> Done:
        self._handled += 1
        if job.does == "damage":
            raise DamageError("read it", "it is broken", "mend it")
        if job.does == "stubborn":
            raise StubbornError("one", "two")
        if job.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.does == "sleep":
            time.sleep(0.05)
        if job.does in ("move", "hang"):
            return Done(self._until(Path(os.fsdecode(job.data)), moves=job.does == "move"), os.getpid())
        if job.does == "ask":
            made.sent("get", 1)
            made.received(10)
        if job.does == "lock":
            return Done(int(LOCK.acquire(timeout=0.1)), os.getpid())
        return Done(job.number, os.getpid(), job.data)

    def _until(self, place: Path, *, moves: bool) -> int:
        """1 when there is a file at `place`, 0 if that takes too long; meanwhile something moves or not."""
        for _ in range(15_000):
            if place.exists():
                return 1
            if moves:
                uploading.mark()
            time.sleep(0.01)
        place.with_name("too late").touch()
        return 0

    def finish(self) -> Done:
        made.sent("put", 1000)
        return Done(self._handled, os.getpid())

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Task:
    broken: bool = False

    @property
    def job_type(self) -> Any:
        return Job

    @property
    def result_type(self) -> Any:
        return Done

    def open(self) -> Jobber:
        if self.broken:
            raise DamageError("open it", "it is broken")
        return Jobber()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    place = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = place.read_text()  # other tests may have left multiprocessing's own
    yield
    assert multiprocessing.active_children() == []
    assert place.read_text() == before


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    with Pool[Job, Done](Task(), workers) as pool:
        jobs = (Job(number, "sleep" if number % 5 == 0 else "") for number in range(40))
        results = list(pool.run(jobs))
        again = list(pool.run([Job(7)]))
        last = pool.finish()
    assert [result.number for result in results] == list(range(40))
    assert [result.number for result in again] == [7]
    assert sum(result.number for result in last) == 41
    assert len({result.pid for result in results}) <= max(workers, 1)
    assert (os.getpid() in {result.pid for result in results}) == (workers == 0)


@pytest.mark.parametrize("workers", WORKERS)
def test_no_jobs(workers: int) -> None:
    with Pool[Job, Done](Task(), workers) as pool:
        assert list(pool.run([])) == []
        assert [result.number for result in pool.finish()] == [0] * max(workers, 1)


def test_large_jobs_and_results_stop_nobody() -> None:
    """Neither side waits for the other to read."""
    data = os.urandom(3_000_000)
    with Pool[Job, Done](Task(), 2) as pool:
        assert all(result.data == data for result in pool.run(Job(number, "", data) for number in range(12)))


def test_jobs_are_taken_no_faster_than_results_are() -> None:
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield Job(number)

    with Pool[Job, Done](Task(), 2) as pool:
        for seen, _ in enumerate(pool.run(jobs())):
            assert taken <= seen + 1 + 2 * WINDOW_PER_WORKER
            if seen == 100:
                break


def test_a_process_is_not_forked_while_a_thread_may_hold_a_lock() -> None:
    """It would be held in the child for ever."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with LOCK:
            held.set()
            let_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        with Pool[Job, Done](Task(), 2) as pool:
            results = list(pool.run(Job(number, "lock") for number in range(2)))
    finally:
        let_go.set()
        thread.join()
    assert [result.number for result in results] == [1, 1]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_arrives_as_it_was_raised(workers: int) -> None:
    with Pool[Job, Done](Task(), workers) as pool, pytest.raises(DamageError) as caught:
        list(pool.run([Job(1), Job(2, "damage"), Job(3)]))
    assert (caught.value.what, caught.value.why, caught.value.hint) == ("read it", "it is broken", "mend it")
    if workers:
        assert "in handle" in caught.value.__notes__[0]


def test_an_error_that_cannot_travel_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with Pool[Job, Done](Task(), 1) as pool, pytest.raises(SmsnapError, match="StubbornError: onetwo"):
        list(pool.run([Job(1, "stubborn")]))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("dead", [False, True])
def test_an_error_while_the_worker_is_made(dead: bool) -> None:
    """It is told, also if the pipe is closed before the first job goes in."""
    with Pool[Job, Done](Task(broken=True), 1) as pool, pytest.raises(DamageError, match="open it"):
        for process in multiprocessing.active_children() if dead else ():
            process.join()
        list(pool.run([Job(1)]))


def test_a_worker_that_is_killed_ends_the_work() -> None:
    with Pool[Job, Done](Task(), 2) as pool, pytest.raises(SmsnapError, match="ended with status -9"):
        list(pool.run(Job(number, "die" if number == 5 else "") for number in range(100)))


def test_a_program_with_threads_imports_nothing_from_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon may stand in a directory that others write to."""
    for name in ("pickle", "multiprocessing", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    let_go = threading.Event()
    thread = threading.Thread(target=let_go.wait)
    thread.start()
    try:
        with Pool[Job, Done](Task(), 1) as pool:
            assert [result.number for result in pool.run([Job(7)])] == [7]
    finally:
        let_go.set()
        thread.join()
    assert not (tmp_path / "imported").exists()


def test_an_error_in_the_jobs_is_the_callers() -> None:
    def jobs() -> Iterator[Job]:
        yield Job(1)
        raise ValueError("no more")

    with Pool[Job, Done](Task(), 2) as pool, pytest.raises(ValueError, match="no more"):
        list(pool.run(jobs()))


def test_the_work_is_given_up_when_it_is_left(tmp_path: Path) -> None:
    """Also what is under way: nobody waits for an end that does not come."""
    never = bytes(tmp_path / "never")

    def jobs() -> Iterator[Job]:
        yield Job(0)
        for number in range(1, 1000):
            taken.append(number)
            yield Job(number, "hang", never)

    taken: list[int] = []
    with pytest.raises(KeyboardInterrupt), Pool[Job, Done](Task(), 2) as pool:
        for _ in pool.run(jobs()):
            raise KeyboardInterrupt
    assert taken and not (tmp_path / "too late").exists()


def listen(pool: Pool[Job, Done], seconds: float, place: Path, heard: list[bool]) -> threading.Thread:
    """Ends the job at hand, by a file at `place`, when something was heard of it or the time is up."""

    def wait() -> None:
        before, end = pool.moved_ns, time.monotonic() + seconds
        while pool.moved_ns == before and time.monotonic() < end:
            time.sleep(0.01)
        heard.append(pool.moved_ns != before)
        place.touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_that_is_slow_is_heard_of(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsnapd.engine.pool.PULSE_S", 0.02)
    heard: list[bool] = []
    with Pool[Job, Done](Task(), workers) as pool:
        thread = listen(pool, 100, tmp_path / "now", heard)
        (result,) = pool.run([Job(1, "move", bytes(tmp_path / "now"))])
        thread.join()
        pool.finish()
    assert heard == [True]
    assert result.number == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_worker_that_hangs_nothing_is_heard(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever watches the daemon sees it, and starts it anew."""
    monkeypatch.setattr("smsnapd.engine.pool.PULSE_S", 0.02)
    heard: list[bool] = []
    with Pool[Job, Done](Task(), workers) as pool:
        thread = listen(pool, 0.5, tmp_path / "now", heard)
        list(pool.run([Job(1, "hang", bytes(tmp_path / "now"))]))
        thread.join()
    assert heard == [False]


@pytest.mark.parametrize("workers", WORKERS)
def test_what_is_asked_of_stores_is_counted_whoever_asks(workers: int) -> None:
    made.sent("list", 0)  # before a fork: not to be counted again
    before = made.total()
    with Pool[Job, Done](Task(), workers) as pool:
        list(pool.run(Job(number, "ask") for number in range(20)))
        assert made.total() - before == Requests(get=20, bytes_up=20, bytes_down=200)
        pool.finish()
    ends = max(workers, 1)
    assert made.total() - before == Requests(put=ends, get=20, bytes_up=20 + 1000 * ends, bytes_down=200)


def test_what_was_asked_before_an_error_is_counted() -> None:
    before = made.total()
    with Pool[Job, Done](Task(), 1) as pool, pytest.raises(DamageError):
        list(pool.run([Job(0, "ask"), Job(1, "ask"), Job(2, "damage")]))
    assert (made.total() - before).get == 2
