"""Long chains: read in few steps, the same tree as step by step, and no step depends on what is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import shortcuts
from smsnapd.engine.retention import Policy
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.format.names import ManifestName
from tests.fault.faulty import FaultyStore
from tests.property.protected import VOLUME
from tests.property.pruned import Pruned

LONG = "SMSNAP_LONG" in os.environ


@pytest.fixture
def pruned(tmp_path: Path) -> Pruned:
    return Pruned.create(tmp_path)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "SPANS", (4, 16))


def grow(pruned: Pruned, count: int, full_at: int = 0) -> None:
    """Commits of one file each, by the real writer, as the daemon makes them: one lease, small deltas."""
    start = len(names_of(pruned))
    protected = pruned.protected
    with protected.repository(pruned.store, write_key=True) as repository:
        tenure = Tenure(repository, VOLUME)
        for number in range(start, start + count):
            (pruned.root / f"file-{number % 50}").write_bytes(b"%d" % number)
            if number % 3 == 0:
                (pruned.root / f"file-{number * 7 % 50}").unlink(missing_ok=True)
            is_full = number == full_at and number > 0
            request = BackupRequest(bytes(pruned.root), VOLUME, protected.state_dir, full=is_full)
            done = run_backup(repository, protected.settings, request, Silent(), tenure=tenure)
            assert done.snapshot is not None
        tenure.release()


def names_of(pruned: Pruned) -> tuple[ManifestName, ...]:
    with pruned.protected.repository() as repository:
        return History.load(repository, VOLUME).names


def gets(pruned: Pruned, action: Callable[[History], object]) -> int:
    """How many objects are got for something to do with the history, its repository being open."""
    store = FaultyStore(pruned.store)
    with pruned.protected.repository(store) as repository:
        store.calls.clear()
        action(History.load(repository, VOLUME))
        return sum(call.method == "get" for call in store.calls)


def trees(pruned: Pruned, places: list[int], *, by_shortcuts: bool) -> list[list[object]]:
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        if not by_shortcuts:
            history.shortcuts = ()
        found = []
        for place in places:
            chain = history.chain(history.names[place].snapshot)
            tree = SnapshotTree(repository, chain)
            found.append(
                [
                    (listing.directory, entry.name, entry.kind, entry.size, tree.chunks[entry.header.chunk])
                    for listing in tree.listings()
                    for entry in listing.entries
                    if entry.header
                ]
            )
        return found


@pytest.mark.usefixtures("narrow")
def test_every_moment_is_the_same_by_shortcuts(pruned: Pruned) -> None:
    grow(pruned, 37, full_at=21)
    places = list(range(37))
    assert trees(pruned, places, by_shortcuts=True) == trees(pruned, places, by_shortcuts=False)
    spans = []
    with pruned.protected.repository() as repository:
        for name in History.load(repository, VOLUME).useful_shortcuts:
            spans.append((name.begins, name.sequence))
    # The fulls are the first and the 22nd.
    of_four = [(2, 4), (5, 8), (9, 12), (13, 16), (17, 20), (23, 24), (25, 28), (29, 32), (33, 36)]
    assert sorted(spans) == sorted([*of_four, (2, 16), (23, 32)])
    plan = gets(pruned, lambda history: history.chain(history.names[20].snapshot))
    assert plan == 5  # 1, 2 to 16, 17 to 20, 21, and the write key
    assert pruned.protected.check(store=pruned.store).findings == ()


@pytest.mark.usefixtures("narrow")
def test_without_them_or_with_damaged_ones_a_chain_is_read_as_it_is(pruned: Pruned, tmp_path: Path) -> None:
    grow(pruned, 30)
    before = trees(pruned, [29], by_shortcuts=False)
    with pruned.protected.repository() as repository:
        found = History.load(repository, VOLUME).useful_shortcuts
    for number, name in enumerate(found):
        data = pruned.store._objects[name.object_name()]
        if number % 2:
            pruned.store.delete(name.object_name())
        else:
            pruned.store._objects[name.object_name()] = data[:-1] + bytes((data[-1] ^ 1,))
    assert trees(pruned, [29], by_shortcuts=True) == before
    pruned.protected.restore(tmp_path / "restored")


@pytest.mark.usefixtures("narrow")
def test_prunes_keep_those_that_are_of_use_and_no_others(pruned: Pruned, tmp_path: Path) -> None:
    grow(pruned, 30)
    pruned.sweep_all()
    with pruned.protected.repository() as repository:
        assert len(History.load(repository, VOLUME).useful_shortcuts) == len(
            History.load(repository, VOLUME).shortcuts
        )
    pruned.prune(policy=Policy(hourly=1))
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    assert not any(name.endswith("shortcut") for name in pruned.objects())
    assert pruned.protected.check(store=pruned.store).findings == ()


def test_a_plan_of_a_long_chain_takes_few_gets(pruned: Pruned) -> None:
    """Of 10,000 incrementals at most 250 (here 10,000 with SMSNAP_LONG=1, else 200)."""
    count = 10_000 if LONG else 200
    grow(pruned, count + 1)
    found, seconds, entries = plan_of(pruned)
    print(f"{count} incrementals: {found} GETs, {seconds:.2f} s of CPU, {entries} entries")
    assert found <= (250 if LONG else 60)
    assert 0 < entries <= 51


def plan_of(pruned: Pruned) -> tuple[int, float, int]:
    """GETs and seconds of CPU of a plan of the newest recovery point, and its entries."""
    started = time.process_time()
    entries = [0]

    def plan(history: History) -> None:
        tree = SnapshotTree(history._repository, history.chain(history.names[-1].snapshot))
        entries[0] = sum(len(listing.entries) for listing in tree.listings())

    count = gets(pruned, plan)
    return count, time.process_time() - started, entries[0]
