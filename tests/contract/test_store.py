"""What every store must do: memory, directory, and S3 on two servers."""

from __future__ import annotations

import random
import re
import string
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smsnapd.errors import (
    ConflictError,
    DamageError,
    ObjectExistsError,
    ObjectMissingError,
    SmsnapError,
    StoreError,
    UsageError,
)
from smsnapd.store import Buffer, ObjectInfo, Store, StoreSettings, open_store
from smsnapd.store.names import is_name

RACERS = 16

BAD_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "./a",
    "a/.",
    "a b",
    "a\n",
    "a\0b",
    "é",
    "a%2e",
    "a\\b",
]
BAD_NAMES += ["x" * 256, "a/" * 300 + "a", "tmp", "tmp/lock"]


def names(store: Store, prefix: str = "") -> list[str]:
    return [info.name for info in store.list(prefix)]


def race(work: list[Callable[[], object]]) -> list[object]:
    """Do all of `work` at one moment; results, or the errors of the store."""
    start = threading.Barrier(len(work))

    def run(call: Callable[[], object]) -> object:
        start.wait()
        try:
            return call()
        except StoreError as error:
            return error

    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(run, work))


def test_children_are_one_level(store: Store) -> None:
    assert store.children("") == store.children("volumes/") == ()
    for name in (
        "repository",
        "volumes/a/x",
        "volumes/a/b/c",
        "volumes/a-1/x",
        "volumes/b/c/d/e",
        "volumes/x",
    ):
        store.put(name, b"1")
    assert store.children("") == ("repository", "volumes/")
    assert store.children("volumes/") == ("volumes/a-1/", "volumes/a/", "volumes/b/", "volumes/x")
    assert store.children("volumes/a/") == ("volumes/a/b/", "volumes/a/x")
    assert store.children("volumes/none/") == ()
    store.delete("volumes/b/c/d/e")
    store.delete("volumes/a/x")
    assert set(store.children("volumes/")) - {"volumes/b/"} == {"volumes/a-1/", "volumes/a/", "volumes/x"}
    assert store.children("volumes/a/") == ("volumes/a/b/",)
    if not store.url.startswith("s3:"):
        assert "volumes/b/" not in store.children("volumes/")


def test_get_returns_what_was_put(store: Store) -> None:
    for data in (b"", b"\0", b"some bytes", bytes(range(256)) * 513):
        name = f"volumes/v/chunks/ab/{len(data)}"
        store.put(name, data)
        assert store.get(name) == data
        store.barrier()
        assert store.get(name) == data


@pytest.mark.parametrize("size", [100_000, 3_000_001])
def test_put_takes_every_buffer_and_leaves_it_alone(store: Store, size: int) -> None:
    source = random.Random(size).randbytes(size)
    buffers: list[Buffer] = [
        source,
        bytearray(source),
        memoryview(source),
        memoryview(bytearray(source))[5:-5],
    ]
    for number, buffer in enumerate(buffers):
        before = bytes(buffer)
        store.put(f"n{number}", buffer)
        assert store.get(f"n{number}") == before == bytes(buffer)


def test_a_buffer_may_be_reused_after_put(store: Store) -> None:
    buffer = bytearray(b"first")
    store.put("one", buffer)
    buffer[:] = b"other"
    assert store.get("one") == b"first"


def test_large_object(store: Store) -> None:
    data = random.Random(2).randbytes(20 * 1024 * 1024)
    store.put("large", memoryview(data))
    assert store.get("large") == data
    store.put("large", memoryview(data))
    assert list(store.list("")) == [ObjectInfo("large", len(data))]


def test_what_is_larger_than_any_object_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smsnapd.store.base.OBJECT_LIMIT", 5)
    store.put("a/largest", b"12345")
    store.put("a/larger", b"123456")
    assert store.get("a/largest") == b"12345"
    for read in (store.get, store.get_versioned):
        with pytest.raises(DamageError, match="6 bytes"):
            read("a/larger")


def test_put_again_with_the_same_bytes_succeeds(store: Store) -> None:
    store.put("a/one", b"bytes")
    store.put("a/one", memoryview(b"bytes"))
    assert store.get("a/one") == b"bytes"


def test_put_again_with_other_bytes_is_refused(store: Store) -> None:
    store.put("one", b"bytes")
    for other in (b"", b"bytez", b"bytes and more", b"byte"):
        with pytest.raises(ObjectExistsError) as caught:
            store.put("one", other)
        assert not caught.value.transient
    assert store.get("one") == b"bytes"


