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
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.lease import LEASE_S, Holder, Lease, is_dead
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore

ID = bytes(range(16))
NAME = names.lease_name("nb")
BEGAN = 1_800_000_000.0


class Time:
    """What passes for all; `wall` is how far a machine's own clock is off."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wall = 0.0


class Store(MemoryStore):
    """Counts replacements; something may happen right before or after the next one, or it may fail."""

    def __init__(self, time: Time) -> None:
        super().__init__("test", lambda: BEGAN + time.passed)
        self.replaced = self.asked = 0
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        self.replaced += 1
        before, self.before = self.before, None
        if before:
            before()
        done = super().replace(name, data, version)
        after, self.after = self.after, None
        if after:
            after()
        return done

    def now(self) -> float:
        self.asked += 1
        return super().now()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def store(time: Time) -> Store:
    return Store(time)


@pytest.fixture
def take(store: Store, time: Time) -> Callable[..., Lease]:
    """Takes it as a process on a machine of the name given; nobody is known to be dead."""

    def taken(host: str, *, booted: float = 100.0, **more: bool) -> Lease:
        clock = StoreClock(
            store.now, steady=lambda: booted + time.passed, wall=lambda: BEGAN + time.passed + time.wall
        )
        return Lease.take(
            store,
            ID,
            "nb",
            holder=replace(Holder.this_process(), host=host, boot="a boot"),
            clock=clock,
            dead=lambda holder: False,
            **more,
        )

    return taken


def lose_the_answer() -> None:
    raise StoreError("replace it", "the answer was lost", transient=True)


def record(store: Store) -> LeaseRecord:
    return LeaseRecord.decode(store.get(NAME), "nb", ID)


def test_one_holds_it_until_it_is_given_back(take: Callable[..., Lease]) -> None:
    first = take("one")
    told = r"another writer on one has the lease until 2027-01-15T08:10:00\S+, renewed at 2027-01-15T08:00:00"
    with pytest.raises(LockedError, match=told) as refused:
        take("two")
    assert refused.value.exit_status == 11
    assert "volume.name" in refused.value.hint and "smsnap backup --take-over" in refused.value.hint
    first.confirm()
    first.release()
    second = take("two")
    assert (first.generation, second.generation, second.taken_from) == (1, 2, "")
    second.confirm()
    with pytest.raises(LockedError, match="on two has taken the lease over"):
        first.confirm()


def test_an_expired_one_is_taken_and_the_sleeper_finds_out(take: Callable[..., Lease], time: Time) -> None:
    sleeper = take("one")
    time.passed += LEASE_S - 1
    with pytest.raises(LockedError):
        take("two")
    time.passed += 1
    second = take("two")
    assert (second.generation, second.taken_from) == (2, "")
    with pytest.raises(LockedError, match="on two has taken"):
        sleeper.renew()
    with pytest.raises(LockedError, match="on two has taken"):
        sleeper.confirm()
    sleeper.release()
    second.confirm()
    second.renew()


def test_it_is_taken_over_from_anybody(take: Callable[..., Lease]) -> None:
    first = take("one")
    second = take("two", take_over=True)
    assert (second.generation, second.taken_from) == (2, "another writer on one")
    with pytest.raises(LockedError, match="another writer on two has taken the lease over"):
        first.confirm()
    second.confirm()
    second.release()
    assert take("three", take_over=True).taken_from == ""


def test_it_is_renewed_when_half_of_it_is_over(take: Callable[..., Lease], time: Time, store: Store) -> None:
    lease = take("one")
    for _ in range(100):
        lease.renew()
    time.passed += LEASE_S / 2 - 1
    lease.renew()
    assert store.replaced == 1
    time.passed += 1
    for count in range(2, 50):
        lease.renew()
        lease.renew()
        assert store.replaced == count
        assert record(store).expires_us == int((BEGAN + time.passed + LEASE_S) * 1e6)
        time.passed += LEASE_S / 2
    with pytest.raises(LockedError):
        take("two")
    lease.confirm()


def test_one_that_is_over_is_renewed_unless_somebody_took_it(take: Callable[..., Lease], time: Time) -> None:
    """The record says so: nobody has written to it, so nobody has written to the chain."""
    lease = take("one")
    time.passed += 10 * LEASE_S
    lease.renew()
    lease.confirm()
    assert lease.generation == 1
    with pytest.raises(LockedError):
        take("two")


# --- clocks


@pytest.mark.parametrize("wrong_s", [-7200.0, 7200.0])
def test_a_wrong_clock_neither_robs_nor_is_robbed(
    take: Callable[..., Lease], time: Time, store: Store, wrong_s: float
) -> None:
    time.wall = wrong_s
    lease = take("one")
    assert record(store).expires_us == int((BEGAN + LEASE_S) * 1e6)
    time.wall = 0.0
    with pytest.raises(LockedError):
        take("two")
    time.passed += LEASE_S
    time.wall = wrong_s
    assert take("two").generation == 2
    with pytest.raises(LockedError):
        lease.renew()


def test_a_clock_that_jumps_costs_one_question(take: Callable[..., Lease], time: Time, store: Store) -> None:
    lease = take("one")
    for jump in (3600.0, -86400.0, 0.0):
        asked = store.asked
        time.wall = jump
        lease.renew()
        assert (store.replaced, store.asked) == (1, asked)
        time.passed += LEASE_S / 2
        lease.renew()
        assert (store.replaced, store.asked) == (2, asked + 1)
        assert record(store).expires_us == int((BEGAN + time.passed + LEASE_S) * 1e6)
        store.replaced = 1


def test_the_store_is_asked_for_the_time_once(take: Callable[..., Lease], time: Time, store: Store) -> None:
    lease = take("one")
    assert store.asked == 1
    for _ in range(100):
        time.passed += LEASE_S / 2
        lease.renew()
        lease.confirm()
    lease.release()
    assert (store.asked, store.replaced) == (1, 102)


# --- lost answers


@pytest.mark.parametrize("act", [Lease.renew, Lease.release, lambda lease: lease.rise_above(5)])
def test_a_lost_answer_does_not_lose_the_lease(
    take: Callable[..., Lease], store: Store, time: Time, act: Callable[[Lease], None]
) -> None:
    lease = take("one")
    time.passed += LEASE_S / 2
    store.after = lose_the_answer
    with pytest.raises(StoreError, match="lost"):
        lease.renew()
    time.passed += LEASE_S / 2
    act(lease)
    if record(store).holder:
        lease.confirm()
        lease.renew()
    else:
        assert take("two").generation == 2


def test_a_lost_answer_and_a_rival(take: Callable[..., Lease], store: Store, time: Time) -> None:
    lease = take("one")
    time.passed += LEASE_S / 2
    store.after = lose_the_answer
    with pytest.raises(StoreError):
        lease.renew()
    rival = take("two", take_over=True)
    time.passed += LEASE_S / 2
    with pytest.raises(LockedError, match="on two has taken"):
        lease.renew()
    rival.confirm()


def test_of_two_at_once_one_gets_it(take: Callable[..., Lease], store: Store) -> None:
    winners: list[Lease] = []
    store.before = lambda: winners.append(take("two"))
    with pytest.raises(LockedError, match="on two has the lease"):
        take("one")
    winners[0].confirm()


def test_one_taken_meanwhile_is_not_given_back(take: Callable[..., Lease], store: Store, time: Time) -> None:
    sleeper = take("one")
    time.passed += LEASE_S
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
    lease = take("one")
    lease.rise_above(41)
    assert lease.generation == record(store).generation == 42
    lease.confirm()


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

    store.before = lose_the_answer
    caplog.set_level("INFO", logger="smsnapd.repository.lease")
    lease.release()
    assert "was not released" in caplog.text


def test_one_that_was_abandoned_is_kept_from_others_alone(store: Store) -> None:
    first = Lease.take(store, ID, "nb")
    first.abandon()
    with pytest.raises(LockedError):
        Lease.take(store, ID, "nb", dead=lambda holder: False)
    second = Lease.take(store, ID, "nb")
    assert second.generation == 2
    first.release()
    second.confirm()
    second.release()


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
    with pytest.raises(LockedError, match=rf"\(process {os.getpid()} of this machine\) has the lease"):
        Lease.take(store, ID, "nb")

    store.before = lose_the_answer
    first.release()
    second = Lease.take(store, ID, "nb")
    assert second.generation == 2
    second.release()


def _started(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
