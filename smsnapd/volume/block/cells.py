"""Cells of a device: which of their units hold data, those data, and a keyed digest of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from smsnapd.volume.block.device import WINDOW, Device, aligned_buffer
from smsnapd.volume.block.masks import CELL, UNIT, UNITS

DIGEST: Final = 16
"""Bytes of a cell's digest; that of a cell without data is all zero."""

NO_DIGEST: Final = bytes(DIGEST)

_CELLS_AT_ONCE: Final = WINDOW // CELL
_ZEROS: Final = bytes(UNIT)


class Cell(NamedTuple):
    """One cell: its number, the units that hold data, their digest, and the data, good until the next one.

    `data` are the stretches of data: their offsets in the cell, and the bytes.
    """

    number: int
    mask: int
    digest: bytes
    data: list[tuple[int, memoryview]]


class CellReader:
    """Reads cells. `key` (32 bytes) is that of the digests. Not for several threads."""

    def __init__(self, device: Device, key: bytes) -> None:
        self._device = device
        self._key = key
        self._buffer = memoryview(aligned_buffer(WINDOW))

    def read(self, start: int, allowed: list[int]) -> Iterator[Cell]:
        """The cells from number `start` on, of each the units that its mask in `allowed` allows.

        A cell that is allowed nothing is passed over.
        """
        for begin in range(0, len(allowed), _CELLS_AT_ONCE):
            yield from self._batch(start + begin, allowed[begin : begin + _CELLS_AT_ONCE])

    def _batch(self, start: int, allowed: list[int]) -> Iterator[Cell]:
        units = [row * UNITS + unit for row, mask in enumerate(allowed) if mask for unit in _ends(mask)]
        if not units:
            return
        low, high = units[0] * UNIT, (units[-1] + 1) * UNIT
        high = min(high, self._device.size - start * CELL)
        self._device.read_into(self._buffer[low:high], start * CELL + low)
        for row, mask in enumerate(allowed):
            if mask:
                yield self._cell(start + row, self._buffer[row * CELL : min((row + 1) * CELL, high)], mask)

    def _cell(self, number: int, content: memoryview, allowed: int) -> Cell:
        mask = allowed
        for unit in range(UNITS):
            if allowed >> unit & 1:
                piece = content[unit * UNIT : (unit + 1) * UNIT]
                if bytes(piece) == _ZEROS[: len(piece)]:
                    mask &= ~(1 << unit)
        if not mask:
            return Cell(number, 0, NO_DIGEST, [])
        data = [(start * UNIT, content[start * UNIT : end * UNIT]) for start, end in runs(mask)]
        hasher = blake3(mask.to_bytes(2, "little"), key=self._key)
        for _, piece in data:
            hasher.update(piece)
        return Cell(number, mask, hasher.digest(DIGEST), data)


def runs(mask: int) -> list[tuple[int, int]]:
    """The stretches of units in a mask, each from its first to behind its last."""
    found: list[tuple[int, int]] = []
    unit = 0
    while mask >> unit:
        unit += ((mask >> unit) & -(mask >> unit)).bit_length() - 1
        rest = ~(mask >> unit)
        length = (rest & -rest).bit_length() - 1
        found.append((unit, unit + length))
        unit += length
    return found


def data_length(cell: int, mask: int, size: int) -> int:
    """Bytes of the data of a cell of a device of `size` bytes: whole units, but for the device's end."""
    length = mask.bit_count() * UNIT
    over = (cell * UNITS + mask.bit_length()) * UNIT - size
    return length - max(over, 0)


def _ends(mask: int) -> tuple[int, int]:
    """The first and the last unit of a mask."""
    return (mask & -mask).bit_length() - 1, mask.bit_length() - 1
