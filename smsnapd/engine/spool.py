"""Values in an unnamed file, so that memory does not grow with the number of files."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

_FRAME: Final = struct.Struct("<I")
_GUESS: Final = 512
"""Most values are shorter: then one read is enough."""


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

    def _data(self, place: int) -> bytes:
        if self._flushed < self._end:
            self._file.flush()
            self._flushed = self._end
        descriptor = self._file.fileno()
        head = os.pread(descriptor, _GUESS, place)
        (length,) = _FRAME.unpack_from(head)
        start = _FRAME.size
        if start + length <= len(head):
            return head[start : start + length]
        return os.pread(descriptor, length, place + start)
