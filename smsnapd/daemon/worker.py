"""The one thread that works: it decides what is due, does it, and says that it is alive.

Runs never overlap, because it does them. What changes during a run is in the next one. The watchdog is fed
from here and by the progress of runs, and by nobody else: a hung worker ends in a restart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from smsnapd.daemon.agenda import Agenda, Demand, Nobody
from smsnapd.daemon.board import Board
from smsnapd.daemon.calendars import Calendars
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.outlook import outlook, tell_changes
from smsnapd.daemon.pace import Retry
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.progress import RunProgress
from smsnapd.daemon.reporting import Reporter, for_people
from smsnapd.daemon.runs import Runs
from smsnapd.daemon.spending import Spending
from smsnapd.daemon.status import Point, RepositoryStatus, utc_text
from smsnapd.daemon.telling import Teller
from smsnapd.daemon.watching import Look, Watching
from smsnapd.engine.backup.run import BackupOutcome
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
        teller: Teller,
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
        self._teller = teller
        self._reporter = Reporter(board, teller, clock)
        self._start_watching = start_watching
        self._retry = retry or Retry()
        self._clock = clock
        self._watching: Watching | None = None
        self._owed: Demand | None = None
        self._owes_size = 0.0
        self._calendars = Calendars(plan)
        self._spending = Spending(plan)

    def work(self) -> None:
        """What the thread does, from the start to the end. Raises nothing but what is a mistake in here."""
        try:
            while not self._agenda.is_stopping:
                self.turn()
            self._commit_pending()
        finally:
            self._runs.close()
            self._spending.close()
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
        self._runs.keep()
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
        if self._calendars.full_is_due():
            return partial(self._back_up, Demand(full=True), scan=True, why="due by the calendar")
        if watching is None or watching.rescan_s <= now:
            return partial(self._back_up, Demand(), scan=True, why="a look at everything is due")
        due_s = watching.due_s()
        if due_s is not None and due_s <= now:
            return partial(self._back_up, Demand(), scan=False, why="changes are due")
        if self._calendars.check.is_due():
            return self._do_check
        if self._calendars.prune.is_due():
            return self._do_prune
        return self._measure if self._owes_size <= now else None

    def _rest_s(self) -> float:
        """How long nothing is due, as far as can be foreseen."""
        now, watchdog_s = self._clock(), self._notifier.watchdog_s
        longest = min(_LONGEST_REST_S, watchdog_s / 4) if watchdog_s else _LONGEST_REST_S
        if self._retry.is_waiting(now) and self._retry.at_s is not None:
            return min(longest, self._retry.at_s - now)
        due = self._watching.due_s() if self._watching else None
        rests_s = [longest, *self._calendars.rests_s(), *([due - now] if due is not None else [])]
        return max(0.0, min(rests_s))

    # --- backups

    def _back_up(self, demand: Demand, *, scan: bool, why: str) -> None:
        """One backup; whatever comes of it, this returns."""
        self._reporter.began("full" if demand.full else "backup", why, is_last=self._agenda.is_stopping)
        progress = RunProgress(demand.reply.progress, self._notifier.beat, self._board.count)
        look: Look | None = None
        try:
            watching = self._ensure_watching()
            self._spending.run_begins()
            look = watching.take(scan=scan or demand.full or demand.reread)
            outcome = self._runs.backup(demand, look.hints, progress)
        except Exception as error:  # the daemon outlives every failure of a run
            failure = for_people(error)
            if self._watching is not None and look is not None:
                self._watching.failed(look)
            self._owed = replace(demand, take_over=False, reply=Nobody())
            self._failed(failure)
            demand.reply.failed(failure)
            return
        watching.committed(look)
        outcome = replace(outcome, requests=self._spending.of_run())
        self._owed = None
        self._committed(outcome)
        demand.reply.done(outcome)

    def _ensure_watching(self) -> Watching:
        if self._watching is not None and self._watching.is_elsewhere():
            self._watching.stop()
            self._watching = None
        if self._watching is None:
            self._watching = self._start_watching(self._plan, self._agenda.wake)
        return self._watching

    def _committed(self, outcome: BackupOutcome) -> None:
        snapshot = outcome.snapshot
        if snapshot is not None and snapshot.kind == "full":
            self._calendars.full_was(snapshot.time_us / 1e6)
        self._retried()
        self._reporter.committed(outcome)
        self._show()
        if not self._calendars.knows_full or self._board.status.last_recovery_point is None:
            self._learn_history()

    def _learn_history(self) -> None:
        """What the repository tells of earlier lives: a full that was missed while nobody ran is due."""
        try:
            known = self._runs.known()
        except Exception as error:  # as in _back_up
            _log.info("the recovery points could not be listed: %s", for_people(error))
            return
        self._calendars.full_was(None if known is None else known.full_s)
        if known is not None:
            point = Point(known.id, utc_text(known.time_us / 1e6), known.kind)
            self._board.change(last_recovery_point=point)

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

    # --- checks, prunes and measures

    def _do_check(self) -> None:
        self._reporter.began("check", "due by the calendar", is_last=self._agenda.is_stopping)
        try:
            report = self._runs.check(RunProgress(Silent(), self._notifier.beat, self._board.count))
        except Exception as error:  # as in _back_up
            self._failed(for_people(error))
            return
        self._calendars.checked()
        self._retried()
        self._reporter.checked(report)
        self._show()

    def _do_prune(self) -> None:
        self._reporter.began("prune", "due by the calendar", is_last=self._agenda.is_stopping)
        try:
            done = self._runs.prune(RunProgress(Silent(), self._notifier.beat, self._board.count))
        except Exception as error:  # as in _back_up
            self._failed(for_people(error))
            return
        self._calendars.pruned()
        self._retried()
        self._reporter.pruned(done)
        self._show()

    def _measure(self) -> None:
        """Count what lies in the repository; it is for the status alone, so a failure is no matter."""
        self._owes_size = self._clock() + _SIZE_EVERY_S
        url = self._plan.settings.url
        try:
            objects, stored_bytes = self._runs.size(self._notifier.beat)
        except Exception as error:  # as in _back_up
            _log.info("the repository's size was not counted: %s", for_people(error))
            return
        self._board.change(repository=RepositoryStatus(url, objects, stored_bytes, self._board.now_text()))

    # --- how it stands

    def _failed(self, error: SmsnapError) -> None:
        # The next try opens it anew, with whatever credentials there are then.
        self._runs.forget()
        wait_s = self._retry.failed(self._clock())
        self._reporter.failed(error, wait_s, self._retry.failures)
        self._show()

    def _retried(self) -> None:
        if self._retry.failures:
            _log.info("it works again after %d failed runs", self._retry.failures)
        self._retry.succeeded()

    def _show(self) -> None:
        """Pin up what is pending, what comes next, and the state that goes with it."""
        before = self._board.status
        now = outlook(self._watching, self._retry, self._calendars, self._clock())
        tell_changes(before.watcher, now, before.gaps)
        pending, now["requests"] = now["pending"], self._spending.status()
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
        self._teller.use(plan)
        self._calendars = Calendars(plan)
        self._spending = self._spending.used(plan)
        self._retry.succeeded()
        self._owes_size = 0.0
        _log.info("the new configuration is in use")
