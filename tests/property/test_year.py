"""A year of recovery points, thinned every day: what stays restores, and what goes is gone from the store.

With SMSNAP_LONG=1 a tree of 20,000 files, a recovery point every five minutes in the last days.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune.moving import Live
from smsnapd.engine.prune.thinning import points_of
from smsnapd.engine.restore.run import RestoreRequest, run_restore
from smsnapd.engine.retention import Policy, kept
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import LockedError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.model import Kind, join_path
from tests.fault.faulty import Call, FaultyStore
from tests.property.protected import VOLUME
from tests.property.pruned import HOUR_S, Pruned

LONG = "SMSNAP_LONG" in os.environ
FILES = 20_000 if LONG else 250
SIZE = 700 if LONG else 5000
"""Bytes of the smallest file; the largest has three times as many."""
DAYS = 365 if LONG else 40
DENSE_DAYS = 3 if LONG else 2
"""The last days, with a recovery point every few minutes."""
DENSE_S = 300.0 if LONG else 3600.0
SPARSE_S = (6.0 if LONG else 12.0) * HOUR_S
RESTORED_EACH_MONTH = 2

POLICY = Policy(keep_within_s=2 * 86400.0, hourly=48, daily=14, weekly=8, monthly=12)

Tree = dict[str, bytes]
"""What each file holds."""


@dataclass
class Year:
    """The volume, and what it was at every moment that is kept."""

    pruned: Pruned
    rng: random.Random
    tree: Tree = field(default_factory=dict)
    moments: dict[str, Tree] = field(default_factory=dict)
    skew_s: float = 0.0
    number: int = 0
    touched: set[bytes] = field(default_factory=set)

    @property
    def root(self) -> Path:
        return self.pruned.root

    def write(self, path: str, content: bytes) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(content)
        self.tree[path] = content
        self.touch(path)

    def touch(self, path: str) -> None:
        """Tell the next run where to look, as a watcher would."""
        self.touched.add(os.fsencode(path.split("/", maxsplit=1)[0]))

    def fresh(self) -> tuple[str, bytes]:
        """A new file. No two have the same size, so that none is taken for another within a tick."""
        self.number += 1
        path = f"d{self.rng.randrange(max(2, FILES // 60))}/s{self.rng.randrange(3)}/file-{self.number}"
        return path, self.content()

    def content(self) -> bytes:
        self.number += 1
        return self.rng.randbytes(SIZE + self.rng.randrange(SIZE * 2)) + b"%d" % self.number

    def change(self, count: int) -> None:
        """Some files are written anew, some come, some go; now and then a whole directory."""
        for _ in range(count):
            dice = self.rng.random()
            if dice < 0.6 and self.tree:
                path = self.rng.choice(list(self.tree))
                self.write(path, self.content())
            elif dice < 0.8:
                self.write(*self.fresh())
            elif len(self.tree) > FILES * 0.9:
                path = self.rng.choice(list(self.tree))
                (self.root / path).unlink()
                del self.tree[path]
                self.touch(path)
        if self.rng.random() < 0.01:
            self.drop_directory()

    def drop_directory(self) -> None:
        directory = self.rng.choice(list(self.tree)).split("/")[0]
        shutil.rmtree(self.root / directory)
        self.touch(directory)
        self.tree = {p: c for p, c in self.tree.items() if not p.startswith(directory + "/")}

    def backup(self, store: object = None, *, full: bool = False) -> None:
        """One run; its writer's clock may be wrong by hours."""
        protected = self.pruned.protected
        now_ns = int((self.pruned.now_s + self.skew_s) * 1e9)
        hints = Hints(frozenset((b"",)), frozenset(self.touched))
        request = BackupRequest(bytes(self.root), VOLUME, protected.state_dir, full=full, hints=hints)
        with protected.repository(store or self.pruned.store, write_key=True) as repository:
            done = run_backup(repository, protected.settings, request, Silent(), clock_ns=lambda: now_ns)
        if done.snapshot is not None:
            self.moments[done.snapshot.id] = dict(self.tree)
            self.touched.clear()

    def history(self, repository: object) -> History:
        return History.load(repository, VOLUME)  # type: ignore[arg-type]

    def prune(self, *, write_key: bool, store: object = None) -> None:
        done = self.pruned.prune(store, policy=POLICY, write_key=write_key, state_dir=None)  # type: ignore[arg-type]
        assert done.refused == () and done.error is None
        with self.pruned.protected.repository() as repository:
            there = {name.snapshot for name in self.history(repository).names}
        self.moments = {snapshot: tree for snapshot, tree in self.moments.items() if snapshot in there}
        assert there == self.moments.keys()

    # --- what must hold

    def lists(self, snapshot: str) -> None:
        """The recovery point lists the files that there were, with their sizes."""
        with self.pruned.protected.repository() as repository:
            tree = SnapshotTree(repository, self.history(repository).chain(snapshot))
            found = {
                os.fsdecode(join_path(listing.directory, entry.name)): entry.size
                for listing in tree.listings()
                for entry in listing.entries
                if entry.kind == Kind.REGULAR
            }
        assert found == {path: len(content) for path, content in self.moments[snapshot].items()}

    def restores(self, snapshot: str, history: History | None = None, expected: Tree | None = None) -> None:
        """And it restores to just that; by a history that was listed before, if one is given."""
        protected = self.pruned.protected
        target = Path(tempfile.mkdtemp(dir=self.root.parent))
        with protected.repository() as repository:
            listed = history or self.history(repository)
            request = RestoreRequest(bytes(target))
            run_restore(repository, protected.settings, listed, listed.find(snapshot), request, Silent())
        found = {
            str(place.relative_to(target)): place.read_bytes()
            for place in target.rglob("*")
            if place.is_file()
        }
        shutil.rmtree(target)
        assert found == (self.moments[snapshot] if expected is None else expected)

    def live_ratio(self) -> float:
        """Stored bytes of all chunks by the bytes in them that the recovery points name."""
        live = Live()
        with self.pruned.protected.repository() as repository:
            history = self.history(repository)
            for name in history.names:
                tree = SnapshotTree(repository, [history.record(name)])
                live.add(tree, tree.layer())
        chunks = self.pruned.store.list(names.chunks_prefix(VOLUME))
        return sum(info.size for info in chunks) / live.bytes

    def ratio(self) -> float:
        """Bytes of all objects of the volume by those of what the recovery points refer to."""
        sizes = {info.name: info.size for info in self.pruned.store.list(names.volume_prefix(VOLUME))}
        needed = self.pruned.needed()
        assert needed <= sizes.keys() | set()
        return sum(sizes.values()) / sum(sizes[name] for name in needed)


