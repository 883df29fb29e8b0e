"""Where the worker pins up how it stands, and from where it is read: file, socket, systemd."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from smsnapd import __version__
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.progress import Counted
from smsnapd.daemon.status import (
    ContentsStatus,
    Failure,
    RepositoryStatus,
    RunStatus,
    StateName,
    Status,
    utc_text,
    write_status,
)
from smsnapd.engine.coverage import Coverage, load_coverage
from smsnapd.errors import SmsnapError

_EVERY_S: Final = 1.0
"""Seconds between two status files while a run goes on."""
_log = logging.getLogger(__name__)


class Board:
    """The status as it is now. For several threads."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        notifier: Notifier,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` is where the file goes."""
        self._directory = directory
        self._notifier = notifier
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._written_s = -float("inf")
        self._has_complained = False
        self._troubles: dict[str, str] = {}
        self._saw: Callable[[Status], None] = lambda _: None
        now = utc_text(clock())
        self._status = Status(
            state="starting",
            since=now,
            volume=plan.request.volume,
            path=os.fsdecode(plan.request.root),
            contents=contents_status(load_coverage(plan.request.state_dir, plan.request.volume)),
            repository=RepositoryStatus(plan.settings.url),
            pid=os.getpid(),
            version=__version__,
            updated=now,
        )

    @property
    def status(self) -> Status:
        """How it stands at this moment."""
        with self._lock:
            return self._status.told_at(self._clock())

    def now_text(self) -> str:
        """This moment, for the status."""
        return utc_text(self._clock())

    def show_to(self, saw: Callable[[Status], None]) -> None:
        """Have `saw` called with every status that is published; it must be quick and not raise."""
        with self._lock:
            self._saw = saw
            saw(self.status)

    def use(self, plan: Plan) -> None:
        """Another configuration holds."""
        with self._lock:
            repository = self._status.repository
            if repository.url != plan.settings.url:
                repository = RepositoryStatus(plan.settings.url)
            self.change(
                volume=plan.request.volume,
                path=os.fsdecode(plan.request.root),
                repository=repository,
                contents=contents_status(load_coverage(plan.request.state_dir, plan.request.volume)),
                configuration_error=None,
            )

    def change(self, state: StateName | None = None, **changes: Any) -> None:
        """Change what is named, and publish it if that is news."""
        with self._lock:
            if state is not None and state != self._status.state:
                changes.update(state=state, since=self.now_text())
            if all(getattr(self._status, name) == value for name, value in changes.items()):
                return
            self._status = msgspec.structs.replace(self._status, **changes, updated=self.now_text())
            self._publish()

    def count(self, counted: Counted) -> None:
        """The run that is under way has come so far."""
        with self._lock:
            run = self._status.run
            if run is None:
                return
            self._status = msgspec.structs.replace(
                self._status, run=RunStatus(run.kind, run.since, *counted), updated=self.now_text()
            )
            if self._monotonic() - self._written_s >= _EVERY_S:
                self._publish()

    def failed(self, error: SmsnapError, failures: int) -> None:
        """A run has failed, for the n-th time in a row."""
        with self._lock:
            now = self.now_text()
            before = self._status.last_error
            since = before.since if before is not None and failures > 1 else now
            self.change(last_error=Failure(error.what, error.why, error.hint, now, since, failures))

    def trouble(self, key: str, text: str | None) -> None:
        """Something beside the work does not work; None: it works. The key names it."""
        with self._lock:
            self._troubles.pop(key, None)
            if text is not None:
                self._troubles[key] = text
            self.change(telemetry_errors=tuple(self._troubles[name] for name in sorted(self._troubles)))

    def _publish(self) -> None:
        self._written_s = self._monotonic()
        self._notifier.status(summary(self._status))
        self._saw(self._status)
        try:
            write_status(self._directory, self.status, _owner(self._status.path))
            self._has_complained = False
        except OSError as error:
            # The status is for looking at; backups go on without it.
            if not self._has_complained:
                _log.warning("the status cannot be written to %s: %s", self._directory, error.strerror)
            self._has_complained = True


def contents_status(coverage: Coverage | None) -> ContentsStatus:
    """What this machine knows of the contents, for the status."""
    times = (None, None) if coverage is None else (coverage.read_s, coverage.opened_s)
    return ContentsStatus(*(None if when_s is None else utc_text(when_s) for when_s in times))


def summary(status: Status) -> str:
    """One line of it, for `systemctl status`."""
    pieces: list[str] = [status.state]
    if status.run is not None:
        pieces.append(f"{status.run.kind}: {status.run.phase or 'beginning'}")
    if status.last_error is not None:
        pieces.append(f"failing since {status.last_error.since}: {status.last_error.why}")
    point = status.last_recovery_point
    pieces.append(f"last recovery point {point.time}" if point else "no recovery point yet")
    if status.configuration_error:
        pieces.append(f"the new configuration is not used: {status.configuration_error}")
    pieces.extend(status.telemetry_errors)
    return "; ".join(pieces)


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None
