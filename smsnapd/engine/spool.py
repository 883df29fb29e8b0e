"""Values in an unnamed file, so that memory does not grow with the number of files."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

_FRAME: Final = struct.Struct("<I")
_GUESS: Final = 512
"""Most values are shorter: then one read is enough."""

_WINDOW: Final = 256 * 1024
"""Bytes that are read at once, at most, of values that lie one behind the other."""

_ARRAY: Final = struct.Struct(">BI")
_ARRAY_32: Final = 0xDD
"""The head of an array of values in msgpack: its type, and how many there are."""


class Spool(Generic[T]):
    """Written once, read back from the start or by place, by several readers at once. Close it."""

    def __init__(self, kind: type[T], directory: Path) -> None:
        """`kind` is what msgspec decodes to; `directory` one on disk: /tmp may be small, or memory."""
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close())
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._end = 0
        self._flushed = 0

    def close(self) -> None:
        """Drop the file."""
        self._file.close()

    def add(self, value: T) -> int:
        """Append a value; returns its place."""
        place = self._end
        data = self._encode(value)
        self._end += self._file.write(_FRAME.pack(len(data)) + data)
        return place

    def add_all(self, values: Iterable[T]) -> list[int]:
        """Append values; returns their places."""
        encode, pack = self._encode, _FRAME.pack
        places: list[int] = []
        pieces: list[bytes] = []
        for value in values:
            data = encode(value)
            places.append(self._end)
            pieces += (pack(len(data)), data)
            self._end += _FRAME.size + len(data)
        self._file.write(b"".join(pieces))
        return places

    def packed(self, places: list[int]) -> msgspec.Raw:
        """The values at `places` as one array in msgpack, for another process: not even decoded here."""
        return msgspec.Raw(b"".join((_ARRAY.pack(_ARRAY_32, len(places)), *self._several(places))))

    def at(self, place: int) -> T:
        """The value at a place that `add` returned."""
        return self._decode(self._data(place))

    def __iter__(self) -> Iterator[T]:
        """All values, in the order in which they were added."""
        place = 0
        while place < self._end:
            data = self._data(place)
            yield self._decode(data)
            place += _FRAME.size + len(data)

    def _several(self, places: list[int]) -> Iterator[bytes]:
        """What lies at each of `places`, read with as few calls as may be if one lies behind the other."""
        descriptor, size = self._descriptor(), _GUESS
        window, start, end = b"", 0, 0
        for place in places:
            size = min(2 * size, _WINDOW) if place == start + end else _GUESS
            begin = place - start
            if begin < 0 or begin + _FRAME.size > len(window):
                window, start, begin = os.pread(descriptor, size, place), place, 0
            (length,) = _FRAME.unpack_from(window, begin)
            end = begin + _FRAME.size + length
            if end > len(window):
                window, start = os.pread(descriptor, max(size, _FRAME.size + length), place), place
                begin, end = 0, _FRAME.size + length
            yield window[begin + _FRAME.size : end]

    def _descriptor(self) -> int:
        """Of the file, with all in it that was added."""
        if self._flushed < self._end:
            self._file.flush()
            self._flushed = self._end
        return self._file.fileno()

    def _data(self, place: int) -> bytes:
        descriptor = self._descriptor()
        head = os.pread(descriptor, _GUESS, place)
        (length,) = _FRAME.unpack_from(head)
        start = _FRAME.size
        if start + length <= len(head):
            return head[start : start + length]
        return os.pread(descriptor, length, place + start)
