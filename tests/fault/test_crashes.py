"""A crash at every store call and every write of local state; then everything that was reported is there.

Every moment is enumerated, none is sampled: a child process runs until the n-th call and dies there.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from smsnapd import state as state_module
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.errors import SmsnapError, StoreError
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.base import Store
from tests.fault.faulty import Call, Fault, FaultyStore
from tests.property.children import KILLED, run_child
from tests.property.observed import Observed, differences, observe
from tests.property.protected import Protected

pytestmark = [pytest.mark.root, pytest.mark.slow]
LARGE = 9 * 1024 * 1024


class Killed(FaultyStore):
    """Ends the process where `FaultyStore` would raise `Crash`: no clean-up runs."""

    def _before(self, method: str, name: str) -> Fault | None:
        try:
            return super()._before(method, name)
        except BaseException as error:
            _die_of(error)

    def _after(self, fault: Fault | None, method: str, name: str, result: Any) -> Any:
        try:
            return super()._after(fault, method, name, result)
        except BaseException as error:
            _die_of(error)


def _die_of(error: BaseException) -> NoReturn:
    if isinstance(error, Exception):
        raise error
    os._exit(9)


@dataclass(frozen=True)
class Stage:
    """A volume and its repository in a known state, to be tried out on copies."""

    protected: Protected
    reported: tuple[tuple[str, Observed], ...]
    now: Observed

    def copy(self, place: Path) -> Stage:
        """The same repository and local state, elsewhere."""
        source = self.protected.state_dir.parent
        shutil.copytree(source / "repository", place / "repository")
        if self.protected.state_dir.exists():
            shutil.copytree(source / "state", place / "state")
        settings = StoreSettings((place / "repository").as_uri())
        return replace(self, protected=replace(self.protected, state_dir=place / "state", settings=settings))

    @property
    def store(self) -> Store:
        return open_store(self.protected.settings)


@pytest.fixture
def place(memory: Path) -> Iterator[Callable[[], Path]]:
    """Makes directories that last as long as one test."""
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        numbers = iter(range(10**6))

        def make() -> Path:
            made = Path(directory) / str(next(numbers))
            made.mkdir()
            return made

        yield make


def fill(root: Path) -> None:
    (root / "work" / "deep").mkdir(parents=True)
    for number in range(6):
        (root / "work" / f"file-{number}").write_bytes(b"%d" % number * 9000)
    (root / "work" / "deep" / "file").write_bytes(b"deep")
    os.link(root / "work" / "file-0", root / "link")
    (root / "symlink").symlink_to("work")


def edit(root: Path) -> None:
    (root / "work" / "file-1").write_bytes(b"changed")
    (root / "work" / "file-2").unlink()
    (root / "work" / "deep").rename(root / "renamed")
    (root / "new").write_bytes(b"new" * 5000)
    os.link(root / "link", root / "another")


@pytest.fixture(scope="module")
def stages(memory: Path) -> dict[str, Stage]:
    """Before the first full; before an incremental; before a second full."""
    made = {}
    for name in ("first", "incremental", "full"):
        top = memory / name
        root = top / "volume"
        root.mkdir(parents=True)
        protected = Protected.create(root, top / "state", StoreSettings((top / "repository").as_uri()))
        fill(root)
        reported: list[tuple[str, Observed]] = []
        if name != "first":
            reported.append((taken(protected.backup()), observe(root)))
            (root / "work" / "file-3").write_bytes(b"between")
            reported.append((taken(protected.backup(attach=False)), observe(root)))
            edit(root)
        if name == "full":
            (root / "large").write_bytes(b"large..." * (LARGE // 8))
        made[name] = Stage(protected, tuple(reported), observe(root))
    return made


def taken(outcome: BackupOutcome) -> str:
    assert outcome.snapshot is not None
    return outcome.snapshot.id


REQUESTS: dict[str, dict[str, Any]] = {
    "first": {"attach": False},
    "incremental": {"attach": False},
    "full": {"full": True, "attach": True},
}


def verify(stage: Stage, place: Path) -> None:
    """The next run succeeds; all that was reported and all that is listed restores as it was."""
    stage.protected.backup()
    found = [snapshot.id for snapshot in stage.protected.snapshots()]
    assert found[: len(stage.reported)] == [name for name, _ in stage.reported]
    assert len(found) in (len(stage.reported) + 1, len(stage.reported) + 2)
    assert stage.protected.check().findings == ()
    moments = dict(stage.reported)
    for snapshot in found:
        target = place / f"restored-{snapshot}"
        outcome = stage.protected.restore(target, snapshot)
        assert outcome.not_restored == ()
        assert differences(moments.get(snapshot, stage.now), observe(target)) == []


def every_call(stage: Stage, place: Callable[[], Path], work: Callable[[Stage, Store], object]) -> list[Call]:
    """The calls that an undisturbed run makes."""
    copied = stage.copy(place())
    store = FaultyStore(copied.store)
    work(copied, store)
    return store.calls


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER])
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_backup_dies_at_every_store_call(
    stages: dict[str, Stage], place: Callable[[], Path], kind: str, fault: Fault
) -> None:
    def work(stage: Stage, store: Store) -> str:
        return taken(stage.protected.backup(store=store, **REQUESTS[kind]))

    calls = every_call(stages[kind], place, work)
    assert {"put", "replace", "barrier", "list"} <= {call.method for call in calls}
    for call in calls:
        here = place()
        stage = stages[kind].copy(here)
        dying = Killed(stage.store, {call.number: fault})
        assert run_child(lambda stage=stage, dying=dying: work(stage, dying)) is KILLED, call
        verify(stage, here)
        shutil.rmtree(here)


@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.PERMANENT, Fault.LOST])
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_store_fails_at_every_call(
    stages: dict[str, Stage], place: Callable[[], Path], kind: str, fault: Fault
) -> None:
    """In one process, as in the daemon: it must not lock itself out either."""
    calls = every_call(
        stages[kind], place, lambda s, store: s.protected.backup(store=store, **REQUESTS[kind])
    )
    for call in calls:
        here = place()
        stage = stages[kind].copy(here)
        try:
            stage.protected.backup(store=FaultyStore(stage.store, {call.number: fault}), **REQUESTS[kind])
        except StoreError:
            pass
        else:
            # Only what comes behind the commit may fail unnoticed: giving back the lease.
            # A lease that is not there yet is looked for and missed, whatever else.
            assert call.name.endswith("/lease"), call
        verify(stage, here)
        shutil.rmtree(here)


# --- the local state


class Statements:
    """A connection that counts what is written through it, and ends the process before the n-th."""

    def __init__(self, connection: sqlite3.Connection, count: Callable[[], None]) -> None:
        self._connection = connection
        self._count = count

    def execute(self, statement: str, *more: Any) -> sqlite3.Cursor:
        if not statement.startswith(("SELECT", "PRAGMA")):
            self._count()
        return self._connection.execute(statement, *more)

    def executemany(self, statement: str, *more: Any) -> sqlite3.Cursor:
        self._count()
        return self._connection.executemany(statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def count_writes(kill_at: int | None) -> list[int]:
    """Count this process's writes to local state from now on; it dies before the one with that number."""
    counted = [0]

    def count() -> None:
        if counted[0] == kill_at:
            os._exit(9)
        counted[0] += 1

    connect, journal = state_module._connect, state_module.Journal
    state_module._connect = lambda *given: Statements(connect(*given), count)  # type: ignore[assignment,return-value]
    for name in ("add", "clear"):
        original = getattr(journal, name)

        def counting(*given: Any, original: Any = original) -> Any:
            count()
            result = original(*given)
            count()
            return result

        setattr(journal, name, counting)
    return counted


