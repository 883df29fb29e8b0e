"""How the daemon stands, as JSON: a file that is replaced whole, and the same over the control socket.

The keys are there to stay; new ones may come. Times are UTC, ISO 8601 with microseconds.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

FILE: Final = "status.json"

StateName = Literal["starting", "idle", "waiting", "running", "failing", "stopping", "stopped"]


class Point(msgspec.Struct, frozen=True):
    """A recovery point."""

    id: str
    time: str
    kind: str


class Pending(msgspec.Struct, frozen=True):
    """What has changed and is not in any snapshot: directories to look at, whole subtrees, since when.

    `rescan`: everything is going to be looked at, whatever was heard.
    """

    directories: int = 0
    subtrees: int = 0
    since: str | None = None
    rescan: bool = True


class WatcherStatus(msgspec.Struct, frozen=True):
    """What changes are heard from, why from that, and whether all that should be watched is."""

    kind: str
    reason: str
    healthy: bool


class GapStatus(msgspec.Struct, frozen=True):
    """When events were lost, and why. A scan of everything follows."""

    time: str
    reason: str


class Failure(msgspec.Struct, frozen=True):
    """The last error, since when runs have failed, how often, and when the next try is."""

    what: str
    why: str
    hint: str
    time: str
    since: str
    failures: int


class RunStatus(msgspec.Struct, frozen=True):
    """The run that is under way."""

    kind: str
    since: str
    phase: str = ""
    files: int = 0
    files_total: int | None = None
    bytes: int = 0
    bytes_total: int | None = None
    stored_bytes: int = 0


class LastRun(msgspec.Struct, frozen=True):
    """The last backup that went well: when it ended, how long it took, what it did."""

    time: str
    seconds: float
    changed: int
    deleted: int
    incomplete: int


class LastCheck(msgspec.Struct, frozen=True):
    """The last check: when it ended, and what is damaged."""

    time: str
    findings: int


class ContentsStatus(msgspec.Struct, frozen=True):
    """Since when not all contents were read again from here, and opened; None is never."""

    read: str | None = None
    opened: str | None = None


class RepositoryStatus(msgspec.Struct, frozen=True):
    """Where it goes, and how much lies there in all; None before it was counted."""

    url: str
    objects: int | None = None
    stored_bytes: int | None = None
    counted: str | None = None


class RequestsStatus(msgspec.Struct, frozen=True):
    """What was asked of S3 in this month of UTC ("2026-11"), and since when that was counted."""

    month: str
    since: str
    put: int
    get: int
    list: int
    head: int
    delete: int
    bytes_up: int
    bytes_down: int


class NextRuns(msgspec.Struct, frozen=True):
    """When what is due next; None is not foreseen."""

    incremental: str | None = None
    rescan: str | None = None
    full: str | None = None
    check: str | None = None
    prune: str | None = None
    retry: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `since` is when `state` began; `age_s` the last recovery point's age when this was told.

    `telemetry_errors` say what is beside the work and does not work: metrics, pings, the hook.
    """

    state: StateName
    since: str
    volume: str
    path: str
    last_recovery_point: Point | None = None
    age_s: float | None = None
    pending: Pending = Pending()
    watcher: WatcherStatus | None = None
    gaps: tuple[GapStatus, ...] = ()
    next_runs: NextRuns = NextRuns()
    last_error: Failure | None = None
    configuration_error: str | None = None
    telemetry_errors: tuple[str, ...] = ()
    run: RunStatus | None = None
    last_run: LastRun | None = None
    last_check: LastCheck | None = None
    contents: ContentsStatus = ContentsStatus()
    repository: RepositoryStatus
    requests: RequestsStatus | None = None
    pid: int
    version: str
    updated: str

    def told_at(self, now_s: float) -> Status:
        """The same with the age that holds at `now_s`, seconds since the epoch."""
        point = self.last_recovery_point
        age_s = None if point is None else round(max(0.0, now_s - seconds(point.time)), 3)
        return msgspec.structs.replace(self, age_s=age_s)

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Status:
        """Out of JSON; ValueError if it is none of ours. Keys of later versions are passed over."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error


def utc_text(when_s: float) -> str:
    """Seconds since the epoch as a time for programs."""
    return f"{datetime.fromtimestamp(when_s, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def seconds(text: str) -> float:
    """The reverse of `utc_text`."""
    return datetime.fromisoformat(text).timestamp()


def write_status(directory: Path, status: Status, owner: int | None) -> None:
    """Replace the status file whole; for `owner` (a user id) and root to read. Raises OSError.

    Not synced: it lies in memory, and a crash of the machine ends what it tells of.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{FILE}.", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(status.encode() + b"\n")
            if owner is not None and owner != os.geteuid():
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), owner, -1)
        os.replace(name, directory / FILE)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def read_status(directory: Path) -> Status | None:
    """What the daemon wrote last; None if it never did. Raises OSError, ValueError if it is damaged."""
    try:
        return Status.decode((directory / FILE).read_bytes())
    except FileNotFoundError:
        return None
