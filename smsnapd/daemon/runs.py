"""One run: a backup or a check, with a repository that stays open from run to run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from smsnapd.daemon import considerate
from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.plan import Plan
from smsnapd.engine.backup import BackupOutcome, run_backup
from smsnapd.engine.check import CheckReport, CheckRequest, run_check
from smsnapd.engine.history import History
from smsnapd.engine.looks import Hints as Looks
from smsnapd.engine.progress import Progress
from smsnapd.errors import UsageError
from smsnapd.repository import Repository
from smsnapd.store import open_store
from smsnapd.volume.watch import Hints

_KEPT_OPEN_S: Final = 86400.0
"""Recipients and writers may have changed: the repository's records are read again once a day."""
_BEAT_EVERY: Final = 1000


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
        self._opened_s = 0.0
        self._place: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the repository; the next run opens it anew."""
        if self._repository is not None:
            self._repository.close()
            self._repository = None

    def use(self, plan: Plan) -> None:
        """Another configuration holds from the next run on."""
        self.close()
        self._plan = plan

    def backup(self, demand: Demand, hints: Hints | None, progress: Progress) -> BackupOutcome:
        """One snapshot, of what `hints` name or of everything that changed. Raises what the engine raises."""
        looks = None if hints is None else Looks(hints.directories, hints.subtrees)
        request = replace(self._plan.request, full=demand.full, reread=demand.reread, hints=looks)
        try:
            return run_backup(self._opened(), self._plan.settings, request, progress)
        finally:
            if looks is None:  # of the others a thousand fit into an hour, and each is small
                considerate.give_back_memory()

    def check(self, progress: Progress) -> CheckReport:
        """Verify this volume's chains, and that every object is there."""
        plan = self._plan
        request = CheckRequest(plan.request.volume, None, None, plan.request.state_dir)
        return run_check(self._opened(), plan.settings, request, progress)

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
        if self._repository is not None and (is_old or self._place != self._place_now()):
            self.close()
        if self._repository is None:
            self._repository = self._open()
            self._opened_s, self._place = self._clock(), self._place_now()
        return self._repository

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
