"""The storing phase of a backup: large files by ranges, the rest by packs, over the worker pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.backup.changes import DirectoryChange, is_large
from smsnapd.engine.backup.largefiles import TRIES, LargeFile, inspect_large
from smsnapd.engine.backup.storing import PackJob, RangeJob, StoreResult, StoreTask
from smsnapd.engine.backup.twins import SMALLEST, Twins
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.durable import Durable
from smsnapd.engine.chain.vigil import Vigil
from smsnapd.engine.pool import Pool
from smsnapd.engine.progress import Progress
from smsnapd.format.chunker import Packer
from smsnapd.model import BLOCK, CHUNK_TARGET, Entry, Extent, Flag, Kind, join_path
from smsnapd.state import is_alias
from smsnapd.state.journal import Journal
from smsnapd.store.base import Store
from smsnapd.volume.tarball.read import (
    HEADER,
    ISSUE_LARGE,
    ISSUE_VANISHED,
    READ,
    THIS_PACK,
    Packed,
    PackItem,
    PackReader,
)

_REGULAR: Final = int(Kind.REGULAR)
_ALIAS: Final = int(Flag.ALIAS)

StorePool = Pool[PackJob | RangeJob, StoreResult]

HEADER_BYTES: Final = 1536
"""What a header is reckoned at when packs are planned."""


class Storage:
    """Stores a change set; a context manager whose exit stops the workers.

    Left with an error, it journals what is durable, so that the next run need not store it again. Inside
    the `with` `progress` is told while puts are slow, whoever makes them; and until `finish` has returned,
    nobody else may use the lease, which `renew` renews if it is time to.
    """

    def __init__(
        self,
        task: StoreTask,
        workers: int,
        table: ChunkTable,
        reader: PackReader,
        boundary_key: bytes,
        store: Store,
        journal: Journal,
        renew: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._task = task
        self._table = table
        self._reader = reader
        self._boundary_key = boundary_key
        self._durable = Durable(table, store, journal)
        self._progress = progress
        self._pool: StorePool = Pool(task, workers)
        self._vigil = Vigil(lambda: self._pool.moved_ns, renew, progress)
        self._apart: StorePool | None = None
        self._twins = Twins()
        self._waiting: deque[DirectoryChange] = deque()
        self._pending: deque[_Pack | _Range] = deque()
        self.stored_bytes = 0
        """Sealed bytes of new chunks so far."""

    def __enter__(self) -> Storage:
        self._vigil.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._close(error)
        finally:
            self._vigil.end()

    def _close(self, error: BaseException | None) -> None:
        self._pool.close()
        if self._apart is not None:
            self._apart.close()
        self._durable.rescue(error)

    def outcomes(self, changes: Iterable[DirectoryChange]) -> Iterator[tuple[DirectoryChange, list[Packed]]]:
        """Store everything; yields each directory with what came of its changed entries, in their order."""
        packed: list[Packed] = []
        for result in self._pool.run(self._jobs(changes)):
            came = self._came(self._pending.popleft(), result)
            for entry, _ in came:
                if entry is not None and entry.size >= SMALLEST:
                    self._twins.note(entry)
            packed += came
            start = 0
            while self._waiting and len(self._waiting[0].changed) <= len(packed) - start:
                change = self._waiting.popleft()
                end = start + len(change.changed)
                yield change, packed[start:end]
                start = end
            del packed[:start]
        yield from ((change, []) for change in self._waiting)

    def redo(self, directory: bytes, entry: Entry, mode: int) -> Packed:
        """Store one entry apart from the others, for the rare case that its first outcome is of no use."""
        if self._apart is None:
            self._apart = Pool(replace(self._task, attach_limit=0), 0)
        job = PackJob([PackItem(directory, entry, None, mode)], self._table.reserve())
        large = None
        if mode == READ and entry.kind == _REGULAR and not is_alias(entry):
            large = self._large_again(self._apart, join_path(directory, entry.name), entry)
        if large is not None:
            if not large.is_whole and large.issue != ISSUE_VANISHED:
                return Packed(None, large.issue)
            if large.is_whole:
                job = PackJob([PackItem(directory, large.entry, None, HEADER)], job.chunk)
        (result,) = self._apart.run([job])
        (packed,) = self._came(_Pack(job, {0: large} if large and large.is_whole else {}), result)
        if packed.issue == ISSUE_LARGE:
            return Packed(None, "unreadable: its size changes all the time")
        return packed

    def _large_again(self, pool: StorePool, path: bytes, entry: Entry) -> LargeFile | None:
        """Read a file that turned out to be large, again while it moves; None if it is large no more."""
        for attempt in range(1, TRIES + 1):
            large = inspect_large(self._reader, path, entry, restless=attempt == TRIES)
            if large is None:
                return None
            jobs = list(large.jobs())
            for job, result in zip(jobs, pool.run(jobs), strict=True):
                self._came(_Range(job, large), result)
            if large.is_whole:
                break
        return large

    def finish(self) -> None:
        """Wait for every put; afterwards the chunk table is final."""
        for pool in filter(None, (self._pool, self._apart)):
            for result in pool.finish():
                self._durable.take(result.durable)
        self._durable.settle()
        self._vigil.take_lease_back()

    def _jobs(self, changes: Iterable[DirectoryChange]) -> Iterator[PackJob | RangeJob]:
        """What is to be stored: packs, and before the pack of its header the ranges of each large file."""
        packer: Packer[PackItem] = Packer(self._boundary_key)
        large: dict[bytes, LargeFile] = {}
        for change in changes:
            self._waiting.append(change)
            directory = change.directory
            for entry, previous, mode in change.changed:
                path = directory + b"/" + entry.name if directory else entry.name
                known = previous or (self._twins.find(entry) if entry.size >= SMALLEST else None)
                item = PackItem(directory, entry, known, mode)
                if entry.size >= CHUNK_TARGET and mode == READ and is_large(entry):
                    found = inspect_large(self._reader, path, entry)
                    if found is not None:
                        large[path] = found
                        yield from self._range_jobs(found)
                        item = PackItem(directory, found.entry, previous, HEADER)
                for items in packer.add(path, _tar_bytes(item), item):
                    yield self._pack_job(items, large)
        if items := packer.take():
            yield self._pack_job(items, large)

    def _range_jobs(self, large: LargeFile) -> Iterator[RangeJob]:
        for job in large.jobs():
            self._pending.append(_Range(job, large))
            yield job

    def _pack_job(self, items: list[PackItem], large: dict[bytes, LargeFile]) -> PackJob:
        job = PackJob(items, self._table.reserve())
        rows = {}
        if large:
            paths = (join_path(item.directory, item.entry.name) for item in items)
            rows = {row: large.pop(path) for row, path in enumerate(paths) if path in large}
        self._pending.append(_Pack(job, rows))
        return job

    def _came(self, of: _Pack | _Range, result: StoreResult) -> list[Packed]:
        """What became of the items of a pack, their extents complete; of a range nothing yet."""
        self._durable.take(result.durable)
        stored = sum(piece.ref.stored_length for piece in result.pieces if piece and piece.ref)
        self.stored_bytes += stored
        if isinstance(of, _Range):
            pieces = (piece for piece in result.pieces if piece)
            extents = [Extent(self._table.number(piece), 0, piece.length) for piece in pieces]
            of.large.take(extents, result.issue)
            self._progress.advance(bytes=sum(end - start for start, end in of.job.cuts), stored_bytes=stored)
            self._vigil.renew()
            return []
        packed = self._numbered(of.job, result)
        for row, large in of.large.items():
            packed[row] = _completed(packed[row], large)
        read = [item.entry for item in of.job.items if item.mode == READ]
        sizes = [entry.size for entry in read if entry.kind == _REGULAR]
        files = len(sizes) + sum(large.is_whole for large in of.large.values())
        self._progress.advance(files=files, bytes=sum(sizes), stored_bytes=stored)
        self._vigil.renew()
        return packed

    def _numbered(self, job: PackJob, result: StoreResult) -> list[Packed]:
        """The rows of a pack with the numbers of its chunks: mostly the one that was reserved."""
        packed: list[Packed] = []
        supposed, start = job.chunk, 0
        for piece, count in zip(result.pieces, result.counts, strict=True):
            rows = result.packed[start : start + count]
            number = self._table.number(piece, supposed) if piece else supposed
            if number != supposed:
                rows = [_moved(row, supposed, number) for row in rows]
            packed += rows
            supposed, start = THIS_PACK, start + count
        return packed


class _Pack(NamedTuple):
    """A pack under way, and the rows of it that are headers of large files."""

    job: PackJob
    large: dict[int, LargeFile]


class _Range(NamedTuple):
    """Ranges of a large file under way."""

    job: RangeJob
    large: LargeFile


def _completed(packed: Packed, large: LargeFile) -> Packed:
    """The header of a large file, with its content; to be done again if that could not be read as it is."""
    if packed.entry is None or not large.is_whole:
        return Packed(None, ISSUE_LARGE)
    return Packed(large.with_content(packed.entry), packed.issue)


def _moved(packed: Packed, supposed: int, number: int) -> Packed:
    """A row whose extents lie in another chunk than was supposed."""
    entry = packed.entry
    if entry is None or entry.header is None:
        return packed
    header = entry.header
    content = tuple(
        Extent(number, piece.offset, piece.length) if piece.chunk == supposed else piece
        for piece in entry.content
    )
    entry = msgspec.structs.replace(
        entry, header=Extent(number, header.offset, header.length), content=content
    )
    return Packed(entry, packed.issue)


def _tar_bytes(item: PackItem) -> int:
    """About what an item will take in its pack."""
    _, entry, _, mode = item
    if mode == HEADER or entry.kind != _REGULAR or entry.flags & _ALIAS:
        return HEADER_BYTES
    return HEADER_BYTES + (entry.size + BLOCK - 1 & -BLOCK)