@pytest.mark.parametrize(
    ("kind", "lost"), [("first", False), ("incremental", False), ("incremental", True), ("full", False)]
)
def test_a_backup_dies_at_every_write_of_local_state(
    stages: dict[str, Stage], place: Callable[[], Path], kind: str, lost: bool
) -> None:
    def attempt(stage: Stage, kill_at: int | None) -> int:
        counted = count_writes(kill_at)
        stage.protected.backup(**REQUESTS[kind])
        return counted[0]

    def copy(here: Path) -> Stage:
        stage = stages[kind].copy(here)
        if lost:
            stage.protected.lose_state()
        return stage

    whole = copy(place())
    writes = run_child(lambda: attempt(whole, None))
    assert writes > 5
    for number in range(writes):
        here = place()
        stage = copy(here)
        assert run_child(lambda stage=stage, number=number: attempt(stage, number)) is KILLED
        verify(stage, here)
        shutil.rmtree(here)


@pytest.mark.parametrize("bytes_kept", [0, 1, 100, 5000])
def test_local_state_that_is_cut_costs_a_scan_alone(
    stages: dict[str, Stage], place: Callable[[], Path], bytes_kept: int
) -> None:
    here = place()
    stage = stages["incremental"].copy(here)
    for path in stage.protected.state_dir.iterdir():
        path.write_bytes(path.read_bytes()[:bytes_kept])
    verify(stage, here)


