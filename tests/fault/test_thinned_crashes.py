"""A prune that lets recovery points go and dies at every call; and others at work at each of its calls."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.retention import Policy
from smsnapd.errors import LockedError, SmsnapError
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.repository.tags import Tagged, put_tag
from tests.fault.faulty import Call, Crash, Fault, FaultyStore
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME
from tests.property.pruned import Pruned

POLICY = Policy(hourly=1)
LONG = "SMSNAP_LONG" in os.environ


def numbers(count: int, fault: Fault) -> range:
    """The calls to fail at: each if the process dies there, else every third, unless it may take long."""
    return range(count) if LONG or fault is Fault.CRASH else range(1, count, 3)


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch, memory: Path) -> Iterator[Pruned]:
    """Recovery points with all that a prune must heed: chunks attached and not, one tagged, garbage."""
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        made = Pruned.create(Path(directory))
        (made.root / "stays").write_bytes(b"stays" * 900)
        for number in range(7):
            (made.root / "changes").write_bytes(b"%d" % number * 5000)
            (made.root / f"comes-{number}").write_bytes(b"comes %d" % number * 300)
            (made.root / f"comes-{number - 3}").unlink(missing_ok=True)
            made.settle()
            made.backup(attach=number % 2 == 0)
        made.cut_off()
        with made.protected.repository() as repository:
            tagged = Tagged(list(made.moments)[2], "kept")
            put_tag(repository, VOLUME, tagged, repository.write_key, is_set=True)
        yield made


class Moment:
    """Everything as it was, to be gone back to."""

    def __init__(self, pruned: Pruned, place: Path) -> None:
        self._pruned = pruned
        self._objects = dict(pruned.store._objects)
        self._now_s = pruned.now_s
        self._moments = dict(pruned.moments)
        self._state, self._root = place / "state", place / "root"
        shutil.copytree(pruned.protected.state_dir, self._state)
        shutil.copytree(pruned.root, self._root, symlinks=True)

    def go_back(self) -> None:
        pruned = self._pruned
        pruned.store._objects.clear()
        pruned.store._objects.update(self._objects)
        pruned.now_s, pruned.moments = self._now_s, dict(self._moments)
        pruned.protected.lose_state()
        shutil.copytree(self._state, pruned.protected.state_dir)


def left(pruned: Pruned) -> list[str]:
    with pruned.protected.repository() as repository:
        return [name.snapshot for name in History.load(repository, VOLUME).names]


def is_sound(pruned: Pruned) -> None:
    """What there is is whole, and what is kept is there."""
    assert pruned.protected.check(store=pruned.store).findings == ()
    assert {list(pruned.moments)[row] for row in (2, -1)} <= set(left(pruned))


@pytest.mark.parametrize("when", ["thins", "sweeps"])
@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.TRANSIENT])
def test_it_fails_at_every_call(pruned: Pruned, tmp_path: Path, fault: Fault, when: str) -> None:
    if when == "sweeps":
        pruned.prune(policy=POLICY)
        pruned.passes(73)
    before = Moment(pruned, tmp_path)
    counting = FaultyStore(pruned.store)
    done = pruned.prune(counting, policy=POLICY)
    assert (done.removed, done.deleted.objects > 5) == ((4, False) if when == "thins" else (0, True))
    for number in numbers(len(counting.calls), fault):
        before.go_back()
        with suppress(Crash, SmsnapError):
            pruned.prune(FaultyStore(pruned.store, {number: fault}), policy=POLICY)
        is_sound(pruned)
        pruned.sweep_all(policy=POLICY)
        assert len(left(pruned)) == 3
        assert pruned.objects() == pruned.needed(), counting.calls[number]
    pruned.forget_gone()
    pruned.verify(tmp_path)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER, Fault.TRANSIENT])
def test_writing_chunks_anew_fails_at_every_call(pruned: Pruned, tmp_path: Path, fault: Fault) -> None:
    pruned.prune(policy=POLICY)
    pruned.sweep_all(policy=POLICY)
    pruned.forget_gone()
    before = Moment(pruned, tmp_path)
    counting = FaultyStore(pruned.store)
    done = pruned.prune(counting, policy=POLICY, write_key=False)
    assert done.rewritten >= 2
    for number in range(list(Fault).index(fault) % 4, len(counting.calls), 1 if LONG else 4):
        before.go_back()
        with suppress(Crash, SmsnapError):
            store = FaultyStore(pruned.store, {number: fault})
            pruned.prune(store, policy=POLICY, write_key=False)
        assert pruned.protected.check(store=pruned.store).findings == ()
        (pruned.root / "stays").chmod(0o600 + number % 64)
        pruned.backup(full=number % 2 == 0)
        pruned.sweep_all(policy=POLICY, write_key=False)
        assert pruned.objects() == pruned.needed(), counting.calls[number]
        pruned.protected.restore(tmp_path / f"restored-{number}")
        assert differences(observe(pruned.root), observe(tmp_path / f"restored-{number}")) == []
    pruned.forget_gone()
    pruned.verify(tmp_path)


@pytest.mark.parametrize("slept_s", [1.0, 20 * 3600.0])
def test_another_prune_and_a_backup_at_every_call(pruned: Pruned, tmp_path: Path, slept_s: float) -> None:
    """The other lets go of other recovery points, too; and the first one wakes up to that."""
    before = Moment(pruned, tmp_path)
    counting = FaultyStore(pruned.store)
    pruned.prune(counting, policy=POLICY)
    for number in range(int(slept_s > 1), len(counting.calls), 1 if LONG else 3):
        before.go_back()

        def meanwhile() -> None:
            with pruned.protected.repository() as repository:
                tagged = Tagged(list(pruned.moments)[4], "kept-too")
                put_tag(repository, VOLUME, tagged, repository.write_key, is_set=True)
            pruned.now_s += slept_s
            pruned.prune(policy=POLICY)
            (pruned.root / "changes").write_bytes(b"meanwhile" * 500)
            pruned.backup()
            pruned.prune(policy=POLICY)

        def plan(call: Call, number: int = number) -> None:
            if call.number == number:
                meanwhile()

        with suppress(LockedError):
            pruned.prune(FaultyStore(pruned.store, plan), policy=POLICY)
        is_sound(pruned)
        pruned.backup()
        restored = tmp_path / f"restored-{number}"
        pruned.protected.restore(restored)
        assert differences(observe(pruned.root), observe(restored)) == []
        pruned.sweep_all(policy=POLICY)
        assert pruned.objects() == pruned.needed(), counting.calls[number]
        is_sound(pruned)
        for snapshot in set(left(pruned)) & pruned.moments.keys():
            shutil.rmtree(restored)
            pruned.protected.restore(restored, snapshot)
            assert differences(pruned.moments[snapshot], observe(restored)) == []


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("state", ["kept", "lost"])
def test_prunes_at_every_call_of_a_backup(pruned: Pruned, tmp_path: Path, full: bool, state: str) -> None:
    """One that thins, before each of its calls from one on, and three days pass now and then."""
    (pruned.root / "changes").write_bytes(b"3" * 5000)  # as it was, in a recovery point that goes
    (pruned.root / "new").write_bytes(b"new" * 3000)
    before = Moment(pruned, tmp_path)

    def back_up(first: int) -> int:
        before.go_back()
        if state == "lost":
            pruned.protected.lose_state()

        def plan(call: Call) -> None:
            if call.number >= first:
                pruned.prune(policy=POLICY, state_dir=None)

        store = FaultyStore(pruned.store, plan)
        with suppress(LockedError):
            pruned.backup(store=store, full=full)
        return len(store.calls)

    calls = back_up(10**6)
    for first in range(0, calls, 1 if LONG else 2):
        back_up(first)
        if len(left(pruned)) == 0:
            continue
        is_sound(pruned)
        pruned.backup()
        restored = tmp_path / f"restored-{first}"
        pruned.protected.restore(restored)
        assert differences(observe(pruned.root), observe(restored)) == []
        pruned.sweep_all(policy=POLICY)
        assert pruned.objects() == pruned.needed()


def test_prunes_at_every_call_of_a_restore(pruned: Pruned, tmp_path: Path) -> None:
    """Within the grace whoever has listed reads what was listed, whatever goes meanwhile."""
    before = Moment(pruned, tmp_path)
    gone = list(pruned.moments)[4]
    counting = FaultyStore(pruned.store)
    pruned.protected.restore(tmp_path / "counted", gone, store=counting)
    for number in range(1, len(counting.calls)):
        before.go_back()

        def plan(call: Call, number: int = number) -> None:
            if call.number == number:
                pruned.prune(policy=POLICY)
                pruned.passes(71)
                pruned.prune(policy=POLICY)

        target = tmp_path / f"restored-{number}"
        try:
            pruned.protected.restore(target, gone, store=FaultyStore(pruned.store, plan))
        except SmsnapError:
            # It listed after that: then it is told that there is no such recovery point any more.
            assert not any(call.name.endswith("manifests/") for call in counting.calls[:number])
            continue
        assert differences(pruned.moments[gone], observe(target)) == []