def test_missing_object(store: Store) -> None:
    for call in (store.get, store.get_versioned):
        with pytest.raises(ObjectMissingError) as caught:
            call("a/missing")
        assert not caught.value.transient
        assert "a/missing" in str(caught.value)
    store.put("a/b", b"x")
    with pytest.raises(ObjectMissingError):
        store.get("a")


def test_delete_is_repeatable_and_frees_the_name(store: Store) -> None:
    store.delete("a/one")
    store.put("a/one", b"1")
    store.put("a/two", b"2")
    store.delete("a/one")
    store.delete("a/one")
    assert names(store) == ["a/two"]
    with pytest.raises(ObjectMissingError):
        store.get("a/one")
    store.put("a/one", b"other")
    assert store.get("a/one") == b"other"


def test_an_empty_store_reads_as_empty(store: Store) -> None:
    assert names(store) == []
    assert names(store, "volumes/") == []
    store.delete("volumes/none")
    store.barrier()


def test_list_is_sorted_bytewise_with_sizes(store: Store) -> None:
    wanted = [
        "B",
        "a-b/c",
        "a-b/d",
        "a.b",
        "a.b.c/x",
        "a/b-c",
        "a/b/c",
        "a/b0",
        "a0",
        "aB",
        "a_",
        "ab/x/y/z",
        "b",
    ]
    for size, name in enumerate(random.Random(3).sample(wanted, len(wanted))):
        store.put(name, b"x" * size)
    found = list(store.list(""))
    assert [info.name for info in found] == wanted == sorted(wanted)
    assert {info.size for info in found} == set(range(len(wanted)))


def test_list_takes_any_beginning_of_a_name(store: Store) -> None:
    everything = ["u/1", "v-1/x", "v/1", "v/10/x", "v/2", "v1", "x"]
    for name in everything:
        store.put(name, b"")
    for prefix in ("", "v", "v/", "v/1", "v/10", "v/10/x", "v/10/xy", "v/1/", "w", "v-", "v-1/", "x", "x/"):
        assert names(store, prefix) == [name for name in everything if name.startswith(prefix)], prefix


def test_list_beside_puts_and_deletes(store: Store) -> None:
    for number in range(20):
        store.put(f"d{number // 5}/{number:02}", b"")
    listing = store.list("")
    seen = [next(listing).name]
    for number in range(10, 20):
        store.delete(f"d{number // 5}/{number:02}")
    store.put("d4/new", b"")
    seen += [info.name for info in listing]
    assert seen == sorted(seen)
    assert set(seen) >= {f"d{number // 5}/{number:02}" for number in range(10)}


def test_bad_names_are_refused(store: Store) -> None:
    for name in BAD_NAMES:
        calls: list[Callable[[], object]] = [
            lambda name=name: store.get(name),
            lambda name=name: store.put(name, b""),
            lambda name=name: store.get_versioned(name),
            lambda name=name: store.replace(name, b"", None),
            lambda name=name: store.delete(name),
        ]
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            assert type(caught.value) is StoreError
            assert not caught.value.transient
            assert "\n" not in str(caught.value)
    assert names(store) == []


def test_bad_prefixes_are_refused(store: Store) -> None:
    for prefix in ("/", "../", "a/../", "a//", "./a", "a b", "a\0"):
        with pytest.raises(StoreError):
            list(store.list(prefix))


def test_replace_creates_and_follows_versions(store: Store) -> None:
    first = store.replace("v/lease", b"one", None)
    assert store.get_versioned("v/lease") == (b"one", first)
    second = store.replace("v/lease", bytearray(b"two"), first)
    assert second != first
    assert store.get_versioned("v/lease") == (b"two", second)
    third = store.replace("v/lease", memoryview(b"three"), second)
    assert store.get_versioned("v/lease") == (b"three", third)
    assert names(store) == ["v/lease"]


def test_replace_at_another_version_is_a_conflict(store: Store) -> None:
    first = store.replace("lease", b"one", None)
    second = store.replace("lease", b"two", first)
    for version in (first, None):
        with pytest.raises(ConflictError) as caught:
            store.replace("lease", b"three", version)
        assert not caught.value.transient
    assert store.get_versioned("lease") == (b"two", second)


