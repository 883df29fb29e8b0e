"""An image written to a device or file: zeros where it has no data, the first mebibyte last, read back."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from blake3 import blake3

from smsnapd.engine.image.reader import ChunkSource
from smsnapd.engine.image.runs import Run, runs_of
from smsnapd.engine.image.writing import DIGEST, ImageJob, ImageResult, ImageWriteTask, image_jobs
from smsnapd.engine.pool import Pool, default_workers
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.model import data_segments, path_text
from smsnapd.store.base import StoreSettings
from smsnapd.volume.imagetarget import HEAD, ImageTarget, OpenTarget, opened_target

WINDOW: Final = 1024 * 1024 * 1024
"""Bytes of the device within which what lies in one chunk is written at once."""

_INLINE_CHUNKS: Final = 4


@dataclass(frozen=True)
class WrittenImage:
    """What was written. `verified` bytes were read back and found to be the same."""

    bytes: int
    fetched_bytes: int
    verified: int


def write_image(
    tree: SnapshotTree,
    settings: StoreSettings,
    target: ImageTarget,
    progress: Progress,
    *,
    verify: bool = False,
    workers: int | None = None,
) -> WrittenImage:
    """Write the image that a chain begins with to a target that is at least as large.

    What the image does not store is made zero, and so is the end of a larger target's last mebibyte. Cut off,
    the target holds no file system. Raises DamageError if the repository cannot give a part back (then, too),
    or if what is read back differs; TargetError.
    """
    with opened_target(target) as opened:
        return _ImageWriter(tree, settings, opened, progress, verify, workers).write()


class _Digests:
    """What was written where, in a few bytes for each stretch."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("I")
        self._digests = bytearray()

    def add(self, offset: int, length: int, digest: bytes) -> None:
        """Note one stretch."""
        self._offsets.append(offset)
        self._lengths.append(length)
        self._digests += digest

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        for number, (offset, length) in enumerate(zip(self._offsets, self._lengths, strict=True)):
            yield offset, length, bytes(self._digests[number * DIGEST : (number + 1) * DIGEST])


class _ImageWriter:
    def __init__(
        self,
        tree: SnapshotTree,
        settings: StoreSettings,
        opened: OpenTarget,
        progress: Progress,
        verify: bool,
        workers: int | None,
    ) -> None:
        assert tree.image is not None
        self._tree = tree
        self._image = tree.image
        self._opened = opened
        self._target = opened.target
        self._progress = progress
        self._verify = verify
        used = {extent.chunk for piece in tree.pieces() for extent in piece.content}
        self._task = ImageWriteTask(self._target.path, ChunkSource.of(tree, settings, used), verify)
        # Small images are written by this process alone: starting others would take longer.
        chosen = default_workers(settings.url) if workers is None else workers
        self._workers = chosen if len(used) > _INLINE_CHUNKS else 0
        self._digests = _Digests()
        self._written = self._fetched = 0

    def write(self) -> WrittenImage:
        total = sum(length for piece in self._tree.pieces() for _, length in data_segments(piece))
        self._progress.phase("write", bytes=total)
        self._wipe()
        pool: Pool[ImageJob, ImageResult] = Pool(self._task, self._workers)
        with pool:
            self._run(pool, (run for run in self._runs() if run.offset >= HEAD))
            self._opened.sync()
            self._run(pool, takewhile(lambda run: run.offset < HEAD, self._runs()))
        self._opened.sync()
        verified = self._read_back(total) if self._verify else 0
        return WrittenImage(self._written, self._fetched, verified)

    def _runs(self) -> Iterator[Run]:
        """The runs of the image, cut where the head ends."""
        for run in runs_of(self._image, self._tree.pieces()):
            if run.offset < HEAD < run.end:
                yield Run(run.offset, HEAD - run.offset, run.chunk, run.start)
                yield Run(HEAD, run.end - HEAD, run.chunk, run.start + HEAD - run.offset)
            else:
                yield run

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """What of the target has to be zero: start and end of each range."""
        position = 0
        for run in self._runs():
            if run.offset > position:
                yield position, run.offset
            position = run.end
        if position < self._image.size:
            yield position, self._image.size
        # The copy of a partition table, or what marks a member of a RAID, lies at the end.
        if self._target.size > self._image.size:
            yield max(self._image.size, self._target.size - HEAD), self._target.size

    def _wipe(self) -> None:
        """Make zero what has to be, the head first."""
        if self._target.empty:
            return
        self._opened.zero(0, min(HEAD, self._target.size))
        self._opened.sync()
        for start, end in self._gaps():
            self._opened.zero(start, end)

    def _run(self, pool: Pool[ImageJob, ImageResult], runs: Iterator[Run]) -> None:
        under_way: list[ImageJob] = []

        def jobs() -> Iterator[ImageJob]:
            for job in image_jobs(runs, self._tree.chunks, WINDOW):
                under_way.append(job)
                yield job

        for result in pool.run(jobs()):
            job = under_way.pop(0)
            self._written += result.written_bytes
            self._fetched += result.fetched_bytes
            self._progress.advance(bytes=result.written_bytes)
            for place, digest in zip(job.places, result.digests, strict=False):
                self._digests.add(place.offset, place.length, digest)

    def _read_back(self, total: int) -> int:
        """Compare the target with what was written; DamageError where they differ."""
        self._progress.phase("verify", bytes=total)
        self._opened.forget()
        verified = 0
        for offset, length, digest in self._digests:
            if blake3(self._opened.read(offset, length)).digest(DIGEST) != digest:
                raise self._differs(offset)
            verified += length
            self._progress.advance(bytes=length)
        for start, end in self._gaps():
            if not self._opened.is_zero(start, end):
                raise self._differs(start)
        return verified

    def _differs(self, offset: int) -> DamageError:
        what = f"verify {path_text(self._target.path)}"
        why = f"what is read back at byte {offset:,} is not what was written"
        return DamageError(what, why, "the device is broken, or somebody else writes to it: look at dmesg")
