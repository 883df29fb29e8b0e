"""Request bodies in the form that costs the S3 SDK the least, or that goes out at a pace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from smsnapd.store.activity import uploading
from smsnapd.store.base import Buffer
from smsnapd.store.pacing import Pacer
from smsnapd.store.s3_socket import keep_little_unsent

_EXPECT_FROM: Final = 1024 * 1024
"""Bodies of this many bytes and more wait for the server's 100 Continue: one round trip, against a
refusal that never arrives because the server closed the connection while the body was coming."""

_SLICE: Final = 32 * 1024
"""Each goes out by a sendall, whose time limit, the connection's of 10 s, is for all of it and not for some
progress: with much larger ones puts fail where the way is slow. They would be no quicker elsewhere."""


class SlicedBody:
    """A body that hands out slices of `data` without copying them.

    Having `read` is what makes botocore send `Expect: 100-continue`. However much is asked for, each answer
    of `read` is of one size, and sent by itself.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data).cast("B")
        self._position = 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int = -1) -> memoryview:
        """The next slice, or all that is left if `size` is negative; empty at the end."""
        end = len(self.data) if size < 0 else self._position + _SLICE
        piece = self.data[self._position : end]
        self._position += len(piece)
        uploading.mark()
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file; the SDK rewinds after it has read to sign, and to send again."""
        self._position = offset + (0, self._position, len(self.data))[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position


def request_body(data: Buffer, pacer: Pacer | None = None) -> bytearray | SlicedBody:
    """What to give the SDK for `data`. A small bytearray goes out as it is, with no waiting for the server.

    At a pace it is the smaller that takes long enough to be refused on its way.
    """
    expect_from = _EXPECT_FROM if pacer is None else pacer.piece
    return SlicedBody(data) if len(data) >= expect_from else bytearray(data)


def prepare_puts(client: Any, pacer: Pacer | None) -> None:
    """Have an S3 client of the SDK send its puts so that a slow way takes them, and at the pace.

    A body is paced just before it is sent: the SDK reads it to sign it, too.
    """
    keep_little_unsent(client)
    if pacer is None:
        return

    def pace(request: Any, **_: object) -> None:
        if request.body:  # None for an empty one
            request.body = _PacedBody(request.body, pacer)

    client.meta.events.register("before-send.s3.PutObject", pace)


class _PacedBody:
    """A body as an iterable of one reader, which http.client empties: only then time is spent and counted.

    The SDK's connection sends nothing of a body that the server has refused beforehand, but takes all of it.
    """

    def __init__(self, body: Buffer | SlicedBody, pacer: Pacer) -> None:
        self._data = body.data if isinstance(body, SlicedBody) else body
        self._pacer = pacer

    def __iter__(self) -> Iterator[_Reader]:
        yield _Reader(self._pacer.pieces(self._data))

    def seek(self, offset: int) -> None:
        """Nothing to do: each iteration begins at the start. The SDK asks for it before it sends again."""


class _Reader:
    """As much of a file as http.client needs to send it."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces

    def read(self, _size: int) -> Buffer:
        """The next piece, when it may go out; empty at the end."""
        uploading.mark()
        return next(self._pieces, b"")
