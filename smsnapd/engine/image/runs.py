"""Where the bytes of an image lie: runs of it, each in one stretch of one chunk, in the order of offsets.

What lies in no run is zero, or free in the file system (FORMAT.md, section 13).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.format.chunker import split_segments
from smsnapd.format.image import Image
from smsnapd.model import Entry, data_segments

RUNS_LIMIT: Final = 1 << 25
"""Runs that are held at most, 20 bytes each. A volume of a terabyte has about a million."""


class Run(NamedTuple):
    """`length` bytes of the device at `offset` are those of chunk number `chunk` from `start` on."""

    offset: int
    length: int
    chunk: int
    start: int

    @property
    def end(self) -> int:
        """Where it ends on the device."""
        return self.offset + self.length


def runs_of(image: Image, pieces: Iterable[Entry]) -> Iterator[Run]:
    """The runs of an image, rising, neighbours joined; `pieces` are its entries, in order."""
    last: Run | None = None
    for run in _single_runs(image, pieces):
        if last is None:
            last = run
        elif (last.end, last.chunk, last.start + last.length) == (run.offset, run.chunk, run.start):
            last = Run(last.offset, last.length + run.length, last.chunk, last.start)
        else:
            yield last
            last = run
    if last is not None:
        yield last


def _single_runs(image: Image, pieces: Iterable[Entry]) -> Iterator[Run]:
    for number, piece in enumerate(pieces):
        base = number * image.piece
        parts = split_segments(data_segments(piece), (extent.length for extent in piece.content))
        for extent, segments in zip(piece.content, parts, strict=True):
            start = extent.offset
            for offset, length in segments:
                yield Run(base + offset, length, extent.chunk, start)
                start += length


class RunIndex:
    """The runs of an image in memory, found by offset."""

    def __init__(self, runs: Iterable[Run]) -> None:
        """DamageError if there are more than `RUNS_LIMIT`."""
        self._offsets = array("Q")
        self._lengths = array("I")
        self._chunks = array("I")
        self._starts = array("I")
        for run in runs:
            if len(self._offsets) >= RUNS_LIMIT:
                why = f"it lies in more than {RUNS_LIMIT:,} runs"
                raise DamageError("look into the image", why, "restore it to a device, and mount that")
            self._offsets.append(run.offset)
            self._lengths.append(run.length)
            self._chunks.append(run.chunk)
            self._starts.append(run.start)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Run:
        return Run(self._offsets[number], self._lengths[number], self._chunks[number], self._starts[number])

    def from_offset(self, offset: int) -> int:
        """The number of the run that `offset` lies in, or else of the next one behind it."""
        number = bisect_right(self._offsets, offset)
        if number and self._offsets[number - 1] + self._lengths[number - 1] > offset:
            return number - 1
        return number

    def chunks(self) -> set[int]:
        """The chunks that it needs."""
        return set(self._chunks)


def data_bytes_of(tree: SnapshotTree) -> int:
    """Bytes of an image that are stored; DamageError if its catalog is not whole."""
    return sum(segment.length for piece in tree.pieces() for segment in data_segments(piece))
