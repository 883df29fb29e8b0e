"""Puts at a pace, through a bad network and to a server that refuses: nothing is paid for in vain."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from smsnapd.errors import StoreError
from smsnapd.store import Buffer, StoreSettings
from smsnapd.store.pacing import Pacer
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store, open_s3
from tests.fault.proxy import Answer, Fault, FaultProxy, LoseResponse, ResetRequest
from tests.servers import S3Server

pytestmark = pytest.mark.server

MIB = 1024 * 1024
DATA = random.Random(8).randbytes(3 * MIB)
SMALL = DATA[:20_000]


class Counting(Pacer):
    """Lets everything go at once, and counts it."""

    def __init__(self) -> None:
        super().__init__(10**12)
        self.sizes: list[int] = []

    def pieces(self, data: Buffer) -> Iterator[memoryview]:
        for piece in super().pieces(data):
            self.sizes.append(len(piece))
            yield piece


class Rig(NamedTuple):
    store: S3Store
    proxy: FaultProxy
    pacer: Counting


@pytest.fixture
def rig(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Rig]]:
    opened: list[Rig] = []

    def make(**more: Any) -> Rig:
        proxy, pacer = FaultProxy(seaweed.endpoint), Counting()
        monkeypatch.setattr("smsnapd.store.s3.pacer_for", lambda _: pacer)
        proxy.__enter__()
        settings = s3_settings(seaweed, "ready", f"paced/{random.randbytes(8).hex()}", **more)
        backoff = Backoff(2, sleep=lambda _: None)
        store = open_s3(replace(settings, endpoint_url=proxy.endpoint), backoff)
        opened.append(Rig(store, proxy, pacer))
        return opened[-1]

    yield make
    for one in opened:
        one.store.close()
        one.proxy.__exit__(None, None, None)


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("data", [b"", b"x", SMALL, DATA], ids=["empty", "tiny", "small", "large"])
def test_bytes_count_once(rig: Callable[..., Rig], data: bytes, checksums: str) -> None:
    """And not when they are read to be signed, as they are without TLS."""
    one = rig(checksums=checksums)
    one.store.put("a", data)
    assert one.store.get("a") == data
    assert sum(one.pacer.sizes) == len(data)
    assert max(one.pacer.sizes, default=0) <= 65536


@pytest.mark.parametrize(
    "fault", [ResetRequest(10_000), LoseResponse(), Answer(500, "InternalError")], ids=str
)
@pytest.mark.parametrize("data", [SMALL, DATA], ids=["small", "large"])
def test_what_is_sent_again_is_whole_and_counts_again(
    rig: Callable[..., Rig], fault: Fault, data: bytes
) -> None:
    one = rig()
    one.proxy.plan("PUT", fault)
    one.store.put("a", data)
    assert one.store.get("a") == data
    refused_at_once = isinstance(fault, Answer) and data is DATA
    assert len(data) <= sum(one.pacer.sizes) <= 2 * len(data)
    assert (sum(one.pacer.sizes) == len(data)) == refused_at_once


def test_a_body_that_is_refused_beforehand_takes_no_time(rig: Callable[..., Rig]) -> None:
    """Else every wrong setting would be told after minutes."""
    one = rig()
    one.proxy.plan("PUT", Answer(403, "AccessDenied"))
    with pytest.raises(StoreError):
        one.store.put("a", DATA)
    assert one.pacer.sizes == []


def test_a_replacement_counts_too(rig: Callable[..., Rig]) -> None:
    one = rig()
    version = one.store.replace("lease", SMALL, None)
    one.store.replace("lease", SMALL[::-1], version)
    assert sum(one.pacer.sizes) == 2 * len(SMALL)
