"""One run: a backup, a check or a prune; from run to run the repository stays open and the lease is kept."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from smsnapd.daemon import considerate
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.protection import retention_policy
from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupOutcome, begun_here, run_backup
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.check import CheckReport, CheckRequest, run_check
from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune import PruneRequest, VolumePruned, run_prune
from smsnapd.errors import LockedError, SmsnapError, StoreError, UsageError
from smsnapd.repository import Repository
from smsnapd.store import open_store

_KEPT_OPEN_S: Final = 86400.0
"""Recipients and writers may have changed: the repository's records are read again once a day."""
_KEEP_AGAIN_S: Final = 120.0
"""After the lease could not be renewed, the next try waits for so long: each may take a while."""
_TIDY_EVERY_S: Final = 60.0
_BEAT_EVERY: Final = 1000
_log = logging.getLogger(__name__)


class Known(NamedTuple):
    """What the repository's listing tells: the newest recovery point, and the last full's time (seconds)."""

    id: str
    time_us: int
    kind: str
    full_s: float | None


class Runs:
    """Does what it is told, once. For one thread."""

    def __init__(
        self, plan: Plan, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._clock = clock
        self._repository: Repository | None = None
        self._tenure: Tenure | None = None
        self._is_open = False
        self._opened_s = 0.0
        self._keep_from_s = 0.0
        self._tidy_from_s = 0.0
        self._place: tuple[int, int] | None = None

    def close(self) -> None:
        """Give the lease back and close the repository; another run would open it anew."""
        tenure, self._tenure = self._tenure, None
        if tenure is not None:
            tenure.release()
        self.forget()
        self._repository = None

    def forget(self) -> None:
        """After a failure: what is known is forgotten, and the next run opens the repository anew.

        The lease's record stays, so that nobody else goes on with the chain before that run.
        """
        self._is_open = False
        if self._tenure is not None:
            self._tenure.forget()
        if self._repository is not None:
            self._repository.close()

    def use(self, plan: Plan) -> None:
        """Another configuration holds from the next run on."""
        self.close()
        self._plan = plan

    def keep(self) -> None:
        """Extend the lease if it is time to; to be called while nothing is due, every minute or so."""
        if self._tenure is None or not self._is_open or self._clock() < self._keep_from_s:
            return
        try:
            self._tenure.keep()
        except LockedError as error:
            _log.warning("%s", error)
            self.forget()
        except StoreError as error:
            _log.info("the lease was not renewed: %s", error)
            self._keep_from_s = self._clock() + _KEEP_AGAIN_S

    def backup(self, demand: Demand, hints: Hints | None, progress: Progress) -> BackupOutcome:
        """One snapshot, of what `hints` name or of everything that changed. Raises what the engine raises."""
        request = replace(
            self._plan.request,
            mode=demand.mode or self._plan.request.mode,
            full=demand.full,
            reread=demand.reread,
            take_over=demand.take_over,
            hints=hints,
        )
        try:
            repository = self._opened()
            return run_backup(repository, self._plan.settings, request, progress, tenure=self._tenure)
        finally:
            # Of small ones a thousand fit into an hour: all that they leave together is enough.
            if hints is None or self._clock() >= self._tidy_from_s:
                self._tidy_from_s = self._clock() + _TIDY_EVERY_S
                considerate.give_back_memory()

    def check(self, progress: Progress) -> CheckReport:
        """Verify this volume's chains, that every object is there, and the bytes of a share of them."""
        plan = self._plan
        shares = plan.config.schedule.check_shares
        request = CheckRequest(
            plan.request.volume, (0, shares) if shares else None, None, plan.request.state_dir
        )
        return run_check(self._opened(), plan.settings, request, progress)

    def prune(self, progress: Progress) -> VolumePruned:
        """Let recovery points go as configured, list garbage, and delete what was listed long enough ago.

        Raises as a backup does.
        """
        plan, repository = self._plan, self._opened()
        place = plan.request.volume, plan.request.grace_s
        # Lists are made under the lease. What was begun under this one, a data key too, is given up with it.
        if self._tenure is not None:
            self._tenure.release()
        try:
            asked = PruneRequest(
                *place,
                state_dir=plan.request.state_dir,
                lock_s=plan.settings.lock_s,
                policy=retention_policy(plan.config),
            )
            (pruned,) = run_prune(repository, asked, progress).volumes
        finally:
            considerate.give_back_memory()
        if pruned.error is not None:
            raise pruned.error
        self._take_again()
        return pruned

    def _take_again(self) -> None:
        """Take the lease, so that nobody else goes on with the chain before the next run."""
        try:
            if self._tenure is not None:
                self._tenure.begin()
        except SmsnapError as error:
            _log.info("the lease was not taken again: %s", error)

    def known(self) -> Known | None:
        """The newest recovery point; None if there is none. Names tell it, no manifest is opened."""
        names = History.load(self._opened(), self._plan.request.volume).names
        if not names:
            return None
        full_us = max((name.time_us for name in names if name.kind == "full"), default=None)
        newest = names[-1]
        full_s = None if full_us is None else full_us / 1e6
        return Known(newest.snapshot, newest.time_us, newest.kind, full_s)

    def size(self, beat: Callable[[], None]) -> tuple[int, int]:
        """How many objects the whole repository has, and their bytes; `beat` is called while it is listed."""
        objects = stored_bytes = 0
        for objects, info in enumerate(self._opened().store.list(""), start=1):
            stored_bytes += info.size
            if objects % _BEAT_EVERY == 0:
                beat()
        return objects, stored_bytes

    def _opened(self) -> Repository:
        is_old = self._clock() - self._opened_s > _KEPT_OPEN_S
        if self._repository is not None and self._is_open and not is_old and self._place == self._place_now():
            return self._repository
        self.forget()
        repository = self._open()
        self._opened_s, self._place = self._clock(), self._place_now()
        self._repository, self._is_open = repository, True
        self._tenure = begun_here(repository, self._plan.request)
        return repository

    def _open(self) -> Repository:
        credentials = self._plan.credentials(self._environment)
        if credentials is None:
            raise UsageError(
                "open the repository",
                "there is neither a passphrase nor a write key",
                "set [encryption] passphrase_file, passphrase_command or write_key_file",
            )
        store = open_store(self._plan.settings)
        try:
            return Repository.open(store, credentials)
        except BaseException:
            store.close()
            raise

    def _place_now(self) -> tuple[int, int] | None:
        """Which directory a repository in one is: a disk may have been changed for another."""
        url = urlsplit(self._plan.settings.url)
        if url.scheme != "file":
            return None
        try:
            status = os.stat(unquote(url.path))
        except OSError:
            return None
        return status.st_dev, status.st_ino
