"""The work of writing an image on one core: fetch a chunk, open it, write what the device needs of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from blake3 import blake3

from smsnapd.engine.heap import KEPT_FOR_OPENING
from smsnapd.engine.image.reader import ChunkSource
from smsnapd.engine.image.runs import Run
from smsnapd.model import ChunkRef
from smsnapd.volume.imagetarget import open_for_writing, write_range

RUNS_PER_JOB: Final = 4096
"""A chunk has at most that many runs in one job: 32 MiB in units of 4 KiB are 8,192."""


DIGEST: Final = 16


class Place(msgspec.Struct, array_like=True):
    """`length` bytes of the chunk, from `start` on, belong at `offset` of the device."""

    offset: int
    length: int
    start: int


class ImageJob(msgspec.Struct, array_like=True):
    """A chunk, and what of it goes where."""

    ref: ChunkRef
    places: list[Place]


class ImageResult(msgspec.Struct, array_like=True):
    """What a job wrote, and `DIGEST` bytes of BLAKE3 of each place if they will be read back."""

    written_bytes: int = 0
    fetched_bytes: int = 0
    digests: list[bytes] = []


@dataclass(frozen=True)
class ImageWriteTask:
    """All that a worker needs: opens chunks and writes them to the target at `path`."""

    path: bytes
    source: ChunkSource
    digests: bool
    kept_bytes: ClassVar[int] = KEPT_FOR_OPENING

    @property
    def job_type(self) -> Any:
        """For the pool."""
        return ImageJob

    @property
    def result_type(self) -> Any:
        """For the pool."""
        return ImageResult

    def open(self) -> ImageWriteWorker:
        """Open target and store in this process."""
        return ImageWriteWorker(self)


class ImageWriteWorker:
    """Writes places of an image; holds one opened chunk at a time."""

    def __init__(self, task: ImageWriteTask) -> None:
        self._task = task
        self._store = task.source.open_store()
        self._opener = task.source.opener(self._store)
        self._descriptor = open_for_writing(task.path)

    def handle(self, job: ImageJob) -> ImageResult:
        """Do one job."""
        content = memoryview(self._opener.open(job.ref))
        result = ImageResult(fetched_bytes=job.ref.stored_length, digests=[])
        for place in job.places:
            data = content[place.start : place.start + place.length]
            write_range(self._descriptor, self._task.path, place.offset, data)
            result.written_bytes += place.length
            if self._task.digests:
                result.digests.append(blake3(data).digest(DIGEST))
        return result

    def finish(self) -> ImageResult:
        """Nothing is under way between jobs."""
        return ImageResult(digests=[])

    def close(self) -> None:
        """Close the target, and the store if it was opened here."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._task.source.store is None:
            self._store.close()


def image_jobs(runs: Iterable[Run], refs: list[ChunkRef], window: int) -> Iterator[ImageJob]:
    """The runs as jobs, those of one chunk together as far as they lie within `window` bytes."""
    waiting: dict[int, list[Place]] = {}
    start = 0
    for run in runs:
        if run.offset - start > window:
            yield from _drained(waiting, refs)
            start = run.offset
        places = waiting.setdefault(run.chunk, [])
        places.append(Place(run.offset, run.length, run.start))
        if len(places) >= RUNS_PER_JOB:
            yield ImageJob(refs[run.chunk], waiting.pop(run.chunk))
    yield from _drained(waiting, refs)


def _drained(waiting: dict[int, list[Place]], refs: list[ChunkRef]) -> Iterator[ImageJob]:
    for chunk, places in waiting.items():
        yield ImageJob(refs[chunk], places)
    waiting.clear()
