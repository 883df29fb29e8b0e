"""The lease: one writer at a time, and one that slept finds out."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from smsnapd.errors import LockedError, StoreError
from smsnapd.format import names
from smsnapd.format.record import Lease as LeaseRecord
from smsnapd.repository.lease import LEASE_S, RENEW_S, Holder, Lease, is_dead
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore

ID = bytes(range(16))
NAME = names.lease_name("nb")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Store(MemoryStore):
    """Counts replacements; something may happen right before the next one, or it may fail."""

    def __init__(self) -> None:
        super().__init__("test")
        self.replaced = 0
        self.before: Callable[[], object] | None = None

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        self.replaced += 1
        before, self.before = self.before, None
        if before:
            before()
        return super().replace(name, data, version)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def take(store: Store, clock: Clock) -> Callable[..., Lease]:
    """Takes it as a process on a machine of the name given; nobody is known to be dead."""

    def taken(host: str, *, highest: int = 0) -> Lease:
        return Lease.take(
            store,
            ID,
            "nb",
            holder=replace(Holder.this_process(), host=host),
            clock=clock,
            dead=lambda holder: False,
            highest_generation=lambda: highest,
        )

    return taken


def test_one_holds_it_until_it_is_given_back(take: Callable[..., Lease]) -> None:
    first = take("one")
    with pytest.raises(LockedError, match=r"another writer on one has the lease until 2027-01-15T08:10:00"):
        take("two")
    first.confirm()
    first.release()
    second = take("two")
    assert (first.generation, second.generation) == (1, 2)
    second.confirm()
    with pytest.raises(LockedError):
        first.confirm()


def test_an_expired_one_is_taken_over_and_the_sleeper_finds_out(
    take: Callable[..., Lease], clock: Clock
) -> None:
    sleeper = take("one")
    clock.now += LEASE_S - 1
    with pytest.raises(LockedError):
        take("two")
    clock.now += 1
    second = take("two")
    assert second.generation == 2
    with pytest.raises(LockedError, match="on two"):
        sleeper.renew()
    with pytest.raises(LockedError, match="on two"):
        sleeper.confirm()
    sleeper.release()
    second.confirm()
    second.renew()


def test_it_is_renewed_when_it_is_time(take: Callable[..., Lease], clock: Clock, store: Store) -> None:
    lease = take("one")
    for _ in range(100):
        lease.renew()
    assert store.replaced == 1
    for count in range(2, 50):
        clock.now += RENEW_S
        lease.renew()
        assert store.replaced == count
    with pytest.raises(LockedError):
        take("two")
    lease.confirm()
    before = store.replaced
    clock.now -= 100 * RENEW_S  # put back: it would not be renewed for long
    lease.renew()
    assert store.replaced == before + 1


def test_of_two_at_once_one_gets_it(take: Callable[..., Lease], store: Store) -> None:
    winners: list[Lease] = []
    store.before = lambda: winners.append(take("two"))
    with pytest.raises(LockedError, match="on two"):
        take("one")
    winners[0].confirm()


def test_one_taken_meanwhile_is_not_given_back(
    take: Callable[..., Lease], store: Store, clock: Clock
) -> None:
    sleeper = take("one")
    clock.now += LEASE_S
    second = take("two")
    second.release()
    before = store.get(NAME)
    sleeper.release()
    assert store.get(NAME) == before
    with pytest.raises(LockedError, match="has had the lease meanwhile"):
        sleeper.confirm()


@pytest.mark.parametrize("found", [None, b"garbage", b""])
def test_one_that_was_lost_or_damaged_brings_no_generation_back(
    take: Callable[..., Lease], store: Store, found: bytes | None
) -> None:
    """A manifest of an old generation must not count before one of a new."""
    if found is not None:
        store.replace(NAME, found, None)
    assert take("one", highest=41).generation == 42


def test_an_old_record_that_was_put_back_fences_nobody(take: Callable[..., Lease]) -> None:
    lease = take("one")
    lease.rise_above(7)
    assert lease.generation == 8
    lease.confirm()
    lease.rise_above(5)
    assert lease.generation == 8
    lease.release()
    assert take("two").generation == 9


def test_a_record_of_another_volume_or_repository_is_none(take: Callable[..., Lease], store: Store) -> None:
    other = LeaseRecord(bytes(16), "nb", 99, "somebody else", 2**52)
    store.replace(NAME, other.encode(), None)
    assert take("one").generation == 1


def test_a_store_that_fails_when_it_is_given_back_is_no_matter(
    take: Callable[..., Lease],
    store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease = take("one")
    # The command line, in another test, keeps our logs from the root's handlers.
    monkeypatch.setattr(logging.getLogger("smsnapd"), "propagate", True)

    def fail() -> None:
        raise StoreError("replace it", "the test broke it", transient=True)

    store.before = fail
    caplog.set_level("INFO", logger="smsnapd.repository.lease")
    lease.release()
    assert "was not released" in caplog.text


# --- who is dead


def test_a_process_that_lives_is_not_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        started = _started(process.pid)
        living = replace(Holder.this_process(), pid=process.pid, started=started)
        assert not is_dead(living.text())
        assert is_dead(replace(living, started="1").text())  # its number was given to another one
        assert not is_dead(
            replace(living, started="1", boot="other").text()
        )  # of another machine: nobody knows
        assert not is_dead(replace(living, started="1", pid_space="1").text())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(living.text())  # a zombie
    assert is_dead(living.text())


@pytest.mark.parametrize("text", ["", "a b c", "host boot space x 1 token", "1 2 3 4 5 6 7"])
def test_of_what_is_no_holder_nobody_knows(text: str) -> None:
    assert not is_dead(text)


def test_one_of_a_dead_process_is_taken_at_once(store: Store) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        holder = replace(Holder.this_process(), pid=process.pid, started=_started(process.pid))
        Lease.take(store, ID, "nb", holder=holder)
        with pytest.raises(LockedError):
            Lease.take(store, ID, "nb")
        process.kill()
    assert Lease.take(store, ID, "nb").generation == 2


def test_one_that_this_process_did_not_get_or_give_back_to_the_end_does_not_lock_it_out(store: Store) -> None:
    first = Lease.take(store, ID, "nb")
    with pytest.raises(LockedError):
        Lease.take(store, ID, "nb")

    def fail() -> None:
        raise StoreError("replace it", "the test broke it")

    store.before = fail
    first.release()
    second = Lease.take(store, ID, "nb")
    assert second.generation == 2
    second.release()


def _started(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
