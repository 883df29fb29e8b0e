"""A worker's surroundings that a test can steer: clock, watcher, runs. Nothing here sleeps."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smsnapd.daemon.agenda import Agenda, Demand
from smsnapd.daemon.board import Board
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.pace import Retry
from smsnapd.daemon.plan import Plan, load_plan
from smsnapd.daemon.runs import Known
from smsnapd.daemon.telling import Notice
from smsnapd.daemon.watching import Watching
from smsnapd.daemon.worker import Worker
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.check import CheckReport
from smsnapd.engine.history import SnapshotSummary
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune import Amount, VolumePruned
from smsnapd.errors import SmsnapError
from smsnapd.volume.watch import Counts, Gap, Hints
from smsnapd.volume.watch.hints import Pending


class FakeWatcher:
    """Hears what a test says."""

    def __init__(self) -> None:
        self._pending = Pending(1000)
        self.kind, self.reason, self.is_healthy, self.catches_up = "fanotify", "a test", True, True
        self.gaps: tuple[Gap, ...] = ()
        self.stopped = False

    def start(self, *_: object) -> None:
        """Nothing to start."""

    def hear(self, *directories: bytes, at: float) -> None:
        self._pending.merge(Hints(frozenset(directories), frozenset(), len(directories), at, at))

    def take(self) -> Hints:
        return self._pending.take()

    def give_back(self, hints: Hints) -> None:
        self._pending.merge(hints)

    def peek(self) -> Counts:
        return self._pending.counts()

    def wait(self, timeout_s: float | None) -> bool:
        return self._pending.wait(timeout_s)

    def catch_up(self, timeout_s: float) -> bool:
        return self.catches_up

    def stop(self) -> None:
        self.stopped = True


class FakeRuns:
    """Does nothing, and remembers it; fails as often as it is told to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, frozenset[bytes] | None]] = []
        self.errors: list[Exception] = []
        self.during = lambda: None
        self.known_point: Known | None = None
        self.pruned = VolumePruned("nb", listed=Amount(3, 4096), marked=True, may_delete=True)
        self.closed = self.forgotten = self.kept = 0
        self._count = 0

    def backup(self, demand: Demand, hints: Hints | None, progress: Progress) -> BackupOutcome:
        self.during()
        if self.errors:
            raise self.errors.pop(0)
        progress.phase("scan")
        self.done.append(("full" if demand.full else "backup", None if hints is None else hints.directories))
        self._count += 1
        kind = "full" if demand.full or self._count == 1 else "incremental"
        snapshot = SnapshotSummary(
            f"{self._count:016x}", "nb", time.time_ns() // 1000, kind, "tar", None, 0, 0, 0, True, (), 1
        )
        return BackupOutcome(snapshot, 1, 0, 1, 1, 1, ())

    def check(self, progress: Progress) -> CheckReport:
        if self.errors:
            raise self.errors.pop(0)
        self.done.append(("check", None))
        return CheckReport((), (), 1, 1, 0, False, ())

    def prune(self, progress: Progress) -> VolumePruned:
        if self.errors:
            raise self.errors.pop(0)
        self.done.append(("prune", None))
        return self.pruned

    def known(self) -> Known | None:
        return self.known_point

    def size(self, beat: object) -> tuple[int, int]:
        return 7, 4096

    def keep(self) -> None:
        self.kept += 1

    def forget(self) -> None:
        self.forgotten += 1

    def use(self, plan: Plan) -> None:
        self.close()

    def close(self) -> None:
        self.closed += 1


class Logged(logging.Handler):
    """What the daemon logs, whatever logging other tests have set up."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def levels(self) -> list[str]:
        return [record.levelname for record in self.records]

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def text(self) -> str:
        """All of it, tracebacks included."""
        return "\n".join(map(logging.Formatter().format, self.records))


@contextmanager
def logged() -> Iterator[Logged]:
    logger, found = logging.getLogger("smsnapd.daemon"), Logged()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(found)
    try:
        yield found
    finally:
        logger.removeHandler(found)
        logger.setLevel(before)


class FakeTeller:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.plans: list[Plan] = []

    def tell(self, notice: Notice) -> None:
        self.notices.append(notice)

    def use(self, plan: Plan) -> None:
        self.plans.append(plan)


def make_plan(place: Path, more: str = "") -> Plan:
    """A plan with a volume in `place`."""
    (place / "volume").mkdir(exist_ok=True)
    (place / "state").mkdir(exist_ok=True)
    file = place / "smsnapd.toml"
    file.write_text(
        f'[volume]\npath = "volume"\nname = "nb"\n[state]\ndir = "state"\n'
        f'[repository]\nurl = "{(place / "repo").as_uri()}"\n'
        + (more or '[schedule]\nfull = ""\ncheck = ""\nprune = ""\n')
    )
    return load_plan(str(file))


class Stage:
    """A worker on a stage; `turn` it, and see what it did."""

    def __init__(self, place: Path, more: str = "") -> None:
        self.now = 1000.0
        self.plan = make_plan(place, more)
        self.agenda = Agenda(lambda: self.now)
        self.runs, self.watcher, self.teller = FakeRuns(), FakeWatcher(), FakeTeller()
        self.rests: list[float] = []
        self.agenda.wait = self.rests.append  # type: ignore[method-assign]
        self.notifier = Notifier("", None)
        self.board = Board(place, self.plan, self.notifier)
        self.watching_error: SmsnapError | None = None
        self.worker = Worker(
            self.plan, self.agenda, self.board, self.notifier, self.runs, self.teller,
            start_watching=self._watch, retry=Retry(lambda: 0.5), clock=lambda: self.now,
        )  # fmt: skip
        self.pid = os.getpid()

    def _watch(self, plan: Plan, wake: object) -> Watching:
        if self.watching_error is not None:
            raise self.watching_error
        return Watching(plan, lambda: None, watcher=self.watcher, clock=lambda: self.now)

    def until_rest(self) -> list[tuple[str, frozenset[bytes] | None]]:
        """Turn until there is nothing to do; what was done meanwhile."""
        before, rests = len(self.runs.done), len(self.rests)
        while len(self.rests) == rests:
            self.worker.turn()
        return self.runs.done[before:]
