"""What is asked of the worker by others: backups, a new configuration, an end. And what wakes it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from smsnapd.engine.progress import Progress, Silent
from smsnapd.errors import SmsnapError

if TYPE_CHECKING:
    from smsnapd.daemon.plan import Plan
    from smsnapd.engine.backup.run import BackupOutcome

_MOST: Final = 32


class Reply(Protocol):
    """Who asked, and hears what came of it. Methods must be quick and must not raise."""

    @property
    def progress(self) -> Progress:
        """Where the run's progress goes."""

    def done(self, outcome: BackupOutcome) -> None:
        """The run went well."""

    def failed(self, error: SmsnapError) -> None:
        """It did not."""


class Nobody:
    """Who asked does not listen."""

    progress: Progress = Silent()

    def done(self, outcome: BackupOutcome) -> None:
        """Do nothing."""

    def failed(self, error: SmsnapError) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Demand:
    """A backup that was asked for, now; of a full the mode, "" for that which is configured."""

    full: bool = False
    reread: bool = False
    take_over: bool = False
    reply: Reply = Nobody()  # noqa: RUF009 - it has no state
    mode: str = ""


class Agenda:
    """For several threads; one of them works it off."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._demands: deque[Demand] = deque()
        self._plan: Plan | None = None
        self._stop_by_s: float | None = None
        self._woken = False

    def demand(self, demand: Demand) -> bool:
        """Ask for a backup; whether there was room. What is asked for again and again is asked for once."""
        with self._changed:
            if self._stop_by_s is not None or len(self._demands) >= _MOST:
                return False
            if not (isinstance(demand.reply, Nobody) and demand in self._demands):
                self._demands.append(demand)
            self._changed.notify_all()
        return True

    def replace(self, plan: Plan) -> None:
        """Have another configuration hold from the next run on; of several the last one."""
        with self._changed:
            self._plan = plan
            self._changed.notify_all()

    def stop(self, within_s: float) -> None:
        """Ask for the end, with so much time to commit what is pending."""
        with self._changed:
            if self._stop_by_s is None:
                self._stop_by_s = self._clock() + within_s
            self._changed.notify_all()

    def wake(self) -> None:
        """Have the worker look again at what is due."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait until anything was asked for, or woken, or for so long."""
        with self._changed:
            self._changed.wait_for(self._is_calling, timeout_s)
            self._woken = False

    def take_demand(self) -> Demand | None:
        """The next backup that was asked for."""
        with self._changed:
            return self._demands.popleft() if self._demands else None

    def take_plan(self) -> Plan | None:
        """The configuration that is to hold from now on, if there is a new one."""
        with self._changed:
            plan, self._plan = self._plan, None
            return plan

    @property
    def is_stopping(self) -> bool:
        """Whether the end was asked for."""
        return self._stop_by_s is not None

    @property
    def time_left_s(self) -> float:
        """How long until the end must be reached."""
        return float("inf") if self._stop_by_s is None else self._stop_by_s - self._clock()

    def _is_calling(self) -> bool:
        return bool(self._woken or self._demands or self._plan or self._stop_by_s is not None)
