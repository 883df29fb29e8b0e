"""A prune that dies, or whose store fails, at every call; and writers that sleep while it is at work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from smsnapd.errors import LockedError, SmsnapError, StoreError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from tests.fault.faulty import Call, Crash, Fault, FaultyStore
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME
from tests.property.pruned import Pruned, puts_manifest

SLEPT_S = 1000.0
"""Longer than a lease lasts."""


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch, memory: Path) -> Iterator[Pruned]:
    """A recovery point, and what two runs left that were cut off."""
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        made = Pruned.create(Path(directory))
        for number in range(3):
            (made.root / f"file-{number}").write_bytes(b"%d" % number * 5000)
        made.backup()
        (made.root / "file-1").write_bytes(b"changed" * 900)
        made.cut_off()
        made.protected.lose_state()
        (made.root / "file-2").write_bytes(b"again" * 900)
        made.settle()
        made.cut_off()
        yield made


def snapshot_of(pruned: Pruned) -> dict[str, bytes]:
    return dict(pruned.store._objects)


def put_back(pruned: Pruned, objects: dict[str, bytes]) -> None:
    pruned.store._objects.clear()
    pruned.store._objects.update(objects)


def ripe(pruned: Pruned) -> None:
    """One prune has listed the garbage, and the grace is over; there is new garbage."""
    pruned.prune()
    pruned.passes(73)
    (pruned.root / "file-0").write_bytes(b"new garbage" * 900)
    pruned.cut_off()


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.TRANSIENT])
def test_a_prune_fails_at_every_call(pruned: Pruned, tmp_path: Path, fault: Fault) -> None:
    ripe(pruned)
    before, now_s = snapshot_of(pruned), pruned.now_s
    counting = FaultyStore(pruned.store)
    assert pruned.prune(counting).deleted.objects > 4
    assert {"put", "replace", "delete", "list", "get", "now"} <= {call.method for call in counting.calls}
    for number in range(len(counting.calls)):
        put_back(pruned, before)
        pruned.now_s = now_s
        with suppress(Crash, SmsnapError):
            pruned.prune(FaultyStore(pruned.store, {number: fault}))
        assert pruned.needed() <= pruned.objects()
        assert pruned.protected.check(store=pruned.store).findings == ()
        pruned.sweep_all()
        pruned.passes(73)
        pruned.prune()
        assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOST, Fault.PERMANENT])
def test_a_prune_that_locks_fails_at_every_call(pruned: Pruned, fault: Fault) -> None:
    """The next one locks all that is needed, whatever was remembered; what is locked is deleted by none."""
    ripe(pruned)
    before, now_s, lock_s = snapshot_of(pruned), pruned.now_s, 10 * 86400.0
    counting = FaultyStore(pruned.store)
    pruned.prune(counting, lock_s=lock_s)
    calls = [call.number for call in counting.calls if call.method in ("lock", "locked_until")]
    assert len(calls) > 10
    for number in calls:
        put_back(pruned, before)
        pruned.store._locks.clear()
        pruned.protected.lose_state()
        pruned.now_s = now_s
        with suppress(Crash, SmsnapError):
            pruned.prune(FaultyStore(pruned.store, {number: fault}), lock_s=lock_s)
        assert pruned.prune(lock_s=lock_s).lock_error is None
        needed = pruned.needed() | {"repository"}
        assert all(pruned.store.locked_until(name) >= pruned.now_s + lock_s / 2 for name in needed)
        for name in set(before) - needed:
            if name in pruned.objects():
                pruned.store.lock(name, pruned.now_s + lock_s)
        held = pruned.objects()
        pruned.passes(73)
        pruned.prune(lock_s=lock_s)
        assert held - pruned.objects() <= pruned.lists() | {name for name in held if "/garbage/" in name}


def test_every_delete_in_turn_is_the_last(pruned: Pruned) -> None:
    """Whatever was deleted so far: what is there has what it needs, chunks their data keys too."""
    ripe(pruned)
    before = snapshot_of(pruned)
    deleted = 0
    while True:
        put_back(pruned, before)
        left = iter(range(deleted))

        def plan(call: Call, left: Iterator[int] = left) -> Fault | None:
            return Fault.CRASH if call.method == "delete" and next(left, None) is None else None

        try:
            pruned.prune(FaultyStore(pruned.store, plan))
        except Crash:
            pass
        else:
            break
        objects = pruned.objects()
        keys = {names.parse_data_key_name(name) for name in objects}
        chunks = filter(None, map(names.parse_chunk_name, objects))
        assert all(names.DataKeyName(VOLUME, chunk.key_id, None) in keys for chunk in chunks)
        assert pruned.needed() <= objects
        deleted += 1
    assert deleted > 4


# --- writers beside it


def while_it_sleeps(pruned: Pruned, asleep: Callable[[Call], bool], action: Callable[[], object]) -> None:
    """A backup whose writer sleeps at a call, longer than its lease lasts; meanwhile `action` is done."""

    def plan(call: Call) -> None:
        if pending and asleep(call):
            pending.clear()
            pruned.now_s += SLEPT_S
            action()

    pending = [True]
    pruned.protected.backup(store=FaultyStore(pruned.store, plan), attach=False)


def test_a_writer_sleeps_before_its_manifest_and_commits_what_was_listed(
    pruned: Pruned, tmp_path: Path
) -> None:
    """It reports nothing, but its manifest counts; so what it refers to is no garbage any more."""
    (pruned.root / "late").write_bytes(b"late" * 3000)
    with pytest.raises(LockedError):
        while_it_sleeps(pruned, puts_manifest, pruned.prune)
    pruned.passes(73)
    pruned.prune()
    late = pruned.protected.snapshots()[-1].id
    pruned.verify(tmp_path)
    assert pruned.protected.restore(tmp_path / "late", late).not_restored == ()
    assert (tmp_path / "late" / "late").read_bytes() == b"late" * 3000
    pruned.backup()
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


@pytest.mark.parametrize("state", ["journal", "kept", "lost"])
def test_a_writer_makes_anew_what_is_about_to_go_and_sleeps(
    pruned: Pruned, tmp_path: Path, state: str
) -> None:
    """The very chunks and catalog of a run that was cut off, listed 71 hours ago, swept while it sleeps."""
    (pruned.root / "again").write_bytes(b"made again" * 3000)
    pruned.settle()
    pruned.cut_off(fault=Fault.PERMANENT if state == "journal" else Fault.CRASH)
    pruned.prune()
    pruned.passes(71.9)
    if state == "lost":
        pruned.protected.lose_state()
    pruned.now_s -= SLEPT_S

    def sweep() -> None:
        pruned.passes(0.5)
        assert pruned.prune().deleted.objects > 2

    with pytest.raises(LockedError):
        while_it_sleeps(pruned, puts_manifest, sweep)
    assert len(pruned.protected.snapshots()) == 2
    assert pruned.needed() <= pruned.objects()
    pruned.verify(tmp_path)
    pruned.backup()
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


def test_a_writer_sleeps_at_every_call_while_garbage_is_swept(pruned: Pruned, tmp_path: Path) -> None:
    ripe(pruned)
    (pruned.root / "more").write_bytes(b"more" * 3000)
    before, now_s = snapshot_of(pruned), pruned.now_s
    state = tmp_path / "state"
    shutil.copytree(pruned.protected.state_dir, state)
    counting = FaultyStore(pruned.store)
    pruned.protected.backup(store=counting, attach=False)
    outcomes = set()
    for number in range(len(counting.calls)):
        put_back(pruned, before)
        pruned.now_s = now_s
        pruned.protected.lose_state()
        shutil.copytree(state, pruned.protected.state_dir)
        try:
            while_it_sleeps(pruned, lambda call, number=number: call.number == number, pruned.prune)
            outcomes.add("committed")
        except LockedError:
            outcomes.add("locked")
        except StoreError:
            outcomes.add("gone")
        assert pruned.needed() <= pruned.objects()
        pruned.backup()
        pruned.sweep_all()
        assert pruned.objects() == pruned.needed()
        assert pruned.protected.check(store=pruned.store).findings == ()
    assert {"committed", "locked"} <= outcomes


@pytest.mark.parametrize("state", ["journal", "kept", "lost"])
def test_prunes_run_before_every_call_of_a_backup_that_makes_anew_what_goes(
    pruned: Pruned, tmp_path: Path, state: str
) -> None:
    """It holds the lease, so they list nothing; but they sweep."""
    pruned.cut_off(fault=Fault.PERMANENT if state == "journal" else Fault.CRASH)
    pruned.prune()
    if state == "lost":
        pruned.protected.lose_state()
    pruned.passes(73)
    before, now_s = snapshot_of(pruned), pruned.now_s
    states = tmp_path / "state"
    pruned.protected.state_dir.mkdir(exist_ok=True)
    shutil.copytree(pruned.protected.state_dir, states)

    def back_up(first: int) -> list[int]:
        """With prunes before its calls from the `first` on; how many objects each of them deleted."""
        deleted: list[int] = []
        held: list[bool] = []
        put_back(pruned, before)
        pruned.now_s = now_s
        pruned.protected.lose_state()
        shutil.copytree(states, pruned.protected.state_dir)

        def plan(call: Call) -> None:
            held.append(call.method == "replace")
            mine = any(held[:-1]) and call.number >= first  # before that a prune may have the lease
            deleted.append(pruned.prune().deleted.objects if mine else 0)

        pruned.backup(store=FaultyStore(pruned.store, plan))
        return deleted

    calls = len(back_up(10**6))
    for first in range(calls):
        swept = sum(back_up(first))
        assert swept > 4 or first == calls - 1
        assert pruned.protected.check(store=pruned.store).findings == ()
        pruned.sweep_all()
        pruned.protected.restore(tmp_path / f"restored-{first}")
        assert differences(observe(pruned.root), observe(tmp_path / f"restored-{first}")) == []


def test_a_fenced_manifest_is_garbage(pruned: Pruned, tmp_path: Path) -> None:
    """A writer slept, another one committed: what the first one puts then counts for nothing."""
    (pruned.root / "late").write_bytes(b"late" * 3000)

    def commit() -> None:
        pruned.backup(state_dir=tmp_path / "other")

    with pytest.raises(LockedError):
        while_it_sleeps(pruned, puts_manifest, commit)
    assert len(pruned.protected.check(store=pruned.store).fenced) == 1
    pruned.sweep_all()
    assert pruned.protected.check(store=pruned.store).fenced == ()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


@pytest.mark.parametrize("more_garbage", [False, True])
def test_a_prune_sleeps_at_every_call_while_others_work(
    pruned: Pruned, tmp_path: Path, more_garbage: bool
) -> None:
    """Meanwhile another prune sweeps, and a backup makes anew what was garbage: the same catalog, too."""
    pruned.cut_off()
    if more_garbage:
        ripe(pruned)
    else:
        pruned.prune()
        pruned.passes(73)
    before, now_s = snapshot_of(pruned), pruned.now_s
    state = tmp_path / "state"
    shutil.copytree(pruned.protected.state_dir, state)
    moments = dict(pruned.moments)
    counting = FaultyStore(pruned.store)
    pruned.prune(counting)
    for number in range(len(counting.calls)):
        put_back(pruned, before)
        pruned.now_s, pruned.moments = now_s, dict(moments)
        pruned.protected.lose_state()
        shutil.copytree(state, pruned.protected.state_dir)

        def plan(call: Call, number: int = number) -> None:
            if call.number == number:
                pruned.now_s += SLEPT_S
                pruned.prune()
                pruned.backup()

        with suppress(LockedError):
            pruned.prune(FaultyStore(pruned.store, plan))
        assert pruned.needed() <= pruned.objects(), counting.calls[number]
        assert pruned.protected.check(store=pruned.store).findings == ()
        pruned.sweep_all()
        assert pruned.objects() == pruned.needed()
