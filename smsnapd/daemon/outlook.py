"""What is pending and what comes next, as the status shows it."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from smsnapd.daemon.calendars import Calendars
from smsnapd.daemon.pace import Retry
from smsnapd.daemon.schedule import Calendar
from smsnapd.daemon.status import GapStatus, NextRuns, Pending, WatcherStatus, utc_text
from smsnapd.daemon.watching import Watching

_GAPS: Final = 20
_log = logging.getLogger(__name__)


def outlook(watching: Watching | None, retry: Retry, calendars: Calendars, now_s: float) -> dict[str, Any]:
    """The fields `pending`, `next_runs`, `watcher` and `gaps` of the status, as of `now_s` (monotonic)."""
    if watching is None:
        return {"pending": Pending(), "next_runs": _next_runs(None, retry, calendars, now_s), "watcher": None}
    counts = watching.pending
    since = _at(counts.first_event_s, now_s) if counts.directories or counts.subtrees else None
    return {
        "pending": Pending(counts.directories, counts.subtrees, since, watching.rescan_s <= now_s),
        "next_runs": _next_runs(watching, retry, calendars, now_s),
        "watcher": WatcherStatus(watching.kind, watching.reason, watching.is_healthy),
        "gaps": tuple(GapStatus(_second(gap.time_ns / 1e9), gap.reason) for gap in watching.gaps[-_GAPS:]),
    }


def tell_changes(before: WatcherStatus | None, after: dict[str, Any], gaps: tuple[GapStatus, ...]) -> None:
    """Log what is new about the watcher: that it is another, and what it has lost."""
    now: WatcherStatus | None = after["watcher"]
    if now is not None and (before is None or now.kind != before.kind):
        _log.info("changes are heard from %s: %s", now.kind, now.reason)
    if now is not None and not now.healthy and (before is None or before.healthy):
        _log.warning("a part of the volume is not watched: it is scanned at intervals instead")
    for gap in after.get("gaps", ()):
        if gap not in gaps:
            _log.warning("events were lost: %s; everything is scanned again", gap.reason)


def _next_runs(watching: Watching | None, retry: Retry, calendars: Calendars, now_s: float) -> NextRuns:
    due_s = watching.due_s() if watching else None
    return NextRuns(
        incremental=None if due_s is None else _at(due_s, now_s),
        rescan=_at(watching.rescan_s, now_s) if watching else None,
        full=_of(calendars.full),
        check=_of(calendars.check),
        prune=_of(calendars.prune),
        retry=None if retry.at_s is None else _at(retry.at_s, now_s),
    )


def _of(calendar: Calendar) -> str | None:
    return None if calendar.next_s is None else _second(calendar.next_s)


def _at(monotonic_s: float, now_s: float) -> str:
    """A monotonic time as one of the wall clock; what is overdue is due now."""
    return _second(time.time() + (max(monotonic_s, 0.0) - now_s if monotonic_s else 0.0))


def _second(when_s: float) -> str:
    # Whole seconds: two clocks read one after the other would make every look a change.
    return utc_text(round(when_s))
