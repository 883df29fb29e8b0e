"""One backup: scan, plan, store on every core, catalog, manifest, index.

The order of things is what makes it safe: the lease first, then the head; chunks and catalog durable
before the manifest; the lease read again behind it; the local index last (architecture, invariants 1 and 8).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from smsnapd.engine.backup.finding import Finder, Scanned, by_path, check_not_empty
from smsnapd.engine.backup.following import find_head
from smsnapd.engine.backup.heldvolume import opened_state
from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.recording import put_settled
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.snapshot import SnapshotWriter, Written
from smsnapd.engine.chain.index import Parent, parent_of
from smsnapd.engine.chain.leaseplace import lease_note
from smsnapd.engine.chain.sparse import forget_sparse, sparse_among
from smsnapd.engine.chain.tenure import Tenure, taken_over
from smsnapd.engine.collector import collected_seldom
from smsnapd.engine.environment.companion import Companion
from smsnapd.engine.environment.judging import Judged
from smsnapd.engine.given import Given
from smsnapd.engine.history import SnapshotSummary, summarise
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune.shortcuts import is_due, make_shortcuts
from smsnapd.engine.restore.extras import left_out
from smsnapd.format import names
from smsnapd.format.manifest import Issue
from smsnapd.repository import Repository
from smsnapd.state import State
from smsnapd.store.base import StoreSettings
from smsnapd.store.counting import Requests
from smsnapd.volume.mounts import find_mount, syncfs
from smsnapd.volume.scan import Excludes
from smsnapd.volume.tree import Tree

__all__ = ["BackupOutcome", "BackupRequest", "begun_here", "run_backup"]


@dataclass(frozen=True)
class BackupOutcome:
    """What a run did. `snapshot` is None if nothing had changed, or on a dry run.

    `new_bytes` are stored, sealed ones; of a dry run those that it would read, and store at most. `requests`
    are what the run asked of S3, as whoever started it has counted; None if nobody did.
    """

    snapshot: SnapshotSummary | None
    changed: int
    deleted: int
    files: int
    bytes: int
    new_bytes: int
    incomplete: tuple[Issue, ...]
    notes: tuple[str, ...] = ()
    requests: Requests | None = None


def run_backup(
    repository: Repository,
    settings: StoreSettings,
    request: BackupRequest,
    progress: Progress,
    *,
    tenure: Tenure | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> BackupOutcome:
    """Make one snapshot of a volume: incremental if there is a chain and no full is asked for.

    `tenure` is that of a caller who makes several, and releases it; without one it lasts for this run.
    Raises LockedError if another writer has the lease, VolumeError if the volume cannot be read,
    StoreError or DamageError from the repository. Whatever happens, a recovery point exists only if
    it is whole.
    """
    names.check_volume_name(request.volume)
    given = Given(repository, settings, request, progress, clock_ns)
    if request.dry_run:
        return _run(given, None)
    held = tenure or begun_here(repository, request)
    try:
        held.begin(take_over=request.take_over)
        with collected_seldom():
            return _run(given, held)
    except BaseException:
        held.forget()
        raise
    finally:
        if tenure is None:
            held.release()


def begun_here(repository: Repository, request: BackupRequest) -> Tenure:
    """A tenure of the writer whose local state the request names."""
    note = partial(lease_note, request.state_dir, repository.repository_id, request.volume)
    return Tenure(repository, request.volume, open_note=note)


def _run(given: Given[BackupRequest], tenure: Tenure | None) -> BackupOutcome:
    """Without a tenure nothing is written."""
    if not (given.request.mode == "block" and given.request.full):
        outcome = _of_files(given, tenure)
        if outcome is not None:
            return outcome
    return _of_device(given, tenure)


def _holding(given: Given[BackupRequest], consistency: str) -> Given[BackupRequest]:
    """The same, with a way to hold the volume."""
    return replace(given, request=replace(given.request, consistency=consistency))


def _of_files(given: Given[BackupRequest], tenure: Tenure | None) -> BackupOutcome | None:
    """A snapshot of the tree; None if there must be an image first, and this told the notes why."""
    # What the setting says is for fulls, if these are images: between them nobody is to wait.
    consistency = "live" if given.request.mode == "block" else given.request.consistency
    given = _holding(given, consistency or "live")
    request, repository_id = given.request, given.repository.repository_id
    with ExitStack() as stack:
        state = stack.enter_context(
            opened_state(
                request.state_dir,
                repository_id,
                request.volume,
                request.root,
                given.settings.url,
                read_only=request.consistency == "read-only",
            )
        )
        tree = stack.enter_context(Tree(request.root))
        run = _Run(given, tenure, state, tree)
        stack.callback(run.close)
        outcome = run.go()
    if run.left_sparse:
        # Not before: it may lie on the volume, which may have been read-only until now.
        forget_sparse(request.state_dir, repository_id, request.volume)
    return outcome


def _of_device(given: Given[BackupRequest], tenure: Tenure | None) -> BackupOutcome:
    """An image of the volume's device; on a dry run what one would read."""
    from smsnapd.engine.image.run import bytes_in_use, run_image

    given = _holding(given, given.request.consistency or "freeze")
    if tenure is None:
        size = bytes_in_use(given.request)
        return BackupOutcome(None, 0, 0, 0, size, size, (), tuple(given.notes))
    taken = run_image(given, tenure)
    tenure.stands_at(parent_of(taken.committed))
    summary = summarise(taken.committed)
    return BackupOutcome(
        snapshot=summary,
        changed=taken.stored_cells,
        deleted=0,
        files=summary.files,
        bytes=summary.bytes,
        new_bytes=summary.stored_bytes,
        incomplete=summary.incomplete,
        notes=tuple(given.notes),
    )