@pytest.fixture
def year(monkeypatch: pytest.MonkeyPatch) -> Iterator[Year]:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_mount() else None) as directory:
        made = Year(Pruned.create(Path(directory)), random.Random(6))
        while len(made.tree) < FILES:
            made.write(*made.fresh())
        yield made


def beside(year: Year) -> None:
    """A prune, and at some call of it a backup; who listed before restores afterwards, within the grace."""
    protected, calls = year.pruned.protected, year.rng.randrange(5, 60)
    with protected.repository() as repository:
        listed = year.history(repository)
        reader = year.rng.choice(listed.names).snapshot
        expected = year.moments[reader]

        def plan(call: Call) -> None:
            if call.number == calls:
                year.change(3)
                with suppress(LockedError):
                    year.backup()

        year.prune(write_key=True, store=FaultyStore(year.pruned.store, plan))
        year.pruned.passes(20)
        year.prune(write_key=True)
        year.restores(reader, listed, expected)


def test_a_year(year: Year) -> None:
    pruned, rng = year.pruned, year.rng
    began_s, ratios = pruned.now_s, []
    for day in range(DAYS):
        is_dense = day >= DAYS - DENSE_DAYS
        step_s = DENSE_S if is_dense else SPARSE_S
        end_s = max(pruned.now_s, began_s + (day + 1) * 86400.0)
        year.skew_s = rng.choice((0.0, 0.0, 0.0, 5 * HOUR_S, -5 * HOUR_S))
        while pruned.now_s < end_s:
            pruned.now_s += step_s
            year.change(rng.randrange(1, 4 if is_dense else 12))
            year.backup(full=rng.random() < (0.0005 if is_dense else 0.01))
        year.skew_s = 0.0
        if day % 9 == 4:
            beside(year)
        else:
            year.prune(write_key=day % 4 != 3)
        if day % 30 == 0:
            print(f"day {day}: {len(year.moments)} recovery points", flush=True)
        if day > 10 and (day % 5 == 0 or is_dense):
            ratios.append(year.ratio())
        if day % 30 == 29:
            for snapshot in rng.sample(list(year.moments), RESTORED_EACH_MONTH):
                year.restores(snapshot)
    with pruned.protected.repository() as repository:
        counting = year.history(repository).names
    stay = kept(points_of(counting), POLICY)
    told = f"stored by referenced {ratios[-1]:.3f}, at most {max(ratios):.3f}"
    print(f"{len(counting)} recovery points of {counting[-1].sequence}; {told}")
    assert {name.snapshot for name in counting[:-2]} <= stay
    # Of a small tree what waits for its grace is a large part, while all happens in a few days.
    assert max(ratios if LONG else ratios[:-DENSE_DAYS]) <= 1.3
    pruned.passes(73)
    year.prune(write_key=True)
    assert year.ratio() <= 1.01
    before = year.live_ratio()
    year.prune(write_key=False)
    pruned.passes(73)
    year.prune(write_key=False)
    print(f"stored chunks by live extents {before:.3f}, with the identity {year.live_ratio():.3f}")
    assert year.live_ratio() <= 1.3 and year.ratio() <= 1.05
    assert pruned.protected.check(store=pruned.store).findings == ()
    for snapshot in year.moments:
        year.lists(snapshot)
    for snapshot in list(year.moments) if LONG else rng.sample(list(year.moments), 6):
        year.restores(snapshot)
