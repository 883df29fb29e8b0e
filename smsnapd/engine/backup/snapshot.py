"""Writing one snapshot of what a scan found: chunks, catalog, manifest, and the index behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from smsnapd.engine.backup.assembly import Assembler, Recorded
from smsnapd.engine.backup.changes import ChangeSet, DirectoryChange
from smsnapd.engine.backup.fresh import FreshTree
from smsnapd.engine.backup.recording import put_settled, whole_tree
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.storage import Storage
from smsnapd.engine.backup.storing import StoreTask
from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.committing import commit, new_manifest, tables_of
from smsnapd.engine.chain.index import Parent, move_on, next_name
from smsnapd.engine.chain.reuse import known_chunks
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.environment.companion import Companion
from smsnapd.engine.environment.keeping import put_report
from smsnapd.engine.environment.leaving import LEFT_OUT
from smsnapd.engine.pool import default_workers
from smsnapd.engine.progress import Progress
from smsnapd.errors import VolumeError
from smsnapd.format.keys import DataKey
from smsnapd.format.manifest import Completeness, Issue, Manifest, Source, Statistics
from smsnapd.format.names import SnapshotKind
from smsnapd.model import Entry, Listing, path_text
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded as Committed
from smsnapd.state import State, StateUpdate
from smsnapd.store.base import StoreSettings
from smsnapd.volume.mounts import bytes_in_use, find_mount
from smsnapd.volume.scan import ScanReport
from smsnapd.volume.tarball.read import Packed, PackReader

UNSETTLED_NS: Final = 20_000_000
"""Coarse clocks hide a second write within a tick; no kernel's tick is longer than this."""

INLINE_BYTES: Final = 16 * 1024 * 1024
INLINE_ENTRIES: Final = 2000
"""Up to this much is stored by this process alone: starting others would take longer."""

INLINE_COMPARED: Final = 2 << 30
"""And up to so many bytes of large files that were there before: mostly little of them has changed."""

ATTACH_BYTES: Final = 128 * 1024
"""Sealed bytes that a manifest carries with it at most, instead of objects of their own."""


@dataclass(frozen=True)
class Scanned:
    """What one scan found. `root` and `filesystem` say of which volume; `reader` reads it."""

    changes: ChangeSet | FreshTree
    report: ScanReport
    reader: PackReader
    root: bytes
    filesystem: str
    started_ns: int
    method: Literal["scan", "events"]
    known_incomplete: tuple[Issue, ...] = ()

    def unreadable(self) -> list[Issue]:
        """What could not be looked at, and what could not be before and was not looked at again."""
        return [*self.known_incomplete, *self._unreadable_now()]

    def _unreadable_now(self) -> list[Issue]:
        return [Issue(path, f"unreadable: {why}") for path, why in self.report.unreadable]


@dataclass(frozen=True)
class Written:
    """What came of it; `committed` is None if nothing of what had changed could be read."""

    committed: Committed | None
    changed: int
    deleted: int
    new_bytes: int
    incomplete: list[Issue]


