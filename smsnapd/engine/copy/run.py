"""One copy: recovery points of a volume, one after the other, each committed as soon as it is whole there.

The same rules hold as for a backup there: the lease first, then the head; chunks and catalog durable before
the manifest. So a run that was cut off anywhere leaves whole recovery points, and the next one goes on.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from smsnapd.engine.backup.snapshot import ATTACH_BYTES
from smsnapd.engine.chain.catalog import Attachments, CatalogBuilder
from smsnapd.engine.chain.committing import commit
from smsnapd.engine.chain.index import reference
from smsnapd.engine.chain.reuse import GRACE_S, reusable
from smsnapd.engine.chain.tenure import Tenure, held
from smsnapd.engine.copy.carrying import Carrier, Reader, Source, journaled, pairs_of
from smsnapd.engine.copy.plan import CopyPlan, Step, plan_copy
from smsnapd.engine.history import History, check_link
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree, catalog_opener
from smsnapd.errors import DamageError, UsageError
from smsnapd.format import names
from smsnapd.format.manifest import CopiedFrom, Manifest
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.contents import Fetcher
from smsnapd.repository.manifests import Recorded
from smsnapd.state.journal import Journal


@dataclass(frozen=True)
class CopyRequest:
    """What to copy: of `volume` all recovery points, or those of the ids `wanted` and what they follow from.

    `target` is the volume's name there. `state_dir` is where the journal lies.
    """

    volume: str
    target: str
    state_dir: Path
    wanted: frozenset[str] | None = None
    dry_run: bool = False
    grace_s: float = GRACE_S


@dataclass(frozen=True)
class CopyOutcome:
    """What was done, ids oldest first; `whole` of those copied are fulls there and were incrementals here."""

    copied: tuple[str, ...]
    there: tuple[str, ...]
    too_old: tuple[str, ...]
    whole: tuple[str, ...]
    read_bytes: int
    stored_bytes: int


def run_copy(source: Repository, target: Repository, request: CopyRequest, progress: Progress) -> CopyOutcome:
    """Copy recovery points of one volume; may be repeated, and goes on where it was cut off.

    Needs the identity of `source`, and of `target` the write key alone. UsageError if `target` has recovery
    points of the volume that came from elsewhere, LockedError if another writer has its lease.
    """
    if source.id == target.id:
        raise UsageError("copy", "both URLs are the same repository", "make another one with smsnap init")
    names.check_volume_name(request.target)
    history = History.load(source, request.volume)
    if request.dry_run:
        plan = _plan(source, history, History.load(target, request.target), request)
        return _outcome(plan, tuple(step.name.snapshot for step in plan.steps), 0, 0)
    with held(target, request.target) as (tenure, there), ExitStack() as stack:
        return _Copy(source, target, request, progress, history, there, tenure, stack).go()


def _plan(source: Repository, history: History, there: History, request: CopyRequest) -> CopyPlan:
    if there.head_name is not None:
        origin = there.record(there.head_name).manifest.copied_from
        if origin is None or origin.repository_id != source.id:
            raise UsageError(
                f"copy volume {request.volume} to {request.target}",
                f"the other repository has recovery points of {request.target} that did not come from here",
                "copy it under another name: --as NAME",
            )
    return plan_copy(history.names, there.names, request.wanted)


def _outcome(plan: CopyPlan, copied: tuple[str, ...], read_bytes: int, stored_bytes: int) -> CopyOutcome:
    return CopyOutcome(
        copied=copied,
        there=tuple(name.snapshot for name in plan.there),
        too_old=tuple(name.snapshot for name in plan.too_old),
        whole=tuple(step.name.snapshot for step in plan.steps if step.whole),
        read_bytes=read_bytes,
        stored_bytes=stored_bytes,
    )


class _Copy:
    def __init__(
        self,
        source: Repository,
        target: Repository,
        request: CopyRequest,
        progress: Progress,
        history: History,
        there: History,
        tenure: Tenure,
        stack: ExitStack,
    ) -> None:
        self._source = source
        self._target = target
        self._request = request
        self._progress = progress
        self._history = history
        self._tenure = tenure
        self._plan = _plan(source, history, there, request)
        self._head = there.record(there.head_name) if there.head_name is not None else None
        self._reader = Reader(source, request.volume)
        stack.callback(self._reader.close)
        self._journal = Journal(_journal_path(source, target, request))
        self._carrier = self._new_carrier(there)
        stack.callback(self._carrier.close)
        self._attached_bytes = 0
        self._told_bytes = 0

    def _new_carrier(self, there: History) -> Carrier:
        known = self._committed(there) if self._plan.steps else {}
        refs = {ref.key_id for ref in (*known.values(), *self._journal.read())}
        data_keys = self._tenure.existing_data_keys(refs)
        known = {source: ref for source, ref in known.items() if ref.key_id in data_keys}

        def usable(refs: list[ChunkRef]) -> list[ChunkRef]:
            mine = [ref for ref in refs if ref.key_id in data_keys]
            return reusable(self._target, self._request.target, mine)

        return Carrier(
            self._reader,
            self._target,
            self._request.target,
            self._tenure.data_key(),
            journaled(self._journal, usable) | known,
            self._journal,
            self._tenure.keep,
        )

    def _committed(self, there: History) -> dict[Source, ChunkRef]:
        """What the chunks of the newest chain there were in the source, by the rows of both manifests."""
        here = {name.snapshot: name for name in self._history.names}
        known: dict[Source, ChunkRef] = {}
        for name in reversed(there.names):
            copied = there.record(name).manifest
            origin = here.get(name.snapshot)
            # What a prune there has folded has other rows.
            if origin is not None and copied.copied_from is not None and not copied.stands_for:
                recorded = self._history.record(origin)
                if recorded.hash == copied.copied_from.manifest_hash:
                    known |= pairs_of(recorded.manifest.chunks, copied.chunks)
            if name.kind == "full":
                break
        return known

    def go(self) -> CopyOutcome:
        """Copy step by step."""
        steps = self._plan.steps
        total = sum(self._history.record(step.name).manifest.statistics.stored_bytes for step in steps)
        self._progress.phase("copy", files=len(steps), bytes=total)
        before: Recorded | None = None
        for step in steps:
            recorded = self._history.record(step.name)
            self._check_follows(step, before, recorded)
            self._head = self._commit(self._whole(recorded) if step.whole else self._same(recorded))
            before = recorded
            self._progress.advance(files=1)
        self._journal.clear()
        copied = tuple(step.name.snapshot for step in steps)
        return _outcome(self._plan, copied, self._reader.fetched_bytes, self._stored_bytes)

    @property
    def _stored_bytes(self) -> int:
        return self._carrier.stored_bytes + self._attached_bytes

    def _check_follows(self, step: Step, before: Recorded | None, recorded: Recorded) -> None:
        """DamageError unless an incremental follows from what was copied before it."""
        if step.name.kind == "full" or step.whole:
            return
        if before is None:
            position = self._history.names.index(step.name)
            before = self._history.record(self._history.names[position - 1])
        check_link(before, recorded)

    # --- one recovery point

    def _same(self, recorded: Recorded) -> tuple[Manifest, Attachments]:
        """The manifest of a copy with the same catalog, whose rows are those of the source's table."""
        manifest = recorded.manifest
        name = self._name(recorded.name, recorded.name.kind)
        attachments = Attachments(name.object_name())
        own = recorded.name.object_name()
        carried = [ref for ref in manifest.chunks if ref.manifest != own]
        self._carry(carried)
        catalog = self._catalog(any(ref.manifest == own for ref in manifest.catalog))
        fetcher = Fetcher(self._source.store, self._request.volume)
        for ref in manifest.catalog:
            opener = catalog_opener(self._source, fetcher, self._request.volume, ref.key_id)
            catalog.store(opener.open(ref))
        chunks = tuple(self._placed(ref, own, attachments) for ref in manifest.chunks)
        environment = next(
            (
                became.name_hash
                for ref, became in zip(manifest.chunks, chunks, strict=True)
                if ref.name_hash == manifest.environment
            ),
            None,
        )
        return self._manifest(recorded, name, chunks, catalog, attachments, environment), attachments

    def _placed(self, ref: ChunkRef, own: str, attachments: Attachments) -> ChunkRef:
        """What a row of the table becomes: a chunk that was carried, or one that is attached again."""
        became = self._carrier.known(ref)
        if became is None:
            assert ref.manifest == own
            became = attachments.add(*self._carrier.sealed(ref))
            self._carrier.learn(ref, became)
        return became

    def _whole(self, recorded: Recorded) -> tuple[Manifest, Attachments]:
        """The manifest of a copy that holds the whole tree, since what it follows from is not there."""
        tree = SnapshotTree(self._source, self._history.chain(recorded.name.snapshot))
        if tree.image is not None:
            raise DamageError(
                f"copy snapshot {recorded.name.snapshot}",
                "it follows from an image that is not in the other repository",
                "copy all of its chain: leave out --snapshot, or copy under another name: --as NAME",
            )
        name = self._name(recorded.name, "full")
        attachments = Attachments(name.object_name())
        catalog = self._catalog(attach=False)
        for listing in tree.listings():
            catalog.add(listing)
        catalog.finish()
        refs = [tree.chunks[number] for number in catalog.rows]
        self._carry(refs)
        chunks = tuple(became for ref in refs if (became := self._carrier.known(ref)) is not None)
        assert len(chunks) == len(refs)
        return self._manifest(recorded, name, chunks, catalog, attachments, None), attachments

    def _catalog(self, attach: bool) -> CatalogBuilder:
        return CatalogBuilder(self._target, self._request.target, ATTACH_BYTES if attach else 0)

    def _carry(self, refs: list[ChunkRef]) -> None:
        before = self._carrier.stored_bytes
        for count in self._carrier.carry(refs):
            after = self._carrier.stored_bytes
            self._progress.advance(bytes=count, stored_bytes=after - before)
            before = after

    def _name(self, name: ManifestName, kind: names.SnapshotKind) -> ManifestName:
        return ManifestName(
            volume=self._request.target,
            sequence=self._head.name.sequence + 1 if self._head else 1,
            generation=self._tenure.lease.generation,
            time_us=name.time_us,
            kind=kind,
            snapshot=name.snapshot,
        )

    def _manifest(
        self,
        recorded: Recorded,
        name: ManifestName,
        chunks: tuple[ChunkRef, ...],
        catalog: CatalogBuilder,
        attachments: Attachments,
        environment: bytes | None,
    ) -> Manifest:
        """What the source's says, but for what belongs to a repository."""
        manifest, head = recorded.manifest, self._head
        segments = tuple(attachments.add(ref, sealed) for ref, sealed in catalog.segments)
        self._attached_bytes += catalog.stored_bytes + sum(
            ref.stored_length for ref in chunks if ref.manifest == name.object_name()
        )
        before, self._told_bytes = self._told_bytes, self._stored_bytes
        return dataclasses.replace(
            manifest,
            repository_id=self._target.id,
            name=name,
            parent=reference(head),
            chunks=chunks,
            catalog=segments,
            environment=environment,
            statistics=dataclasses.replace(manifest.statistics, stored_bytes=self._stored_bytes - before),
            roster=self._target.rosters[-1].ref,
            stands_for=(),  # what it stands for here is not there
            copied_from=CopiedFrom(self._source.id, recorded.hash),
        )

    def _commit(self, made: tuple[Manifest, Attachments]) -> Recorded:
        manifest, attachments = made
        fresh, grace_s = self._carrier.fresh, self._request.grace_s
        return commit(self._target, self._tenure, manifest, attachments.data(), fresh, grace_s)


def _journal_path(source: Repository, target: Repository, request: CopyRequest) -> Path:
    request.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = f"{source.repository_id[:16]}-{target.repository_id[:16]}"
    return request.state_dir / f"{pair}-{request.volume}-{request.target}.copying"
