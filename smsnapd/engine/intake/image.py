"""A raw image, as `dd` writes it, streaming by: cut into the pieces of FORMAT.md, section 13."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smsnapd.engine.chain.chunkwriter import ChunkWriter
from smsnapd.errors import DamageError
from smsnapd.format.image import PIECE, UNIT, Image, piece_name
from smsnapd.model import BLOCK, CHUNK_TARGET, Entry, Extent, Flag, Kind, Segment
from smsnapd.volume.archive.stream import ByteSource
from smsnapd.volume.block.ext4 import Geometry, read_geometry

WINDOW: Final = CHUNK_TARGET
"""Bytes of the image that become one chunk, but for its units that are zero. A piece is a multiple of it."""

_ZEROS: Final = bytes(UNIT)
_HEAD: Final = 4096
_UNKNOWN: Final = 2**62


class _Head:
    """The beginning of an image of unknown size, for who looks at its superblock."""

    size = _UNKNOWN

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of it."""
        return self._data[offset : offset + size]


class ArrivingImage:
    """An image as it is read. `image` is known when all `pieces` have been taken."""

    def __init__(self, source: ByteSource, what: str) -> None:
        """`what` is being done, for messages."""
        self._source = source
        self._what = what
        self._size = 0
        self._geometry_bytes = 0
        self._uuid = ""
        self.data_bytes = 0
        self.is_clean = False
        """Whether the file system in it was not in use: else its journal holds something."""

    @property
    def image(self) -> Image:
        """What a manifest says of it. What was not stored is zero, be it in use or free."""
        return Image(self._size, "ext4" if self._geometry_bytes else "", self._uuid)

    def pieces(self, chunks: ChunkWriter, moment_ns: int) -> Iterator[Entry]:
        """Store the image; its pieces, complete but for their headers.

        `DamageError` at its end if it is shorter than the file system in it says.
        """
        number = 0
        while entry := self._piece(chunks, number, moment_ns):
            yield entry
            number += 1
        _check_size(self._size, self._geometry_bytes, self._what)

    def _piece(self, chunks: ChunkWriter, number: int, moment_ns: int) -> Entry | None:
        segments: list[Segment] = []
        extents: list[Extent] = []
        size = 0
        while size < PIECE and (window := self._window()):
            if not self._size:
                self._look(window[:_HEAD])
            data = bytearray()
            for start, end in _data_of(window):
                _append(segments, size + start, end - start)
                data += window[start:end]
            if data:
                self.data_bytes += len(data)
                data += bytes(-len(data) % BLOCK)
                extents.append(Extent(chunks.add(bytes(data)), 0, len(data)))
            size += len(window)
            self._size += len(window)
        if not size:
            return None
        return Entry(
            name=piece_name(number),
            kind=int(Kind.REGULAR),
            flags=int(Flag.SPARSE),
            mode=0o600,
            size=size,
            mtime_ns=moment_ns,
            segments=tuple(segments),
            content=tuple(extents),
        )

    def _window(self) -> bytes:
        """The next bytes of the image, fewer than `WINDOW` only at its end."""
        pieces, missing = [], WINDOW
        while missing and (piece := self._source.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _look(self, head: bytes) -> None:
        geometry = _geometry(head)
        if geometry is not None:
            self._geometry_bytes = geometry.blocks * geometry.block
            self._uuid = geometry.uuid
            self.is_clean = not geometry.needs_recovery


def check_whole(path: Path, what: str) -> None:
    """DamageError if an image in a file is shorter than the file system in it says. Raises `OSError`."""
    with path.open("rb") as file:
        geometry = _geometry(file.read(_HEAD))
    _check_size(path.stat().st_size, geometry.blocks * geometry.block if geometry else 0, what)


def _geometry(head: bytes) -> Geometry | None:
    return read_geometry(_Head(head)) if len(head) == _HEAD else None


def _check_size(size: int, filesystem: int, what: str) -> None:
    if size and not size % BLOCK and size >= filesystem:
        return
    why = f"it is cut off: it has {size} bytes, which is no multiple of {BLOCK}"
    if filesystem:
        why = f"it is cut off: it has {size} bytes, and the file system in it has {filesystem}"
    raise DamageError(what, why, "compare its size with the device's; nothing was kept of it")


def _data_of(window: bytes) -> Iterator[tuple[int, int]]:
    """Where units of a window are not zero; neighbours together."""
    begin = -1
    for start in range(0, len(window), UNIT):
        unit = window[start : start + UNIT]
        is_data = unit != (_ZEROS if len(unit) == UNIT else bytes(len(unit)))
        if is_data and begin < 0:
            begin = start
        elif not is_data and begin >= 0:
            yield begin, start
            begin = -1
    if begin >= 0:
        yield begin, len(window)


def _append(segments: list[Segment], offset: int, length: int) -> None:
    if segments and segments[-1].offset + segments[-1].length == offset:
        offset, length = segments[-1].offset, segments.pop().length + length
    segments.append(Segment(offset, length))