class SnapshotWriter:
    """Writes one snapshot."""

    def __init__(
        self,
        repository: Repository,
        settings: StoreSettings,
        request: BackupRequest,
        state: State,
        scanned: Scanned,
        progress: Progress,
        companion: Companion,
        clock_ns: Callable[[], int],
    ) -> None:
        """`companion` has a full's report, and knows what is left out."""
        self._companion = companion
        self._repository = repository
        self._settings = settings
        self._request = request
        self._state = state
        self._scanned = scanned
        self._changes = scanned.changes
        self._progress = progress
        self._clock_ns = clock_ns
        self._keys = repository.volume_keys(request.volume)

    def write(self, tenure: Tenure, head: Parent | None, full: bool) -> Written:
        """Store what changed and commit; the index moves on behind it."""
        changes, lease = self._changes, tenure.lease
        changes.look_ahead(INLINE_ENTRIES, INLINE_BYTES, lease.renew)
        if changes.is_counted:
            self._progress.phase("store", files=changes.files_to_read, bytes=changes.bytes_to_read)
        else:
            # Nobody has counted yet; of a whole file system it is known about how much there is.
            self._progress.phase("store", bytes=bytes_in_use(self._scanned.root))
        table = known_chunks(
            self._repository,
            self._request.volume,
            tenure,
            self._state.chunks(),
            self._state.journal.read(),
        )
        inline = (
            changes.is_counted
            and changes.changed <= INLINE_ENTRIES
            and changes.bytes_to_read - changes.bytes_to_compare <= INLINE_BYTES
            and changes.bytes_to_compare <= INLINE_COMPARED
        )
        attach_bytes = ATTACH_BYTES if inline else 0
        storage = self._storage(table, tenure, attach_bytes, inline=inline)
        with storage, self._state.update(anew=False) as update:
            unsettled_from_ns = self._scanned.started_ns - UNSETTLED_NS
            assembler = Assembler(self._state.listing, unsettled_from_ns, storage.redo)
            catalog = CatalogBuilder(self._repository, self._request.volume, attach_bytes)
            self._record(assembler, storage, catalog, update, full)
            storage.finish()
            catalog.finish()
            incomplete = by_path(self._scanned.unreadable() + assembler.incomplete)
            told = head is not None and incomplete == [*head.incomplete]
            if not (full or assembler.stored or assembler.deleted) and told:
                return Written(None, 0, 0, 0, incomplete)
            kind: SnapshotKind = "full" if full else "incremental"
            name = next_name(self._request.volume, head, lease, self._scanned.started_ns, kind)
            tables = tables_of(name, catalog, table, table.attached)
            new_bytes = storage.stored_bytes + catalog.stored_bytes
            manifest = new_manifest(
                self._repository,
                name,
                head,
                self._clock_ns(),
                tables,
                source=Source(path_text(self._scanned.root), self._scanned.filesystem),
                consistency="read-only" if self._request.consistency == "read-only" else "live",
                completeness=self._completeness(incomplete, assembler.vanished),
                statistics=Statistics(
                    *update.counts,
                    stored_bytes=new_bytes,
                    changed=assembler.stored,
                    deleted=assembler.deleted,
                ),
                owners=catalog.owners(),
            )
            manifest = with_report(manifest, self._repository, tenure, self._companion)
            self._progress.phase("commit")
            self._check_held()
            fresh = table.fresh(tables.by_number)
            committed = commit(
                self._repository, tenure, manifest, tables.attached, fresh.values(), self._request.grace_s
            )
            move_on(
                update,
                committed,
                self._scanned.root,
                self._scanned.filesystem,
                self._state.rewrites,
                chunks=fresh,
                left_out=self._companion.leaving.saved(),
            )
        self._state.journal.clear()
        return Written(committed, assembler.stored, assembler.deleted, new_bytes, incomplete)

    def _check_held(self) -> None:
        """VolumeError if the volume was to be held read-only and is so no more; all has been read by now."""
        if (
            self._request.consistency == "read-only"
            and "ro" not in find_mount(self._scanned.root).super_options
        ):
            raise VolumeError(
                f"read {path_text(self._scanned.root)} while it is held read-only",
                "it became writable before everything was read",
                'nothing was committed; run it again, or set consistency = "live"',
            )

    def _storage(self, table: ChunkTable, tenure: Tenure, attach_bytes: int, *, inline: bool) -> Storage:
        task = StoreTask(
            root=self._request.root,
            repository_id=self._repository.id,
            volume=self._request.volume,
            chunk_names_key=self._keys.chunk_names,
            digest_key=self._state.digest_key,
            # The object of one is put only if there will be chunks for it.
            data_key=DataKey.unusable() if self._changes.empty else tenure.data_key(),
            known=table.known,
            level=self._request.level,
            settings=self._settings,
            attach_limit=attach_bytes,
            store=self._repository.store,
            threads=len(os.sched_getaffinity(0)) if inline else 1,
        )
        workers = self._request.workers
        if workers is None:
            workers = default_workers(self._settings.url)
        return Storage(
            task=task,
            workers=0 if inline else workers,
            table=table,
            reader=self._scanned.reader,
            boundary_key=self._keys.boundaries,
            store=self._repository.store,
            journal=self._state.journal,
            renew=tenure.lease.renew,
            progress=self._progress,
        )

    def _record(
        self,
        assembler: Assembler,
        storage: Storage,
        catalog: CatalogBuilder,
        update: StateUpdate,
        full: bool,
    ) -> None:
        """Store all changes; catalog and index get what they must."""
        settled = dict(self._changes.settled)
        for whole, recorded in self._directories(assembler, storage, settled, full):
            if recorded is not None:
                update.put(recorded.after, recorded.before)
            if full:
                catalog.add(whole)
            elif recorded is not None:
                catalog.add(recorded.listing)
        put_settled(self._state, update, settled)

    def _directories(
        self, assembler: Assembler, storage: Storage, settled: dict[bytes, list[Entry]], full: bool
    ) -> Iterator[tuple[Listing, Recorded | None]]:
        def record(stored: tuple[DirectoryChange, list[Packed]]) -> Recorded:
            change, packed = stored
            return assembler.directory(change, packed, settled.pop(change.directory, []))

        recorded = map(record, storage.outcomes(self._changes.directories()))
        if full:
            return whole_tree(self._state.listings(), recorded)
        return ((directory.after, directory) for directory in recorded)

    def _completeness(self, incomplete: list[Issue], vanished: Iterable[bytes]) -> Completeness:
        """`vanished` is what was gone when it was to be stored."""
        return Completeness(
            method=self._scanned.method,
            complete=not incomplete,
            incomplete=tuple(incomplete),
            vanished=(*self._scanned.report.vanished, *vanished),
            skipped=self._skipped(),
        )

    def _skipped(self) -> tuple[Issue, ...]:
        """What the volume has and the snapshot has not, on purpose."""
        left_out = ((environment.path, LEFT_OUT) for environment in self._companion.leaving.held)
        return tuple(Issue(path, why) for path, why in (*self._scanned.report.skipped, *left_out))


def with_report(manifest: Manifest, repository: Repository, tenure: Tenure, companion: Companion) -> Manifest:
    """The manifest with the environment report, if there is one: a chunk that no entry names."""
    report = companion.report(tenure.lease.renew)
    if not report:
        return manifest
    ref = put_report(repository, manifest.name.volume, tenure.data_key(), report)
    return replace(manifest, chunks=(*manifest.chunks, ref), environment=ref.name_hash)


def by_path(issues: list[Issue]) -> list[Issue]:
    """Each path once, with the first thing that was said of it."""
    first = {issue.path: issue for issue in reversed(issues)}
    return sorted(first.values())