def test_local_state_that_is_garbled_costs_a_scan_alone(
    stages: dict[str, Stage], place: Callable[[], Path]
) -> None:
    """Byte by byte, here and there: at worst a run says so, and the next one does without."""
    (path,) = stages["incremental"].protected.state_dir.glob("*.db")
    told = 0
    for position in range(50, path.stat().st_size, path.stat().st_size // 40):
        here = place()
        stage = stages["incremental"].copy(here)
        with (stage.protected.state_dir / path.name).open("r+b") as file:
            file.seek(position)
            file.write(random.Random(position).randbytes(64))
        try:
            stage.protected.backup()
        except SmsnapError as error:
            told += 1
            assert "run this again" in error.hint
        verify(stage, here)
        shutil.rmtree(here)
    assert told < 40


def test_a_journal_of_garbage_is_no_journal(stages: dict[str, Stage], place: Callable[[], Path]) -> None:
    here = place()
    stage = stages["incremental"].copy(here)
    (database,) = stage.protected.state_dir.glob("*.db")
    Path(f"{database}.journal").write_bytes(b"\x05\x00\x00\x00hello\xff\xff\xff\x7f")
    verify(stage, here)


# --- restores


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.TRANSIENT, Fault.PERMANENT])
def test_a_restore_is_cut_off_at_every_store_call(
    stages: dict[str, Stage], place: Callable[[], Path], fault: Fault
) -> None:
    """Cut off and run again, it goes on; nothing half-written ever has its final name."""
    stage = stages["full"].copy(place())
    snapshot = taken(stage.protected.backup(full=True, attach=False))
    (stage.protected.root / "later").write_bytes(b"later")
    try:
        newest = taken(stage.protected.backup(attach=False))
        truth = observe(stage.protected.root)
    finally:
        (stage.protected.root / "later").unlink()
    assert snapshot != newest

    def work(target: Path, store: Store) -> None:
        stage.protected.restore(target, newest, store=store)

    counting = FaultyStore(stage.store)
    work(place() / "target", counting)
    assert len(counting.calls) > 8
    for call in counting.calls:
        target = place() / "target"
        if fault is Fault.CRASH:
            dying = Killed(stage.store, {call.number: fault})
            assert run_child(lambda target=target, dying=dying: work(target, dying)) is KILLED
        else:
            with pytest.raises(StoreError):
                work(target, FaultyStore(stage.store, {call.number: fault}))
        if target.exists():
            for path, seen in observe(target).items():
                if b".smsnap-" not in path and seen.size:
                    assert seen.content == truth[path].content
        outcome = stage.protected.restore(target, newest)
        assert outcome.not_restored == ()
        assert differences(truth, observe(target)) == []
