"""A tenure: what runs of one writer need not ask again, and when nothing of it is believed any more."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupOutcome, BackupRequest, begun_here, run_backup
from smsnapd.engine.chain.tenure import DATA_KEY_S, Tenure
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import shortcuts
from smsnapd.errors import LockedError, StoreError, VolumeError
from smsnapd.repository import Repository
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.lease import LEASE_S
from smsnapd.store import open_store
from tests.fault.faulty import Call, Fault, FaultyStore
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.test_backup_races import At, comes_back

LEASE = f"volumes/{VOLUME}/lease"
RATHER_LONG_S = 20 * 60.0


@dataclass
class Writer:
    """One that makes several snapshots in one tenure, as a daemon does."""

    protected: Protected
    repository: Repository
    store: FaultyStore
    passed_s: float = 0.0
    faults: dict[int, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tenure = Tenure(self.repository, VOLUME, clock=StoreClock(self.store.now, steady=self.steady))
        self.store._plan = self.faults

    def steady(self) -> float:
        return time.monotonic() + self.passed_s

    def back_up(self, **more: Any) -> BackupOutcome:
        request = BackupRequest(bytes(self.protected.root), VOLUME, self.protected.state_dir, workers=0)
        progress = more.pop("progress", Silent())
        return run_backup(
            self.repository,
            self.protected.settings,
            replace(request, **more),
            progress,
            tenure=self.tenure,
        )

    def asked(self, work: Callable[[], object]) -> list[str]:
        """The requests that `work` made: those on S3, where a barrier is none."""
        before = len(self.store.calls)
        work()
        return [told(call) for call in self.store.calls[before:] if call.method != "barrier"]

    def change(self, name: str = "file", size: int = 100) -> Hints:
        """Write something new; what a watcher would have heard."""
        (self.protected.root / name).write_bytes(random.randbytes(size))
        return Hints(frozenset((b"",)))


def told(call: Call) -> str:
    """What a request is for."""
    part = call.name.removeprefix(f"volumes/{VOLUME}/").partition("/")[0]
    return f"{call.method} {part}".strip()


@pytest.fixture
def writers(protected: Protected) -> Iterator[Callable[..., Writer]]:
    """Makes writers of the volume; with `state` one that has an index of its own."""
    with contextlib.ExitStack() as stack:

        def make(state: str = "") -> Writer:
            own = replace(protected, state_dir=protected.state_dir / state)
            store = FaultyStore(open_store(protected.settings), {})
            repository = stack.enter_context(own.repository(store, write_key=True))
            writer = Writer(own, repository, store)
            stack.callback(writer.tenure.release)
            return writer

        yield make


@pytest.fixture
def writer(writers: Callable[..., Writer]) -> Writer:
    made = writers()
    made.change("first")
    return made


def history_of(writer: Writer) -> History:
    return History.load(writer.repository, VOLUME)


# --- requests, counted

TAKEN = ["get_versioned lease", "now", "replace lease", "list manifests"]
COMMITTED = ["put manifests", "get_versioned lease"]


def test_a_first_run(writer: Writer) -> None:
    def alone() -> None:
        writer.back_up()
        writer.tenure.release()

    assert writer.asked(alone) == [*TAKEN, "put keys", *COMMITTED, "replace lease"]


def test_a_small_delta_of_the_daemon_is_one_put_and_one_get(writer: Writer) -> None:
    writer.back_up()
    for _ in range(5):
        hints = writer.change()
        assert writer.asked(lambda hints=hints: writer.back_up(hints=hints)) == COMMITTED
    assert len(history_of(writer).names) == 6
    comes_back(writer.protected)


def test_one_that_is_scanned_for_costs_no_more(writer: Writer) -> None:
    writer.back_up()
    writer.change()
    assert writer.asked(writer.back_up) == COMMITTED
    writer.change()
    assert writer.asked(lambda: writer.back_up(full=True)) == COMMITTED


def test_what_is_too_large_for_the_manifest_is_one_put_more(writer: Writer) -> None:
    writer.back_up()
    writer.change("larger", 1 << 20)
    assert writer.asked(writer.back_up) == ["put chunks", *COMMITTED]


def test_an_unchanged_run_of_the_daemon_asks_for_nothing(writer: Writer) -> None:
    hints = writer.change()
    writer.back_up()
    time.sleep(0.03)  # what has just been written is read again
    writer.back_up()
    assert writer.asked(lambda: writer.back_up(hints=hints)) == []
    assert writer.asked(writer.back_up) == []


def test_a_run_of_the_command_line(writer: Writer) -> None:
    """It knows nothing, so it lists, and reads the head that its index may mirror."""
    writer.back_up()
    writer.tenure.release()
    again = Writer(writer.protected, writer.repository, writer.store)
    again.change()

    def alone(tenure: Tenure) -> None:
        again.tenure = tenure
        again.back_up()
        again.tenure.release()

    taken = [*TAKEN, "get manifests"]
    delta = [*taken, "list keys", "put keys", *COMMITTED, "replace lease"]
    assert again.asked(lambda: alone(again.tenure)) == delta
    time.sleep(0.03)
    alone(Tenure(again.repository, VOLUME))
    assert again.asked(lambda: alone(Tenure(again.repository, VOLUME))) == [*taken, "replace lease"]


def test_the_lease_is_kept_by_one_put_in_half_its_time(writer: Writer) -> None:
    writer.back_up()
    for _ in range(50):
        assert writer.asked(writer.tenure.keep) == []
        writer.passed_s += LEASE_S / 2
        assert writer.asked(writer.tenure.keep)[-1:] == ["replace lease"]
    writer.change()
    assert writer.asked(writer.back_up) == COMMITTED
    assert writer.tenure.lease.generation == 1


def test_after_a_long_sleep_the_lease_is_renewed_and_the_head_is_known(writer: Writer) -> None:
    """If the record was not touched meanwhile, neither was the chain."""
    writer.back_up()
    writer.change()
    writer.passed_s += 10 * LEASE_S
    assert [asked for asked in writer.asked(writer.back_up) if asked != "now"] == [
        "replace lease",
        *COMMITTED,
    ]


# --- data keys


def test_a_full_of_nothing_new_needs_none(writer: Writer) -> None:
    writer.back_up()
    time.sleep(0.03)
    writer.back_up()
    writer.tenure.release()
    writer.tenure = Tenure(writer.repository, VOLUME)
    assert "put keys" not in writer.asked(lambda: writer.back_up(full=True))


def test_a_data_key_lasts_for_a_day(writer: Writer) -> None:
    def keys() -> set[bytes]:
        manifest = history_of(writer).record(history_of(writer).names[-1]).manifest
        return {ref.key_id for ref in manifest.chunks}

    seen = []
    for _ in range(6):
        writer.change()
        assert writer.back_up(full=True, reread=True).snapshot
        seen.append(keys())
        writer.passed_s += DATA_KEY_S / 4
        writer.tenure.keep()
    first, second = seen[0], seen[4] - seen[0]
    assert len(first) == len(second) == 1
    assert seen[3] == first and seen[5] >= second
    assert writer.asked(lambda: writer.back_up(full=True)).count("list keys") == 0
    comes_back(writer.protected)


@pytest.mark.parametrize("gone", [False, True])
def test_chunks_are_used_again_unless_their_data_key_is_gone(writer: Writer, gone: bool) -> None:
    writer.change("kept", 8 << 20)
    writer.back_up()
    writer.tenure.release()
    writer.tenure = Tenure(writer.repository, VOLUME)
    for info in list(writer.store.list(f"volumes/{VOLUME}/keys/")) if gone else ():
        writer.store.wrapped.delete(info.name)
    (writer.protected.root / "copy").write_bytes((writer.protected.root / "kept").read_bytes())
    asked = writer.asked(writer.back_up)
    assert "list keys" in asked and ("put chunks" in asked) == gone


# --- what makes an end of it


def test_nothing_is_believed_after_a_failed_run(writer: Writer) -> None:
    writer.back_up()
    writer.change()
    root = writer.protected.root
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(VolumeError):
        writer.back_up()
    root.with_name("elsewhere").rename(root)
    asked = writer.asked(writer.back_up)
    assert asked[:3] == ["get_versioned lease", "replace lease", "list manifests"]
    assert [name.generation for name in history_of(writer).names] == [1, 2]
    writer.change()
    assert writer.asked(writer.back_up) == COMMITTED


def test_another_index_is_made_from_the_listed_head(writer: Writer) -> None:
    writer.back_up()
    writer.protected.lose_state()
    hints = writer.change()
    outcome = writer.back_up(hints=hints)
    assert outcome.snapshot is not None and outcome.snapshot.kind == "incremental"
    comes_back(writer.protected)


@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.LOST])
def test_the_next_run_makes_up_for_any_call_that_failed(
    writers: Callable[..., Writer], fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever took place in secret, of one generation there are never two manifests with one number."""
    # The calls that make one come behind the commit, and no run fails for them.
    monkeypatch.setattr(shortcuts, "SPANS", (10**6,))

    def runs(writer: Writer, fail_at: int) -> int:
        writer.faults.clear()
        writer.faults[fail_at + len(writer.store.calls)] = fault
        before, failed = len(writer.store.calls), 0
        for _ in range(3):
            writer.change(size=200_000)
            try:
                writer.back_up()
            except StoreError:
                failed += 1
                writer.back_up()
            writer.passed_s += LEASE_S / 2
        assert failed == (1 if fail_at < len(writer.store.calls) - before else 0)
        return len(writer.store.calls) - before

    writer = writers()
    calls = runs(writer, 10**6)
    assert calls > 15
    for fail_at in range(calls):
        runs(writer, fail_at)
    writer.faults.clear()
    history = history_of(writer)
    marks = [(name.sequence, name.generation) for name in (*history.names, *history.fenced)]
    assert len(set(marks)) == len(marks)
    assert not history.damaged and not history.fenced
    assert len(history.names) >= 3 * calls
    assert writer.protected.check(read_data=None).findings == ()
    comes_back(writer.protected)


