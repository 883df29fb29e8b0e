"""Worker processes: jobs in, results out in the order of the jobs, within a bounded window.

Processes and not threads, because reading and writing many small files under one interpreter
lock takes several times as long. A `Task` is sent to each process once and opened there;
jobs and results are msgspec structs. With no workers the task runs in this process. While a job
takes long, its process tells now and then whether it gets bytes on their way; before each result, what it
has asked of stores since the last one.

    with Pool(task, workers=2) as pool:
        for result in pool.run(jobs):
            ...
        pool.finish()
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from smsnapd.coredumps import forbid_core_dumps
from smsnapd.engine.collector import collect_seldom
from smsnapd.engine.heap import KEPT, keep_freed_memory
from smsnapd.engine.interpreter import Interpreter
from smsnapd.errors import SmsnapError
from smsnapd.store.activity import uploading
from smsnapd.store.counting import Requests, made

J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

WINDOW_PER_WORKER = 4
QUEUED_PER_WORKER = 2
FINISH = b""
OK, FAILED, MOVING, COUNTED = b"\x00", b"\x01", b"\x02", b"\x03"
PULSE_S = 5.0
"""Seconds between two looks of a process at whether it has moved anything."""


class Worker(Protocol[J_contra, R_co]):
    """What runs in a process."""

    def handle(self, job: J_contra) -> R_co:
        """Do one job."""

    def finish(self) -> R_co:
        """Complete what `handle` left under way; called once, after the last job."""

    def close(self) -> None:
        """Let go of everything. May be called more than once."""


class Task(Protocol[J_contra, R_co]):
    """What can be sent to a process and opened there; must pickle. The types are for msgspec.

    It may have a `secret` of up to 255 bytes that is not pickled: in the process, `take_secret` gets it. And
    it may have `kept_bytes`, for `heap.keep_freed_memory`.
    """

    @property
    def job_type(self) -> Any:
        """The type of jobs."""

    @property
    def result_type(self) -> Any:
        """The type of results."""

    def open(self) -> Worker[J_contra, R_co]:
        """Make the worker, in the process in which it runs."""


class Pool(Generic[J, R]):
    """Runs jobs of one task. `workers` 0 means: in this process."""

    def __init__(self, task: Task[J, R], workers: int) -> None:
        self._task = task
        self._heard_ns = 0
        self._inline: Worker[J, R] | None = None
        self._processes: list[_Process] = []
        self._decode = msgspec.msgpack.Decoder(task.result_type).decode
        self._encode = msgspec.msgpack.Encoder().encode
        if workers == 0:
            self._inline = task.open()
            return
        forks = threading.active_count() == 1
        for number in range(workers):
            others = [process.connection for process in self._processes]
            self._processes.append(_Process(task, number, others, forks=forks))

    def __enter__(self) -> Pool[J, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def moved_ns(self) -> int:
        """When something last moved, as of time.monotonic_ns(): a result or bytes of a put, in any process.

        To be asked from another thread, while this one waits in `run` or `finish`.
        """
        return max(self._heard_ns, uploading.last_ns)

    def run(self, jobs: Iterable[J]) -> Iterator[R]:
        """Yield a result for each job, in order; takes jobs only as fast as results are taken."""
        if self._inline is not None:
            yield from map(self._inline.handle, jobs)
            return
        waiting: deque[int] = deque()
        done: dict[int, R] = {}
        source = enumerate(jobs)
        exhausted = False
        while True:
            while not exhausted and len(waiting) < WINDOW_PER_WORKER * len(self._processes):
                process = min(self._processes, key=lambda process: len(process.under_way))
                if len(process.under_way) >= QUEUED_PER_WORKER:
                    break
                number, job = next(source, (-1, None))
                if number < 0:
                    exhausted = True
                    break
                process.send(number, self._encode(job))
                waiting.append(number)
            if not waiting:
                return
            while waiting and waiting[0] in done:
                yield done.pop(waiting.popleft())
            if waiting and waiting[0] not in done:
                for number, payload in self._receive():
                    done[number] = self._decode(payload)

    def finish(self) -> list[R]:
        """Wait until every worker has completed what is under way; their last results."""
        if self._inline is not None:
            return [self._inline.finish()]
        for process in self._processes:
            process.send(-1, FINISH)
        results: list[R] = []
        while any(process.under_way for process in self._processes):
            results.extend(self._decode(payload) for _, payload in self._receive())
        return results

    def close(self) -> None:
        """Stop the processes; jobs under way are given up. May be called more than once."""
        if self._inline is not None:
            self._inline.close()
        for process in self._processes:
            process.stop()
        self._processes = []

    def _receive(self) -> list[tuple[int, bytes]]:
        """Results, at least one message later; none if that said only that something moves."""
        by_connection: dict[Any, _Process] = {
            process.connection: process for process in self._processes if process.under_way
        }
        messages = [by_connection[connection].receive() for connection in wait(list(by_connection))]
        self._heard_ns = time.monotonic_ns()
        return list(filter(None, messages))


class _Process:
    """One worker process, seen from the parent."""

    def __init__(self, task: Any, number: int, others: list[Connection], *, forks: bool) -> None:
        self.connection, theirs = multiprocessing.Pipe(duplex=True)
        self._process: ForkProcess | Interpreter
        if forks:
            name = f"smsnapd-worker-{number}"
            inherited = [*others, self.connection]
            self._process = ForkProcess(target=_serve, args=(theirs, inherited), name=name, daemon=True)
            self._process.start()
        else:
            self._process = Interpreter(serve, theirs.fileno())
        theirs.close()
        self.under_way: deque[int] = deque()
        self._hand_over(pickle.dumps(task), getattr(task, "secret", b""))

    def _hand_over(self, pickled: bytes, secret: bytes | bytearray) -> None:
        """Send the task, and write its secret right into the pipe: no copy of it stays here."""
        try:
            self.connection.send_bytes(pickled)
            os.writev(self.connection.fileno(), [bytes([len(secret)]), secret])
        except OSError as error:
            raise self._died() from error

    def send(self, number: int, payload: bytes) -> None:
        try:
            self.connection.send_bytes(payload)
        except OSError as error:
            raise self._failure() from error
        self.under_way.append(number)

    def receive(self) -> tuple[int, bytes] | None:
        """A job's number and result; None if it is still at work."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if message[:1] == FAILED:
            raise pickle.loads(message[1:])
        if message[:1] in (MOVING, COUNTED):
            _take_counts(message)
            return None
        return self.under_way.popleft(), message[1:]

    def stop(self) -> None:
        self.connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _failure(self) -> BaseException:
        """Why it takes no more jobs: the error that lies in the pipe behind its results, if there is one."""
        try:
            while (message := self.connection.recv_bytes())[:1] != FAILED:
                _take_counts(message)
        except (EOFError, OSError):
            return self._died()
        error: BaseException = pickle.loads(message[1:])
        return error

    def _died(self) -> SmsnapError:
        self._process.join(timeout=1)
        return SmsnapError(
            "finish the work",
            f"a worker process ended with status {self._process.exitcode}",
            "if memory is short, set fewer workers; nothing half-done was left, so run it again",
        )


