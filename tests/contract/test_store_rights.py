"""A store's own clock, and trying what may be done in it: everywhere, and refused by real servers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from smsnapd.errors import StoreError
from smsnapd.store import Store, StoreSettings, open_store
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore
from smsnapd.store.retry import Backoff
from smsnapd.store.rights import Right, try_rights
from smsnapd.store.s3 import S3Store, open_s3
from tests.fault.faulty import Fault, FaultyStore
from tests.fault.proxy import Answer, Delay, FaultProxy
from tests.servers import S3Server

KEPT, REPLACED = "repository", "volumes/nb/lease"
ALL_ALLOWED = dict.fromkeys(("list", "read", "create", "replace", "delete"), "allowed")


def outcomes(rights: tuple[Right, ...]) -> dict[str, str]:
    return {right.name: right.outcome for right in rights}


def everything(store: Store) -> dict[str, bytes]:
    return {info.name: store.get(info.name) for info in store.list("")}


# --- the clock


def test_the_clock_of_a_store_is_about_ours(store: Store) -> None:
    """The servers run here. Whole seconds rounded down, and the kernel's clock of files lags by a tick."""
    for _ in range(2):
        before = time.time()
        assert before - 1.5 < store.now() < time.time() + 0.5
        store.put("a/b", b"x")
    assert everything(store) == {"a/b": b"x"}


def test_asking_the_time_leaves_no_file(tmp_path: Path) -> None:
    store = open_store(StoreSettings((tmp_path / "objects").as_uri()))
    store.now()
    assert not (tmp_path / "objects").exists()
    (tmp_path / "objects").mkdir()
    store.now()
    assert not list((tmp_path / "objects").iterdir())
    store.put("one", b"")
    store.now()
    assert sorted(path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()) == ["one"]
    store.close()


def test_a_directory_has_the_clock_of_its_file_system(tmp_path: Path) -> None:
    from smsnapd.store.directory import DirectoryStore

    store = DirectoryStore(os.fsencode(tmp_path / "objects"), clock=lambda: 5e9)
    assert store.now() == 5e9
    store.put("one", b"")
    assert abs(store.now() - time.time()) < 5
    store.close()


def test_memory_has_the_clock_that_it_is_given() -> None:
    assert MemoryStore("m", clock=lambda: 12.5).now() == 12.5


def test_a_wrapping_store_counts_and_fails_both() -> None:
    store = FaultyStore(MemoryStore("m"), {0: Fault.TRANSIENT, 2: Fault.PERMANENT})
    with pytest.raises(StoreError):
        store.now()
    assert store.now() > 0
    with pytest.raises(StoreError):
        store.try_delete()
    assert [call.method for call in store.calls] == ["now", "now", "try_delete"]


@pytest.fixture
def proxied(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings]
) -> Iterator[tuple[FaultProxy, S3Store]]:
    """SeaweedFS behind the fault proxy, with a record in it; each call is tried once."""
    settings = s3_settings(seaweed, "ready", f"rights/{os.urandom(8).hex()}")
    with FaultProxy(seaweed.endpoint) as proxy:
        reached = StoreSettings(settings.url, settings.region, proxy.endpoint, path_style=True, attempts=1)
        store = open_s3(reached)
        store.put(KEPT, b"record")
        proxy.seen.clear()
        yield proxy, store
        store.close()


@pytest.mark.server
@pytest.mark.parametrize("code", ["AccessDenied", "RequestTimeTooSkewed"])
def test_a_refusal_tells_the_time_too(proxied: tuple[FaultProxy, S3Store], code: str) -> None:
    proxy, store = proxied
    proxy.plan("GET", Answer(403, code, headers=("Date: Sun, 09 Sep 2001 01:46:40 GMT",)))
    assert store.now() == 1_000_000_000


@pytest.mark.server
@pytest.mark.parametrize("date", ["", "Date: yesterday"])
def test_an_answer_without_a_time(proxied: tuple[FaultProxy, S3Store], date: str) -> None:
    proxy, store = proxied
    proxy.plan("GET", Answer(403, "AccessDenied", headers=(date,) if date else ()))
    with pytest.raises(StoreError, match="no time"):
        store.now()


