"""While puts are slow the lease is renewed and progress told; where nothing moves, neither is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.chain.vigil import Vigil
from smsnapd.engine.progress import Silent
from smsnapd.errors import LockedError, StoreError
from smsnapd.repository.lease import Lease
from smsnapd.store.activity import uploading
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore
from tests.property.protected import Protected


class Beats(Silent):
    """Counts what would feed a watchdog."""

    def __init__(self) -> None:
        self.told = 0
        self.beaten = threading.Event()

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        self.told += 1
        if threading.current_thread().name == "vigil":
            self.beaten.set()


class Run:
    """A run whose puts move when the test says so, and whose lease may fail."""

    def __init__(self) -> None:
        self.moved = 0
        self.renewals = 0
        self.failure: Exception | None = None
        self.beats = Beats()
        self.vigil = Vigil(lambda: self.moved, self._renew, self.beats)

    def _renew(self) -> None:
        self.renewals += 1
        if self.failure:
            raise self.failure

    def look(self, *, moved: bool) -> tuple[int, int]:
        self.moved += moved
        before = self.beats.told, self.renewals
        self.vigil.look()
        return self.beats.told - before[0], self.renewals - before[1]


@pytest.fixture
def run() -> Run:
    return Run()


def test_it_tells_and_renews_only_where_something_moves(run: Run) -> None:
    looks = [run.look(moved=moved) for moved in (False, True, True, False, False, True)]
    assert looks == [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize("failure", [StoreError("renew", "no network"), LockedError("write", "taken over")])
def test_what_is_wrong_with_the_lease_is_for_the_run_to_raise(run: Run, failure: Exception) -> None:
    run.failure = failure
    assert run.look(moved=True) == (1, 1)
    assert run.look(moved=True) == (1, 1)
    with pytest.raises(type(failure)):
        run.vigil.renew()


def test_at_the_end_the_lease_is_the_runs_alone(run: Run) -> None:
    run.vigil.take_lease_back()
    assert run.look(moved=True) == (1, 0)


def test_two_never_renew_at_once() -> None:
    """A lease is for one thread at a time."""
    inside, most = [0], [0]

    def renew() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.001)
        inside[0] -= 1

    counter = iter(range(10**9))
    vigil = Vigil(lambda: next(counter), renew, Silent())
    threads = [threading.Thread(target=lambda: [vigil.renew() for _ in range(30)])]
    threads += [threading.Thread(target=lambda: [vigil.look() for _ in range(30)])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


class Slow(MemoryStore):
    """The first put of a chunk goes on until the lease has been renewed and progress told meanwhile."""

    def __init__(self, renewed: threading.Event, beaten: threading.Event, *, moves: bool) -> None:
        super().__init__("slow")
        self._events = (renewed, beaten)
        self._moves = moves
        self.waited: list[bool] = []

    def put(self, name: str, data: Buffer) -> None:
        if "/chunks/" in name and not self.waited:
            for _ in range(10_000 if self._moves else 30):
                if self._moves:
                    uploading.mark()
                if all(event.wait(0.01) for event in self._events):
                    break
            self.waited.append(all(event.is_set() for event in self._events))
        super().put(name, data)


@pytest.mark.parametrize("moves", [True, False])
def test_a_put_may_take_longer_than_the_lease(
    protect: Callable[..., Protected], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    """As long as it moves; the lease is this run's still when it commits."""
    protected = protect()
    (protected.root / "file").write_bytes(bytes(range(256)) * 1000)
    renewed, beats = threading.Event(), Beats()

    def renew(lease: Any) -> None:
        lease._write(lease.holder)  # whatever the time is
        if threading.current_thread().name == "vigil":
            renewed.set()

    monkeypatch.setattr(Lease, "renew", renew)
    monkeypatch.setattr("smsnapd.engine.chain.vigil.EVERY_S", 0.01)
    store = Slow(renewed, beats.beaten, moves=moves)
    with protected.repository() as repository:
        for info in repository.store.list(""):
            store.put(info.name, repository.store.get(info.name))
    outcome = protected.backup(store=store, progress=beats, attach=False)
    assert outcome.snapshot is not None
    assert store.waited == [moves]
    assert not [thread for thread in threading.enumerate() if thread.name == "vigil"]
