"""A versioned bucket as of a time: what was deleted and overwritten since is there, and nothing newer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import NamedTuple

import pytest

from smsnapd.errors import DamageError, DeniedError, ObjectMissingError, UsageError
from smsnapd.store import Store, StoreSettings, open_store
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store
from tests.servers import S3Server

pytestmark = pytest.mark.server

LARGE = bytes(range(256)) * 4096


class Past(NamedTuple):
    """A bucket's history in four parts, with a moment after each."""

    settings: StoreSettings
    moments: list[float]


@pytest.fixture(params=["seaweed", "moto_s3"], scope="module")
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def next_second(store: Store) -> float:
    """A moment that all before is before and all later is after: S3 tells seconds."""
    moment = int(store.now())
    while int(time.time()) <= moment or int(store.now()) <= moment:
        time.sleep(0.05)
    return float(moment)


@pytest.fixture(scope="module")
def history(server: S3Server) -> Past:
    """Made once: it takes some seconds."""
    bucket = f"test-{uuid.uuid4().hex}"
    server.make_bucket(bucket)
    settings = StoreSettings(f"s3://{bucket}/some/prefix", server.region, server.endpoint, path_style=True)
    with pytest.MonkeyPatch.context() as patch, closing(server.client()) as client:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        moments = _moments(settings)
    return Past(settings, moments)


@pytest.fixture
def past(history: Past, server: S3Server, s3_settings: Callable[..., StoreSettings]) -> Past:
    s3_settings(server, "ready")  # the credentials
    return history


def _moments(settings: StoreSettings) -> list[float]:
    moments = []
    with closing(open_store(settings)) as store:
        store.put("volumes/v/chunks/ab/1", LARGE)
        store.put("volumes/v/manifests/1", b"one")
        version = store.replace("volumes/v/lease", b"first", None)
        moments.append(next_second(store))
        version = store.replace("volumes/v/lease", b"second", version)
        version = store.replace("volumes/v/lease", b"third", version)
        store.put("volumes/v/manifests/2", b"two")
        store.put("volumes/v-1/x", b"x")
        moments.append(next_second(store))
        store.delete("volumes/v/manifests/1")
        store.delete("volumes/v/chunks/ab/1")
        store.delete("volumes/v-1/x")
        moments.append(next_second(store))
        store.put("volumes/v/manifests/1", b"another one")
        store.replace("volumes/v/lease", b"fourth", version)
        moments.append(next_second(store))
    return moments


@pytest.fixture
def at(past: Past) -> Iterator[Callable[[float], Store]]:
    with ExitStack() as stack:
        yield lambda moment: stack.enter_context(closing(open_store(replace(past.settings, as_of_s=moment))))


def everything(store: Store, prefix: str = "") -> dict[str, bytes]:
    found = {info.name: store.get(info.name) for info in store.list(prefix)}
    assert [info.name for info in store.list(prefix)] == sorted(found)
    assert {info.name: info.size for info in store.list(prefix)} == {n: len(d) for n, d in found.items()}
    return found


def test_every_moment_is_as_it_was(past: Past, at: Callable[[float], Store]) -> None:
    one = {"volumes/v/chunks/ab/1": LARGE, "volumes/v/manifests/1": b"one"}
    two = {"volumes/v/manifests/2": b"two"}
    assert everything(at(past.moments[0])) == {**one, "volumes/v/lease": b"first"}
    assert everything(at(past.moments[1])) == {
        **one,
        **two,
        "volumes/v/lease": b"third",
        "volumes/v-1/x": b"x",
    }
    assert everything(at(past.moments[2])) == {**two, "volumes/v/lease": b"third"}
    assert at(past.moments[1]).children("volumes/") == ("volumes/v-1/", "volumes/v/")
    assert at(past.moments[2]).children("volumes/") == ("volumes/v/",)
    assert at(past.moments[2]).children("volumes/v/") == ("volumes/v/lease", "volumes/v/manifests/")
    again = {"volumes/v/manifests/1": b"another one", "volumes/v/lease": b"fourth"}
    assert everything(at(past.moments[3])) == {**two, **again}
    assert everything(at(past.moments[3] + 1e6)) == everything(at(past.moments[3]))
    assert everything(at(past.moments[0] - 1e6)) == {}


def test_what_was_not_there_is_missing(past: Past, at: Callable[[float], Store]) -> None:
    first, third = at(past.moments[0]), at(past.moments[2])
    for store, name in (
        (first, "volumes/v/manifests/2"),
        (third, "volumes/v/chunks/ab/1"),
        (first, "no/such"),
    ):
        with pytest.raises(ObjectMissingError, match="as of"):
            store.get(name)


def test_listings_take_any_beginning_of_a_name(past: Past, at: Callable[[float], Store]) -> None:
    store = at(past.moments[1])
    whole = everything(store)
    for prefix in ("volumes", "volumes/v", "volumes/v/", "volumes/v/chunks/a", "volumes/v/lea", "none/"):
        assert everything(store, prefix) == {n: d for n, d in whole.items() if n.startswith(prefix)}, prefix


@pytest.mark.parametrize("page_keys", [1, 2, 3])
def test_versions_of_one_key_may_fill_pages(past: Past, page_keys: int) -> None:
    bucket, _, base = past.settings.url.removeprefix("s3://").partition("/")
    with closing(S3Store(past.settings, bucket, f"{base}/", Backoff(1), page_keys=page_keys)) as store:
        # Not all of it: SeaweedFS loses v/ from pages of versions if v-1/ is on the page before.
        names = [info.name for info in store.at(past.moments[1]).list("volumes/v/")]
        assert names == [
            f"volumes/v/{name}" for name in ("chunks/ab/1", "lease", "manifests/1", "manifests/2")
        ]
        assert store.at(past.moments[0]).get("volumes/v/lease") == b"first"


def test_nothing_can_be_changed(past: Past, at: Callable[[float], Store]) -> None:
    store = at(past.moments[0])
    calls: list[Callable[[], object]] = [
        lambda: store.put("new", b""),
        lambda: store.replace("volumes/v/lease", b"", None),
        lambda: store.delete("volumes/v/manifests/1"),
        store.try_delete,
        lambda: store.abandon_uploads("", 0.0),
    ]
    for call in calls:
        with pytest.raises(DeniedError, match="as it was at 20") as caught:
            call()
        assert "--repository-at" in caught.value.hint
    store.barrier()
    assert abs(store.now() - time.time()) < 10
    with closing(open_store(past.settings)) as present:
        assert present.get("volumes/v/lease") == b"fourth"


def test_a_bucket_without_versions_has_what_was_left_alone(
    server: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(server)
    with closing(open_store(settings)) as store:
        store.put("a/old", b"old")
        moment = next_second(store)
        store.put("a/new", b"new")
    with closing(open_store(replace(settings, as_of_s=moment))) as past:
        assert everything(past) == {"a/old": b"old"}
        with pytest.raises(ObjectMissingError):
            past.get("a/new")


def test_what_is_larger_than_any_object_is_not_read(
    past: Past, at: Callable[[float], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsnapd.store.base.OBJECT_LIMIT", 4)
    with pytest.raises(DamageError, match="5 bytes"):
        at(past.moments[0]).get("volumes/v/lease")


@pytest.mark.parametrize("url", ["file:///nowhere", "memory://x"])
def test_only_s3_remembers(url: str) -> None:
    with pytest.raises(UsageError, match="versioned"):
        open_store(StoreSettings(url, as_of_s=1.0))