def test_replace_of_a_deleted_object_is_a_conflict(store: Store) -> None:
    version = store.replace("lease", b"one", None)
    store.delete("lease")
    with pytest.raises(ConflictError):
        store.replace("lease", b"two", version)
    assert names(store) == []


def test_of_many_puts_exactly_one_wins(store_settings: StoreSettings) -> None:
    stores = [open_store(store_settings) for _ in range(2)]
    bodies = [f"writer {number} ".encode() * 1000 for number in range(RACERS)]
    work = [lambda s=stores[i % 2], body=bodies[i]: s.put("race/one", body) for i in range(RACERS)]
    results = race(work)
    winners = [number for number, result in enumerate(results) if result is None]
    assert len(winners) == 1
    assert all(isinstance(result, ObjectExistsError) for result in results if result is not None)
    assert stores[0].get("race/one") == bodies[winners[0]]
    for store in stores:
        store.close()


def test_many_puts_of_the_same_bytes_all_win(store: Store) -> None:
    assert race([lambda: store.put("race/same", b"same" * 1000)] * RACERS) == [None] * RACERS
    assert names(store) == ["race/same"]


@pytest.mark.parametrize("exists", [False, True])
def test_of_many_replacements_exactly_one_wins(store_settings: StoreSettings, exists: bool) -> None:
    stores = [open_store(store_settings) for _ in range(2)]
    version = stores[0].replace("lease", b"start", None) if exists else None
    work = [lambda s=stores[i % 2], i=i: s.replace("lease", b"writer %d" % i, version) for i in range(RACERS)]
    results = race(work)
    winners = [number for number, result in enumerate(results) if isinstance(result, str)]
    assert len(winners) == 1
    assert all(isinstance(result, ConflictError | str) for result in results)
    assert stores[0].get_versioned("lease") == (b"writer %d" % winners[0], results[winners[0]])
    for store in stores:
        store.close()


def test_threads_share_a_store(store: Store) -> None:
    def work(number: int) -> None:
        for step in range(4):
            name = f"t/{number}/{step}"
            store.put(name, name.encode() * 100)
            assert store.get(name) == name.encode() * 100

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(names(store, "t/")) == 32


def test_another_handle_sees_the_objects(store_settings: StoreSettings) -> None:
    one, other = open_store(store_settings), open_store(store_settings)
    one.put("a/b", b"x")
    assert other.get("a/b") == b"x"
    assert names(other) == ["a/b"]
    one.close()
    one.close()
    assert other.get("a/b") == b"x"
    other.close()


def test_url_is_for_messages(store: Store, store_settings: StoreSettings) -> None:
    assert store.url == store_settings.url
    with pytest.raises(ObjectMissingError, match=re.escape(store.url)):
        store.get("missing")


@given(st.text(max_size=12), st.text(alphabet="ab./-_\n", max_size=12))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_a_name_is_what_the_rule_says(anything: str, close: str) -> None:
    allowed = set(string.ascii_letters + string.digits + "._-")
    for name in (anything, close):
        segments = name.split("/")
        right = all(part not in ("", ".", "..") and set(part) <= allowed for part in segments)
        assert is_name(name) == (right and segments[0] != "tmp")


@pytest.mark.parametrize(
    "url",
    [
        "", "bucket", "/srv/backups", "ftp://user:hunter2@host/x", "s3:bucket", "s3://", "s3:///x", "s3://b/../c",
        "s3://b", "s3://key:hunter2@bucket/x", "s3://bucket//x", "s3://bucket/a b", "s3://bucket/x?y", "file://",
        "file://srv/x", "file:relative", "file:///", "file:///a%00b", "memory://", "memory://a/b", "S3://bucket/x",
    ],
)  # fmt: skip
def test_wrong_urls(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(StoreSettings(url))
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_right_urls() -> None:
    for url in ("file:///srv/back%20ups", "s3://bucket", "s3://my.bucket-1/a/b=c", "memory://x"):
        store = open_store(StoreSettings(url))
        assert store.url == url
        store.close()
    assert open_store(StoreSettings("file://localhost/srv/x/")).url == "file:///srv/x"
    assert open_store(StoreSettings("s3://bucket/a/b/")).url == "s3://bucket/a/b"


def test_every_error_of_a_store_is_for_people() -> None:
    for kind in (ObjectMissingError, ObjectExistsError, ConflictError):
        assert issubclass(kind, StoreError)
        assert issubclass(kind, SmsnapError)
