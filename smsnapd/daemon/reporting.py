"""How runs begin and end: in the log, on the board, and to whoever is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from smsnapd.daemon.board import Board, contents_status
from smsnapd.daemon.status import LastCheck, LastRun, Point, RunStatus, utc_text
from smsnapd.daemon.telling import Notice, RunName, Teller
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.check import CheckReport
from smsnapd.engine.prune import VolumePruned
from smsnapd.errors import SmsnapError

_log = logging.getLogger(__name__)


class Reporter:
    """Reports one run after the other. For one thread."""

    def __init__(self, board: Board, teller: Teller, clock: Callable[[], float] = time.monotonic) -> None:
        self._board = board
        self._teller = teller
        self._clock = clock
        self._run: RunName = "backup"
        self._began_s = 0.0

    def began(self, run: RunName, why: str, *, is_last: bool) -> None:
        """A run begins; `is_last` says that the daemon stops after it."""
        self._run, self._began_s = run, self._clock()
        _log.debug("%s: %s", run, why)
        self._board.change("stopping" if is_last else "running", run=RunStatus(run, self._board.now_text()))
        self._teller.tell(Notice("start", run))

    def committed(self, outcome: BackupOutcome) -> None:
        """A backup went well, whether or not it had anything to store."""
        elapsed_s = self._clock() - self._began_s
        snapshot, missed = outcome.snapshot, len(outcome.incomplete)
        changes: dict[str, Any] = {}
        if snapshot is not None:
            _log.info(
                "stored %s %s: %d changed, %d deleted, %d bytes stored, in %.1f s",
                snapshot.kind, snapshot.id, outcome.changed, outcome.deleted, outcome.new_bytes, elapsed_s,
            )  # fmt: skip
            point = Point(snapshot.id, utc_text(snapshot.time_us / 1e6), snapshot.kind)
            changes["last_recovery_point"] = point
        if missed:
            first = outcome.incomplete[0]
            _log.warning("%d files were missed, the first is %r: %s", missed, first.path, first.reason)
        last = LastRun(self._board.now_text(), round(elapsed_s, 3), outcome.changed, outcome.deleted, missed)
        self._tell_committed(outcome, elapsed_s)
        self._board.change(last_run=last, last_error=None, **changes)

    def checked(self, report: CheckReport) -> None:
        """A check has been done. If it found damage, those who are told must hear of it as a failure."""
        elapsed_s = self._clock() - self._began_s
        for finding in report.findings:
            _log.error("damaged: %s: %s", finding.object, finding.problem)
        count = len(report.findings)
        _log.info("checked %d snapshots, %d objects: %d damaged", report.snapshots, report.objects, count)
        if count:
            first = report.findings[0]
            error = f"{count} damaged, the first is {first.object}: {first.problem}"
            self._teller.tell(Notice("failure", "check", elapsed_s, error=error))
        else:
            self._teller.tell(Notice("success", "check", elapsed_s))
        changes: dict[str, Any] = {"last_check": LastCheck(self._board.now_text(), count)}
        if report.coverage:
            (coverage,) = report.coverage.values()
            changes["contents"] = contents_status(coverage)
        self._board.change(**changes, last_error=None)

    def pruned(self, done: VolumePruned) -> None:
        """A prune has been done. Lists that are not to be believed are damage, as a check would find it."""
        elapsed_s = self._clock() - self._began_s
        _log.info(
            "pruned: %d recovery points let go, %d objects (%d bytes) deleted, %d listed, %d waiting",
            done.removed, done.deleted.objects, done.deleted.bytes, done.listed.objects, done.waiting.objects,
        )  # fmt: skip
        for note in done.notes:
            _log.info("%s", note)
        for name, problem in done.refused:
            _log.error("damaged: %s: %s", name, problem)
        if done.lock_error is not None:
            _log.error("%s", done.lock_error)
            self._teller.tell(Notice("failure", "prune", elapsed_s, error=str(done.lock_error)))
        elif done.refused:
            error = f"{len(done.refused)} damaged, the first is {done.refused[0][0]}: {done.refused[0][1]}"
            self._teller.tell(Notice("failure", "prune", elapsed_s, error=error))
        else:
            self._teller.tell(Notice("success", "prune", elapsed_s))
        self._board.change(last_error=None)

    def failed(self, error: SmsnapError, wait_s: float, failures: int) -> None:
        """The run failed, as the n-th in a row."""
        _log.warning("%s; changes stay pending, the next try is in %.0f s", error, wait_s)
        self._teller.tell(Notice("failure", self._run, self._clock() - self._began_s, error=str(error)))
        self._board.failed(error, failures)

    def _tell_committed(self, outcome: BackupOutcome, elapsed_s: float) -> None:
        snapshot = outcome.snapshot
        self._teller.tell(
            Notice(
                "success",
                self._run,
                elapsed_s,
                snapshot=snapshot.id if snapshot else "",
                snapshot_kind=snapshot.kind if snapshot else "",
                changed=outcome.changed,
                deleted=outcome.deleted,
                stored_bytes=outcome.new_bytes,
                incomplete=len(outcome.incomplete),
            )
        )


def for_people(error: Exception) -> SmsnapError:
    """Any exception as one that can be shown; what nobody foresaw is logged with its traceback."""
    if isinstance(error, SmsnapError):
        return error
    _log.error("a run ended unexpectedly", exc_info=error)
    return SmsnapError("finish the run", f"unexpected {type(error).__name__}: {error}", "the log says more")