@pytest.mark.server
def test_other_errors_are_errors_of_the_clock(proxied: tuple[FaultProxy, S3Store]) -> None:
    proxy, store = proxied
    proxy.plan("GET", Answer(503, "SlowDown"), Answer(404, "NoSuchBucket"))
    for transient in (True, False):
        with pytest.raises(StoreError) as caught:
            store.now()
        assert caught.value.transient is transient


@pytest.mark.server
def test_what_is_not_s3_is_called_so(proxied: tuple[FaultProxy, S3Store]) -> None:
    proxy, store = proxied
    proxy.plan("GET", Answer(404, "404"))
    with pytest.raises(StoreError, match="not S3"):
        store.now()


@pytest.mark.server
def test_the_region_that_the_bucket_says_it_is_in(proxied: tuple[FaultProxy, S3Store]) -> None:
    proxy, store = proxied
    proxy.plan("GET", Answer(403, "AccessDenied", headers=("x-amz-bucket-region: eu-west-3",)))
    assert store.bucket_region() == "eu-west-3"
    assert store.bucket_region() in ("", "us-east-1")


@pytest.mark.server
def test_a_transient_error_of_the_clock_is_tried_again(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(seaweed, "ready", "clock")
    with FaultProxy(seaweed.endpoint) as proxy:
        proxy.plan("GET", Answer(503, "SlowDown"))
        reached = StoreSettings(settings.url, settings.region, proxy.endpoint, path_style=True)
        store = open_s3(reached, Backoff(2, base_s=0))
        assert abs(store.now() - time.time()) < 5
        store.close()


# --- the rights


@pytest.mark.parametrize("has_lease", [False, True])
def test_whoever_may_do_everything_is_told_so(store_settings: StoreSettings, has_lease: bool) -> None:
    store = open_store(StoreSettings(**{**vars(store_settings), "attempts": 1}))
    store.put(KEPT, b"record")
    if has_lease:
        store.replace(REPLACED, b"lease", None)
    before = everything(store)
    assert outcomes(try_rights(store, KEPT, REPLACED)) == ALL_ALLOWED
    assert everything(store) == before
    store.close()


def test_without_the_record_writing_is_not_tried(store_settings: StoreSettings) -> None:
    store = open_store(StoreSettings(**{**vars(store_settings), "attempts": 1}))
    assert outcomes(try_rights(store, KEPT, REPLACED)) == {
        "list": "allowed", "read": "untried", "create": "untried", "replace": "untried", "delete": "allowed",
    }  # fmt: skip
    assert everything(store) == {}
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("server", ["seaweed", "moto_s3"])
def test_a_versioned_bucket_gets_no_version_and_no_marker(
    server: str, request: pytest.FixtureRequest, s3_settings: Callable[..., StoreSettings]
) -> None:
    running: S3Server = request.getfixturevalue(server)
    settings = s3_settings(running, attempts=1)
    bucket = settings.url.removeprefix("s3://")
    client = running.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    store = open_store(settings)
    store.put(KEPT, b"record")
    assert outcomes(try_rights(store, KEPT, REPLACED)) == ALL_ALLOWED
    listing = client.list_object_versions(Bucket=bucket)
    assert [item["Key"] for item in listing["Versions"]] == [KEPT]
    if server == "seaweed":
        assert [item["Key"] for item in listing.get("DeleteMarkers", ())] == []
    client.close()
    store.close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("method", "skip", "right"),
    [
        ("GET", 0, "list"),
        ("GET", 1, "read"),
        ("PUT", 0, "create"),
        ("PUT", 1, "replace"),
        ("DELETE", 0, "delete"),
    ],
)
def test_each_right_can_be_refused(
    proxied: tuple[FaultProxy, S3Store], method: str, skip: int, right: str
) -> None:
    proxy, store = proxied
    proxy.plan(method, *[Delay(0.0)] * skip, Answer(403, "AccessDenied"))
    tried = {item.name: item for item in try_rights(store, KEPT, REPLACED)}
    assert tried[right].outcome == "refused"  # type: ignore[index]
    error = tried[right].error  # type: ignore[index]
    assert error is not None and "access is denied" in error.why and "allow s3:" in error.hint
    unaffected = set(tried) - {right} - ({"create", "replace"} if right == "read" else set())
    assert {tried[name].outcome for name in unaffected} == {"allowed"}
    assert store.get(KEPT) == b"record"


