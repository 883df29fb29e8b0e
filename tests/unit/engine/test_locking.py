"""Which locks are extended, what is remembered of them, and what a refusal does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from smsnapd.engine.prune.known_locks import KnownLocks
from smsnapd.engine.prune.locking import BATCH, PATIENCE_S, Locker, LockTerms
from smsnapd.errors import DeniedError, StoreError
from smsnapd.store.memory import MemoryStore
from tests.fault.faulty import Call, Fault, FaultyStore

DAY_S = 86400.0
NOW_S = 1_800_000_000.0
TERMS = LockTerms(NOW_S, 30 * DAY_S)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore("locks")
    for number in range(4):
        made.put(f"o/{number}", b"x")
    return made


@pytest.fixture
def known(tmp_path: Path) -> Iterator[KnownLocks]:
    made = KnownLocks(tmp_path / "x.locks")
    yield made
    made.close(NOW_S)


def extend(store: object, known: KnownLocks, names: list[str], terms: LockTerms = TERMS) -> Locker:
    with Locker(store, terms, known, dry_run=False) as locker:  # type: ignore[arg-type]
        for name in names:
            locker.add(name)
        locker.finish()
    return locker


@pytest.mark.parametrize(
    ("days", "left_days", "due"),
    [
        *((30, 0, True), (30, 14.9, True), (30, 15.1, False), (30, 40, False)),
        *((3, 1.9, True), (3, 2.1, False), (2, 1.99, True), (1, 0.9, True), (1, 1.5, False)),
        *((30, math.inf, False), (1, math.inf, False)),
    ],
)
def test_a_lock_is_due_when_half_of_it_is_over_or_two_days_are_left(
    days: int, left_days: float, due: bool
) -> None:
    assert LockTerms(NOW_S, days * DAY_S).is_due(NOW_S + left_days * DAY_S) is due


def test_what_is_due_is_extended_and_the_rest_is_asked_about_once(
    store: MemoryStore, known: KnownLocks
) -> None:
    store.lock("o/1", NOW_S + 20 * DAY_S)
    store.lock("o/2", NOW_S + 10 * DAY_S)
    names = ["o/0", "o/1", "o/2"]
    assert extend(store, known, names).extended == 2
    ends = [(store.locked_until(name) - NOW_S) / DAY_S for name in names]
    assert ends == [30, 20, 30]
    watched = FaultyStore(store)
    later = LockTerms(NOW_S + 4 * DAY_S, 30 * DAY_S)
    assert extend(watched, known, names, later).extended == 0
    assert watched.calls == []
    later = LockTerms(NOW_S + 6 * DAY_S, 30 * DAY_S)
    assert extend(watched, known, names, later).extended == 1
    assert [(call.method, call.name) for call in watched.calls] == [("locked_until", "o/1"), ("lock", "o/1")]


def test_a_legal_hold_is_not_remembered(store: MemoryStore, known: KnownLocks) -> None:
    store.lock("o/0", math.inf)
    assert extend(store, known, ["o/0"]).extended == 0
    assert known.until("o/0") is None


def test_what_is_gone_meanwhile_is_passed_over(store: MemoryStore, known: KnownLocks) -> None:
    names = ["o/none", *(f"o/{number}" for number in range(4))]
    assert extend(store, known, names).extended == 4


def test_of_what_is_refused_the_first_is_told_and_no_more_tried(
    store: MemoryStore, known: KnownLocks
) -> None:
    class Denying(FaultyStore):
        def lock(self, name: str, until_s: float) -> None:
            super().lock(name, until_s)
            raise DeniedError(f"lock {name}", "access is denied")

    for number in range(3 * BATCH):
        store.put(f"more/{number:04}", b"x")
    denying = Denying(store)
    locker = extend(denying, known, [f"more/{number:04}" for number in range(3 * BATCH)])
    assert locker.error is not None and locker.error.what == "lock more/0000"
    assert locker.extended == 0
    assert len(denying.calls) <= 2 * BATCH


def test_what_may_pass_ends_the_prune(store: MemoryStore, known: KnownLocks) -> None:
    def plan(call: Call) -> Fault | None:
        return Fault.TRANSIENT if call.method == "lock" else None

    with pytest.raises(StoreError, match="lock o/0"):
        extend(FaultyStore(store, plan), known, ["o/0"])
    assert extend(store, known, ["o/0"]).extended == 1


def test_when_it_takes_too_long_only_what_is_urgent_is_done(store: MemoryStore, known: KnownLocks) -> None:
    known.learn("o/0", NOW_S + 10 * DAY_S)
    known.learn("o/1", NOW_S + DAY_S)
    times = iter([0.0, *[PATIENCE_S + 1] * 3])
    with Locker(store, TERMS, known, dry_run=False, clock=lambda: next(times)) as locker:
        for number in range(3):
            locker.add(f"o/{number}")
        locker.finish()
    assert (locker.extended, locker.left) == (1, 2)
    assert [store.locked_until(f"o/{number}") for number in range(3)] == [0.0, TERMS.until_s, 0.0]
    again = extend(store, known, ["o/0", "o/1", "o/2"])
    assert (again.extended, again.left) == (2, 0)


def test_a_dry_run_locks_nothing_and_remembers_nothing(store: MemoryStore, known: KnownLocks) -> None:
    with Locker(store, TERMS, known, dry_run=True) as locker:
        locker.add("o/0")
        locker.finish()
    assert locker.extended == 1
    assert store.locked_until("o/0") == 0.0 and known.until("o/0") is None


# --- what is known


def test_ends_are_remembered_until_they_are_over(tmp_path: Path) -> None:
    path = tmp_path / "state" / "x.locks"
    known = KnownLocks(path)
    known.learn("a", NOW_S + 5)
    known.learn("b", NOW_S + 50.7)
    known.close(NOW_S)
    assert path.stat().st_mode & 0o777 == 0o600
    known = KnownLocks(path)
    assert (known.until("a"), known.until("b"), known.until("c")) == (NOW_S + 5, NOW_S + 50, None)
    known.close(NOW_S + 6)
    known = KnownLocks(path)
    assert (known.until("a"), known.until("b")) == (None, NOW_S + 50)
    known.close(NOW_S)
    assert b"volumes" not in path.read_bytes()


@pytest.mark.parametrize("content", [b"damaged" * 5000, b""])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.locks"
    path.write_bytes(content)
    for _ in range(2):
        known = KnownLocks(path)
        known.learn("a", NOW_S + 5)
        known.close(NOW_S)
    known = KnownLocks(path)
    assert known.until("a") == NOW_S + 5
    known.close(NOW_S)


def test_where_nothing_can_be_kept_it_is_known_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (None, tmp_path / "file" / "x.locks"):
        known = KnownLocks(path)
        known.learn("a", NOW_S)
        assert known.until("a") == NOW_S
        known.close(NOW_S)


def test_two_at_once_are_not_in_the_way(tmp_path: Path) -> None:
    one, other = KnownLocks(tmp_path / "x.locks"), KnownLocks(tmp_path / "x.locks")
    with closing(MemoryStore("two")) as store:
        store.put("o", b"x")
        extend(store, one, ["o"])
        extend(store, other, ["o"])
    one.close(NOW_S)
    other.close(NOW_S)
    after = KnownLocks(tmp_path / "x.locks")
    assert after.until("o") == TERMS.until_s
    after.close(NOW_S)
