"""The one thread that works: it decides what is due, does it, and says that it is alive.

Runs never overlap, because it does them. What changes during a run is in the next one. The watchdog is fed
from here and by the progress of runs, and by nobody else: a hung worker ends in a restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from smsnapd.daemon import memory
from smsnapd.daemon.agenda import Agenda, Demand, Nobody
from smsnapd.daemon.board import Board
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.outlook import outlook, tell_changes
from smsnapd.daemon.pace import Retry
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.progress import RunProgress
from smsnapd.daemon.runs import Runs
from smsnapd.daemon.status import LastCheck, LastRun, Point, RepositoryStatus, RunStatus, StateName, utc_text
from smsnapd.daemon.watching import Look, Watching
from smsnapd.engine.backup import BackupOutcome
from smsnapd.engine.progress import Silent
from smsnapd.errors import SmsnapError

_LONGEST_REST_S: Final = 30.0
_SIZE_EVERY_S: Final = 86400.0
_log = logging.getLogger(__name__)

StartWatching = Callable[[Plan, Callable[[], None]], Watching]


class Worker:
    """Works off the agenda, the calendars and what the watcher hears, until the agenda says stop."""

    def __init__(
        self,
        plan: Plan,
        agenda: Agenda,
        board: Board,
        notifier: Notifier,
        runs: Runs,
        *,
        start_watching: StartWatching = Watching,
        retry: Retry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._agenda = agenda
        self._board = board
        self._notifier = notifier
        self._runs = runs
        self._start_watching = start_watching
        self._retry = retry or Retry()
        self._clock = clock
        self._watching: Watching | None = None
        self._owed: Demand | None = None
        self._owes_size = 0.0
        self._use_calendars(plan)

    def work(self) -> None:
        """What the thread does, from the start to the end. Raises nothing but what is a mistake in here."""
        try:
            while not self._agenda.is_stopping:
                self.turn()
            self._commit_pending()
        finally:
            self._runs.close()
            if self._watching is not None:
                self._watching.stop()

    def turn(self) -> None:
        """Do what is due, or rest until something may be."""
        self._notifier.beat()
        plan = self._agenda.take_plan()
        if plan is not None:
            self._use(plan)
        task = self._next()
        if task is not None:
            task()
            return
        self._show()
        self._agenda.wait(self._rest_s())

    def abandoned(self) -> str:
        """What is not committed, for the log of a stop for which the time was too short; "" if nothing."""
        pending = self._board.status.pending
        if self._watching is None or pending.rescan:
            return "the volume was not yet looked at"
        counts = self._watching.pending
        return f"{counts.directories + counts.subtrees} directories" if any(counts[:2]) else ""

    # --- what is due

    def _next(self) -> Callable[[], None] | None:
        demand = self._agenda.take_demand()
        if demand is not None:
            return partial(self._back_up, demand, scan=True, why="asked for")
        now = self._clock()
        if self._retry.is_waiting(now):
            return None
        if self._owed is not None:
            return partial(self._back_up, self._owed, scan=False, why="again")
        return self._scheduled(now)

    def _scheduled(self, now: float) -> Callable[[], None] | None:
        watching = self._watching
        if self._is_seeded and self._full.is_due():
            return partial(self._back_up, Demand(full=True), scan=True, why="due by the calendar")
        if watching is None or watching.rescan_s <= now:
            return partial(self._back_up, Demand(), scan=True, why="a look at everything is due")
        due_s = watching.due_s()
        if due_s is not None and due_s <= now:
            return partial(self._back_up, Demand(), scan=False, why="changes are due")
        if self._check.is_due():
            return self._do_check
        return self._measure if self._owes_size <= now else None

    def _rest_s(self) -> float:
        """How long nothing is due, as far as can be foreseen."""
        now, watchdog_s = self._clock(), self._notifier.watchdog_s
        longest = min(_LONGEST_REST_S, watchdog_s / 4) if watchdog_s else _LONGEST_REST_S
        if self._retry.is_waiting(now) and self._retry.at_s is not None:
            return min(longest, self._retry.at_s - now)
        due = self._watching.due_s() if self._watching else None
        calendar = [
            when - time.time() for when in (self._full.next_s, self._check.next_s) if when is not None
        ]
        return max(0.0, min([longest, *calendar, *([due - now] if due is not None else [])]))

    # --- backups

    def _back_up(self, demand: Demand, *, scan: bool, why: str) -> None:
        """One backup; whatever comes of it, this returns."""
        self._begin("full" if demand.full else "backup", why)
        began_s = self._clock()
        progress = RunProgress(demand.reply.progress, self._notifier.beat, self._board.count)
        look: Look | None = None
        try:
            watching = self._ensure_watching()
            look = watching.take(scan=scan or demand.full or demand.reread)
            outcome = self._runs.backup(demand, look.hints, progress)
        except Exception as error:  # the daemon outlives every failure of a run
            failure = _for_people(error)
            if self._watching is not None and look is not None:
                self._watching.failed(look)
            self._owed = replace(demand, reply=Nobody())
            self._failed(failure)
            demand.reply.failed(failure)
            return
        watching.committed(look)
        self._owed = None
        self._committed(outcome, self._clock() - began_s)
        demand.reply.done(outcome)

    def _ensure_watching(self) -> Watching:
        if self._watching is None:
            self._watching = self._start_watching(self._plan, self._agenda.wake)
        return self._watching

    def _committed(self, outcome: BackupOutcome, seconds: float) -> None:
        snapshot = outcome.snapshot
        missed = len(outcome.incomplete)
        if snapshot is not None:
            _log.info(
                "stored %s %s: %d changed, %d deleted, %d bytes stored, in %.1f s",
                snapshot.kind, snapshot.id, outcome.changed, outcome.deleted, outcome.new_bytes, seconds,
            )  # fmt: skip
            point = Point(snapshot.id, utc_text(snapshot.time_us / 1e6), snapshot.kind)
            self._board.change(last_recovery_point=point)
            if snapshot.kind == "full":
                self._full.done(snapshot.time_us / 1e6)
                self._is_seeded = True
        if missed:
            first = outcome.incomplete[0]
            _log.warning("%d files were missed, the first is %r: %s", missed, first.path, first.reason)
        run = LastRun(self._board.now_text(), round(seconds, 3), outcome.changed, outcome.deleted, missed)
        self._succeeded()
        self._board.change(last_run=run)
        if not self._is_seeded or self._board.status.last_recovery_point is None:
            self._learn_history()

    def _learn_history(self) -> None:
        """What the repository tells of earlier lives: a full that was missed while nobody ran is due."""
        try:
            known = self._runs.known()
        except Exception as error:  # as in _back_up
            _log.info("the recovery points could not be listed: %s", _for_people(error))
            return
        self._is_seeded = True
        if known is None:
            return
        self._board.change(last_recovery_point=Point(known.id, utc_text(known.time_us / 1e6), known.kind))
        if known.full_s is not None:
            self._full.done(known.full_s)

    def _commit_pending(self) -> None:
        """The last run before the end, if there is anything for it to do and time left."""
        self._board.change("stopping", run=None)
        while (demand := self._agenda.take_demand()) is not None:
            demand.reply.failed(SmsnapError("back up", "the daemon is stopping", "ask again when it runs"))
        watching = self._watching
        if watching is not None and self._owed is None and not watching.has_any():
            return
        if self._agenda.time_left_s > 0:
            self._back_up(self._owed or Demand(), scan=False, why="before the end")

    # --- checks and measures

    def _do_check(self) -> None:
        self._begin("check", "due by the calendar")
        try:
            report = self._runs.check(RunProgress(Silent(), self._notifier.beat, self._board.count))
        except Exception as error:  # as in _back_up
            self._failed(_for_people(error))
            return
        self._check.done()
        memory.remember_check(self._plan.request.state_dir, self._plan.request.volume, time.time())
        for finding in report.findings:
            _log.error("damaged: %s: %s", finding.object, finding.problem)
        _log.info("checked %d snapshots, %d objects: %d damaged", *(
            report.snapshots, report.objects, len(report.findings),
        ))  # fmt: skip
        self._succeeded()
        self._board.change(last_check=LastCheck(self._board.now_text(), len(report.findings)))

    def _measure(self) -> None:
        """Count what lies in the repository; it is for the status alone, so a failure is no matter."""
        self._owes_size = self._clock() + _SIZE_EVERY_S
        url = self._plan.settings.url
        try:
            objects, stored_bytes = self._runs.size(self._notifier.beat)
        except Exception as error:  # as in _back_up
            _log.info("the repository's size was not counted: %s", _for_people(error))
            return
        self._board.change(repository=RepositoryStatus(url, objects, stored_bytes, self._board.now_text()))

    # --- how it stands

    def _begin(self, kind: str, why: str) -> None:
        _log.debug("%s: %s", kind, why)
        state: StateName = "stopping" if self._agenda.is_stopping else "running"
        self._board.change(state, run=RunStatus(kind, self._board.now_text()))

    def _failed(self, error: SmsnapError) -> None:
        # The next try opens it anew, with whatever credentials there are then.
        self._runs.close()
        wait_s = self._retry.failed(self._clock())
        _log.warning("%s; changes stay pending, the next try is in %.0f s", error, wait_s)
        self._board.failed(error, self._retry.failures)
        self._show()

    def _succeeded(self) -> None:
        if self._retry.failures:
            _log.info("it works again after %d failed runs", self._retry.failures)
        self._retry.succeeded()
        self._board.change(last_error=None)
        self._show()

    def _show(self) -> None:
        """Pin up what is pending, what comes next, and the state that goes with it."""
        before = self._board.status
        now = outlook(self._watching, self._retry, self._full, self._check)
        tell_changes(before.watcher, now, before.gaps)
        pending = now["pending"]
        if self._agenda.is_stopping:
            self._board.change("stopping", run=None, **now)
        elif self._retry.failures:
            self._board.change("failing", run=None, **now)
        elif pending.directories or pending.subtrees:
            self._board.change("waiting", run=None, **now)
        else:
            self._board.change("starting" if self._watching is None else "idle", run=None, **now)

    # --- another configuration

    def _use(self, plan: Plan) -> None:
        """Go on with another configuration."""
        if self._watching is not None:
            # A new one begins with a scan of everything: whatever is new in the configuration, it is heeded.
            self._watching.stop()
            self._watching = None
        self._plan = plan
        self._runs.use(plan)
        self._board.use(plan)
        self._use_calendars(plan)
        self._retry.succeeded()
        self._owes_size = 0.0
        _log.info("the new configuration is in use")

    def _use_calendars(self, plan: Plan) -> None:
        self._full, self._check = plan.calendars()
        self._check.done(memory.last_check(plan.request.state_dir, plan.request.volume))
        self._is_seeded = False
        if plan.config.schedule.prune:
            _log.info("[schedule] prune is passed over: this version cannot prune yet")


def _for_people(error: Exception) -> SmsnapError:
    """Any exception as one that can be shown; what nobody foresaw is logged with its traceback."""
    if isinstance(error, SmsnapError):
        return error
    _log.error("a run ended unexpectedly", exc_info=error)
    return SmsnapError("finish the run", f"unexpected {type(error).__name__}: {error}", "the log says more")


class WorkThread(threading.Thread):
    """The thread; `failure` is what it ended by, if that was not the agenda's stop."""

    def __init__(self, worker: Worker, ended: Callable[[], None]) -> None:
        """`ended` is called at its very end, whatever it ended by."""
        super().__init__(name="worker", daemon=True)
        self.worker = worker
        self.failure: BaseException | None = None
        self._ended = ended

    def run(self) -> None:
        """Work."""
        try:
            self.worker.work()
        except BaseException as error:
            self.failure = error
            _log.critical("the worker ended unexpectedly", exc_info=error)
        finally:
            self._ended()
