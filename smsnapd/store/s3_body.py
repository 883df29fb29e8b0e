"""Request bodies in the form that costs the S3 SDK the least, or that goes out at a pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
progress: with much larger ones puts fail where the way is slow."""

_LARGEST_SLICE: Final = 512 * 1024
_QUICK_S: Final = 0.02
"""Where a slice goes out as quickly as this the next one is twice as large, since each costs the interpreter
something; else they are small again. At the largest, the way would have to become a thousand times slower
all of a sudden for the time limit to be reached."""

_TO_SIGN: Final = 1024 * 1024
"""How much the SDK asks for when it reads to sign; when it reads to send, it asks for much less."""


class SlicedBody:
    """A body that hands out slices of `data` without copying them.

    Having `read` is what makes botocore send `Expect: 100-continue`. Each answer of `read` is sent by
    itself; how large they are follows how long these take, and not what is asked for. `clock` gives seconds.
    """

    def __init__(self, data: Buffer, clock: Callable[[], float] = time.monotonic) -> None:
        self.data = memoryview(data).cast("B")
        self._clock = clock
        self._position = 0
        self._slice = _SLICE
        self._given_s = 0.0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int = -1) -> memoryview:
        """The next slice, or all that is left if `size` is negative; empty at the end."""
        if size < 0:
            size = len(self.data)
        elif size < _TO_SIGN:
            size = self._next_slice()
        piece = self.data[self._position : self._position + size]
        self._position += len(piece)
        return piece

    def _next_slice(self) -> int:
        """How much to send; the slice before, if there was one, has been sent."""
        now_s = self._clock()
        if self._position:
            is_quick = now_s - self._given_s < _QUICK_S
            self._slice = min(2 * self._slice, _LARGEST_SLICE) if is_quick else _SLICE
        else:
            self._slice = _SLICE
        self._given_s = now_s
        uploading.mark()
        return self._slice

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
