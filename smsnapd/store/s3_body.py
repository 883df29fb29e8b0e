"""Request bodies in the form that costs the S3 SDK the least."""

from __future__ import annotations

from typing import Final

from smsnapd.store.base import Buffer

_EXPECT_FROM: Final = 1024 * 1024
"""Bodies of this many bytes and more wait for the server's 100 Continue: one round trip, against a
refusal that never arrives because the server closed the connection while the body was coming."""

_SLICE: Final = 1024 * 1024


class SlicedBody:
    """A body that hands out large slices of `data` without copying them.

    `read` gives more than it is asked for: the SDK asks for 16 KiB, and each answer is a send of its own.
    Having `read` at all is what makes botocore send `Expect: 100-continue`.
    """

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B")
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        """The next slice, of `size` bytes or more; empty at the end."""
        end = len(self._data) if size < 0 else self._position + max(size, _SLICE)
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file; the SDK rewinds to sign, and to send again."""
        self._position = offset + (0, self._position, len(self._data))[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position


def request_body(data: Buffer) -> bytearray | SlicedBody:
    """What to give the SDK for `data`. A small bytearray goes out as it is, with no waiting."""
    return SlicedBody(data) if len(data) >= _EXPECT_FROM else bytearray(data)
