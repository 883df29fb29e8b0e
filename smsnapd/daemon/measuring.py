"""What the daemon measures: the status as metrics, and what it has counted since it began.

One daemon has one volume, so no metric has the volume as a label, but for `smsnapd_build_info`. What is not
known is left out: a rule like `time() - smsnapd_last_recovery_point_timestamp_seconds > 3600` must not see
1970.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, get_args

from smsnapd.daemon.plan import Plan
from smsnapd.daemon.status import GapStatus, StateName, Status, seconds
from smsnapd.daemon.telling import Notice, RunName
from smsnapd.telemetry.metrics import Distribution, Family, Sample, resident_bytes

_BUCKETS_S: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
_RUNS: Final[tuple[RunName, ...]] = get_args(RunName)
_RESULTS: Final = ("success", "failure")
_WATCHERS: Final = ("fanotify", "inotify", "poll")


class Measuring:
    """Counts, from notices and from one status to the next. For several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: Counter[tuple[str, str]] = Counter()
        self._last_run_s: dict[str, float] = {}
        self._durations = {run: [0] * (len(_BUCKETS_S) + 1) for run in _RUNS}
        self._duration_sums_s = dict.fromkeys(_RUNS, 0.0)
        self._snapshots: Counter[str] = Counter()
        self._changed = self._deleted = self._stored_bytes = 0
        self._gaps: Counter[str] = Counter()
        self._seen_gaps: tuple[GapStatus, ...] = ()

    def use(self, plan: Plan) -> None:
        """Counts go on whatever is configured."""

    def tell(self, notice: Notice) -> None:
        """Count a run that has ended."""
        if notice.event == "start":
            return
        with self._lock:
            self._runs[notice.run, notice.event] += 1
            self._last_run_s[notice.event] = self._clock()
            if notice.event == "success":
                self._durations[notice.run][bisect_left(_BUCKETS_S, notice.seconds)] += 1
                self._duration_sums_s[notice.run] += notice.seconds
            if notice.snapshot:
                self._snapshots[notice.snapshot_kind] += 1
            self._changed += notice.changed or 0
            self._deleted += notice.deleted or 0
            self._stored_bytes += notice.stored_bytes or 0

    def saw(self, status: Status) -> None:
        """Count the gaps that this status has and the one before had not."""
        if status.gaps == self._seen_gaps or status.watcher is None:
            return
        with self._lock:
            self._gaps[status.watcher.kind] += _count_new(self._seen_gaps, status.gaps)
            self._seen_gaps = status.gaps

    def families(self, status: Status) -> list[Family]:
        """All metrics as of now."""
        with self._lock:
            counted = list(self._counted())
        return [*_standing(status), *_moments(status), *counted]

    def _counted(self) -> Iterator[Family]:
        yield _counter(
            "runs", "Runs that have ended. A check that found damage is a failure.",
            *(
                Sample(self._runs[run, result], {"kind": run, "result": result})
                for run in _RUNS for result in _RESULTS
            ),
        )  # fmt: skip
        yield _gauge(
            "last_run_timestamp_seconds", "When the last run ended that had this result.",
            *(Sample(when, {"result": result}) for result, when in self._last_run_s.items()),
        )  # fmt: skip
        yield Family(
            "histogram", "smsnapd_run_duration_seconds", "How long runs took that went well.",
            tuple(Sample(self._distribution(run), {"kind": run}) for run in _RUNS),
        )  # fmt: skip
        yield _counter(
            "snapshots", "Snapshots committed.",
            *(Sample(self._snapshots[kind], {"kind": kind}) for kind in ("full", "incremental")),
        )  # fmt: skip
        yield _counter("changed_entries", "Entries that were stored anew.", Sample(self._changed))
        yield _counter("deleted_entries", "Deletions that were stored.", Sample(self._deleted))
        yield _counter("stored_bytes", "Bytes stored by backups, sealed.", Sample(self._stored_bytes))
        yield _counter(
            "watcher_gaps", "How often events were lost; a scan of everything follows.",
            *(Sample(self._gaps[kind], {"kind": kind}) for kind in sorted({*_WATCHERS, *self._gaps})),
        )  # fmt: skip

    def _distribution(self, run: RunName) -> Distribution:
        names = (*map(str, _BUCKETS_S), "+Inf")
        counts = map(float, accumulate(self._durations[run]))
        return Distribution(tuple(zip(names, counts, strict=True)), self._duration_sums_s[run])


