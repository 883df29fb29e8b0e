"""Listings of many pages: SeaweedFS lists directory by directory, moto bytewise; callers see one order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from smsnapd.store import StoreSettings
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store
from tests.fault.proxy import FaultProxy
from tests.servers import S3Server

pytestmark = pytest.mark.server

NAMES = sorted(
    [f"v/chunks/{hh}/{number}" for hh in ("00", "0f", "a") for number in range(4)]
    + ["v-1/a", "v-1/b/c", "v.x", "v.y/z", "v0", "v/chunks-1", "v/chunks.2", "v/a", "A", "z/z/z/z"]
)


@pytest.fixture(params=["seaweed", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def test_a_directory_is_one_listing_a_page(
    server: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    """However many volumes there are beside it; one more, once, tells the server's order."""
    settings = s3_settings(server)
    with FaultProxy(server.endpoint) as proxy:
        behind = replace(settings, endpoint_url=proxy.endpoint)
        store = S3Store(behind, settings.url.removeprefix("s3://"), "", Backoff(1), page_keys=10)
        wanted = [f"volumes/v/manifests/{number:03}" for number in range(55)]
        for name in (*wanted, *(f"volumes/{other}/manifests/1" for other in range(12))):
            store.put(name, b"")
        for extra in (2, 1):
            proxy.seen.clear()
            assert [info.name for info in store.list("volumes/v/manifests/")] == wanted
            assert len(proxy.seen) <= 6 + extra
        proxy.seen.clear()
        assert len(store.children("volumes/")) == 13
        assert len(proxy.seen) == 2
        store.close()


@pytest.mark.parametrize("base", ["", "p/q/"])
def test_every_page_size_gives_the_same_sorted_listing(
    server: S3Server, s3_settings: Callable[..., StoreSettings], base: str
) -> None:
    settings = s3_settings(server)
    bucket = settings.url.removeprefix("s3://")
    stores = [S3Store(settings, bucket, base, Backoff(1), page_keys=keys) for keys in (3, 8, 1000)]
    for name in NAMES:
        stores[0].put(name, b"")
    for store in stores:
        for prefix in ("", "v", "v/chunks", "v/chunks/", "none"):
            wanted = [name for name in NAMES if name.startswith(prefix)]
            assert [info.name for info in store.list(prefix)] == wanted, (store._page_keys, prefix)
        store.close()


def test_prefixes_keep_stores_apart(server: S3Server, s3_settings: Callable[..., StoreSettings]) -> None:
    settings = s3_settings(server)
    bucket = settings.url.removeprefix("s3://")
    one, near, all_of_it = (S3Store(settings, bucket, base, Backoff(1)) for base in ("a/b/", "a/bc/", ""))
    one.put("x", b"1")
    near.put("x", b"2")
    near.put("y", b"2")
    assert [info.name for info in one.list("")] == ["x"]
    assert one.get("x") == b"1"
    assert [info.name for info in all_of_it.list("")] == ["a/b/x", "a/bc/x", "a/bc/y"]
    near.delete("x")
    assert one.get("x") == b"1"
    for store in (one, near, all_of_it):
        store.close()


def test_objects_of_others_are_not_listed(
    server: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(server)
    bucket = settings.url.removeprefix("s3://")
    client = server.client()
    for key in ("repo/good", "repo/with space", "repo/dir/", "repo/tmp/x", "repo/é", "else/where"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    client.close()
    for keys in (2, 1000):
        store = S3Store(settings, bucket, "repo/", Backoff(1), page_keys=keys)
        assert [info.name for info in store.list("")] == ["good"]
        store.close()
