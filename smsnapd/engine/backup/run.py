"""One backup: scan, plan, store on every core, catalog, manifest, index.

The order of things is what makes it safe: the lease first, then the head; chunks and catalog durable
before the manifest; the lease read again behind it; the local index last (architecture, invariants 1 and 8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

from smsnapd.engine.backup.changes import ChangeSet
from smsnapd.engine.backup.fresh import FreshTree
from smsnapd.engine.backup.heldvolume import opened_state
from smsnapd.engine.backup.looks import HintedLooks, Hints, Look, look_everywhere, stat_entry
from smsnapd.engine.backup.recheck import Rechecker
from smsnapd.engine.backup.recording import put_settled
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.scanning import StampedScan
from smsnapd.engine.backup.snapshot import UNSETTLED_NS, Scanned, SnapshotWriter, by_path
from smsnapd.engine.chain.index import (
    LostTreeError,
    Parent,
    begin_anew,
    bring_up,
    continued_elsewhere,
    cut_off,
    parent_of,
)
from smsnapd.engine.chain.leaseplace import lease_note
from smsnapd.engine.chain.sparse import forget_sparse, sparse_among
from smsnapd.engine.chain.tenure import Tenure, taken_over
from smsnapd.engine.collector import collected_seldom
from smsnapd.engine.environment.companion import Companion
from smsnapd.engine.environment.judging import Judged
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.pool import default_workers
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune.shortcuts import is_due, make_shortcuts
from smsnapd.engine.restore.extras import left_out
from smsnapd.errors import DamageError, VolumeError
from smsnapd.format import names
from smsnapd.format.manifest import Issue
from smsnapd.model import Entry, Listing, path_text
from smsnapd.repository import Repository
from smsnapd.repository.lease import Lease
from smsnapd.state import State
from smsnapd.store.base import StoreSettings
from smsnapd.store.counting import Requests
from smsnapd.volume.attributes import Owners
from smsnapd.volume.mounts import find_mount, syncfs
from smsnapd.volume.scan import Excludes, ScanReport, list_directory, scan
from smsnapd.volume.tarball.read import PackReader
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
    if request.dry_run:
        return _run(repository, settings, request, progress, None, clock_ns)
    held = tenure or begun_here(repository, request)
    try:
        held.begin(take_over=request.take_over)
        with collected_seldom():
            return _run(repository, settings, request, progress, held, clock_ns)
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


def _run(
    repository: Repository,
    settings: StoreSettings,
    request: BackupRequest,
    progress: Progress,
    tenure: Tenure | None,
    clock_ns: Callable[[], int],
) -> BackupOutcome:
    notes: list[str] = []
    if not (request.mode == "block" and request.full):
        outcome = _of_files(repository, settings, request, progress, tenure, clock_ns, notes)
        if outcome is not None:
            return outcome
    return _of_device(repository, settings, request, progress, tenure, clock_ns, notes)


def _of_files(
    repository: Repository,
    settings: StoreSettings,
    request: BackupRequest,
    progress: Progress,
    tenure: Tenure | None,
    clock_ns: Callable[[], int],
    notes: list[str],
) -> BackupOutcome | None:
    """A snapshot of the tree; None if there must be an image first, and this told `notes` why."""
    # What the setting says is for fulls, if these are images: between them nobody is to wait.
    consistency = "live" if request.mode == "block" else request.consistency
    request = replace(request, consistency=consistency or "live")
    with ExitStack() as stack:
        state = stack.enter_context(
            opened_state(
                request.state_dir,
                repository.repository_id,
                request.volume,
                request.root,
                settings.url,
                read_only=request.consistency == "read-only",
            )
        )
        tree = stack.enter_context(Tree(request.root))
        run = _Run(repository, settings, request, progress, state, tree, clock_ns, notes)
        stack.callback(run.close)
        outcome = run.go(tenure)
    if run.left_sparse:
        # Not before: it may lie on the volume, which may have been read-only until now.
        forget_sparse(request.state_dir, repository.repository_id, request.volume)
    return outcome


def _of_device(
    repository: Repository,
    settings: StoreSettings,
    request: BackupRequest,
    progress: Progress,
    tenure: Tenure | None,
    clock_ns: Callable[[], int],
    notes: list[str],
) -> BackupOutcome:
    """An image of the volume's device; on a dry run what one would read."""
    from smsnapd.engine.image.run import bytes_in_use, run_image

    request = replace(request, consistency=request.consistency or "freeze")
    if tenure is None:
        size = bytes_in_use(request)
        return BackupOutcome(None, 0, 0, 0, size, size, (), tuple(notes))
    taken = run_image(repository, settings, request, progress, tenure, clock_ns, notes)
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
        notes=tuple(notes),
    )