# --- another writer


def test_another_one_is_refused_for_as_long_as_it_is_kept(
    writer: Writer, writers: Callable[..., Writer]
) -> None:
    writer.back_up()
    other = writers("other")
    for _ in range(5):
        writer.passed_s += LEASE_S / 2
        with contextlib.suppress(LockedError):
            writer.tenure.keep()
        with pytest.raises(LockedError, match="has the lease until"):
            other.back_up()
    writer.tenure.release()
    other.back_up()
    assert other.tenure.lease.generation == 2


def test_one_that_was_taken_over_reports_nothing(writer: Writer, writers: Callable[..., Writer]) -> None:
    writer.back_up()
    other = writers("other")
    writer.change()
    outcome = other.back_up(take_over=True)
    assert outcome.snapshot is not None
    assert "taken over from another writer" in outcome.notes[0]
    assert other.back_up().notes == ()
    writer.change()
    with pytest.raises(LockedError, match="has taken the lease over"):
        writer.back_up()
    with pytest.raises(LockedError, match="has the lease until"):
        writer.back_up()
    history = history_of(writer)
    assert [(name.sequence, name.generation) for name in history.names] == [(1, 1), (2, 2)]
    assert [(name.sequence, name.generation) for name in history.fenced] == [(2, 1)]
    assert outcome.snapshot.id == history.names[-1].snapshot
    assert other.asked(other.back_up) == COMMITTED
    other.tenure.release()
    assert writer.back_up(full=True).snapshot is not None
    assert writer.protected.check(read_data=None).findings == ()
    comes_back(writer.protected)


