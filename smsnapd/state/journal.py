"""What was stored and is not committed yet; and a hash before each value that the local state holds."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from smsnapd.model import ChunkRef

FRAME: Final = struct.Struct("<I")
CHECK_BYTES: Final = 8


class Journal:
    """Chunks that are durable and not committed yet: what a run that was cut off need not store again.

    A file of frames beside the index; a torn or damaged frame is ignored, and what is behind it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, refs: Iterable[ChunkRef]) -> None:
        """Append; the chunks must be durable."""
        frames = bytearray()
        for ref in refs:
            data = with_check(msgspec.msgpack.encode(ref))
            frames += FRAME.pack(len(data)) + data
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, frames)
        finally:
            os.close(descriptor)

    def read(self) -> list[ChunkRef]:
        """All that was added since `clear`."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        refs, position = [], 0
        while position + FRAME.size <= len(data):
            (length,) = FRAME.unpack_from(data, position)
            position += FRAME.size + length
            if position > len(data):
                break
            try:
                frame = checked(data[position - length : position])
            except sqlite3.DatabaseError:
                break
            refs.append(msgspec.msgpack.decode(frame, type=ChunkRef))
        return refs

    def clear(self) -> None:
        """Forget everything: it is committed, or not to be used."""
        self._path.unlink(missing_ok=True)


def with_check(data: bytes) -> bytes:
    """A value with its hash before it: a disk that garbles the index must not garble what is stored by it."""
    return blake3(data).digest(CHECK_BYTES) + data


def checked(value: bytes) -> memoryview:
    """What `with_check` was given; `sqlite3.DatabaseError` if it is not that any more."""
    data = memoryview(value)[CHECK_BYTES:]
    if blake3(data).digest(CHECK_BYTES) != value[:CHECK_BYTES]:
        raise sqlite3.DatabaseError("a row is damaged")
    return data
