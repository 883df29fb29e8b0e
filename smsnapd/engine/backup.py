"""One backup: scan, plan, store on every core, catalog, manifest, index.

The order of things is what makes it safe: the lease first, then the head; chunks and catalog durable
before the manifest; the lease read again behind it; the local index last (architecture, invariants 1 and 8).
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from smsnapd import __version__
from smsnapd.engine.assembly import Assembler, Recorded
from smsnapd.engine.changes import ChangeSet, DirectoryChange
from smsnapd.engine.chunktable import ChunkTable, chunks_of
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.index import bring_up, head_of, rolled_back
from smsnapd.engine.pool import default_workers
from smsnapd.engine.progress import Progress
from smsnapd.engine.recheck import Rechecker
from smsnapd.engine.recording import Attachments, CatalogBuilder, chunk_rows, whole_tree, with_settled
from smsnapd.engine.storage import Storage
from smsnapd.engine.storing import StoreTask
from smsnapd.errors import UsageError
from smsnapd.format import names
from smsnapd.format.keys import DataKey
from smsnapd.format.manifest import Completeness, Issue, Manifest, ParentRef, Source, Statistics
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef, Entry, Listing, path_text
from smsnapd.repository import Repository
from smsnapd.repository.lease import Lease
from smsnapd.repository.manifests import Recorded as Committed
from smsnapd.repository.manifests import commit_manifest
from smsnapd.state import State, StateUpdate, move_state
from smsnapd.store.base import StoreSettings
from smsnapd.volume.attributes import Owners
from smsnapd.volume.mounts import find_mount, syncfs
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.still import held_read_only
from smsnapd.volume.tarball.read import PackReader
from smsnapd.volume.tree import Tree

UNSETTLED_NS: Final = 20_000_000
"""Coarse clocks hide a second write within a tick; no kernel's tick is longer than this."""

INLINE_BYTES: Final = 16 * 1024 * 1024
INLINE_ENTRIES: Final = 2000
"""Up to this much is stored by this process alone: starting others would take longer."""

ATTACH_BYTES: Final = 128 * 1024
"""Sealed bytes that a manifest carries with it at most, instead of objects of their own."""


@dataclass(frozen=True)
class BackupRequest:
    """What to back up and how. `root` is the volume's directory; `workers` None means one a core."""

    root: bytes
    volume: str
    state_dir: Path
    exclude: tuple[str, ...] = ()
    full: bool = False
    reread: bool = False
    dry_run: bool = False
    consistency: str = "live"
    level: int = 1
    workers: int | None = None


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
        state_dir = request.state_dir
        if request.consistency == "read-only":
            mount = find_mount(request.root)
            _check_not_within(mount.mount_point, settings)
            state_dir = stack.enter_context(_off_the_volume(state_dir, repository.repository_id, request))
        state = State.open(state_dir, repository.repository_id, request.volume)
        if request.consistency == "read-only":
            stack.enter_context(held_read_only(mount.mount_point))
        stack.callback(state.close)
        tree = stack.enter_context(Tree(request.root))
        run = _Run(repository, settings, request, progress, state, tree, clock_ns)
        stack.callback(run.close)
        return run.go(lease)


def _check_not_within(mount_point: bytes, settings: StoreSettings) -> None:
    """A repository on the volume itself cannot be written to while that is read-only."""
    url = urlsplit(settings.url)
    path = os.fsencode(unquote(url.path))
    if url.scheme == "file" and os.path.isdir(path) and find_mount(path).mount_point == mount_point:
        raise UsageError(
            "hold the volume read-only",
            "the repository lies on it",
            'set consistency = "live", or keep the repository elsewhere',
        )


