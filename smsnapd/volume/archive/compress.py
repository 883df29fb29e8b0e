"""Compression as stock tools read and write it: gzip, xz, lz4 and zstd.

Packing cuts the stream into blocks and packs each by itself, on every core: members, streams and frames that
follow each other are one file to every one of these tools (RFC 1952, the .xz and LZ4 frame formats, RFC
8878). Unpacking takes such rows as well, and never makes more bytes at a time than were asked for.
"""

from __future__ import annotations

import lzma
import os
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal, Protocol

import zstandard

from smsnapd.errors import DamageError
from smsnapd.volume.archive.stream import PIECE_BYTES, ByteSource

Format = Literal["none", "gzip", "lz4", "xz", "zstd"]
FORMATS: Final = ("none", "gzip", "lz4", "xz", "zstd")

_MAGICS: Final[tuple[tuple[bytes, Format], ...]] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
MAGIC_SIZE: Final = 6
_GZIP: Final = 16 + zlib.MAX_WBITS
_WINDOW_MAX: Final = 1 << 27
"""What zstd(1) takes without being asked for more, and the memory that a dictionary of xz may need."""
_BLOCKS: Final = {"gzip": 1 << 20, "lz4": 4 << 20, "xz": 16 << 20, "zstd": 8 << 20}
"""Bytes that are packed by themselves: enough that no more than a percent is lost by it."""


def format_of(head: bytes) -> Format:
    """How a file is compressed that begins with `head`, at least `MAGIC_SIZE` bytes if it has them."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), "none")


# --- packing


class Packing:
    """Takes plain bytes, hands packed ones to `write`, in order. `finish` ends it, `close` gives it up."""

    def __init__(
        self, format_: Format, write: Callable[[memoryview], object], workers: int | None = None
    ) -> None:
        """`workers` is by default one a core."""
        count = workers or len(os.sched_getaffinity(0))
        self._pack = _PACKERS[format_]
        self._block = _BLOCKS[format_]
        self._write = write
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="pack")
        self._ahead = count + 1
        self._packed: deque[Future[bytes]] = deque()
        self._buffer = bytearray()

    def write(self, piece: memoryview) -> None:
        """Take a piece of any size."""
        self._buffer += piece
        while len(self._buffer) >= self._block:
            self._hand_out(bytes(self._buffer[: self._block]))
            del self._buffer[: self._block]

    def _hand_out(self, block: bytes) -> None:
        while len(self._packed) >= self._ahead:
            self._write(memoryview(self._packed.popleft().result()))
        self._packed.append(self._threads.submit(self._pack, block))

    def finish(self) -> None:
        """Write what is left; of nothing, an empty file of the format."""
        self._hand_out(bytes(self._buffer))
        while self._packed:
            self._write(memoryview(self._packed.popleft().result()))
        self.close()

    def close(self) -> None:
        """Stop the threads. May be called more than once."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _pack_lz4(block: bytes) -> bytes:
    import lz4.frame

    packed: bytes = lz4.frame.compress(block, content_checksum=True)
    return packed


_PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda block: zlib.compress(block, 6, _GZIP),
    "lz4": _pack_lz4,
    "xz": lambda block: lzma.compress(block, preset=6),
    "zstd": lambda block: zstandard.ZstdCompressor(level=3, write_checksum=True).compress(block),
}


# --- unpacking


class _Unpacker(Protocol):
    """One member, stream or frame: the shape of `lzma.LZMADecompressor`."""

    @property
    def eof(self) -> bool:
        """Whether it has come to its end, and all of it was given out."""

    @property
    def needs_input(self) -> bool:
        """Whether it can give out no more without more input."""

    @property
    def unused_data(self) -> bytes:
        """Input behind its end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes more; input that is left over is kept."""


class Unpacked:
    """The plain bytes of a packed source. `DamageError` if it is damaged or cut off.

    Of gzip, zeros behind the last member are passed over, as gzip(1) does; whatever else stands there is
    damage.
    """

    def __init__(self, source: ByteSource, format_: Format, what: str) -> None:
        self._source = source
        self._format = format_
        self._make = _UNPACKERS[format_]
        self._what = what
        self._unpacker: _Unpacker | None = self._make()
        self._input = b""
        self._fresh = True

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        while True:
            if self._unpacker is None and not self._next_member():
                return b""
            piece = self._step(size)
            if piece:
                return piece

    def _next_member(self) -> bool:
        """Begin the next member, if there is one."""
        while self._format in ("gzip", "xz"):  # these may be padded with zeros
            self._input = self._input.lstrip(b"\0") or self._source.read(PIECE_BYTES)
            if not self._input or self._input[0]:
                break
        self._input = self._input or self._source.read(PIECE_BYTES)
        if not self._input:
            return False
        self._unpacker, self._fresh = self._make(), True
        return True

    def _step(self, size: int) -> bytes:
        unpacker = self._unpacker
        assert unpacker is not None
        if unpacker.needs_input and not self._input:
            self._input = self._source.read(PIECE_BYTES)
            if not self._input:
                raise self._damage("it was cut off")
        given, self._input = self._input, b""
        try:
            piece = unpacker.decompress(given, size)
        except (
            zlib.error,
            lzma.LZMAError,
            zstandard.ZstdError,
            RuntimeError,
            MemoryError,
            EOFError,
        ) as error:
            raise self._damage(" ".join(str(error).split()) or type(error).__name__) from error
        if unpacker.eof:
            self._input, self._unpacker = unpacker.unused_data, None
        return piece

    def _damage(self, why: str) -> DamageError:
        hint = "it is damaged or incomplete; get it again"
        return DamageError(self._what, f"its {self._format} compression cannot be undone: {why}", hint)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class _Gunzip:
    """`_Unpacker` of one member of gzip."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)
        self._kept = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._kept

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(self._kept + data if self._kept else data, max_length)
        self._kept = self._inner.unconsumed_tail
        return piece


class _Unzstd:
    """`_Unpacker` of one frame of zstd, fed little at a time, since its output cannot be limited.

    A block of it, of 4 bytes or more, makes at most 128 KiB.
    """

    _STEP: Final = 1024

    def __init__(self) -> None:
        self._inner: Any = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX).decompressobj()
        self._kept = b""
        self._made = b""

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof) and not self._made

    @property
    def needs_input(self) -> bool:
        return not self._kept and not self._made and not self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + self._kept

    def decompress(self, data: bytes, max_length: int) -> bytes:
        self._kept += data
        position = 0
        while not self._made and position < len(self._kept) and not self._inner.eof:
            self._made = self._inner.decompress(self._kept[position : position + self._STEP])
            position += self._STEP
        self._kept = self._kept[position:]
        piece, self._made = self._made[:max_length], self._made[max_length:]
        return piece


def _unlz4() -> _Unpacker:
    import lz4.frame

    unpacker: _Unpacker = lz4.frame.LZ4FrameDecompressor()
    return unpacker


_UNPACKERS: Final[dict[str, Callable[[], _Unpacker]]] = {
    "gzip": _Gunzip,
    "lz4": _unlz4,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_MAX),
    "zstd": _Unzstd,
}
