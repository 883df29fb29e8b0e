"""One import: what arrives is stored as it comes, then its catalog, then the manifest, under the lease.

Nothing exists for a reader before the manifest does: an archive that ends too early leaves chunks that
nothing refers to, and no recovery point.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunkwriter import ChunkWriter
from smsnapd.engine.chain.committing import commit, new_manifest, tables_of
from smsnapd.engine.chain.index import newest, next_name
from smsnapd.engine.chain.reuse import GRACE_S
from smsnapd.engine.chain.tenure import Tenure, held
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.intake.contents import Contents
from smsnapd.engine.intake.image import ArrivingImage
from smsnapd.engine.intake.recording import OwnerNames, Recorder
from smsnapd.engine.intake.tree import ArrivingTree
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format import names
from smsnapd.format.manifest import Completeness, Consistency, Issue, Manifest, Source, Statistics
from smsnapd.model import ChunkRef, Entry, Flag, Kind
from smsnapd.repository import Repository
from smsnapd.volume.archive.members import Member
from smsnapd.volume.archive.paths import inside

ISSUES_MAX = 10_000
"""So many members that were left out are named; of more, the number."""


_TARGET_MAX = 4095
"""PATH_MAX of linux/limits.h, without the NUL."""

_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1
"""Those of linux/kdev_t.h."""


class Arrivals(Protocol):
    """Members, one after the other, and the data of the one that came last. Raises `SmsnapError`."""

    def __iter__(self) -> Iterator[Member]:
        """The next member; what of the last one's data was not read is passed over."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes more of its data, at least one; b"" only behind them."""


@dataclass(frozen=True)
class ImportRequest:
    """Where to, and what of it is to be said. `source` is where it comes from, for people and the manifest.

    `owner` and `group` are whose directories are that the source says nothing of. `state_dir` is a place on
    disk.
    """

    volume: str
    source: str
    state_dir: Path
    owner: int
    group: int
    level: int = 1
    grace_s: float = GRACE_S


@dataclass(frozen=True)
class ImportOutcome:
    """The snapshot that was made; `left_out` names what of the source is not in it, and why."""

    snapshot: SnapshotSummary
    left_out: tuple[Issue, ...]


def run_import(
    repository: Repository,
    request: ImportRequest,
    arrivals: Arrivals | ArrivingImage,
    progress: Progress,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
) -> ImportOutcome:
    """Make a full snapshot of what arrives, of files or of a device.

    LockedError if another writer has the volume's lease. If anything raises, there is no snapshot.
    """
    names.check_volume_name(request.volume)
    try:
        with held(repository, request.volume) as (tenure, history), ExitStack() as stack:
            return _Import(repository, request, progress, tenure, history, clock_ns, stack).go(arrivals)
    except sqlite3.OperationalError as error:
        what = f"keep the list of what is imported in {request.state_dir}"
        raise SmsnapError(what, str(error), "make room there, or set [state] dir to another place") from error


