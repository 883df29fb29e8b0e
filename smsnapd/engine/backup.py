"""One backup: scan, plan, store on every core, catalog, manifest, index.

The order of things is what makes it safe: the lease first, then the head; chunks and catalog durable
before the manifest; the lease read again behind it; the local index last (architecture, invariants 1 and 8).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from smsnapd.engine.changes import ChangeSet
from smsnapd.engine.heldvolume import opened_state
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.index import bring_up, rolled_back
from smsnapd.engine.looks import HintedLooks, look_everywhere, stat_entry
from smsnapd.engine.progress import Progress
from smsnapd.engine.recheck import Rechecker
from smsnapd.engine.recording import with_settled
from smsnapd.engine.snapshot import UNSETTLED_NS, BackupRequest, Scanned, SnapshotWriter
from smsnapd.format import names
from smsnapd.format.manifest import Issue
from smsnapd.model import Entry, Listing
from smsnapd.repository import Repository
from smsnapd.repository.lease import Lease
from smsnapd.repository.manifests import Recorded
from smsnapd.state import State
from smsnapd.store.base import StoreSettings
from smsnapd.volume.attributes import Owners
from smsnapd.volume.mounts import find_mount, syncfs
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.tarball.read import PackReader
from smsnapd.volume.tree import Tree

__all__ = ["BackupOutcome", "BackupRequest", "run_backup"]


@dataclass(frozen=True)
class BackupOutcome:
    """What a run did. `snapshot` is None if nothing had changed, or on a dry run."""

    snapshot: SnapshotSummary | None
    changed: int
    deleted: int
    files: int
    bytes: int
    new_bytes: int
    incomplete: tuple[Issue, ...]
    notes: tuple[str, ...] = ()


def run_backup(
    repository: Repository,
    settings: StoreSettings,
    request: BackupRequest,
    progress: Progress,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
) -> BackupOutcome:
    """Make one snapshot of a volume: incremental if there is a chain and no full is asked for.

    Raises LockedError if another writer has the lease, VolumeError if the volume cannot be read,
    StoreError or DamageError from the repository. Whatever happens, a recovery point exists only if
    it is whole.
    """
    names.check_volume_name(request.volume)
    with ExitStack() as stack:
        lease = None
        if not request.dry_run:
            lease = _take_lease(repository, request.volume)
            stack.callback(lease.release)
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
        run = _Run(repository, settings, request, progress, state, tree, clock_ns)
        stack.callback(run.close)
        return run.go(lease)


def _take_lease(repository: Repository, volume: str) -> Lease:
    def highest() -> int:
        listed = History.load(repository, volume)
        return max((name.generation for name in (*listed.names, *listed.fenced)), default=0)

    return Lease.take(repository.store, repository.id, volume, highest_generation=highest)


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
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._request = request
        self._progress = progress
        self._state = state
        self._tree = tree
        self._clock_ns = clock_ns
        self._report = ScanReport()
        restat = None if request.hints is None else self._stat_now
        self._changes = ChangeSet(state, reread=request.reread, restat=restat)
        self._reader = PackReader(tree, state.digest_key, Owners())
        self._filesystem = find_mount(tree.root).filesystem_uuid
        self._notes: list[str] = []

    def close(self) -> None:
        """Let go of what the run holds; safe at any moment."""
        self._changes.close()

    def go(self, lease: Lease | None) -> BackupOutcome:
        """Do it. Without a lease nothing is written (a dry run)."""
        history = History.load(self._repository, self._request.volume)
        if rolled_back(history, self._state):
            self._note(
                "recovery points that were made from here are no longer in the repository: run `smsnap check`"
            )
        head = bring_up(self._repository, history, self._state, self._tree.root, self._filesystem)
        started_ns = self._clock_ns()
        # Writes dirty pages back: a write through mmap to one moves no ctime until then (invariant 3).
        syncfs(self._tree.open_directory(b""))
        full = self._request.full or head is None
        known = self._scan(started_ns - UNSETTLED_NS, head, full)
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
        if lease is None or (self._changes.empty and not full):
            return self._unchanged(scanned.unreadable(), write=lease is not None)
        writer = SnapshotWriter(
            self._repository,
            self._settings,
            self._request,
            self._state,
            scanned,
            self._progress,
            self._clock_ns,
        )
        written = writer.write(lease, head, full)
        return self._outcome(
            summarise(written.committed) if written.committed else None,
            written.changed,
            written.deleted,
            written.new_bytes,
            written.incomplete,
        )

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._progress.note(text)

    def _scan(self, unsettled_from_ns: int, head: Recorded | None, full: bool) -> tuple[Issue, ...] | None:
        """Find what changed. None after a full scan; after a hinted one, what is incomplete still."""
        self._progress.phase("scan")
        names_key = self._repository.volume_keys(self._request.volume).chunk_names
        excludes = Excludes(self._request.exclude, self._left_out())
        rechecker = Rechecker(self._reader, self._state, names_key, unsettled_from_ns)
        hints, counts = self._request.hints, self._state.counts
        if hints is not None and counts is not None and head is not None and not full:
            looks = HintedLooks(self._tree, excludes, self._report, self._state, hints)
            self._changes.compare(looks, _Unknown(self._report).covers, rechecker.settled, counts)
            if not self._changes.lacks_names():
                issues = head.manifest.completeness.incomplete
                return tuple(issue for issue in issues if not looks.covered(issue.path))
            self._changes.close()
            self._report = ScanReport()
            self._changes = ChangeSet(self._state)
        everywhere = look_everywhere(scan(self._tree, excludes, self._report), self._state.listings())
        self._changes.compare(everywhere, _Unknown(self._report).covers, rechecker.settled)
        return None

    def _stat_now(self, path: bytes, indexed: Entry) -> Entry | None:
        return stat_entry(self._tree, self._report, path, indexed)

    def _left_out(self) -> set[tuple[int, int]]:
        """Directories that no backup may contain: the index, and the repository if it is one."""
        paths = [os.fspath(self._request.state_dir)]
        url = urlsplit(self._settings.url)
        if url.scheme == "file":
            paths.append(unquote(url.path))
        found = [os.stat(path) for path in paths if os.path.isdir(path)]
        return {(status.st_dev, status.st_ino) for status in found}

    def _unchanged(self, unreadable: list[Issue], *, write: bool) -> BackupOutcome:
        """There is nothing to commit, or nothing may be written."""
        if write:
            self._keep_settled()
        return self._outcome(None, self._changes.changed, self._changes.deleted, 0, unreadable)

    def _keep_settled(self) -> None:
        head = self._state.head
        if head is None or not self._changes.settled:
            return
        with self._state.update(anew=False) as update:
            for directory, settled in self._changes.settled.items():
                before = self._state.listing(directory)
                update.put(Listing(directory, with_settled(before, settled)), before)
            update.commit(head, None)

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
            notes=tuple(self._notes),
        )


class _Unknown:
    """The paths that a scan could not look at: they, and what lies below them, stay as they were."""

    def __init__(self, report: ScanReport) -> None:
        self._report = report
        self._paths: set[bytes] = set()

    def covers(self, path: bytes) -> bool:
        """Whether nothing is known of `path`."""
        unreadable = self._report.unreadable
        if not unreadable:
            return False
        if len(self._paths) != len(unreadable):
            self._paths = {known for known, _ in unreadable}
        while path:
            if path in self._paths:
                return True
            path = path.rpartition(b"/")[0]
        return False
