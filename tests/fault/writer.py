"""A writer that is a process of its own, and can be stopped at any of its store calls, as by SIGSTOP.

It makes snapshots of a volume of its own in one tenure, as a daemon does, and says in the end what it has
reported.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.progress import Progress, Silent
from smsnapd.errors import LockedError
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings, open_store
from tests.fault.faulty import Fault, FaultyStore

T = TypeVar("T")
LARGE = 200_000
"""Bytes that do not fit into a manifest, so that chunks are put too."""


class Stop(NamedTuple):
    """Where to stop: at the call with this number, before it or after it."""

    number: int
    after: bool


class Stopping(FaultyStore):
    """Stops this process where it is told to. Nobody inside notices."""

    def __init__(self, wrapped: Store, stop: Stop | None = None) -> None:
        super().__init__(wrapped)
        self._stop = stop
        self._has_stopped = False

    def _before(self, method: str, name: str) -> Fault | None:
        fault = super()._before(method, name)
        stop = self._stop
        if stop is not None and not stop.after and len(self.calls) == stop.number + 1:
            self._be_stopped()
        return fault

    def _after(self, fault: Fault | None, method: str, name: str, result: T) -> T:
        stop = self._stop
        if stop is not None and stop.after and len(self.calls) > stop.number:
            call = self.calls[stop.number]
            if (call.method, call.name) == (method, name):
                self._be_stopped()
        return super()._after(fault, method, name, result)

    def _be_stopped(self) -> None:
        if not self._has_stopped:
            self._has_stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)


@dataclass
class Reported:
    """What a writer said: the snapshots, by id, with what was in the volume; and why it ended early."""

    snapshots: dict[str, str] = field(default_factory=dict)
    refusal: LockedError | None = None


@dataclass(frozen=True)
class Writer:
    """A volume below `place`, backed up under the name `volume` into a repository that others use too."""

    place: Path
    volume: str
    settings: StoreSettings
    write_key_text: str = field(repr=False)
    lease_s: float

    def opened(self, store: Store) -> Repository:
        return Repository.open(store, Credentials(write_key_text=self.write_key_text))

    def tenure(self, repository: Repository) -> Tenure:
        return Tenure(repository, self.volume, lease_s=self.lease_s)

    def back_up(
        self, tenure: Tenure, repository: Repository, content: str, progress: Progress | None = None
    ) -> str:
        """One snapshot of a volume that holds `content`, and something large; its id."""
        root = self.place / "volume"
        root.mkdir(parents=True, exist_ok=True)
        (root / "file").write_text(content)
        (root / f"large-{content}").write_bytes(os.urandom(LARGE))
        request = BackupRequest(bytes(root), self.volume, self.place / "state", workers=0)
        outcome = run_backup(repository, self.settings, request, progress or Silent(), tenure=tenure)
        assert outcome.snapshot is not None
        return outcome.snapshot.id

    def live(self, store: Store, runs: int, name: str) -> Reported:
        """Make so many snapshots; the first refusal is the end."""
        reported = Reported()
        repository = self.opened(store)
        tenure = self.tenure(repository)
        try:
            for number in range(runs):
                content = f"{name}-{number}"
                reported.snapshots[self.back_up(tenure, repository, content)] = content
        except LockedError as error:
            reported.refusal = error
        finally:
            tenure.release()
        return reported


class Child:
    """`work`, in a process of its own, which may stop itself."""

    def __init__(self, work: Callable[[], object]) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            _live(work, writing)
        os.close(writing)
        self._answer = open(reading, "rb")  # noqa: SIM115 - read at its end

    def wait_until_stopped(self) -> bool:
        """Whether it has stopped; False if it ended before."""
        _, status = os.waitpid(self._pid, os.WUNTRACED)
        return os.WIFSTOPPED(status)

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def result(self) -> Any:
        """What `work` returned; AssertionError with its traceback if it failed."""
        with self._answer:
            answer = self._answer.read()
        os.waitpid(self._pid, 0)
        assert answer, "the child was killed"
        succeeded, result = pickle.loads(answer)
        if not succeeded:
            raise AssertionError(f"in the child: {result}")
        return result

    def kill(self) -> None:
        """Make an end of it, if the test did not."""
        if not self._answer.closed:
            self._answer.close()
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _live(work: Callable[[], object], writing: int) -> None:
    """The child's life: it never returns into the test that forked it."""
    try:
        answer: tuple[bool, object] = (True, work())
    except BaseException:
        answer = (False, traceback.format_exc())
    try:
        with open(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def calls_of(writer: Writer, runs: int) -> range:
    """The numbers of the store calls of an undisturbed life, but for those that open the repository."""
    opening, store = Stopping(open_store(writer.settings)), Stopping(open_store(writer.settings))
    writer.opened(opening)
    assert writer.live(store, runs, "counted").refusal is None
    return range(len(opening.calls), len(store.calls))
