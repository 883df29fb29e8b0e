"""Writing one snapshot of what a scan found: chunks, catalog, manifest, and the index behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from smsnapd.engine.backup.assembly import Assembler, Recorded
from smsnapd.engine.backup.changes import DirectoryChange
from smsnapd.engine.backup.finding import Scanned, by_path
from smsnapd.engine.backup.recording import put_settled, whole_tree
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.storage import Storage
from smsnapd.engine.backup.storing import StoreTask
from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.committing import commit, new_manifest, tables_of
from smsnapd.engine.chain.index import Parent, move_on, next_name
from smsnapd.engine.chain.known import known_chunks
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.environment.companion import Companion
from smsnapd.engine.environment.keeping import put_report
from smsnapd.engine.environment.leaving import LEFT_OUT
from smsnapd.engine.given import Given
from smsnapd.errors import VolumeError
from smsnapd.format.keys import DataKey
from smsnapd.format.manifest import Completeness, Issue, Manifest, Source, Statistics
from smsnapd.format.names import SnapshotKind
from smsnapd.model import Entry, Listing, path_text
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded as Committed
from smsnapd.state import State, StateUpdate
from smsnapd.volume.mounts import bytes_in_use, find_mount
from smsnapd.volume.tarball.read import Packed

INLINE_BYTES: Final = 16 * 1024 * 1024
INLINE_ENTRIES: Final = 2000
"""Up to this much is stored by this process alone: starting others would take longer."""

INLINE_COMPARED: Final = 2 << 30
"""And up to so many bytes of large files that were there before: mostly little of them has changed."""

ATTACH_BYTES: Final = 128 * 1024
"""Sealed bytes that a manifest carries with it at most, instead of objects of their own."""


@dataclass(frozen=True)
class Written:
    """What came of it; `committed` is None if nothing of what had changed could be read."""

    committed: Committed | None
    changed: int
    deleted: int
    new_bytes: int
    incomplete: list[Issue]


class _Work(NamedTuple):
    """What is under way until the commit."""

    table: ChunkTable
    storage: Storage
    assembler: Assembler
    catalog: CatalogBuilder
    update: StateUpdate


class SnapshotWriter:
    """Writes one snapshot."""

    def __init__(
        self, given: Given[BackupRequest], state: State, scanned: Scanned, companion: Companion
    ) -> None:
        """`companion` has a full's report, and knows what is left out."""
        self._companion = companion
        self._given = given
        self._repository = given.repository
        self._request = given.request
        self._state = state
        self._scanned = scanned
        self._changes = scanned.changes
        self._keys = given.repository.volume_keys(given.request.volume)

    def write(self, tenure: Tenure, head: Parent | None, full: bool) -> Written:
        """Store what changed and commit; the index moves on behind it."""
        self._look_ahead(tenure.lease.renew)
        committed, journal = self._state.chunks(), self._state.journal.read()
        table = known_chunks(self._repository, self._request.volume, tenure, committed, journal)
        inline = self._is_little()
        attach_bytes = ATTACH_BYTES if inline else 0
        storage = self._storage(table, tenure, attach_bytes, inline=inline)
        with storage, self._state.update(anew=False) as update:
            work = _Work(
                table,
                storage,
                Assembler(self._state.listing, self._scanned.unsettled_from_ns, storage.redo),
                CatalogBuilder(self._repository, self._request.volume, attach_bytes),
                update,
            )
            self._record(work, full)
            storage.finish()
            work.catalog.finish()
            incomplete = by_path(self._scanned.unreadable() + work.assembler.incomplete)
            told = head is not None and incomplete == [*head.incomplete]
            if not (full or work.assembler.stored or work.assembler.deleted) and told:
                return Written(None, 0, 0, 0, incomplete)
            kind: SnapshotKind = "full" if full else "incremental"
            written = self._commit(work, tenure, head, kind, incomplete)
        self._state.journal.clear()
        return written

    def _look_ahead(self, renew: Callable[[], None]) -> None:
        """Find out how much there is to store, unless that is much, and tell."""
        changes = self._changes
        changes.look_ahead(INLINE_ENTRIES, INLINE_BYTES, renew)
        if changes.is_counted:
            self._given.progress.phase("store", files=changes.files_to_read, bytes=changes.bytes_to_read)
        else:
            # Nobody has counted yet; of a whole file system it is known about how much there is.
            self._given.progress.phase("store", bytes=bytes_in_use(self._scanned.root))

    def _is_little(self) -> bool:
        """Whether this process alone is quicker than several."""
        changes = self._changes
        return (
            changes.is_counted
            and changes.changed <= INLINE_ENTRIES
            and changes.bytes_to_read - changes.bytes_to_compare <= INLINE_BYTES
            and changes.bytes_to_compare <= INLINE_COMPARED
        )

    def _commit(
        self, work: _Work, tenure: Tenure, head: Parent | None, kind: SnapshotKind, incomplete: list[Issue]
    ) -> Written:
        """The manifest, once all that it refers to is stored, and the index behind it."""
        scanned, assembler = self._scanned, work.assembler
        name = next_name(self._request.volume, head, tenure.lease, scanned.started_ns, kind)
        tables = tables_of(name, work.catalog, work.table, work.table.attached)
        new_bytes = work.storage.stored_bytes + work.catalog.stored_bytes
        manifest = new_manifest(
            self._repository,
            name,
            head,
            self._given.clock_ns(),
            tables,
            source=Source(path_text(scanned.root), scanned.filesystem),
            consistency="read-only" if self._request.consistency == "read-only" else "live",
            completeness=self._completeness(incomplete, assembler.vanished),
            statistics=Statistics(
                *work.update.counts,
                stored_bytes=new_bytes,
                changed=assembler.stored,
                deleted=assembler.deleted,
            ),
            owners=work.catalog.owners(),
        )
        manifest = with_report(manifest, self._repository, tenure, self._companion)
        self._given.progress.phase("commit")
        self._check_held()
        fresh, grace_s = work.table.fresh(tables.by_number), self._request.grace_s
        committed = commit(self._repository, tenure, manifest, tables.attached, fresh.values(), grace_s)
        move_on(
            work.update,
            committed,
            scanned.root,
            scanned.filesystem,
            self._state.rewrites,
            chunks=fresh,
            left_out=self._companion.leaving.saved(),
        )
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
            settings=self._given.settings,
            attach_limit=attach_bytes,
            store=self._repository.store,
            threads=len(os.sched_getaffinity(0)) if inline else 1,
        )
        return Storage(
            task=task,
            workers=0 if inline else self._given.workers,
            table=table,
            reader=self._scanned.reader,
            boundary_key=self._keys.boundaries,
            store=self._repository.store,
            journal=self._state.journal,
            renew=tenure.lease.renew,
            progress=self._given.progress,
        )

    def _record(self, work: _Work, full: bool) -> None:
        """Store all changes; catalog and index get what they must."""
        settled = dict(self._changes.settled)
        for whole, recorded in self._directories(work, settled, full):
            if recorded is not None:
                work.update.put(recorded.after, recorded.before)
            if full:
                work.catalog.add(whole)
            elif recorded is not None:
                work.catalog.add(recorded.listing)
        put_settled(self._state, work.update, settled)

    def _directories(
        self, work: _Work, settled: dict[bytes, list[Entry]], full: bool
    ) -> Iterator[tuple[Listing, Recorded | None]]:
        def record(stored: tuple[DirectoryChange, list[Packed]]) -> Recorded:
            change, packed = stored
            return work.assembler.directory(change, packed, settled.pop(change.directory, []))

        recorded = map(record, work.storage.outcomes(self._changes.directories()))
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
