"""Which units of each cell: 16 bits a cell, in a file that memory need not hold."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume.block.ext4 import Range

CELL: Final = 64 * 1024
UNIT: Final = 4096
"""As in FORMAT.md, section 13."""

UNITS: Final = CELL // UNIT
WHOLE: Final = (1 << UNITS) - 1
_WIDTH: Final = 2


def mapped_file(size: int, directory: Path) -> mmap.mmap:
    """Zeros, `size` of them and at least one, in an unnamed file; `VolumeError` if there is no room.

    The room is taken at once: a page that cannot be written later would end the process.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return mmap.mmap(file.fileno(), max(size, 1))
    except OSError as error:
        what = f"make a working file of {size} bytes in {directory}"
        raise VolumeError(what, error.strerror or str(error), "make room there") from error


class Masks:
    """A set of units of a device of `size` bytes."""

    def __init__(self, size: int, directory: Path) -> None:
        self.size: Final = size
        self.cells: Final = -(-size // CELL)
        self._map = mapped_file(self.cells * _WIDTH, directory)

    def close(self) -> None:
        """Drop them. May be called more than once."""
        self._map.close()

    def __getitem__(self, cell: int) -> int:
        return int.from_bytes(self._map[cell * _WIDTH : (cell + 1) * _WIDTH], "little")

    def __setitem__(self, cell: int, mask: int) -> None:
        self._map[cell * _WIDTH : (cell + 1) * _WIDTH] = mask.to_bytes(_WIDTH, "little")

    def between(self, start: int, end: int) -> bytes:
        """The masks of some cells, two bytes each."""
        return self._map[start * _WIDTH : end * _WIDTH]

    def add(self, span: Range) -> None:
        """Add every unit that these bytes touch; what is beyond the device is left out."""
        self._change(-(-min(span.end, self.size) // UNIT), span.start // UNIT, adding=True)

    def remove(self, span: Range) -> None:
        """Remove every unit that lies in these bytes as a whole."""
        self._change(span.end // UNIT, -(-span.start // UNIT), adding=False)

    def _change(self, end: int, start: int, *, adding: bool) -> None:
        if start >= end:
            return
        (first, head), (last, tail) = divmod(start, UNITS), divmod(end, UNITS)
        if first == last:
            self._apply(first, (1 << tail) - (1 << head), adding=adding)
            return
        self._apply(first, WHOLE & -(1 << head), adding=adding)
        if last > first + 1:
            filler = b"\xff" if adding else b"\0"
            self._map[(first + 1) * _WIDTH : last * _WIDTH] = filler * ((last - first - 1) * _WIDTH)
        if tail:
            self._apply(last, (1 << tail) - 1, adding=adding)

    def _apply(self, cell: int, mask: int, *, adding: bool) -> None:
        self[cell] = self[cell] | mask if adding else self[cell] & ~mask

    def differing(self, other: Masks) -> Iterator[Range]:
        """The cells whose masks are others in `other`, which is of a device of the same size."""
        step = 2048
        for start in range(0, self.cells, step):
            end = min(start + step, self.cells)
            mine, theirs = self.between(start, end), other.between(start, end)
            if mine != theirs:
                for cell in range(end - start):
                    at = slice(cell * _WIDTH, (cell + 1) * _WIDTH)
                    if mine[at] != theirs[at]:
                        yield Range((start + cell) * CELL, (start + cell + 1) * CELL)


def merged(spans: list[Range]) -> list[Range]:
    """The same bytes, widened to whole cells, in order, without overlap."""
    cells = sorted((start // CELL * CELL, -(-end // CELL) * CELL) for start, end in spans if start < end)
    joined: list[Range] = []
    for start, end in cells:
        if joined and start <= joined[-1].end:
            if end > joined[-1].end:
                joined[-1] = Range(joined[-1].start, end)
        else:
            joined.append(Range(start, end))
    return joined
