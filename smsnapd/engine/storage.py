"""The storing phase of a backup: large files by ranges, the rest by packs, over the worker pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from smsnapd.engine.assembly import Placed
from smsnapd.engine.changes import ChangeSet
from smsnapd.engine.chunktable import ChunkTable
from smsnapd.engine.durable import Durable
from smsnapd.engine.largefiles import LargeFiles, StorePool
from smsnapd.engine.pool import Pool
from smsnapd.engine.progress import Progress
from smsnapd.engine.storing import PackJob, RangeJob, StoreResult, StoreTask
from smsnapd.engine.vigil import Vigil
from smsnapd.format.chunker import plan_packs
from smsnapd.model import BLOCK, Entry, Kind, join_path
from smsnapd.state import is_alias
from smsnapd.state.journal import Journal
from smsnapd.store.base import Store
from smsnapd.volume.tarball.read import HEADER, ISSUE_LARGE, READ, Packed, PackItem, PackReader

_REGULAR: Final = int(Kind.REGULAR)

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
        changes: ChangeSet,
        reader: PackReader,
        boundary_key: bytes,
        store: Store,
        journal: Journal,
        renew: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._task = task
        self._table = table
        self._changes = changes
        self._boundary_key = boundary_key
        self._durable = Durable(table, store, journal)
        self._progress = progress
        self._pool: StorePool = Pool(task, workers)
        self._vigil = Vigil(lambda: self._pool.moved_ns, renew, progress)
        self._apart: StorePool | None = None
        self._large = LargeFiles(reader, table, self._take_durable, self._vigil.renew, progress)
        self._pack_bytes = 0

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

    @property
    def stored_bytes(self) -> int:
        """Sealed bytes of new chunks so far."""
        return self._large.stored_bytes + self._pack_bytes

    def outcomes(self) -> Iterator[Placed]:
        """Store everything; yields what came of each changed entry, in the order of the changes."""
        self._large.store(self._pool, self._changes)
        pending: deque[list[PackItem]] = deque()
        for result in self._pool.run(self._jobs(pending)):
            self._tell(pending.popleft(), result)
            yield from self._placed(result)

    def redo(self, directory: bytes, entry: Entry, mode: int) -> Placed:
        """Store one entry apart from the others, for the rare case that its first outcome is of no use."""
        if self._apart is None:
            self._apart = Pool(replace(self._task, attach_limit=0), 0)
        path = join_path(directory, entry.name)
        if mode == READ and entry.kind == _REGULAR and not is_alias(entry):
            stored = self._large.store_one(self._apart, path, entry)
            if path in self._large.refused:
                return Placed(Packed(None, self._large.refused[path]), -1)
            if stored is not None:
                entry, mode = stored, HEADER
        (result,) = self._apart.run([PackJob([PackItem(directory, entry, None, mode)])])
        (placed,) = self._placed(result)
        if placed.packed.issue == ISSUE_LARGE:
            return Placed(Packed(None, "unreadable: its size changes all the time"), -1)
        return placed

    def finish(self) -> None:
        """Wait for every put; afterwards the chunk table is final."""
        for pool in filter(None, (self._pool, self._apart)):
            for result in pool.finish():
                self._take_durable(result)
        self._vigil.take_lease_back()

    def _jobs(self, pending: deque[list[PackItem]]) -> Iterator[PackJob | RangeJob]:
        for items in plan_packs(self._items(), self._boundary_key):
            pending.append(items)
            yield PackJob(items)

    def _items(self) -> Iterator[tuple[bytes, int, PackItem]]:
        for directory, changed, _ in self._changes.directories():
            for entry, previous, mode in changed:
                path = join_path(directory, entry.name)
                stored = self._large.stored.get(path) if mode == READ else None
                if stored is not None:
                    item = PackItem(directory, stored, previous, HEADER)
                else:
                    item = PackItem(directory, entry, previous, mode)
                yield path, _tar_bytes(item), item

    def _placed(self, result: StoreResult) -> Iterator[Placed]:
        numbers = [self._table.number(piece) if piece else -1 for piece in result.pieces]
        self._pack_bytes += sum(piece.ref.stored_length for piece in result.pieces if piece and piece.ref)
        self._take_durable(result)
        rows = iter(result.packed)
        for number, count in zip(numbers, result.counts, strict=True):
            for _ in range(count):
                yield Placed(next(rows), number)

    def _tell(self, items: list[PackItem], result: StoreResult) -> None:
        read = [item.entry.size for item in items if item.mode == READ and item.entry.kind == Kind.REGULAR]
        stored = sum(piece.ref.stored_length for piece in result.pieces if piece and piece.ref)
        self._progress.advance(files=len(read), bytes=sum(read), stored_bytes=stored)
        self._vigil.renew()

    def _take_durable(self, result: StoreResult) -> None:
        self._durable.take(result.durable)


def _tar_bytes(item: PackItem) -> int:
    """About what an item will take in its pack."""
    entry = item.entry
    if item.mode == HEADER or entry.kind != _REGULAR or is_alias(entry):
        return HEADER_BYTES
    return HEADER_BYTES + -(-entry.size // BLOCK) * BLOCK
