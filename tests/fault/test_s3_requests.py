"""What the S3 store sends, as a proxy sees it: options, the count of requests, fewer when asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from smsnapd.errors import DeniedError, StoreError
from smsnapd.store import StoreSettings
from smsnapd.store.counting import Requests, made
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store, open_s3
from tests.fault.proxy import Answer, Fault, FaultProxy, LoseResponse, Request
from tests.servers import S3Server

pytestmark = pytest.mark.server

CHUNK = "volumes/chunks/chunks/ab/1"
NAMES = [CHUNK, "volumes/chunks/manifests/1", "volumes/chunks/catalogs/1", "keys/slots/1", "repository"]
KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
BUSY = Answer(503, "SlowDown")


class BusyProxy(FaultProxy):
    """Before a server that bears `at_once` requests and turns away what comes on top of them."""

    def __init__(self, upstream: str, at_once: int) -> None:
        super().__init__(upstream)
        self.at_once = at_once
        self.refused = 0
        self._under_way = 0

    def befalls(self, request: Request) -> Fault | None:
        if self._under_way > self.at_once:
            self.refused += 1
            return BUSY
        return super().befalls(request)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._under_way += 1
        try:
            await super()._serve(reader, writer)
        finally:
            self._under_way -= 1


@pytest.fixture(params=["seaweed", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def settings(server: S3Server, s3_settings: Callable[..., StoreSettings]) -> StoreSettings:
    return s3_settings(server, "ready", f"requests/{random.randbytes(8).hex()}")


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


def store_behind(proxy: FaultProxy, settings: StoreSettings, attempts: int = 4, **more: Any) -> S3Store:
    changed = replace(settings, endpoint_url=proxy.endpoint, **more)
    return open_s3(changed, Backoff(attempts, sleep=lambda _: None))


# --- options


@pytest.mark.parametrize("storage_class", ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"])
def test_the_storage_class_is_for_chunks_alone(
    proxy: FaultProxy, server: S3Server, settings: StoreSettings, storage_class: str
) -> None:
    with closing(store_behind(proxy, settings, storage_class=storage_class)) as store:
        for name in NAMES:
            store.put(name, name.encode())
        store.replace("volumes/chunks/lease", b"lease", None)
        asked = [request.headers.get("x-amz-storage-class", "") for request in proxy.seen]
        assert asked == [storage_class, *[""] * len(NAMES)]
        assert [store.get(name) for name in NAMES] == [name.encode() for name in NAMES]
        classes = {item.name: item.storage_class for item in store.stock()}
    assert classes == {**dict.fromkeys([*NAMES, "volumes/chunks/lease"], "STANDARD"), CHUNK: storage_class}


def test_without_options_nothing_is_added(proxy: FaultProxy, settings: StoreSettings) -> None:
    with closing(store_behind(proxy, settings)) as store:
        store.put(CHUNK, b"x")
    (request,) = proxy.seen
    added = ("x-amz-storage-class", "x-amz-server-side", "x-amz-request-payer")
    assert not [name for name in request.headers if name.startswith(added)]


@pytest.mark.parametrize(("sse", "kms_key"), [("AES256", ""), ("aws:kms", ""), ("aws:kms", KEY)])
def test_encryption_at_rest_is_asked_for_with_every_put(
    proxy: FaultProxy, settings: StoreSettings, sse: str, kms_key: str
) -> None:
    proxy.plan("PUT", *[Answer(403, "AccessDenied")] * 2)  # not every server has keys
    with closing(store_behind(proxy, settings, sse=sse, kms_key=kms_key)) as store:
        for call in (lambda: store.put(CHUNK, b"x"), lambda: store.replace("volumes/v/lease", b"y", None)):
            with pytest.raises(DeniedError):
                call()
    assert proxy.count("PUT") == 2
    for request in proxy.seen:
        assert request.headers["x-amz-server-side-encryption"] == sse
        assert request.headers.get("x-amz-server-side-encryption-aws-kms-key-id", "") == kms_key


def test_what_is_encrypted_at_rest_is_read_as_ever(
    moto_s3: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(moto_s3, "ready", f"sse/{random.randbytes(8).hex()}", sse="aws:kms")
    with closing(open_s3(settings)) as store, closing(moto_s3.client()) as client:
        store.put("a", b"one")
        store.put("a", b"one")
        version = store.replace("lease", b"first", None)
        assert store.replace("lease", b"second", version)
        assert (store.get("a"), store.get("lease")) == (b"one", b"second")
        bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
        assert client.head_object(Bucket=bucket, Key=f"{prefix}/a")["ServerSideEncryption"] == "aws:kms"


def test_every_request_says_who_pays(proxy: FaultProxy, settings: StoreSettings) -> None:
    with closing(store_behind(proxy, settings, request_payer=True)) as store:
        store.put("a", b"x")
        version = store.replace("lease", b"x", None)
        store.replace("lease", b"y", version)
        store.get("a")
        list(store.list(""))
        list(store.stock())
        store.delete("a")
        store.try_delete()
        store.abandon_uploads("", 0.0)
        store.now()
        list(store.at(store.now()).list(""))
    assert len(proxy.seen) >= 11
    for request in proxy.seen:
        assert request.headers["x-amz-request-payer"] == "requester"
        assert "x-amz-request-payer" in request.headers["authorization"]


def test_downloads_at_a_pace_are_whole(proxy: FaultProxy, settings: StoreSettings) -> None:
    data = random.Random(5).randbytes(1_000_003)
    with closing(store_behind(proxy, settings, download_bytes_s=20_000_000)) as store:
        store.put("a", data)
        assert store.get("a") == data
        store.put("empty", b"")
        assert store.get("empty") == b""


# --- counts


def test_every_attempt_is_counted(proxy: FaultProxy, settings: StoreSettings) -> None:
    before = made.total()
    proxy.plan("PUT", BUSY, LoseResponse())
    proxy.plan("GET", LoseResponse())
    with closing(store_behind(proxy, settings)) as store:
        store.put("a", b"x" * 1000)
        store.get("a")
        list(store.list(""))
        store.delete("a")
    asked = made.total() - before
    lists = sum("list-type=2" in request.path for request in proxy.seen)
    wanted = (proxy.count("PUT"), proxy.count("GET") - lists, lists, proxy.count("DELETE"))
    assert (asked.put, asked.get, asked.list, asked.delete) == wanted
    assert wanted == (4, 3, 1, 1)  # two puts find the second's object and read it, the first time in vain
    assert asked.bytes_up == 4000
    assert asked.bytes_down >= 2000


def test_a_refused_listing_is_counted_as_one(proxy: FaultProxy, settings: StoreSettings) -> None:
    before = made.total()
    proxy.plan("GET", *[BUSY] * 4)
    with closing(store_behind(proxy, settings)) as store, pytest.raises(StoreError, match="4 times"):
        list(store.list(""))
    assert replace_bytes(made.total() - before) == Requests(list=4)


def replace_bytes(requests: Requests) -> Requests:
    return Requests(requests.put, requests.get, requests.list, requests.head, requests.delete)


# --- throttling


def test_refusals_lower_the_number_of_requests_and_success_raises_it(
    proxy: FaultProxy, settings: StoreSettings
) -> None:
    with closing(store_behind(proxy, settings)) as store:
        store.put("before", b"")
        assert store._throttle.window == 16
        proxy.plan("PUT", BUSY, BUSY, Answer(429, "Throttling"))
        store.put("a", b"")
        assert 2 <= store._throttle.window < 4
        proxy.plan("PUT", Answer(500, "InternalError"), Answer(403, "AccessDenied"))
        with pytest.raises(StoreError):
            store.put("b", b"")
        assert 2 <= store._throttle.window < 4
        for _ in range(200):
            store.get("a")
        assert store._throttle.window == 16


def test_a_busy_server_gets_what_it_can_bear(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(seaweed, "ready", f"busy/{random.randbytes(8).hex()}")
    names = [f"volumes/v/chunks/ab/{number}" for number in range(150)]
    windows: list[int] = []
    with ExitStack() as stack:
        proxy = BusyProxy(seaweed.endpoint, 3)
        stack.enter_context(proxy)
        store = stack.enter_context(closing(store_behind(proxy, settings, attempts=60)))
        threads = stack.enter_context(ThreadPoolExecutor(16))

        def put(name: str) -> None:
            store.put(name, name.encode())
            windows.append(store._throttle.window)

        list(threads.map(put, names))
        assert proxy.refused > 0
        assert min(windows) <= 4
        proxy.at_once = 100
        assert list(threads.map(store.get, names)) == [name.encode() for name in names]
        assert store._throttle.window > min(windows)
