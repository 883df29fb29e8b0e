"""Request bodies: whole, and in slices that a slow way takes in time."""

from __future__ import annotations

import os

from smsnapd.store.pacing import Pacer
from smsnapd.store.s3_body import SlicedBody, request_body

KIB = 1024
MIB = 1024 * KIB


def test_slices_are_small_and_whole() -> None:
    """A connection's timeout is for all of a slice: 10 s, by default."""
    data = os.urandom(2 * MIB + 1)
    body = SlicedBody(data)
    out = bytearray()
    while piece := body.read(128 * KIB):  # what the SDK asks for is not what it should get
        assert len(piece) <= 32 * KIB
        out += piece
    assert out == data


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