def test_one_that_is_taken_over_in_the_middle_is_not_believed_later(
    writer: Writer, writers: Callable[..., Writer]
) -> None:
    writer.back_up()
    other = writers("other")
    writer.change()
    with pytest.raises(LockedError, match="has taken the lease over"):
        writer.back_up(progress=At(commit=lambda: other.back_up(take_over=True)))
    other.tenure.release()
    writer.change()
    assert "list manifests" in writer.asked(writer.back_up)
    comes_back(writer.protected)


def test_of_two_sleepers_neither_breaks_the_chain_of_a_third(
    writer: Writer, writers: Callable[..., Writer]
) -> None:
    """The first one's manifest is the head that the third follows, and the second one's is put then.

    It is of a higher generation than the first one's, and yet it must not count.
    """
    writer.back_up()
    second, third = writers("second"), writers("third")
    asleep, may_wake = threading.Event(), threading.Event()
    first_said: list[LockedError] = []

    def sleep_over_it() -> None:
        try:
            writer.back_up(progress=At(commit=lambda: (asleep.set(), may_wake.wait())))
        except LockedError as error:
            first_said.append(error)

    def pass_by() -> None:
        may_wake.set()
        first.join()
        writer.change()
        reported.append(third.back_up(take_over=True))

    writer.change()
    first, reported = threading.Thread(target=sleep_over_it), list[BackupOutcome]()
    first.start()
    asleep.wait()
    with pytest.raises(LockedError):
        second.back_up(take_over=True, progress=At(commit=pass_by))
    assert len(first_said) == 1
    history = history_of(third)
    assert [(name.sequence, name.generation) for name in history.names] == [(1, 1), (2, 1), (3, 3)]
    assert [(name.sequence, name.generation) for name in history.fenced] == [(2, 2)]
    assert reported[0].snapshot is not None and history.snapshots[-1].id == reported[0].snapshot.id
    assert writer.protected.check(read_data=None).findings == ()
    comes_back(writer.protected)
    third.tenure.release()
    writer.change()
    assert writer.back_up().snapshot is not None
    comes_back(writer.protected)