def _standing(status: Status) -> Iterator[Family]:
    """How it stands."""
    labels = {"version": status.version, "volume": status.volume}
    yield Family("info", "smsnapd_build", "The daemon and its volume.", (Sample(1, labels),))
    yield _gauge(
        "state", "1 for the state that the daemon is in.",
        *(Sample(status.state == name, {"state": name}) for name in get_args(StateName)),
    )  # fmt: skip
    error = status.last_error
    yield _gauge("failing", "Whether the last run failed.", Sample(error is not None))
    yield _gauge(
        "consecutive_failures",
        "Runs that failed since one went well.",
        Sample(error.failures if error else 0),
    )
    yield _gauge(
        "configuration_error", "Whether the configuration is wrong and the one before in use.",
        Sample(status.configuration_error is not None),
    )  # fmt: skip
    yield _gauge(
        "pending_directories", "Directories with changes that are in no snapshot yet.",
        Sample(status.pending.directories),
    )  # fmt: skip
    run, repository, check, watcher = status.last_run, status.repository, status.last_check, status.watcher
    yield _gauge(
        "incomplete_files",
        "Files that the last backup missed.",
        *_known(None if run is None else run.incomplete),
    )
    yield _gauge(
        "watcher_healthy", "Whether all of the volume is watched.", Sample(bool(watcher and watcher.healthy))
    )
    kind = () if watcher is None else (Sample(1, {"kind": watcher.kind}),)
    yield Family("info", "smsnapd_watcher", "What changes are heard from.", kind)
    yield _gauge(
        "repository_stored_bytes", "Bytes in the repository, all volumes together; counted once a day.",
        *_known(repository.stored_bytes),
    )  # fmt: skip
    yield _gauge(
        "repository_objects", "Objects in the repository, all volumes together.", *_known(repository.objects)
    )
    yield _gauge(
        "last_check_findings",
        "Damage that the last check found.",
        *_known(None if check is None else check.findings),
    )
    yield _gauge("resident_memory_bytes", "Memory that the daemon holds.", *_known(resident_bytes() or None))


def _moments(status: Status) -> Iterator[Family]:
    """When what was, and is to be."""
    point, check, runs = status.last_recovery_point, status.last_check, status.next_runs
    yield _gauge(
        "last_recovery_point_timestamp_seconds", "The moment that the last recovery point stands for.",
        *_moment(None if point is None else point.time),
    )  # fmt: skip
    yield _gauge(
        "pending_since_timestamp_seconds", "When the first change came that is in no snapshot yet.",
        *_moment(status.pending.since),
    )  # fmt: skip
    yield _gauge(
        "last_check_timestamp_seconds",
        "When the last check of this life ended.",
        *_moment(None if check is None else check.time),
    )
    yield _gauge(
        "contents_read_timestamp_seconds", "Since when not all contents were read again from here.",
        *_moment(status.contents.read),
    )  # fmt: skip
    yield _gauge(
        "contents_opened_timestamp_seconds", "Since when not all contents were opened again from here.",
        *_moment(status.contents.opened),
    )  # fmt: skip
    yield _gauge(
        "next_run_timestamp_seconds", "When what is due next.",
        *(
            sample
            for name in runs.__struct_fields__
            for sample in _moment(getattr(runs, name), {"run": name})
        ),
    )  # fmt: skip


def _gauge(name: str, text: str, *samples: Sample) -> Family:
    return Family("gauge", f"smsnapd_{name}", text, samples)


def _counter(name: str, text: str, *samples: Sample) -> Family:
    return Family("counter", f"smsnapd_{name}", text, samples)


def _known(value: float | None) -> Iterable[Sample]:
    """The value, if it is known."""
    return () if value is None else (Sample(value),)


def _moment(text: str | None, labels: Mapping[str, str] | None = None) -> Iterable[Sample]:
    """A time of the status in seconds since the epoch, if it is known."""
    return () if text is None else (Sample(seconds(text), labels or {}),)


def _count_new(before: tuple[GapStatus, ...], after: tuple[GapStatus, ...]) -> int:
    """How many of `after` are new: both are the latest of one growing list, and the oldest fall out.

    Another watcher begins a list of its own: nothing of it is known then.
    """
    for new in range(len(after) + 1):
        kept = after[: len(after) - new]
        if before[len(before) - len(kept) :] == kept:
            return new
    return len(after)
