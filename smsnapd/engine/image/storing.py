"""The work of an image on one core: read cells, pass over those that are known, pack the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from smsnapd.disk import aligned_memory
from smsnapd.engine.chain.sealing import ChunkPutter, Piece, SealingTask
from smsnapd.model import BLOCK, CHUNK_TARGET, ChunkRef
from smsnapd.store import open_store
from smsnapd.store.base import Store
from smsnapd.volume.block.cells import DIGEST, Cell, CellReader
from smsnapd.volume.block.device import Device
from smsnapd.volume.block.masks import CELL

CHUNK_MINIMUM: Final = CHUNK_TARGET // 4
"""From this on a chunk ends where the device has a multiple of 8 MiB: what lies behind moves no boundary."""

CHUNK_MAXIMUM: Final = CHUNK_TARGET - CELL
"""Of a full 8 MiB that does not compress, sealed, the padding would be 3 %; of this it is under 1 %."""

_WIDTH: Final = 2


class CellsJob(msgspec.Struct, tag="cells", array_like=True):
    """Cells to be read: their spans, and of each cell the units that may hold data and the digest known.

    `source` is a file that has them at their offsets; without one they are read from the device.
    """

    spans: list[tuple[int, int]]
    allowed: bytes
    known: bytes
    source: str = ""


class HeaderJob(msgspec.Struct, tag="headers", array_like=True):
    """Tar headers, to be a chunk as they are."""

    content: bytes


class CellsResult(msgspec.Struct, array_like=True):
    """What came of a job.

    `masks` and `digests` have a row for each cell of the job. `stored` are the rows of those that were not
    known, in order; `counts` says how many of them went into each of `pieces`, one behind the other.
    """

    masks: bytes = b""
    digests: bytes = b""
    stored: list[int] = []
    counts: list[int] = []
    pieces: list[Piece] = []
    durable: list[ChunkRef] = []


@dataclass(frozen=True, kw_only=True)
class ImageTask(SealingTask):
    """All that a worker needs: the path of the device (read directly) or file, and the key of digests."""

    device: str
    digest_key: bytes = field(repr=False)
    direct: bool = True

    @property
    def job_type(self) -> Any:
        """For the pool."""
        return CellsJob | HeaderJob

    @property
    def result_type(self) -> Any:
        """For the pool."""
        return CellsResult

    def open(self) -> ImageWorker:
        """Open the device and the store in this process."""
        return ImageWorker(self, self.store or open_store(self.settings))


class ImageWorker:
    """Reads cells and stores those that are not known; one chunk at a time is being filled."""

    def __init__(self, task: ImageTask, store: Store) -> None:
        self._task = task
        self._store = store
        self._device = Device(task.device, direct=task.direct)
        self._chunks = ChunkPutter(task, store)
        self._buffer = memoryview(aligned_memory(CHUNK_TARGET))

    def handle(self, job: CellsJob | HeaderJob) -> CellsResult:
        """Do one job."""
        if isinstance(job, HeaderJob):
            result = CellsResult(pieces=[self._chunks.keep(memoryview(job.content))], counts=[0])
        elif job.source:
            with Device(job.source, direct=False) as source:
                result = self._cells(job, source)
        else:
            result = self._cells(job, self._device)
        result.durable = self._chunks.take_durable()
        return result

    def finish(self) -> CellsResult:
        """Wait for the puts under way."""
        self._chunks.drain()
        return CellsResult(durable=self._chunks.take_durable())

    def close(self) -> None:
        """Close the device; the store too, if it was opened here."""
        self._device.close()
        self._chunks.close()
        if self._task.store is None:
            self._store.close()

    def _cells(self, job: CellsJob, source: Device) -> CellsResult:
        result = CellsResult(stored=[], counts=[], pieces=[])
        masks, digests = bytearray(len(job.allowed)), bytearray(len(job.known))
        used = count = 0
        window = 0
        for row, cell in _read(job, CellReader(source, self._task.digest_key)):
            masks[row * _WIDTH : (row + 1) * _WIDTH] = cell.mask.to_bytes(_WIDTH, "little")
            at = slice(row * DIGEST, (row + 1) * DIGEST)
            digests[at] = cell.digest
            if cell.digest == job.known[at]:
                continue
            here = cell.number * CELL // CHUNK_TARGET
            if count and (used + CELL > CHUNK_MAXIMUM or (used >= CHUNK_MINIMUM and here != window)):
                self._end_chunk(used, count, result)
                used = count = 0
            if cell.mask:
                used, count, window = self._take(cell, used), count + 1, here
                result.stored.append(row)
        if count:
            self._end_chunk(used, count, result)
        result.masks, result.digests = bytes(masks), bytes(digests)
        return result

    def _take(self, cell: Cell, used: int) -> int:
        for _, piece in cell.data:
            self._buffer[used : used + len(piece)] = piece
            used += len(piece)
        return used

    def _end_chunk(self, used: int, count: int, result: CellsResult) -> None:
        assert used % BLOCK == 0
        result.pieces.append(self._chunks.keep(self._buffer[:used]))
        result.counts.append(count)


def _read(job: CellsJob, reader: CellReader) -> Iterator[tuple[int, Cell]]:
    """The cells of a job, each with its row."""
    row = 0
    for start, end in job.spans:
        count = end - start
        raw = memoryview(job.allowed)[row * _WIDTH : (row + count) * _WIDTH].cast("H")
        for cell in reader.read(start, list(raw)):
            yield row + cell.number - start, cell
        row += count
