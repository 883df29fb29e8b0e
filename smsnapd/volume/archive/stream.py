"""Bytes that come from somewhere: read ahead on a thread, looked at before they are taken."""

from __future__ import annotations

import io
import queue
import threading
from typing import BinaryIO, Final, Protocol

from smsnapd.errors import VolumeError

PIECE_BYTES: Final = 1024 * 1024
"""What is read at once where nothing else says how much."""

_QUEUED: Final = 8


class ByteSource(Protocol):
    """Bytes, in order, once."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end. Raises `SmsnapError`."""

    def close(self) -> None:
        """Let go of it, at whatever place. May be called more than once."""


class Peekable:
    """A source whose next bytes can be looked at before they are read."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._held = b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end; they stay to be read."""
        pieces, held = [self._held], len(self._held)
        while held < size and (piece := self._source.read(max(size - held, PIECE_BYTES))):
            pieces.append(piece)
            held += len(piece)
        self._held = b"".join(pieces)
        return self._held[:size]

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        if not self._held:
            return self._source.read(size)
        piece, self._held = self._held[:size], self._held[size:]
        return piece

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class Ahead:
    """Reads a source on a thread of its own, a bounded number of pieces ahead of whoever reads this.

    What the source raises is raised by `read`, in its place.
    """

    def __init__(self, source: ByteSource, name: str) -> None:
        self._source = source
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_QUEUED)
        self._left = memoryview(b"")
        self._failure: BaseException | None = None
        self._ended = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        if not self._left and not self._ended:
            self._left = memoryview(self._next())
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)

    def _next(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        item = self._pieces.get()
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self._ended = not item
        return item

    def _run(self) -> None:
        item: bytes | BaseException = b" "
        while item and not isinstance(item, BaseException):
            try:
                item = self._source.read(PIECE_BYTES)
            except BaseException as error:
                item = error
            if not self._put(item):
                return

    def _put(self, item: bytes | BaseException) -> bool:
        while not self._closing.is_set():
            try:
                self._pieces.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def close(self) -> None:
        """Stop reading, and close the source. A read that waits for a pipe is left to end by itself."""
        self._closing.set()
        self._thread.join(timeout=2.0)
        if not self._thread.is_alive():
            self._source.close()


class FileSource:
    """The bytes of an open file or pipe, or of anything that reads like one."""

    def __init__(self, file: BinaryIO | io.RawIOBase, what: str) -> None:
        """`what` is being done, for messages."""
        self._file = file
        self._what = what

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        try:
            return self._file.read(size) or b""
        except OSError as error:
            raise VolumeError(self._what, error.strerror or str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