class _Run:
    """One run, from the scan to the commit."""

    def __init__(
        self,
        repository: Repository,
        settings: StoreSettings,
        request: BackupRequest,
        progress: Progress,
        state: State,
        tree: Tree,
        clock_ns: Callable[[], int],
        notes: list[str],
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._request = request
        self._progress = progress
        self._state = state
        self._tree = tree
        self._clock_ns = clock_ns
        self._report = ScanReport()
        self._filesystem = find_mount(tree.root).filesystem_uuid
        self._reader = PackReader(tree, state.digest_key, Owners())
        self._changes: ChangeSet | FreshTree = FreshTree(())
        self._notes = notes
        self._lost = False
        self.left_sparse = False
        """Whether a full was committed: it has left the chunks that were remembered as sparse."""
        self._companion = Companion(request.root, request.environment, progress)

    def close(self) -> None:
        """Let go of what the run holds; safe at any moment."""
        self._companion.close()
        self._changes.close()

    def go(self, tenure: Tenure | None) -> BackupOutcome | None:
        """Do it; None, and nothing is done, if an image is due. Without a tenure nothing is written."""
        lease = None
        if tenure is not None:
            lease = tenure.lease
            self._note_taken(lease)
        head = self._known_head(tenure) or self._listed_head(tenure)
        full = self._request.full or head is None or self._lost
        self._refuse_empty(head)
        if full and self._request.mode == "block":
            return None
        if full and self._state.is_bare and tenure is not None:
            # Entries that lie in an image have no extents that a full of files could name.
            self._state.forget()
        left: frozenset[int] = frozenset()
        if full:
            where = self._request.state_dir, self._repository.repository_id, self._request.volume
            left = sparse_among(*where, self._state.chunks())
        hints = self._usable_hints(head, full)
        candidates = self._may_be_left_out(tenure, full)
        started_ns = self._started_ns(hints)
        # Writes dirty pages back: a write through mmap to one moves no ctime until then (invariant 3).
        syncfs(self._tree.open_directory(b""))
        hints = self._leave(candidates, hints)
        known = self._scan(started_ns - UNSETTLED_NS, lease, head, hints, left)
        scanned = Scanned(
            self._changes,
            self._report,
            self._reader,
            self._tree.root,
            self._filesystem,
            started_ns,
            "scan" if known is None else "events",
            known or (),
        )
        told = head is not None and by_path(scanned.unreadable()) == [*head.incomplete]
        if tenure is None or (self._changes.empty and told and not full):
            return self._unchanged(scanned.unreadable(), write=tenure is not None)
        writer = SnapshotWriter(
            self._repository,
            self._settings,
            self._request,
            self._state,
            scanned,
            self._progress,
            self._companion,
            self._clock_ns,
        )
        written = writer.write(tenure, head, full)
        if written.committed is not None:
            tenure.stands_at(parent_of(written.committed))
            self.left_sparse = full
            if is_due(written.committed.name):
                make_shortcuts(self._repository, self._request.volume)
        return self._outcome(
            summarise(written.committed) if written.committed else None,
            written.changed,
            written.deleted,
            written.new_bytes,
            written.incomplete,
        )

    def _note_taken(self, lease: Lease) -> None:
        """Say once from whom the lease was taken."""
        if text := taken_over(lease):
            self._note(text)

    def _known_head(self, tenure: Tenure | None) -> Parent | None:
        """The newest commit, if it is known without asking, and the index mirrors it."""
        if tenure is None:
            return None
        return tenure.known_head(self._state.head, self._tree.root, self._filesystem)

    def _refuse_empty(self, head: Parent | None) -> None:
        """VolumeError for an empty directory where a volume was: that is not mounted, or a new one."""
        if head is None or self._request.full or head.filesystem in ("", self._filesystem):
            return
        excludes = Excludes(self._request.exclude, self._left_out())
        entries = list_directory(self._tree, excludes, ScanReport(), b"").entries
        if all(entry.name in (b"", b"lost+found") for entry in entries):
            raise VolumeError(
                f"back up {path_text(self._tree.root)}",
                "it is empty, and on another file system than what was backed up last",
                "mount or restore the volume; if empty is what it should be: smsnap backup --full",
            )

    def _listed_head(self, tenure: Tenure | None) -> Parent | None:
        """The newest commit, of the manifests as they are listed now."""
        history = History.load(self._repository, self._request.volume)
        if tenure is not None:
            tenure.listed(history)
        if text := cut_off(history, self._state):
            self._note(text)
        head = self._head(history)
        if tenure is not None:
            tenure.stands_at(head)
        return head

    def _head(self, history: History) -> Parent | None:
        """The newest commit; the index mirrors it, or is empty if it is damaged and a full was asked for."""
        try:
            if elsewhere := continued_elsewhere(history, self._state, self._filesystem):
                self._note(elsewhere)
            return bring_up(self._repository, history, self._state, self._tree.root, self._filesystem)
        except LostTreeError as error:
            self._note(f"{error.why}: a new full is made")
            self._lost = True
            return begin_anew(self._repository, history, self._state)
        except DamageError as error:
            if not self._request.full:
                hint = "recovery points from here on need a new full: smsnap backup --full"
                raise DamageError(error.what, error.why, hint) from error
            self._note(
                f"what the volume was backed up to before cannot be read ({error.why}): all is read again"
            )
            return begin_anew(self._repository, history, self._state)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._progress.note(text)

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
        now_ns = self._clock_ns()
        return now_ns if hints is None or hints.as_of_ns is None else min(now_ns, hints.as_of_ns)

    def _may_be_left_out(self, tenure: Tenure | None, full: bool) -> list[Judged]:
        """The environments that this run need not store; a full begins to look at what needs a report."""
        if full and tenure is not None:
            self._companion.begin(self._left_out())
        return self._companion.candidates(self._state.left_out, tenure.lease.renew if tenure else _nothing)

    def _leave(self, candidates: list[Judged], hints: Hints | None) -> Hints | None:
        """Leave out those that are as they were; where hints lead, all of the others is looked at."""
        self._companion.leave(candidates, hints)
        back = self._companion.leaving.back
        return hints and hints._replace(subtrees=hints.subtrees.union(back))

    def _scan(
        self,
        unsettled_from_ns: int,
        lease: Lease | None,
        head: Parent | None,
        hints: Hints | None,
        left: frozenset[int],
    ) -> tuple[Issue, ...] | None:
        """Find what changed. None after a full scan; after a hinted one, what is incomplete still."""
        self._progress.phase("scan")
        excludes = Excludes(self._request.exclude, self._left_out())
        if lease is not None and self._state.head is None:
            self._changes.close()
            self._changes = FreshTree(self._everything(excludes))
            return None
        names_key = self._repository.volume_keys(self._request.volume).chunk_names
        rechecker = Rechecker(self._reader, self._state, names_key, unsettled_from_ns)
        restat = None if hints is None else self._stat_now
        changes = self._begin(ChangeSet(self._state, reread=self._request.reread, restat=restat), left)
        if hints is not None and head is not None:
            # What could not be read may be by now, and nothing tells of it.
            again = {issue.path for issue in head.incomplete}
            hints = hints._replace(subtrees=hints.subtrees | again)
            looks = HintedLooks(self._tree, excludes, self._report, self._state, hints)
            self._compare(changes, _renewing(lease, looks), rechecker)
            if not changes.lacks_names():
                return tuple(issue for issue in head.incomplete if not looks.covered(issue.path))
            # Where hints do not reach, a scan of everything decides.
            self._report = ScanReport()
            changes = self._begin(ChangeSet(self._state, reread=self._request.reread), left)
        renew = lease.renew if lease is not None else _nothing
        with closing(self._everywhere(excludes, changes, renew)) as everywhere:
            self._compare(changes, everywhere, rechecker)
        return None

    def _everywhere(
        self, excludes: Excludes, changes: ChangeSet, renew: Callable[[], None]
    ) -> Generator[Look, None, None]:
        """The looks at all that there is, or at what differs, if nothing else is asked for."""
        if changes.takes_stat_for_it:
            workers = self._request.workers
            workers = default_workers(self._settings.url) if workers is None else workers
            yield from StampedScan(self._tree, excludes, self._report, self._state, workers).looks(renew)
        else:
            scanned = scan(self._tree, excludes, self._report)
            for look in look_everywhere(scanned, self._state.listings()):
                renew()
                yield look

    def _begin(self, changes: ChangeSet, left: frozenset[int]) -> ChangeSet:
        """Go on with these changes; what lies in the chunks `left` is to be stored anew."""
        self._changes.close()
        self._changes = changes
        changes.leave(left)
        return changes

    def _compare(self, changes: ChangeSet, looks: Iterable[Look], rechecker: Rechecker) -> None:
        changes.compare(looks, _Unknown(self._report).covers, rechecker.settled)
        self._refuse_gone()

    def _everything(self, excludes: Excludes) -> Iterator[Listing]:
        """The whole volume; VolumeError at the end if there was none."""
        yield from scan(self._tree, excludes, self._report)
        self._refuse_gone()

    def _refuse_gone(self) -> None:
        if b"" in self._report.vanished:
            raise VolumeError(f"scan the volume {path_text(self._tree.root)}", "its root directory is gone")

    def _stat_now(self, path: bytes, indexed: Entry) -> Entry | None:
        return stat_entry(self._tree, self._report, path, indexed)

    def _left_out(self) -> set[tuple[int, int]]:
        own = left_out(self._request.state_dir, self._settings.url)
        return own | self._companion.leaving.directories

    def _unchanged(self, unreadable: list[Issue], *, write: bool) -> BackupOutcome:
        """There is nothing to commit, or nothing may be written."""
        if write:
            self._keep_settled()
        new_bytes = 0 if write else self._changes.bytes_to_read
        return self._outcome(None, self._changes.changed, self._changes.deleted, new_bytes, unreadable)

    def _keep_settled(self) -> None:
        head = self._state.head
        if head is None or (self._state.is_scanned and not self._changes.settled):
            return
        with self._state.update(anew=False) as update:
            put_settled(self._state, update, self._changes.settled)
            update.commit(head, left_out=self._companion.leaving.saved())

    def _outcome(
        self,
        snapshot: SnapshotSummary | None,
        changed: int,
        deleted: int,
        new_bytes: int,
        incomplete: list[Issue],
    ) -> BackupOutcome:
        return BackupOutcome(
            snapshot=snapshot,
            changed=changed,
            deleted=deleted,
            files=self._changes.files_to_read,
            bytes=self._changes.bytes_to_read,
            new_bytes=new_bytes,
            incomplete=tuple(incomplete),
            notes=(*self._notes, *self._companion.notes),
        )


def _nothing() -> None:
    """Renew no lease: a dry run has none."""


def _renewing(lease: Lease | None, looks: Iterable[Look]) -> Iterator[Look]:
    """`looks`; the lease must not end while they are taken, which may be long."""
    for look in looks:
        if lease is not None:
            lease.renew()
        yield look


class _Unknown:
    """The paths that a scan could not look at: they, and what lies below them, stay as they were."""

    def __init__(self, report: ScanReport) -> None:
        self._report = report
        self._seen = 0
        self._paths: set[bytes] = set()

    def covers(self, path: bytes) -> bool:
        """Whether nothing is known of `path`."""
        unreadable = self._report.unreadable
        if self._seen < len(unreadable):
            self._paths.update(known for known, _ in unreadable[self._seen :])
            self._seen = len(unreadable)
        if not self._paths:
            return False
        while path and path not in self._paths:
            path = path.rpartition(b"/")[0]
        return path in self._paths
