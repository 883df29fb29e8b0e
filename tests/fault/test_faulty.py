"""The faulty store itself: it does what is planned, and nothing else."""

from __future__ import annotations

import uuid

import pytest

from smsnapd.errors import ObjectMissingError, StoreError
from smsnapd.store import Store, StoreSettings, open_store
from tests.fault.faulty import WRITES, Call, Crash, Fault, FaultyStore


@pytest.fixture
def inner() -> Store:
    return open_store(StoreSettings(f"memory://{uuid.uuid4().hex}"))


def test_without_a_plan_it_is_the_store(inner: Store) -> None:
    store: Store = FaultyStore(inner)
    store.put("a", b"x")
    version = store.replace("lease", b"1", None)
    assert store.get("a") == b"x"
    assert store.get_versioned("lease") == (b"1", version)
    assert [info.name for info in store.list("")] == ["a", "lease"]
    store.delete("a")
    store.barrier()
    store.close()
    assert isinstance(store, FaultyStore)
    methods = ["put", "replace", "get", "get_versioned", "list", "delete", "barrier"]
    assert [call.method for call in store.calls] == methods
    assert [call.number for call in store.calls] == list(range(7))


@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.PERMANENT, Fault.LOST])
def test_errors(inner: Store, fault: Fault) -> None:
    store = FaultyStore(inner, {1: fault})
    store.put("a", b"x")
    with pytest.raises(StoreError) as caught:
        store.put("b", b"y")
    assert caught.value.transient is (fault is not Fault.PERMANENT)
    assert [info.name for info in store.list("")] == (["a", "b"] if fault is Fault.LOST else ["a"])
    store.put("b", b"y")


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER])
def test_a_crash_is_the_end(inner: Store, fault: Fault) -> None:
    store = FaultyStore(inner, {0: fault})
    with pytest.raises(Crash):
        store.put("a", b"x")
    for call in (lambda: store.get("a"), store.barrier, lambda: list(store.list(""))):
        with pytest.raises(Crash):
            call()
    store.close()
    assert [info.name for info in inner.list("")] == (["a"] if fault is Fault.CRASH_AFTER else [])


def test_spoiled_reads(inner: Store) -> None:
    inner.put("a", b"0123456789")
    store = FaultyStore(inner, {0: Fault.GARBLE, 1: Fault.TRUNCATE, 2: Fault.GARBLE})
    garbled = store.get("a")
    assert len(garbled) == 10
    assert garbled != b"0123456789"
    assert store.get("a") == b"01234"
    assert store.get_versioned("a")[0] == garbled
    assert store.get("a") == b"0123456789"


def test_a_plan_may_look_at_the_call(inner: Store) -> None:
    def plan(call: Call) -> Fault | None:
        return Fault.PERMANENT if call.method in WRITES and "manifests" in call.name else None

    store = FaultyStore(inner, plan)
    store.put("chunks/a", b"")
    with pytest.raises(StoreError):
        store.put("manifests/a", b"")
    with pytest.raises(ObjectMissingError):
        store.get("manifests/a")
