"""The storing of an image: cells to workers, what came of them to the map."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.durable import Durable
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.chain.vigil import Vigil
from smsnapd.engine.given import Asked, Given
from smsnapd.engine.image.cellmap import CellMap
from smsnapd.engine.image.storing import CellsJob, CellsResult, HeaderJob, ImageTask
from smsnapd.engine.pool import Pool
from smsnapd.state.journal import Journal
from smsnapd.volume.block.cells import DIGEST, NO_DIGEST
from smsnapd.volume.block.ext4 import Range
from smsnapd.volume.block.masks import CELL, Masks

WINDOW: Final = 1024
"""Cells, 64 MiB, of which one job has at most as many; jobs begin at multiples of it."""

ENOUGH: Final = WINDOW // 4
"""A job ends with a window if it has as many cells as this."""


class ImageSource(NamedTuple):
    """What is read: the path of a device, or of a file with `direct` False, and the key of its digests."""

    path: str
    digest_key: bytes
    direct: bool = True


class ImageStorage:
    """Stores cells; a context manager whose exit stops the workers.

    Left with an error, it journals what is durable. Until `finish` has returned nobody else may use the
    tenure's lease, which it renews when it is time to.
    """

    def __init__(
        self,
        given: Given[Asked],
        tenure: Tenure,
        source: ImageSource,
        cells: CellMap,
        table: ChunkTable,
        journal: Journal,
    ) -> None:
        """`cells` says what is known of each before; `table` what need not be stored again."""
        repository, request = given.repository, given.request
        task = ImageTask(
            repository_id=repository.id,
            volume=request.volume,
            chunk_names_key=repository.volume_keys(request.volume).chunk_names,
            data_key=tenure.data_key(),
            known=table.known,
            level=request.level,
            settings=given.settings,
            store=repository.store,
            device=source.path,
            digest_key=source.digest_key,
            direct=source.direct,
        )
        self.cells = cells
        self._table = table
        self._durable = Durable(table, repository.store, journal)
        self._progress = given.progress
        self._pool: Pool[CellsJob | HeaderJob, CellsResult] = Pool(task, given.workers)
        self._vigil = Vigil(lambda: self._pool.moved_ns, tenure.lease.renew, given.progress)
        self.stored_bytes = 0
        self.stored_cells = 0

    def __enter__(self) -> ImageStorage:
        self._vigil.begin()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._pool.close()
            self._durable.rescue(error)
        finally:
            self._vigil.end()

    def store(self, spans: list[Range], allowed: Masks, source: str = "") -> None:
        """Read the cells of these spans, of each the units allowed, and store those that are not known.

        They are read from the device, or from the file `source`, which has them at their offsets.
        """
        pending: deque[CellsJob] = deque()

        def jobs() -> Iterator[CellsJob]:
            for job in self._jobs(spans, allowed, source):
                pending.append(job)
                yield job

        for result in self._pool.run(jobs()):
            self._take(pending.popleft(), result)

    def headers(self, content: bytes) -> int:
        """Store tar headers as a chunk of their own; its number."""
        (result,) = self._pool.run([HeaderJob(content)])
        (number,) = self._numbers(result)
        return number

    def finish(self) -> None:
        """Wait for every put; afterwards the chunk table is final."""
        for result in self._pool.finish():
            self._durable.take(result.durable)
        self._durable.settle()
        self._vigil.take_lease_back()

    def _jobs(self, spans: list[Range], allowed: Masks, source: str) -> Iterator[CellsJob]:
        job, count, window = CellsJob([], b"", b"", source), 0, 0
        for start, end in _windows(spans, self.cells.cells):
            here = start // WINDOW
            runs = list(self._wanted(start, end, allowed))
            size = sum(last - first for first, last in runs)
            if count and (count + size > WINDOW or (count >= ENOUGH and here != window)):
                yield job
                job, count = CellsJob([], b"", b"", source), 0
            for first, last in runs:
                job.spans.append((first, last))
                job.allowed += allowed.between(first, last)
                job.known += self.cells.digests(first, last)
            count, window = count + size, here
        if count:
            yield job

    def _wanted(self, start: int, end: int, allowed: Masks) -> Iterator[tuple[int, int]]:
        """The runs of cells that may hold data; of the others the map forgets what it has."""
        masks = memoryview(allowed.between(start, end)).cast("H")
        edges = [start]
        for cell, mask in enumerate(masks, start):
            if not mask and self.cells.masks[cell]:
                self.cells.put(cell, 0, NO_DIGEST)
            if cell > start and bool(mask) != bool(masks[cell - start - 1]):
                edges.append(cell)
        edges.append(end)
        for first, last in pairwise(edges):
            if masks[first - start]:
                yield first, last

    def _take(self, job: CellsJob, result: CellsResult) -> None:
        cells = [cell for start, end in job.spans for cell in range(start, end)]
        masks = memoryview(result.masks).cast("H")
        for row, cell in enumerate(cells):
            self.cells.put(cell, masks[row], result.digests[row * DIGEST : (row + 1) * DIGEST])
        stored = iter(result.stored)
        for number, count in zip(self._numbers(result), result.counts, strict=True):
            offset = 0
            for _ in range(count):
                offset = self.cells.place(cells[next(stored)], number, offset)
        self.stored_cells += len(result.stored)
        self._progress.advance(bytes=len(cells) * CELL)
        self._vigil.renew()

    def _numbers(self, result: CellsResult) -> list[int]:
        numbers = [self._table.number(piece) for piece in result.pieces]
        stored = sum(piece.ref.stored_length for piece in result.pieces if piece.ref)
        self.stored_bytes += stored
        self._progress.advance(stored_bytes=stored)
        self._durable.take(result.durable)
        return numbers


def _windows(spans: list[Range], cells: int) -> Iterator[tuple[int, int]]:
    """The cells of these spans, cut at windows."""
    for span in spans:
        start, last = span.start // CELL, min(-(-span.end // CELL), cells)
        while start < last:
            end = min(last, (start // WINDOW + 1) * WINDOW)
            yield start, end
            start = end
