"""Request bodies: whole, and in slices that a slow way takes in time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from smsnapd.store.pacing import Pacer
from smsnapd.store.s3_body import SlicedBody, request_body

KIB = 1024
MIB = 1024 * KIB


def sent(body: SlicedBody) -> Iterator[bytes]:
    """As the SDK reads to send: what it asks for is not what it should get."""
    while piece := body.read(16 * KIB):
        yield bytes(piece)


def test_slices_are_small_on_a_slow_way_and_whole() -> None:
    """A connection's timeout is for all of a slice: 10 s, by default."""
    data = os.urandom(2 * MIB + 1)
    out = list(sent(SlicedBody(data, clock=itertools.count().__next__)))
    assert max(map(len, out)) <= 32 * KIB
    assert b"".join(out) == data


def test_slices_grow_on_a_quick_way_and_shrink_when_it_gets_slow() -> None:
    data = os.urandom(4 * MIB + 1)
    now_s = 0.0
    body = SlicedBody(data, clock=lambda: now_s)
    for again in range(2):
        body.seek(0)
        out = []
        for number, piece in enumerate(sent(body)):
            now_s += 1.0 if number == 7 else 0.001
            out.append(piece)
        sizes = [len(piece) // KIB for piece in out]
        assert sizes[:10] == [32, 64, 128, 256, 512, 512, 512, 512, 32, 64], again
        assert b"".join(out) == data


def test_it_is_sent_again_from_the_start_after_signing_and_failing() -> None:
    data = os.urandom(2 * MIB + 1)
    body = SlicedBody(data)
    assert len(body) == len(data)
    for _ in range(2):
        position = body.tell()
        signed = bytearray()
        while piece := body.read(MIB):
            signed += piece
        assert signed == data
        body.seek(position)
        assert body.read() == data
        assert body.seek(0, 2) == len(data)
        assert body.seek(-len(data), 1) == 0


def test_only_bodies_that_take_long_ask_the_server_beforehand() -> None:
    assert isinstance(request_body(bytes(100 * KIB)), bytearray)
    assert isinstance(request_body(bytes(MIB)), SlicedBody)
    slow = Pacer(100_000)
    assert isinstance(request_body(bytes(KIB), slow), bytearray)
    assert isinstance(request_body(bytes(100 * KIB), slow), SlicedBody)