def test_it_can_be_taken_back(writer: Writer, writers: Callable[..., Writer]) -> None:
    writer.back_up()
    other = writers("other")
    other.back_up(take_over=True)
    writer.change()
    assert writer.back_up(take_over=True).snapshot is not None
    assert writer.tenure.lease.generation == 3
    comes_back(writer.protected)
    assert writer.back_up(take_over=True).notes == ()
    assert writer.tenure.lease.generation == 4


def test_a_head_that_another_machine_wrote_is_told_once(
    writer: Writer, writers: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.back_up()
    writer.tenure.release()
    other = writers("other")
    other.change()
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "there")
        assert other.back_up().notes == ()
    other.tenure.release()
    writer.change()
    (note,) = writer.back_up().notes
    assert "was written on there and not here" in note and "volume.name" in note
    writer.change()
    assert writer.back_up().notes == ()
    comes_back(writer.protected)


def test_a_machine_that_has_another_name_by_now_is_the_same(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.back_up()
    writer.tenure.release()
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    writer.change()
    assert writer.back_up().notes == ()


def test_a_dry_run_takes_no_lease(writer: Writer) -> None:
    assert writer.asked(lambda: writer.back_up(dry_run=True)) == ["list manifests"]


def test_after_a_power_cut_its_next_start_goes_on_at_once(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the very first lease, when there was no state directory yet; a refused try leaves no lock."""
    state_dir = writer.protected.state_dir / "not" / "there" / "yet"
    again = BackupRequest(bytes(writer.protected.root), VOLUME, state_dir, workers=0)
    ids = iter(range(1 << 30))
    monkeypatch.setattr("smsnapd.repository.lease._boot_id", lambda: str(next(ids)))
    writer.tenure = begun_here(writer.repository, again)
    writer.tenure.begin()
    other = begun_here(writer.repository, again)
    for _ in range(2):
        with pytest.raises(LockedError):
            other.begin()
    assert writer.tenure._note is not None
    writer.tenure._note.close()  # as the end of its process does
    other.begin()
    assert other.lease.generation == 2
    other.release()
