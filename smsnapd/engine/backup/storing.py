"""The work of a backup on one core: read a pack or a range of a large file, name it, seal it, store it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from smsnapd.disk import aligned_memory
from smsnapd.engine.chain.sealing import ChunkPutter, Piece, SealingTask
from smsnapd.format.codec import CONTENT_LIMITS, ObjectType
from smsnapd.model import ChunkRef, Entry, Flag
from smsnapd.store import open_store
from smsnapd.store.base import Store
from smsnapd.volume.attributes import Owners
from smsnapd.volume.tarball.read import (
    ISSUE_CHANGED,
    THIS_PACK,
    Packed,
    PackItem,
    PackReader,
)
from smsnapd.volume.tree import Tree

BUFFER_BYTES: Final = CONTENT_LIMITS[ObjectType.CHUNK]


class PackJob(msgspec.Struct, tag="pack", array_like=True):
    """Entries to be stored together as one chunk, which has the number `chunk` if it is new."""

    items: list[PackItem]
    chunk: int = THIS_PACK


class RangeJob(msgspec.Struct, tag="range", array_like=True):
    """Cuts of a large file, each to be a chunk: logical offsets [start, end) of each."""

    path: bytes
    entry: Entry
    cuts: list[tuple[int, int]]


class StoreResult(msgspec.Struct, array_like=True):
    """What came of a job.

    `packed` has a row for each item of a pack, and `counts` says how many rows went into each of `pieces` (a
    pack that outgrew the buffer becomes several chunks, all but the first with extents of `THIS_PACK`; one
    without bytes is None). Of a range `pieces` has a
    chunk for each cut, unless there is an `issue`, as of `RangeRead`, that made an end before: the file is
    read again then. `durable` are the chunks whose puts have returned since the last result.
    """

    packed: list[Packed] = []
    pieces: list[Piece | None] = []
    counts: list[int] = []
    issue: str = ""
    durable: list[ChunkRef] = []


@dataclass(frozen=True, kw_only=True)
class StoreTask(SealingTask):
    """All that a worker needs, the volume's root and the key of digests with it."""

    root: bytes
    digest_key: bytes = field(repr=False)

    @property
    def job_type(self) -> Any:
        """For the pool."""
        return PackJob | RangeJob

    @property
    def result_type(self) -> Any:
        """For the pool."""
        return StoreResult

    def open(self) -> StoreWorker:
        """Open the volume and the store in this process."""
        return StoreWorker(self, self.store or open_store(self.settings))


class StoreWorker:
    """Reads, seals and stores; one chunk buffer, a bounded number of puts under way."""

    def __init__(self, task: StoreTask, store: Store) -> None:
        self._task = task
        self._store = store
        self._tree = Tree(task.root)
        self._reader = PackReader(self._tree, task.digest_key, Owners())
        self._buffer = aligned_memory(BUFFER_BYTES)
        self._chunks = ChunkPutter(task, store)

    def handle(self, job: PackJob | RangeJob) -> StoreResult:
        """Do one job."""
        result = self._pack(job) if isinstance(job, PackJob) else self._ranges(job)
        result.durable = self._chunks.take_durable()
        return result

    def finish(self) -> StoreResult:
        """Wait for the puts under way."""
        self._chunks.drain()
        return StoreResult(durable=self._chunks.take_durable())

    def close(self) -> None:
        """Close the volume; the store too, if it was opened here."""
        self._tree.close()
        self._chunks.close()
        if self._task.store is None:
            self._store.close()

    def _pack(self, job: PackJob) -> StoreResult:
        result = StoreResult(packed=[], pieces=[], counts=[])
        rest, chunk = job.items, job.chunk
        while rest:
            used, packed = self._reader.read_pack(rest, self._buffer, chunk)
            chunk = THIS_PACK
            result.packed += packed
            result.counts.append(len(packed))
            result.pieces.append(self._chunks.keep(memoryview(self._buffer)[:used]) if used else None)
            rest = rest[len(packed) :]
        return result

    def _ranges(self, job: RangeJob) -> StoreResult:
        result = StoreResult(pieces=[])
        for start, end in job.cuts:
            used, issue = self._reader.read_range(job.path, job.entry, start, end, self._buffer)
            result.issue = result.issue or issue
            if issue and not (issue == ISSUE_CHANGED and job.entry.flags & Flag.CHANGED):
                break
            result.pieces.append(self._chunks.keep(memoryview(self._buffer)[:used]))
        return result
