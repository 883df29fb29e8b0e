"""Where the data of a sparse file lies, and reading it without its holes."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from smsnapd.model import Entry, Flag, Segment

_ALIGNMENT: Final = 4096
_MOST_SEGMENTS: Final = 32_768
"""So many have a map of at most 1 MiB in a header. A file in more pieces is read in coarser ones."""
_SPARSE: Final = int(Flag.SPARSE)


def find_segments(descriptor: int, size: int) -> tuple[Segment, ...] | None:
    """The data of an open file of `size` bytes, None if it has no hole (lseek(2), SEEK_DATA).

    Segments begin at multiples of 4,096 and end at such or at `size`; between two of them is a hole.
    """
    segments: list[Segment] = []
    alignment, position = _ALIGNMENT, 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            if error.errno == errno.EINVAL:
                return None
            raise
        if start >= size:
            break
        _append(segments, start, position, alignment, size)
        if len(segments) > _MOST_SEGMENTS:
            alignment *= 8
            segments = _coarser(segments, alignment, size)
    return None if segments == [Segment(0, size)] else tuple(segments)


def data_between(entry: Entry, start: int, end: int) -> list[Segment]:
    """The stretches of data of a regular file between two offsets."""
    end = min(end, entry.size)
    if not entry.flags & _SPARSE:
        return [Segment(start, end - start)] if start < end else []
    segments = entry.segments
    first = bisect_right(segments, start, key=lambda segment: segment.offset) - 1
    found = []
    for offset, length in segments[max(first, 0) :]:
        if offset >= end:
            break
        begin, stop = max(offset, start), min(offset + length, end)
        if begin < stop:
            found.append(Segment(begin, stop - begin))
    return found


def read_segments(descriptor: int, segments: Iterable[tuple[int, int]], view: memoryview) -> None:
    """Read stretches of a file into `view`, one behind the other; zeros where the file ends too early."""
    position = 0
    for offset, length in segments:
        end = position + length
        ahead = offset - position
        while position < end:
            count = os.preadv(descriptor, [view[position:end]], position + ahead)
            if count == 0:
                view[position:end] = bytes(end - position)
                count = end - position
            position += count


def _append(segments: list[Segment], start: int, stop: int, alignment: int, size: int) -> None:
    """Add a stretch, widened to the alignment, and joined with the last if they touch."""
    begin = start - start % alignment
    end = min(stop + -stop % alignment, size)
    if segments and begin <= segments[-1].offset + segments[-1].length:
        begin = segments.pop().offset
    segments.append(Segment(begin, end - begin))


def _coarser(segments: Sequence[Segment], alignment: int, size: int) -> list[Segment]:
    """The same data in stretches of a coarser alignment, small holes among it."""
    coarser: list[Segment] = []
    for offset, length in segments:
        _append(coarser, offset, offset + length, alignment, size)
    return coarser