@contextmanager
def _off_the_volume(state_dir: Path, repository_id: str, request: BackupRequest) -> Iterator[Path]:
    """A directory for the local state that is not on the volume, which takes no writes for a while.

    What is in it at the end goes back to where it belongs.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if state_dir.stat().st_dev != os.stat(request.root).st_dev:
        yield state_dir
        return
    path = State.path_of(state_dir, repository_id, request.volume)
    with tempfile.TemporaryDirectory(prefix="smsnapd-", dir="/var/tmp") as borrowed:
        move_state(path, Path(borrowed))
        try:
            yield Path(borrowed)
        finally:
            move_state(Path(borrowed, path.name), state_dir)


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
        self._changes = ChangeSet(state, reread=request.reread)
        self._reader = PackReader(tree, state.digest_key, Owners())
        self._filesystem = find_mount(tree.root).filesystem_uuid
        self._keys = repository.volume_keys(request.volume)
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
        self._scan(started_ns - UNSETTLED_NS)
        full = self._request.full or head is None
        if lease is None or (self._changes.empty and not full):
            return self._unchanged()
        return self._store(lease, head, started_ns, full)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._progress.note(text)

    def _scan(self, unsettled_from_ns: int) -> None:
        self._progress.phase("scan")
        excludes = Excludes(self._request.exclude, self._left_out())
        rechecker = Rechecker(self._reader, self._state, self._keys.chunk_names, unsettled_from_ns)
        listings = scan(self._tree, excludes, self._report)
        self._changes.compare(listings, _Unknown(self._report).covers, rechecker.settled)

    def _left_out(self) -> set[tuple[int, int]]:
        """Directories that no backup may contain: the index, and the repository if it is one."""
        paths = [os.fspath(self._request.state_dir)]
        url = urlsplit(self._settings.url)
        if url.scheme == "file":
            paths.append(unquote(url.path))
        found = [os.stat(path) for path in paths if os.path.isdir(path)]
        return {(status.st_dev, status.st_ino) for status in found}

    def _unreadable(self) -> list[Issue]:
        return [Issue(path, f"unreadable: {why}") for path, why in self._report.unreadable]

    def _unchanged(self) -> BackupOutcome:
        """There is nothing to commit, or nothing may be written."""
        if not self._request.dry_run:
            self._keep_settled()
        return self._outcome(None, self._changes.changed, self._changes.deleted, 0, self._unreadable())

    def _keep_settled(self) -> None:
        head = self._state.head
        if head is None or not self._changes.settled:
            return
        with self._state.update(anew=False) as update:
            for directory, settled in self._changes.settled.items():
                before = self._state.listing(directory)
                update.put(Listing(directory, with_settled(before, settled)), before)
            update.commit(head)

    def _outcome(
        self, committed: Committed | None, changed: int, deleted: int, new_bytes: int, incomplete: list[Issue]
    ) -> BackupOutcome:
        return BackupOutcome(
            snapshot=summarise(committed) if committed else None,
            changed=changed,
            deleted=deleted,
            files=self._changes.files_to_read,
            bytes=self._changes.bytes_to_read,
            new_bytes=new_bytes,
            incomplete=tuple(incomplete),
            notes=tuple(self._notes),
        )

    # --- storing

    def _store(self, lease: Lease, head: Committed | None, started_ns: int, full: bool) -> BackupOutcome:
        changes = self._changes
        self._progress.phase("store", files=changes.files_to_read, bytes=changes.bytes_to_read)
        table = ChunkTable(self._state.chunks(), self._usable_journal())
        inline = changes.bytes_to_read <= INLINE_BYTES and changes.changed <= INLINE_ENTRIES
        workers = self._request.workers if self._request.workers is not None else default_workers()
        storage = Storage(
            task=self._task(table, attach=inline),
            workers=0 if inline else workers,
            table=table,
            changes=changes,
            reader=self._reader,
            boundary_key=self._keys.boundaries,
            store=self._repository.store,
            journal=self._state.journal,
            renew=lease.renew,
            progress=self._progress,
        )
        with storage, self._state.update(anew=False) as update:
            before_of = self._state.listing if head else _nothing
            assembler = Assembler(before_of, started_ns - UNSETTLED_NS, storage.redo)
            catalog = CatalogBuilder(self._repository, self._request.volume, ATTACH_BYTES if inline else 0)
            used = self._record(assembler, storage, catalog, update, full)
            storage.finish()
            catalog.finish()
            incomplete = _by_path(self._unreadable() + assembler.incomplete)
            if not (full or assembler.stored or assembler.deleted):
                # Nothing of what changed could be read: the newest recovery point stays the newest.
                return self._outcome(None, 0, 0, 0, incomplete)
            manifest, attachments = self._manifest(
                lease, head, started_ns, full, assembler, incomplete, catalog, table, storage.stored_bytes
            )
            self._progress.phase("commit")
            committed = commit_manifest(self._repository, lease, manifest, attachments.data())
            self._update_index(update, committed, table, used if full else None)
        self._state.journal.clear()
        if assembler.lost_subtree:
            self._state.forget()
        new_bytes = manifest.statistics.stored_bytes
        return self._outcome(committed, assembler.stored, assembler.deleted, new_bytes, incomplete)

    def _usable_journal(self) -> list[ChunkRef]:
        """Chunks that a run before made durable without committing, if their data keys are there."""
        refs = self._state.journal.read()
        if not refs:
            return []
        prefix = names.data_keys_prefix(self._request.volume)
        keys = {info.name for info in self._repository.store.list(prefix)}
        chunks = {
            info.name for info in self._repository.store.list(names.chunks_prefix(self._request.volume))
        }
        volume = self._request.volume
        return [
            ref
            for ref in refs
            if names.data_key_name(volume, ref.key_id) in keys
            and names.chunk_name(volume, ref.name_hash, ref.key_id) in chunks
        ]

    def _task(self, table: ChunkTable, *, attach: bool) -> StoreTask:
        return StoreTask(
            root=self._request.root,
            repository_id=self._repository.id,
            volume=self._request.volume,
            chunk_names_key=self._keys.chunk_names,
            digest_key=self._state.digest_key,
            data_key=self._data_key(),
            known=table.known,
            level=self._request.level,
            settings=self._settings,
            attach_limit=ATTACH_BYTES if attach else 0,
            store=self._repository.store,
        )

    def _data_key(self) -> DataKey:
        """A key for this run's chunks; its object is put only if there will be any."""
        if self._changes.empty:
            return DataKey.generate()
        return self._repository.new_data_key(self._request.volume)

    def _record(
        self,
        assembler: Assembler,
        storage: Storage,
        catalog: CatalogBuilder,
        update: StateUpdate,
        full: bool,
    ) -> set[int]:
        """Store all changes; catalog and index get what they must. Returns the chunks in use, for a full."""
        used: set[int] = set()
        settled = dict(self._changes.settled)
        for whole, recorded in self._directories(assembler, storage, settled, full):
            if recorded is not None:
                update.put(recorded.after, recorded.before)
            if full:
                catalog.add(whole)
                used.update(chunks_of(whole.entries))
            elif recorded is not None:
                catalog.add(recorded.listing)
        for directory, entries in settled.items():
            before = self._state.listing(directory)
            update.put(Listing(directory, with_settled(before, entries)), before)
        return used

    def _directories(
        self, assembler: Assembler, storage: Storage, settled: dict[bytes, list[Entry]], full: bool
    ) -> Iterator[tuple[Listing, Recorded | None]]:
        outcomes = storage.outcomes()

        def record(change: DirectoryChange) -> Recorded:
            return assembler.directory(change, outcomes, settled.pop(change.directory, []))

        changes = self._changes.directories()
        if full:
            return whole_tree(self._state.listings(), changes, record, assembler.is_lost)
        return ((recorded.after, recorded) for recorded in map(record, changes))

    def _manifest(
        self,
        lease: Lease,
        head: Committed | None,
        started_ns: int,
        full: bool,
        assembler: Assembler,
        incomplete: list[Issue],
        catalog: CatalogBuilder,
        table: ChunkTable,
        stored_bytes: int,
    ) -> tuple[Manifest, Attachments]:
        name = ManifestName(
            volume=self._request.volume,
            sequence=head.name.sequence + 1 if head else 1,
            generation=lease.generation,
            time_us=started_ns // 1000,
            kind="full" if full else "incremental",
            snapshot=secrets.token_hex(8),
        )
        attachments = Attachments(name.object_name())
        chunks = chunk_rows(catalog, table, attachments)
        segments = tuple(attachments.add(ref, sealed) for ref, sealed in catalog.segments)
        tree = self._changes.tree
        manifest = Manifest(
            repository_id=self._repository.id,
            name=name,
            finished_us=self._clock_ns() // 1000,
            parent=ParentRef(head.name.snapshot, head.hash) if head else None,
            program=f"smsnapd {__version__}",
            host=socket.gethostname(),
            source=Source(path_text(self._tree.root), self._filesystem),
            consistency="read-only" if self._request.consistency == "read-only" else "live",
            completeness=Completeness(
                method="scan",
                complete=not incomplete,
                incomplete=tuple(incomplete),
                vanished=(*self._report.vanished, *assembler.vanished),
                skipped=tuple(Issue(path, why) for path, why in self._report.skipped),
            ),
            statistics=Statistics(
                entries=tree.entries,
                files=tree.files,
                bytes=tree.bytes,
                stored_bytes=stored_bytes + catalog.stored_bytes,
                changed=assembler.stored,
                deleted=assembler.deleted,
            ),
            owners=catalog.owners(),
            chunks=chunks,
            catalog=segments,
        )
        return manifest, attachments

    def _update_index(
        self, update: StateUpdate, committed: Committed, table: ChunkTable, used: set[int] | None
    ) -> None:
        new = table.new()
        if used is not None:
            update.drop_chunks(table.all_numbers() - used)
            new = {number: ref for number, ref in new.items() if number in used}
        update.put_chunks(new)
        update.commit(head_of(committed, self._tree.root, self._filesystem))


def _by_path(issues: list[Issue]) -> list[Issue]:
    """Each path once, with the first thing that was said of it."""
    first = {issue.path: issue for issue in reversed(issues)}
    return sorted(first.values())


def _nothing(directory: bytes) -> list[Entry]:
    """What an index has that is empty still."""
    return []


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