def _take_counts(message: bytes) -> None:
    """Add what a process has asked of stores to what this one has, if the message tells it."""
    if message[:1] == COUNTED:
        made.add(msgspec.msgpack.decode(message[1:], type=Requests))


def serve(descriptor: int) -> None:
    """The life of a worker process that is a new interpreter; `descriptor` is its end of the pipe."""
    _serve(Connection(descriptor), [])


def _serve(connection: Connection, inherited: list[Connection]) -> None:
    """The life of a worker process: ends when the parent closes its end of the pipe."""
    forbid_core_dumps()
    collect_seldom()
    keep_freed_memory()
    for other in inherited:
        other.close()
    try:
        pickled = connection.recv_bytes()
    except EOFError:  # the parent has ended
        return
    secret = _handed_over(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # Jobs are drained by a thread: if both sides only ever wrote, full pipes would stop them both.
    threading.Thread(target=_drain, args=(connection, jobs), name="jobs", daemon=True).start()
    answers = _Answers(connection)
    threading.Thread(target=answers.pulse, name="pulse", daemon=True).start()
    try:
        task = pickle.loads(pickled)
        if secret:
            task.take_secret(secret)
        keep_freed_memory(getattr(task, "kept_bytes", KEPT))
        _work(answers, task, jobs)
    except BaseException as error:
        _report(answers, error)


def _handed_over(connection: Connection) -> bytes:
    """The task's secret, b"" if it has none; it comes behind the task."""
    size, secret = os.read(connection.fileno(), 1), b""
    while size and len(secret) < size[0] and (piece := os.read(connection.fileno(), size[0] - len(secret))):
        secret += piece
    return secret


class _Answers:
    """The way back to the parent, for the worker and for the thread that tells whether it moves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._told = made.total()  # after a fork, the parent's

    def send(self, message: bytes) -> None:
        with self._lock:
            total = made.total()
            if total != self._told:
                self._connection.send_bytes(COUNTED + msgspec.msgpack.encode(total - self._told))
                self._told = total
            self._connection.send_bytes(message)

    def pulse(self) -> None:
        """Tell every few seconds that something has moved, if it has; nobody minds when that ends."""
        seen_ns = uploading.last_ns
        with contextlib.suppress(OSError):
            while True:
                time.sleep(PULSE_S)
                if uploading.last_ns != seen_ns:
                    seen_ns = uploading.last_ns
                    self.send(MOVING)


def _work(answers: _Answers, task: Any, jobs: queue.SimpleQueue[bytes]) -> None:
    decode = msgspec.msgpack.Decoder(task.job_type).decode
    encode = msgspec.msgpack.Encoder().encode
    worker = task.open()
    while True:
        message = jobs.get()
        result = worker.finish() if message == FINISH else worker.handle(decode(message))
        answers.send(OK + encode(result))


def _drain(connection: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            jobs.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def _report(answers: _Answers, error: BaseException) -> None:
    error.add_note("".join(traceback.format_exception(error)))
    try:
        payload = pickle.dumps(error)
        pickle.loads(payload)
    except Exception:
        payload = pickle.dumps(SmsnapError("finish the work", f"{type(error).__name__}: {error}"))
    try:
        answers.send(FAILED + payload)
    finally:
        os._exit(1)


def default_workers(url: str) -> int:
    """One worker for each core that this process may use; none if no other process sees the store."""
    if url.startswith("memory:"):
        return 0
    return max(1, len(os.sched_getaffinity(0)))
