"""The journal is behind a barrier, and nobody waits for that but who must."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from smsnapd.engine.chain import durable as module
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.durable import Durable
from smsnapd.errors import StoreError
from smsnapd.model import ChunkRef
from smsnapd.state.journal import Journal
from smsnapd.store.memory import MemoryStore


class Slow(MemoryStore):
    """A barrier lasts until it is let go; it may fail."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.go = threading.Event()
        self.began = threading.Event()
        self.barriers = 0
        self.broken = False

    def barrier(self) -> None:
        self.barriers += 1
        self.began.set()
        assert self.go.wait(60)
        if self.broken:
            raise StoreError("make the objects durable", "the test broke it")


@pytest.fixture
def store() -> Slow:
    return Slow()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def durable(store: Slow, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Durable:
    monkeypatch.setattr(module, "JOURNAL_BYTES", 100)
    return Durable(ChunkTable({}, (), ()), store, journal)


def ref(number: int) -> ChunkRef:
    return ChunkRef(bytes([number]) * 32, bytes(16), 100, 100, bytes(32))


def test_the_run_goes_on_while_the_barrier_lasts(durable: Durable, store: Slow, journal: Journal) -> None:
    durable.take([ref(1)])
    assert store.began.wait(60)
    durable.take([ref(2)])
    durable.take([ref(3)])
    assert (store.barriers, journal.read()) == (1, [])
    store.go.set()
    durable.settle()
    assert journal.read() == [ref(1)]
    durable.take([])
    durable.settle()
    assert (store.barriers, journal.read()) == (2, [ref(1), ref(2), ref(3)])
    durable.rescue(None)


def test_what_goes_wrong_is_raised(durable: Durable, store: Slow, journal: Journal) -> None:
    store.broken = True
    store.go.set()
    durable.take([ref(1)])
    with pytest.raises(StoreError, match="the test broke it"):
        durable.settle()
    assert journal.read() == []
    durable.rescue(None)


def test_the_next_take_raises_it_too(durable: Durable, store: Slow) -> None:
    store.broken = True
    store.go.set()
    durable.take([ref(1)])
    assert durable._under_way is not None
    durable._under_way.exception()
    with pytest.raises(StoreError, match="the test broke it"):
        durable.take([ref(2)])
    durable.rescue(None)


def test_a_run_that_fails_leaves_all_in_the_journal(durable: Durable, store: Slow, journal: Journal) -> None:
    durable.take([ref(1)])
    durable.take([ref(2)])
    store.go.set()
    durable.rescue(ValueError())
    assert journal.read() == [ref(1), ref(2)]


def test_what_cannot_be_journaled_does_not_hide_the_error(
    durable: Durable, store: Slow, journal: Journal
) -> None:
    store.broken = True
    store.go.set()
    durable.take([ref(1)])
    durable.rescue(ValueError())
    assert journal.read() == []