class _Run:
    """One run of files, from the head to the commit."""

    def __init__(self, given: Given[BackupRequest], tenure: Tenure | None, state: State, tree: Tree) -> None:
        self._given = given
        self._request = given.request
        self._tenure = tenure
        self._renew: Callable[[], None] = tenure.lease.renew if tenure is not None else _nothing
        self._state = state
        self._tree = tree
        self._filesystem = find_mount(tree.root).filesystem_uuid
        self._finder = Finder(given, state, tree, self._filesystem, self._renew)
        self._companion = Companion(given.request.root, given.request.environment, given.progress)
        self.left_sparse = False
        """Whether a full was committed: it has left the chunks that were remembered as sparse."""

    def close(self) -> None:
        """Let go of what the run holds; safe at any moment."""
        self._companion.close()
        self._finder.close()

    def go(self) -> BackupOutcome | None:
        """Do it; None, and nothing is done, if an image is due."""
        tenure = self._tenure
        if tenure is not None and (text := taken_over(tenure.lease)):
            self._given.note(text)
        head, lost = find_head(self._given, tenure, self._state, self._tree.root, self._filesystem)
        full = self._request.full or head is None or lost
        self._refuse_empty(head)
        if full and self._request.mode == "block":
            return None
        if full and self._state.is_bare and tenure is not None:
            # Entries that lie in an image have no extents that a full of files could name.
            self._state.forget()
        scanned = self._scan(head, full)
        told = head is not None and by_path(scanned.unreadable()) == [*head.incomplete]
        if tenure is None or (scanned.changes.empty and told and not full):
            return self._outcome(self._unchanged(scanned), scanned)
        writer = SnapshotWriter(self._given, self._state, scanned, self._companion)
        written = writer.write(tenure, head, full)
        if written.committed is not None:
            tenure.stands_at(parent_of(written.committed))
            self.left_sparse = full
            if is_due(written.committed.name):
                make_shortcuts(self._given.repository, self._request.volume)
        return self._outcome(written, scanned)

    def _refuse_empty(self, head: Parent | None) -> None:
        """VolumeError for an empty directory, on another file system, where a volume was."""
        if head is not None and not self._request.full and head.filesystem not in ("", self._filesystem):
            check_not_empty(self._tree, self._excludes())

    def _excludes(self) -> Excludes:
        return Excludes(self._request.exclude, self._left_out())

    def _left_out(self) -> set[tuple[int, int]]:
        own = left_out(self._request.state_dir, self._given.settings.url)
        return own | self._companion.leaving.directories

    # --- what changed

    def _scan(self, head: Parent | None, full: bool) -> Scanned:
        left = self._sparse() if full else frozenset[int]()
        hints = self._usable_hints(head, full)
        candidates = self._may_be_left_out(full)
        started_ns = self._started_ns(hints)
        # Writes dirty pages back: a write through mmap to one moves no ctime until then (invariant 3).
        syncfs(self._tree.open_directory(b""))
        hints = self._leave(candidates, hints)
        incomplete = head.incomplete if head is not None else ()
        return self._finder.find(self._excludes(), started_ns, hints, incomplete, left)

    def _sparse(self) -> frozenset[int]:
        """The chunks that a full is to leave."""
        where = self._request.state_dir, self._given.repository.repository_id, self._request.volume
        return sparse_among(*where, self._state.chunks())

    def _usable_hints(self, head: Parent | None, full: bool) -> Hints | None:
        """The hints, if it will do to look where they say.

        An index that was made from catalogs may be of somebody else's commit, of another volume even: what
        was heard of changes since a commit of our own says nothing about what differs from that.
        """
        everything = full or self._request.reread or head is None or not self._state.is_scanned
        return None if everything else self._request.hints

    def _started_ns(self, hints: Hints | None) -> int:
        """The moment that the snapshot stands for: whatever was done by then is in it.

        Taking the lease and listing the chain may have taken long, and hints know nothing of what was done
        meanwhile elsewhere.
        """
        now_ns = self._given.clock_ns()
        return now_ns if hints is None or hints.as_of_ns is None else min(now_ns, hints.as_of_ns)

    def _may_be_left_out(self, full: bool) -> list[Judged]:
        """The environments that this run need not store; a full begins to look at what needs a report."""
        if full and self._tenure is not None:
            self._companion.begin(self._left_out())
        return self._companion.candidates(self._state.left_out, self._renew)

    def _leave(self, candidates: list[Judged], hints: Hints | None) -> Hints | None:
        """Leave out those that are as they were; where hints lead, all of the others is looked at."""
        self._companion.leave(candidates, hints)
        back = self._companion.leaving.back
        return hints and hints._replace(subtrees=hints.subtrees.union(back))

    # --- what came of it

    def _unchanged(self, scanned: Scanned) -> Written:
        """There is nothing to commit, or nothing may be written."""
        changes, new_bytes = scanned.changes, 0
        if self._tenure is None:
            new_bytes = changes.bytes_to_read
        else:
            self._keep_settled(scanned)
        return Written(None, changes.changed, changes.deleted, new_bytes, scanned.unreadable())

    def _keep_settled(self, scanned: Scanned) -> None:
        head = self._state.head
        if head is None or (self._state.is_scanned and not scanned.changes.settled):
            return
        with self._state.update(anew=False) as update:
            put_settled(self._state, update, scanned.changes.settled)
            update.commit(head, left_out=self._companion.leaving.saved())

    def _outcome(self, written: Written, scanned: Scanned) -> BackupOutcome:
        return BackupOutcome(
            snapshot=summarise(written.committed) if written.committed is not None else None,
            changed=written.changed,
            deleted=written.deleted,
            files=scanned.changes.files_to_read,
            bytes=scanned.changes.bytes_to_read,
            new_bytes=written.new_bytes,
            incomplete=tuple(written.incomplete),
            notes=(*self._given.notes, *self._companion.notes),
        )


def _nothing() -> None:
    """Renew no lease: a dry run has none."""