@pytest.mark.server
def test_what_may_pass_by_itself_refuses_nothing(proxied: tuple[FaultProxy, S3Store]) -> None:
    proxy, store = proxied
    proxy.plan("PUT", Answer(503, "SlowDown"))
    proxy.plan("DELETE", Answer(500, "InternalError"))
    tried = outcomes(try_rights(store, KEPT, REPLACED))
    assert tried == {**ALL_ALLOWED, "create": "untried", "replace": "untried", "delete": "untried"}


class Heedless(MemoryStore):
    """Knows nothing of conditions, as some servers do not."""

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        self._objects[name] = bytes(data)
        return "1"


@pytest.mark.parametrize("has_lease", [False, True])
def test_a_store_that_ignores_conditions_is_found_and_not_harmed(has_lease: bool) -> None:
    store = Heedless("m")
    store.put(KEPT, b"record")
    if has_lease:
        store.put(REPLACED, b"lease")
    before = everything(store)
    tried = outcomes(try_rights(store, KEPT, REPLACED))
    assert (tried["create"], tried["replace"]) == ("ignored", "untried")
    assert everything(store) == before


@contextmanager
def signed_in(server: S3Server, actions: list[str], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a user of moto who is allowed just these actions, which moto enforces meanwhile."""
    import boto3

    iam = boto3.client("iam", endpoint_url=server.endpoint, region_name=server.region)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "arn:aws:s3:::*"}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    name = f"user-{os.urandom(4).hex()}"
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    _enforce(server, "0")
    with patch.context() as inner:
        inner.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        inner.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        try:
            yield
        finally:
            _enforce(server, "inf")


def _enforce(server: S3Server, free_requests: str) -> None:
    url = f"{server.endpoint}/moto-api/reset-auth"
    request = Request(url, free_requests.encode(), {"Content-Type": "text/plain"}, method="POST")
    urlopen(request, timeout=10).close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("actions", "refused"),
    [
        (["s3:ListBucket", "s3:GetObject", "s3:PutObject"], {"delete"}),
        (["s3:ListBucket", "s3:GetObject"], {"create", "replace", "delete"}),
    ],
)
def test_a_policy_is_enforced_by_the_server(
    moto_s3: S3Server,
    s3_settings: Callable[..., StoreSettings],
    monkeypatch: pytest.MonkeyPatch,
    actions: list[str],
    refused: set[str],
) -> None:
    settings = s3_settings(moto_s3, attempts=1)
    owner = open_store(settings)
    owner.put(KEPT, b"record")
    with signed_in(moto_s3, actions, monkeypatch):
        store = open_store(settings)
        tried = outcomes(try_rights(store, KEPT, REPLACED))
        assert {name for name, outcome in tried.items() if outcome == "refused"} == refused
        assert {outcome for name, outcome in tried.items() if name not in refused} == {"allowed"}
        assert abs(store.now() - time.time()) < 5
        store.close()
    assert everything(owner) == {KEPT: b"record"}
    owner.close()


def test_a_directory_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the kernel's answer is put in its place."""
    store = open_store(StoreSettings((tmp_path / "objects").as_uri()))
    store.put(KEPT, b"record")
    monkeypatch.setattr("smsnapd.store.directory.os.access", lambda *_, **__: False)
    tried = {right.name: right for right in try_rights(store, KEPT, REPLACED)}
    assert tried["delete"].outcome == "refused"
    assert tried["delete"].error is not None and "read and write access" in tried["delete"].error.hint
    store.close()
