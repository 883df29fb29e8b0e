"""One restore: the tree of a recovery point, or some paths of it, written to a target.

Directories first, then contents by the chunk they lie in (each is fetched once), then hard links, then
the directories' own metadata, deepest first; each of these by all workers at once, level by level where
one directory lies in another. What cannot be restored is named, and the rest still is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import msgspec

from smsnapd.engine.collector import collected_seldom
from smsnapd.engine.environment.leaving import LEFT_OUT
from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.image.files import files_of
from smsnapd.engine.image.listing import lies_in_image
from smsnapd.engine.pool import Pool, default_workers
from smsnapd.engine.progress import Progress
from smsnapd.engine.restore.extras import Extras, directory_of, paths_within, unknown_paths
from smsnapd.engine.restore.people import sentences, user_ids
from smsnapd.engine.restore.worklist import NO_CHUNK, Worklist
from smsnapd.engine.restore.writing import (
    DirectoriesJob,
    Failure,
    FilesJob,
    FinishJob,
    ImageFileJob,
    Item,
    Job,
    LargeJob,
    LastResult,
    LinksJob,
    Write,
    WriteResult,
    WriteTask,
    pack,
    unpack,
)
from smsnapd.engine.trees.selection import Selection, select
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError, UsageError
from smsnapd.format.chunker import split_segments
from smsnapd.format.manifest import Issue
from smsnapd.model import (
    Entry,
    Kind,
    data_segments,
    path_text,
)
from smsnapd.repository import Repository
from smsnapd.state import is_alias
from smsnapd.store.base import StoreSettings
from smsnapd.volume.tarball.apply import ApplyOptions, Notes, Target
from smsnapd.volume.tarball.marker import begin_restore, finish_restore, foresee_restore

WritePool = Pool[Job, WriteResult | LastResult]

WRITES_PER_JOB: Final = 4
DECLARED_SLACK: Final = 64 * 1024 * 1024
"""Bytes that a restore may take beyond twice what the manifest declares."""


@dataclass(frozen=True)
class RestoreRequest:
    """Where to restore to, and what. No paths means everything.

    `overwrite` is `never`, `if-changed`, `always`, or None: the target must be empty. `users` are pairs
    (OLD, NEW) of names or numbers. `keep` are places (absolute) that `delete` leaves alone, beside the
    repository. `workers` None means one a core.
    """

    target: bytes
    paths: tuple[bytes, ...] = ()
    overwrite: str | None = None
    delete: bool = False
    users: tuple[tuple[str, str], ...] = ()
    dry_run: bool = False
    keep: tuple[bytes, ...] = ()
    workers: int | None = None


@dataclass(frozen=True)
class RestoreOutcome:
    """What was restored. `damaged` counts the entries that the repository could not give back whole."""

    snapshot: SnapshotSummary
    target: bytes
    files: int
    bytes: int
    fetched_bytes: int
    skipped: int
    not_restored: tuple[Issue, ...]
    notes: tuple[str, ...]
    would: tuple[str, ...] = ()
    damaged: int = 0


def run_restore(
    repository: Repository,
    settings: StoreSettings,
    history: History,
    snapshot: SnapshotSummary,
    request: RestoreRequest,
    progress: Progress,
) -> RestoreOutcome:
    """Restore a recovery point. Cut off and called again with the same request, it goes on.

    Raises TargetError if the target cannot be used, UsageError for a path that the snapshot has not,
    DamageError if the chain or a catalog is not whole (then nothing was written), WrongKeyError.
    """
    progress.phase("plan")
    with files_of(repository, settings, history.chain(snapshot.id), progress) as tree:
        return restore_tree(settings, tree, snapshot, request, progress)


def restore_tree(
    settings: StoreSettings,
    tree: SnapshotTree,
    snapshot: SnapshotSummary,
    request: RestoreRequest,
    progress: Progress,
    *,
    in_place: bool = False,
) -> RestoreOutcome:
    """As `run_restore`, of a tree whose files can be listed and read.

    `in_place`: the target is the mounted image that the tree begins with, so what lies in that is there.
    """
    progress.phase("plan")
    selection = _select(tree, request.paths)
    users = user_ids(request.users, tree)
    with ExitStack() as stack:
        with collected_seldom():
            plan = Worklist(selection)
        stack.callback(plan.close)
        restore = _Restore(settings, tree, snapshot, request, users, plan, progress, in_place=in_place)
        return restore.preview() if request.dry_run else restore.go()


def _select(tree: SnapshotTree, paths: tuple[bytes, ...]) -> Selection:
    selection = select(tree.listings, paths)
    if selection.missing:
        raise UsageError(
            f"restore {path_text(selection.missing[0])}",
            "the snapshot has no such path",
            "`smsnap ls` shows what it has",
        )
    return selection


def large_writes(tree: SnapshotTree, entry: Entry) -> list[Write]:
    """The chunks of a large file and which pieces of the file each holds."""
    pieces = split_segments(data_segments(entry), (extent.length for extent in entry.content))
    return [
        Write(tree.chunks[extent.chunk], extent, part)
        for extent, part in zip(entry.content, pieces, strict=True)
    ]


@dataclass
class _Tally:
    """What has been done so far. Failures are kept by path, the first one of each."""

    files: int = 0
    size_bytes: int = 0
    fetched_bytes: int = 0
    skipped: int = 0
    failures: dict[bytes, Failure] = field(default_factory=dict)

    def fail(self, path: bytes, reason: str, *, damaged: bool = False) -> None:
        self.failures.setdefault(path, Failure(path, reason, damaged))

    def add(self, result: WriteResult) -> None:
        self.files += result.files
        self.size_bytes += result.bytes
        self.fetched_bytes += result.fetched_bytes
        self.skipped += result.skipped
        for failure in result.failures:
            self.failures.setdefault(failure.path, failure)


class _Restore:
    def __init__(
        self,
        settings: StoreSettings,
        tree: SnapshotTree,
        snapshot: SnapshotSummary,
        request: RestoreRequest,
        users: tuple[tuple[int, int], ...],
        plan: Worklist,
        progress: Progress,
        *,
        in_place: bool,
    ) -> None:
        self._repository = tree.repository
        self._settings = settings
        self._in_place = in_place
        self._tree = tree
        self._snapshot = snapshot
        self._request = request
        self._users = users
        self._plan = plan
        self._progress = progress
        self._tally = _Tally()
        self._notes = Notes()

    # --- without writing

    def preview(self) -> RestoreOutcome:
        """What `go` would do; raises what `go` would raise before it writes."""
        request = self._request
        self._check_delete()
        mode = foresee_restore(
            request.target, self._snapshot.id, self._selection_digest(), request.overwrite or ""
        )
        if mode == "fresh":
            return self._outcome(tuple(map(self._would_write, self._everything())))
        with Target(request.target, self._options(mode)) as target:
            return self._outcome((*self._would_remove(target), *self._would_change(target)))

    def _would_remove(self, target: Target) -> Iterator[str]:
        for directory, names in self._extras().directories() if self._request.delete else ():
            removed = target.remove_extra(directory, names, dry_run=True)
            yield from (f"remove {path_text(path)}" for path in removed.paths)

    def _would_change(self, target: Target) -> Iterator[str]:
        for item in self._everything():
            if item.entry.kind == Kind.DIRECTORY:
                if not target.has_directory(item.path):
                    yield self._would_write(item)
            elif target.wanted(item.path, item.entry):
                yield self._would_write(item)
            else:
                self._tally.skipped += 1

    def _would_write(self, item: Item) -> str:
        if item.entry.kind == Kind.REGULAR:
            self._tally.files += 1
            self._tally.size_bytes += 0 if is_alias(item.entry) else item.entry.size
        return f"write {path_text(item.path)}"

    def _everything(self) -> Iterator[Item]:
        yield from self._plan.directories()
        for _, packed in self._plan.small_by_chunk():
            yield from unpack(packed)
        yield from self._plan.large()
        for packed in self._plan.links():
            yield from unpack(packed)

    # --- writing

    def _check_declared(self) -> None:
        """DamageError if the catalog would have far more written than the manifest says that there is.

        One chunk can be named any number of times: a few bytes would fill any disk. Some room is left, so
        that a count that is a little wrong keeps nobody from their files.
        """
        declared, size = self._tree.newest.statistics.bytes, self._plan.data_bytes
        if self._tree.newest.mode == "tar" and size > 2 * declared + DECLARED_SLACK:
            raise DamageError(
                f"restore snapshot {self._snapshot.id}",
                f"its files would take {size} bytes, and its manifest declares {declared}",
                "it may be forged; restore the paths that you need, one by one",
            )

    def go(self) -> RestoreOutcome:
        """Restore."""
        request = self._request
        self._check_delete()
        self._check_declared()
        keys = self._tree.data_keys(self._plan.used_chunks)
        mode = begin_restore(
            request.target, self._snapshot.id, self._selection_digest(), request.overwrite or ""
        )
        options = self._options(mode)
        self._progress.phase("restore", files=self._plan.files, bytes=self._plan.bytes)
        with Target(request.target, options) as target:
            target.check_marked()
            task = self._task(options, keys)
            with _pool(task, self._workers()) as pool, _pool(task, 0) as alone:
                # With `never`, who has made a directory may be the only one to know that it is ours.
                makers = alone if mode == "never" else pool
                self._make_directories(target, makers, clean=mode != "fresh")
                with target.early_writeback():
                    self._write_contents(target, pool)
                self._progress.phase("finish")
                self._run(pool, self._link_jobs(target))
                for level in self._plan.directories_by_depth(deepest_first=True):
                    self._run(makers, map(FinishJob, level))
                self._take_notes(pool, alone)
            self._notes.merge(target.notes)
            target.sync()
            finish_restore(request.target)
            self._finish_root(target)
        return self._outcome()

    def _take_notes(self, *pools: WritePool) -> None:
        for last in [last for pool in pools for last in pool.finish()]:
            assert isinstance(last, LastResult)
            self._notes.merge(last.notes)

    def _finish_root(self, target: Target) -> None:
        """Removing the mark has moved the root's time, and needed the right to write there."""
        root = next(self._plan.directories(), None)
        if root is not None and not root.path:
            self._note(b"", target.finish_directory(b"", root.entry))

    def _check_delete(self) -> None:
        if self._request.delete and self._request.overwrite is None:
            raise UsageError(
                "restore with --delete", "it also needs --overwrite", "add --overwrite if-changed"
            )

    def _options(self, mode: str) -> ApplyOptions:
        return ApplyOptions(overwrite=mode, users=self._users, privileged=os.geteuid() == 0)  # type: ignore[arg-type]

    def _selection_digest(self) -> str:
        text = b"\0".join(sorted(self._request.paths)) + repr(self._users).encode()
        return hashlib.sha256(text).hexdigest()[:16]

    def _note(self, path: bytes, reason: str) -> None:
        if reason:
            self._tally.fail(path, reason)

    def _run(self, pool: WritePool, jobs: Iterable[Job], *, told: bool = False) -> None:
        """Return when all `jobs` are done; `told`: progress hears of each."""
        for result in pool.run(jobs):
            assert isinstance(result, WriteResult)
            self._tally.add(result)
            if told:
                self._progress.advance(files=result.files, bytes=result.bytes)

    def _make_directories(self, target: Target, pool: WritePool, *, clean: bool) -> None:
        for level in self._plan.directories_by_depth():
            self._run(pool, (DirectoriesJob(packed, clean) for packed in level))
        if self._request.delete:
            for directory, names in self._extras().directories():
                for path, reason in target.remove_extra(directory, names).kept:
                    self._tally.fail(path, f"it is extra and was not removed: {reason}")

    def _extras(self) -> Extras:
        own = paths_within(self._request.target, (*self._request.keep, *directory_of(self._settings.url)))
        unknown = unknown_paths(self._tree.newest.completeness)
        return Extras(self._plan, self._request.paths, unknown, own)

    def _task(self, options: ApplyOptions, keys: dict[bytes, bytes]) -> WriteTask:
        return WriteTask(
            target=self._request.target,
            options=options,
            repository_id=self._repository.id,
            volume=self._tree.volume,
            data_keys=keys,
            names_keys=self._tree.names_keys(),
            settings=self._settings,
            store=self._repository.store,
            image_root=self._tree.image_root,
        )

    def _write_contents(self, target: Target, pool: WritePool) -> None:
        begun = list(self._begin_large(target))
        self._run(pool, self._jobs(target, begun), told=True)
        self._finish_large(target, begun)

    def _workers(self) -> int:
        if self._plan.is_small:
            return 0
        if self._request.workers is not None:
            return self._request.workers
        # Fetching waits for the network: twice the workers keep the cores busy.
        return default_workers(self._settings.url) * (2 if self._settings.url.startswith("s3:") else 1)

    def _begin_large(self, target: Target) -> Iterator[bytes]:
        """Create the partial files of the large ones that are wanted."""
        for item in self._plan.large():
            if self._is_there(item):
                self._keep(target, item)
                continue
            if not target.wanted(item.path, item.entry):
                self._tally.skipped += 1
                continue
            begun = target.begin_large(item.path, item.entry)
            if isinstance(begun, str):
                self._tally.fail(item.path, begun)
                continue
            begun.close()
            yield item.path

    def _jobs(self, target: Target, begun: list[bytes]) -> Iterator[Job]:
        wanted = set(begun)
        for item in self._plan.large():
            if item.path not in wanted:
                continue
            if lies_in_image(item.entry):
                yield ImageFileJob(item)
                continue
            writes = large_writes(self._tree, item.entry)
            for start in range(0, len(writes), WRITES_PER_JOB):
                yield LargeJob(item, writes[start : start + WRITES_PER_JOB])
        for chunk, packed in self._plan.small_by_chunk():
            ref = None if chunk == NO_CHUNK else self._tree.chunks[chunk]
            yield from (FilesJob(missing, ref) for missing in self._not_there(target, packed))

    def _not_there(self, target: Target, packed: msgspec.Raw) -> Iterator[msgspec.Raw]:
        """`packed` without what is there already, if anything is left."""
        if not self._in_place:
            yield packed
            return
        missing: list[Item] = []
        for item in unpack(packed):
            if self._is_there(item):
                self._keep(target, item)
            else:
                missing.append(item)
        if missing:
            yield msgspec.Raw(pack(missing))

    def _is_there(self, item: Item) -> bool:
        """Whether it is part of the image that is restored into: no catalog holds it."""
        return self._in_place and item.entry.header is None

    def _keep(self, target: Target, item: Item) -> None:
        """What is there stays, but for who owns it."""
        self._tally.skipped += 1
        if self._users:
            self._note(item.path, target.remap(item.path, item.entry))

    def _finish_large(self, target: Target, begun: list[bytes]) -> None:
        wanted = set(begun)
        for item in self._plan.large():
            if item.path not in wanted:
                continue
            if item.path in self._tally.failures:
                target.abandon_large(item.path)
                continue
            self._note(item.path, target.finish_large(item.path, item.entry))
            if item.path not in self._tally.failures:
                self._tally.files += 1
                self._progress.advance(files=1)

    def _link_jobs(self, target: Target) -> Iterator[Job]:
        for packed in self._plan.links():
            if self._in_place or self._tally.failures:
                yield LinksJob(msgspec.Raw(pack([i for i in unpack(packed) if self._can_link(target, i)])))
            else:
                yield LinksJob(packed)

    def _can_link(self, target: Target, item: Item) -> bool:
        """Whether there is something to do, and its first name was restored; counts it otherwise."""
        if self._is_there(item):
            self._tally.skipped += 1
            return False
        first = self._tally.failures.get(item.entry.target)
        if first is None or not target.wanted(item.path, item.entry):
            return True
        why = f"its first name was not restored: {first.reason}"
        self._tally.fail(item.path, why, damaged=first.damaged)
        return False

    # --- telling

    def _outcome(self, would: tuple[str, ...] = ()) -> RestoreOutcome:
        tally = self._tally
        failures = sorted(tally.failures.values(), key=lambda failure: failure.path)
        return RestoreOutcome(
            snapshot=self._snapshot,
            target=self._request.target,
            files=tally.files,
            bytes=tally.size_bytes,
            fetched_bytes=tally.fetched_bytes,
            skipped=tally.skipped,
            not_restored=tuple(Issue(failure.path, failure.reason) for failure in failures),
            notes=(*sentences(self._notes), *self._left_out()),
            would=would,
            damaged=sum(1 for failure in failures if failure.damaged),
        )

    def _left_out(self) -> Iterator[str]:
        """What the snapshot lacks because it can be made again, where it would have been restored."""
        paths = self._request.paths
        for issue in self._tree.newest.completeness.skipped:
            wanted = not paths or any(_is_within(issue.path, path) for path in paths)
            if issue.reason == LEFT_OUT and wanted:
                place = path_text(issue.path)
                yield f"{place} was left out; make it again: smsnap environment recreate --only {place}"


def _pool(task: WriteTask, workers: int) -> WritePool:
    return Pool(task, workers)


def _is_within(path: bytes, above: bytes) -> bool:
    return not above or path == above or path.startswith(above + b"/")