class _Import:
    def __init__(
        self,
        repository: Repository,
        request: ImportRequest,
        progress: Progress,
        tenure: Tenure,
        history: History,
        clock_ns: Callable[[], int],
        stack: ExitStack,
    ) -> None:
        self._repository = repository
        self._request = request
        self._progress = progress
        self._tenure = tenure
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()
        self._head = newest(repository, history)
        known = _reusable(repository, history, tenure)
        self._chunks = ChunkWriter(repository, request.volume, tenure.data_key(), known, request.level)
        self._chunks.before_each = tenure.keep  # the lease must not end while much is stored
        stack.callback(self._chunks.close)
        request.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tree = ArrivingTree(request.state_dir, self._implied())
        stack.callback(self._tree.close)
        self._contents = Contents(self._chunks, f"import {request.source}")
        self._owners = OwnerNames()
        self._left_out: list[Issue] = []
        self._unnamed = 0

    def go(self, arrivals: Arrivals | ArrivingImage) -> ImportOutcome:
        """Take everything in, and commit."""
        self._progress.phase("import")
        if isinstance(arrivals, ArrivingImage):
            self._take_image(arrivals)
        else:
            for member in arrivals:
                self._take(member, arrivals)
            self._contents.finish()
        self._progress.phase("record")
        catalog = CatalogBuilder(self._repository, self._request.volume, 0)
        recorder = Recorder(self._chunks, catalog, self._owners)
        for listing in self._tree.listings():
            recorder.add(listing)
            self._tenure.keep()
        recorder.finish()
        self._chunks.finish()
        catalog.finish()
        self._progress.phase("commit")
        return self._commit(catalog, recorder, arrivals if isinstance(arrivals, ArrivingImage) else None)

    def _implied(self) -> Entry:
        return Entry(
            b"",
            int(Kind.DIRECTORY),
            mode=0o755,
            uid=self._request.owner,
            gid=self._request.group,
            mtime_ns=self._started_ns,
        )

    def _take_image(self, arrived: ArrivingImage) -> None:
        for entry in arrived.pieces(self._chunks, self._started_ns):
            self._tree.place(entry.name, entry)
            self._progress.advance(1, entry.size)

    # --- members

    def _take(self, member: Member, arrivals: Arrivals) -> None:
        """Place one member in the tree; its contents are stored."""
        path, refused = inside(member.path)
        refused = refused or (
            self._link(path, member) if member.is_link else self._place(path, member, arrivals)
        )
        for why in (refused, *member.lost):
            if why:
                self._note(Issue(path, why))
        self._tenure.keep()

    def _link(self, path: bytes, member: Member) -> str:
        target, refused = inside(member.target)
        return refused or self._tree.link(path, target)

    def _place(self, path: bytes, member: Member, arrivals: Arrivals) -> str:
        if member.kind == Kind.TOMBSTONE:
            return "it is a socket"
        refused = self._tree.refusal(path, member.kind)
        if refused:
            return refused
        if member.kind == Kind.SYMLINK and not _is_target(member.target):
            return "it is a symbolic link to what can be no path"
        if member.rdev >> 32 > _MAJOR_MAX or member.rdev & 0xFFFFFFFF > _MINOR_MAX:
            return "there can be no device of its number"
        before = self._chunks.stored_bytes
        stored = self._contents.store(member.size, member.segments, arrivals.read)
        self._owners.note(member.uid, member.user, member.gid, member.group)
        sparse = stored.segments is not None
        self._tree.place(
            path,
            Entry(
                b"",
                int(member.kind),
                int(Flag.SPARSE) if sparse else 0,
                member.mode,
                member.uid,
                member.gid,
                len(member.target) if member.kind == Kind.SYMLINK else member.size,
                member.mtime_ns,
                rdev=member.rdev,
                target=member.target,
                xattrs=member.xattrs,
                segments=stored.segments or (),
                content=stored.extents,
            ),
        )
        done = int(member.kind == Kind.REGULAR)
        self._progress.advance(done, member.size, self._chunks.stored_bytes - before)
        return ""

    def _note(self, issue: Issue) -> None:
        if len(self._left_out) < ISSUES_MAX:
            self._left_out.append(issue)
        else:
            self._unnamed += 1

    # --- the commit

    def _commit(
        self, catalog: CatalogBuilder, recorder: Recorder, arrived: ArrivingImage | None
    ) -> ImportOutcome:
        request, counts, left_out = self._request, recorder.counts, self._all_left_out()
        name = next_name(request.volume, self._head, self._tenure.lease, self._started_ns, "full")
        tables = tables_of(name, catalog, self._chunks)
        manifest = new_manifest(
            self._repository,
            name,
            self._head,
            self._clock_ns(),
            tables,
            source=Source(request.source, ""),
            consistency="live",
            completeness=Completeness("scan", not left_out, left_out),
            statistics=Statistics(
                *counts,
                stored_bytes=self._chunks.stored_bytes + catalog.stored_bytes,
                changed=counts.entries,
                deleted=0,
            ),
            owners=self._owners.owners(),
        )
        if arrived is not None:
            manifest = _of_image(manifest, arrived)
        fresh, grace_s = self._chunks.fresh, request.grace_s
        committed = commit(self._repository, self._tenure, manifest, tables.attached, fresh, grace_s)
        return ImportOutcome(summarise(committed), left_out)

    def _all_left_out(self) -> tuple[Issue, ...]:
        first = {issue.path: issue for issue in reversed(self._left_out)}
        if self._unnamed:
            first[b""] = Issue(
                b"", f"{self._unnamed} further members of the archive are not in it as they were"
            )
        return tuple(sorted(first.values()))


def _of_image(manifest: Manifest, arrived: ArrivingImage) -> Manifest:
    """What it says if what arrived was a device. Of the tree in it nothing is known: it was not looked at."""
    counted = dataclasses.replace(manifest.statistics, entries=0, files=0, bytes=arrived.data_bytes)
    consistency: Consistency = "read-only" if arrived.is_clean else "live"
    return dataclasses.replace(manifest, image=arrived.image, consistency=consistency, statistics=counted)


def _is_target(target: bytes) -> bool:
    return 0 < len(target) <= _TARGET_MAX and b"\0" not in target


def _reusable(repository: Repository, history: History, tenure: Tenure) -> list[ChunkRef]:
    """The chunks of the newest recovery point, whose data keys are there; none if it is damaged."""
    if history.head_name is None:
        return []
    try:
        chunks = SnapshotTree(repository, history.chain(history.head_name.snapshot)).chunks
    except DamageError:
        return []
    data_keys = tenure.existing_data_keys({ref.key_id for ref in chunks})
    return [ref for ref in chunks if ref.key_id in data_keys]
