"""One prune: volume by volume, lists and manifests read, garbage marked, what is ripe swept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from smsnapd.engine.chain.remembered import newest_remembered
from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune.detaching import put_attached
from smsnapd.engine.prune.known_locks import KnownLocks
from smsnapd.engine.prune.lists import Lists, read_lists
from smsnapd.engine.prune.locking import Locker, LockTerms
from smsnapd.engine.prune.marking import Marker
from smsnapd.engine.prune.plan import Fate, Plan, Standing
from smsnapd.engine.prune.references import HINT, References
from smsnapd.engine.prune.report import Amount, PruneReport, PruneRequest, VolumePruned
from smsnapd.engine.prune.sweep import Sweep
from smsnapd.engine.prune.thin import Thinner, listed_strictly
from smsnapd.engine.spool import Spool
from smsnapd.errors import DamageError, DeniedError, LockedError, SmsnapError, StoreError, UsageError
from smsnapd.format import names
from smsnapd.format.names import ManifestName, parse_disposable
from smsnapd.repository import Repository
from smsnapd.repository.lease import Lease
from smsnapd.store.base import ObjectInfo

WORKING_FILES: Final = Path("/var/tmp")
"""A place on disk: /tmp may be memory."""

log = logging.getLogger(__name__)


def run_prune(repository: Repository, request: PruneRequest, progress: Progress) -> PruneReport:
    """List what nothing refers to, and delete what was listed longer ago than the grace period.

    A volume that cannot be pruned is reported with its error, and the others are pruned all the same.
    Raises UsageError for a volume that is not there, and StoreError if the store cannot be reached. May be
    cut off at any moment, and run at the same time as backups, restores and other prunes.
    """
    pruned: list[VolumePruned] = []
    for volume in _volumes(repository, request):
        try:
            pruned.append(_Prune(repository, volume, request, progress).go())
        except StoreError as error:
            if error.transient or request.volume is not None:
                raise
            pruned.append(VolumePruned(volume, error=error))
        except SmsnapError as error:
            pruned.append(VolumePruned(volume, error=error))
    return PruneReport(tuple(pruned))


def _volumes(repository: Repository, request: PruneRequest) -> list[str]:
    volume = request.volume
    if volume is None:
        return repository.volumes()
    names.check_volume_name(volume)
    if not repository.holds(volume):
        raise UsageError(f"prune volume {volume}", "the repository does not hold it")
    return [volume]


class _Prune:
    """One volume's."""

    def __init__(
        self, repository: Repository, volume: str, request: PruneRequest, progress: Progress
    ) -> None:
        self._repository = repository
        self._store = repository.store
        self._volume = volume
        self._request = request
        self._progress = progress
        self._references = References(repository, volume)
        self._notes: list[str] = []
        self._done = VolumePruned(volume)

    def go(self) -> VolumePruned:
        """Look at everything, put what is new on lists, delete what is ripe."""
        now_s = self._store.now()
        # The lists first: what they tell of the newest manifest must be in the listing of manifests.
        lists = read_lists(self._repository, self._volume, now_s, self._request.grace_s)
        self._done = replace(self._done, refused=tuple(lists.refused))
        history = self._read_manifests()
        for known in lists.known:
            self._references.check_head(known.head)
        history = self._thin(history, now_s)
        self._done = replace(self._done, points=len(history.names))
        self._reckon(history)
        plan = Plan(self._references.needs, lists.waiting, lists.ripe)
        with closing(Spool(ObjectInfo, WORKING_FILES)) as new:
            with self._locker(now_s) as keep:
                self._look(plan, new, keep)
            if not self._request.dry_run:
                self._mark(new, lists)
        if self._request.dry_run:
            self._done = replace(self._done, may_delete=self._may_delete())
        else:
            self._sweep(lists, plan, now_s)
            self._abandon_uploads(now_s)
        return replace(self._done, notes=(*lists.notes, *self._notes))

    # --- looking

    def _read_manifests(self) -> History:
        """Learn what there is."""
        history = listed_strictly(self._repository, self._volume)
        self._check_newest(history)
        self._progress.phase(f"read the manifests of {self._volume}", files=len(history.names))
        self._references.read(history.names, lambda: self._progress.advance(files=1))
        return history

    def _check_newest(self, history: History) -> None:
        """What this machine remembers having committed must be there, or else its chunks would go too."""
        directory = self._request.state_dir
        if directory is None:
            return
        newest = newest_remembered(directory, self._repository.repository_id, self._volume, self._note)
        fenced = {(name.sequence, name.snapshot) for name in history.fenced}
        if newest is not None and newest not in fenced and not history.accounts_for(*newest):
            why = f"snapshot {newest[1]}, made from here, is not there: a newest end was cut off"
            raise DamageError(f"read {names.manifests_prefix(self._volume)}", why, HINT)

    def _reckon(self, history: History) -> None:
        """What the recovery points need is needed, and so are the shortcuts to them that are whole."""
        shortcuts = self._references.read_shortcuts(history.useful_shortcuts)
        others = [*history.fenced, *history.replaced, *(set(history.shortcuts) - set(shortcuts))]
        self._references.reckon([*history.names, *shortcuts], others)

    def _thin(self, history: History, now_s: float) -> History:
        """Let recovery points go, as the policy says; what there is then."""
        if self._request.policy.keeps_all or not history.names:
            return history
        thinner = Thinner(self._repository, history, self._references, self._request, self._progress, now_s)
        after = thinner.suppose() if self._request.dry_run else thinner.thin()
        self._notes += thinner.notes
        refused = (*self._done.refused, *thinner.refused)
        self._done = replace(
            self._done,
            removed=len(thinner.removed),
            sparse=thinner.sparse,
            rewritten=thinner.rewritten,
            refused=refused,
        )
        return after

    @contextmanager
    def _locker(self, now_s: float) -> Iterator[Callable[[str], object]]:
        """What takes the names of needed objects, and has seen to their locks at the end of the `with`."""
        request = self._request
        if not request.lock_s:
            yield lambda name: None
            return
        directory, repository = request.state_dir, self._repository.repository_id
        path = directory and KnownLocks.path_of(directory, repository, self._volume)
        known = KnownLocks(path)
        terms = LockTerms(now_s, request.lock_s)
        try:
            with Locker(self._store, terms, known, dry_run=request.dry_run) as locker:
                locker.add_records(self._volume)
                yield locker.add
                locker.finish()
        finally:
            known.close(now_s)
        self._done = replace(self._done, locks=locker.extended, lock_error=locker.error)
        if locker.left:
            self._note(f"the locks of {locker.left:,} objects are for the next prune to look at")

    def _look(self, plan: Plan, new: Spool[ObjectInfo], keep: Callable[[str], object]) -> None:
        """Look at all: `new` gets what nothing refers to and no list names, `keep` what is needed."""
        self._progress.phase(f"look at the objects of {self._volume}")
        amounts = dict.fromkeys(Fate, Amount())
        wanted, seen = self._references.needs.wanted(), set[str]()
        for info in self._store.list(names.volume_prefix(self._volume)):
            item = parse_disposable(info.name)
            if item is not None:
                if isinstance(item, ManifestName):
                    self._release(plan, item, seen)
                else:
                    seen.update({info.name} & wanted)
                fate = plan.fate(info.name, item, info.size)
                amounts[fate] = amounts[fate].plus(info.size)
                if fate is Fate.NEW:
                    new.add(info)
                elif fate is Fate.NEEDED:
                    keep(info.name)
            self._progress.advance(files=1)
        waiting, ripe = amounts[Fate.WAITING], amounts[Fate.RIPE]
        if self._request.dry_run:
            listed = amounts[Fate.NEW]
            self._done = replace(self._done, listed=listed, deleted=ripe, waiting=_sum(waiting, listed))
        else:
            self._done = replace(self._done, waiting=_sum(waiting, ripe))

    def _release(self, plan: Plan, host: ManifestName, seen: Collection[str]) -> None:
        """See to it that a manifest can go that others have something attached to; `seen` are objects.

        What is on a list is not relied upon. Of a host on a list somebody has seen to it before.
        """
        name = host.object_name()
        wanted = self._references.needs.wanted_of(name)
        if not wanted or any(map(plan.is_listed, wanted)):
            return
        try:
            if plan.is_listed(name):
                is_free = wanted.issubset(seen)
            else:
                is_free = self._request.dry_run or put_attached(self._repository, host, wanted)
        except DamageError as error:
            self._done = replace(self._done, refused=(*self._done.refused, (name, error.why)))
            return
        if is_free:
            self._references.needs.release(name)

    # --- marking

    def _mark(self, new: Spool[ObjectInfo], lists: Lists) -> None:
        """Put what is new on lists, under the lease: nobody is at work then who would refer to it yet.

        The lease is held for this alone, and not while everything is looked at.
        """
        try:
            lease = Lease.take(self._store, self._repository.id, self._volume)
        except LockedError as error:
            self._note(f"nothing was listed, for {error.why}; its own prune lists what is garbage")
        else:
            try:
                marker = self._mark_under(lease, new)
            finally:
                lease.release()
            waiting = _sum(self._done.waiting, marker.amount)
            self._done = replace(self._done, marked=True, listed=marker.amount, waiting=waiting)
            self._tell_waiting([*lists.times_us(Standing.WAITING), *marker.listed_us])
            return
        self._tell_waiting(lists.times_us(Standing.WAITING))

    def _mark_under(self, lease: Lease, new: Spool[ObjectInfo]) -> Marker:
        """Learn what has been committed since everything was looked at, and list the rest."""
        history = listed_strictly(self._repository, self._volume)
        lease.rise_above(history.highest_generation)
        self._references.read(history.names, lease.renew)
        self._reckon(history)
        marker = Marker(self._repository, self._volume, self._references, lease)
        for info in new:
            item = parse_disposable(info.name)
            if item is not None and not self._references.needs.covers(item):
                marker.add(info.name, info.size)
        marker.finish()
        return marker

    def _tell_waiting(self, times_us: list[int]) -> None:
        """When the first of what waits may go."""
        if times_us and self._done.waiting.objects:
            until = min(times_us) + int(self._request.grace_s * 1e6)
            self._done = replace(self._done, waiting_until_us=min(until, names.TIME_MAX_US))

    # --- sweeping

    def _sweep(self, lists: Lists, plan: Plan, now_s: float) -> None:
        self._progress.phase(f"delete from {self._volume}")
        with Sweep(self._repository, plan, now_s, self._tell_deleted) as sweep:
            try:
                for known in lists.standing_as(Standing.VOID):
                    sweep.forget(known.name)
                ripe = lists.standing_as(Standing.RIPE, Standing.SPENT)
                swept = [known for known in ripe if sweep.sweep(known.name)]
                sweep.sweep_data_keys()
                for known in swept:
                    if known.standing is Standing.SPENT and not sweep.kept:
                        sweep.forget(known.name)
                may_delete = self._may_delete()
            except DeniedError as error:
                log.info("%s", error)
                may_delete = False
        gone, before = sweep.amount, self._done.waiting
        self._done = replace(
            self._done,
            deleted=gone,
            kept=sweep.kept,
            waiting=Amount(before.objects - gone.objects, before.bytes - gone.bytes),
            may_delete=may_delete,
        )
        if not may_delete:
            self._note(
                "nothing may be deleted from here; what is listed is for `smsnap prune` elsewhere, run by"
                " somebody who may (for S3: `smsnap iam-policy pruner`)"
            )

    def _tell_deleted(self, size: int) -> None:
        self._progress.advance(files=1, bytes=size)

    def _may_delete(self) -> bool:
        try:
            self._store.try_delete(names.volume_prefix(self._volume))
        except DeniedError:
            return False
        return True

    def _abandon_uploads(self, now_s: float) -> None:
        """What unfinished uploads left below the volume; ours are of one request, so none is ours."""
        if not self._done.may_delete:
            return
        try:
            count = self._store.abandon_uploads(
                names.volume_prefix(self._volume), now_s - self._request.grace_s
            )
        except DeniedError as error:
            self._note(f"unfinished uploads were not looked for: {error.why}")
            return
        self._done = replace(self._done, uploads=count)

    def _note(self, text: str) -> None:
        self._notes.append(text)


def _sum(one: Amount, other: Amount) -> Amount:
    return Amount(one.objects + other.objects, one.bytes + other.bytes)
