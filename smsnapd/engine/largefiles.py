"""Large files: cut at fixed logical offsets, each cut a chunk of its own, read by all workers at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.changes import ChangeSet, is_large
from smsnapd.engine.chunktable import ChunkTable
from smsnapd.engine.pool import Pool
from smsnapd.engine.progress import Progress
from smsnapd.engine.storing import PackJob, RangeJob, StoreResult
from smsnapd.format.chunker import cut_ranges
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Flag, data_bytes, data_segments, join_path
from smsnapd.volume.tarball.read import ISSUE_CHANGED, ISSUE_VANISHED, READ, PackReader

CUTS_PER_JOB: Final = 4
TRIES: Final = 3

StorePool = Pool[PackJob | RangeJob, StoreResult]


class _Attempt(NamedTuple):
    """A large file being read for the n-th time."""

    path: bytes
    entry: Entry
    tries: int


class LargeFiles:
    """Stores the contents of large files.

    `stored` has their entries, complete but for the header; `refused` why others could not be read.
    """

    def __init__(
        self,
        reader: PackReader,
        table: ChunkTable,
        take_durable: Callable[[StoreResult], None],
        renew: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._reader = reader
        self._table = table
        self._take_durable = take_durable
        self._renew = renew
        self._progress = progress
        self.stored: dict[bytes, Entry] = {}
        self.refused: dict[bytes, str] = {}
        self.stored_bytes = 0

    def store(self, pool: StorePool, changes: ChangeSet) -> None:
        """Store every changed file that is large; one that moves under the reader is read again."""
        self._store(pool, self._candidates(changes))

    def store_one(self, pool: StorePool, path: bytes, entry: Entry) -> Entry | None:
        """Store one file that turned out to be large; None if it is large no more, or was refused."""
        if path not in self.refused:
            self._store(pool, self._attempts([_Attempt(path, entry, 0)]))
        return self.stored.get(path)

    def _store(self, pool: StorePool, attempts: Iterator[_Attempt]) -> None:
        while again := self._pass(pool, attempts):
            attempts = self._attempts(again)

    def _attempts(self, before: list[_Attempt]) -> Iterator[_Attempt]:
        return filter(None, (self._inspect(item.path, item.entry, item.tries + 1) for item in before))

    def _candidates(self, changes: ChangeSet) -> Iterator[_Attempt]:
        for directory, changed, _ in changes.directories():
            for entry, _, mode in changed:
                if mode == READ and is_large(entry):
                    attempt = self._inspect(join_path(directory, entry.name), entry, 1)
                    if attempt is not None:
                        yield attempt

    def _inspect(self, path: bytes, entry: Entry, tries: int) -> _Attempt | None:
        """A file as it is now; None if it is not (or not any more) a large file that can be read.

        What keeps it from being read is told when its pack is.
        """
        inspected, _ = self._reader.inspect(path, entry)
        if inspected is None or data_bytes(inspected) < CHUNK_TARGET:
            return None
        if tries >= TRIES:
            # It will not hold still: take it as it comes, and say so.
            inspected = msgspec.structs.replace(inspected, flags=inspected.flags | Flag.CHANGED)
        return _Attempt(path, inspected, tries)

    def _pass(self, pool: StorePool, attempts: Iterator[_Attempt]) -> list[_Attempt]:
        """Read files once; those that must be read again."""
        pending: deque[tuple[_Attempt, RangeJob, bool]] = deque()
        again: list[_Attempt] = []
        extents: list[Extent] = []
        issue = ""
        for result in pool.run(self._jobs(attempts, pending)):
            attempt, job, last = pending.popleft()
            issue = issue or result.issue
            self._take_durable(result)
            extents += [
                Extent(self._table.number(piece), 0, piece.length) for piece in result.pieces if piece
            ]
            self._report(result, job)
            if last:
                if not self._conclude(attempt, tuple(extents), issue):
                    again.append(attempt)
                extents, issue = [], ""
        return again

    def _conclude(self, attempt: _Attempt, content: tuple[Extent, ...], issue: str) -> bool:
        """Whether no more is to be tried with a file whose last range has been read."""
        path, entry, tries = attempt
        if issue and tries < TRIES:
            return False
        if issue in ("", ISSUE_CHANGED):
            flags = entry.flags if issue else entry.flags & ~Flag.CHANGED
            self.stored[path] = msgspec.structs.replace(entry, flags=int(flags), content=content)
            self._progress.advance(files=1)
        elif issue != ISSUE_VANISHED:
            self.refused[path] = issue
        return True

    def _jobs(
        self, attempts: Iterator[_Attempt], pending: deque[tuple[_Attempt, RangeJob, bool]]
    ) -> Iterator[RangeJob]:
        for attempt in attempts:
            cuts = cut_ranges(attempt.entry.size, data_segments(attempt.entry))
            for start in range(0, len(cuts), CUTS_PER_JOB):
                job = RangeJob(attempt.path, attempt.entry, cuts[start : start + CUTS_PER_JOB])
                pending.append((attempt, job, start + CUTS_PER_JOB >= len(cuts)))
                yield job

    def _report(self, result: StoreResult, job: RangeJob) -> None:
        stored = sum(piece.ref.stored_length for piece in result.pieces if piece and piece.ref)
        self.stored_bytes += stored
        self._renew()
        self._progress.advance(bytes=sum(end - start for start, end in job.cuts), stored_bytes=stored)
