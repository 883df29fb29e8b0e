"""A writer's note of its lease: what it lets a writer take back after a power cut, and what it does not."""

import os
import stat
from pathlib import Path

import pytest

from smsnapd.errors import LockedError
from smsnapd.repository.lease import Lease, is_dead
from smsnapd.repository.leasenote import LeaseNote
from smsnapd.store.memory import MemoryStore

ID = bytes(16)
HERE = "notebook-a filesystem-1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "nb.lease"


@pytest.fixture(autouse=True)
def another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the boot id finds another: no holder can be seen to be dead."""
    ids = iter(range(1 << 30))
    monkeypatch.setattr("smsnapd.repository.lease._boot_id", lambda: str(next(ids)))


def take(store: MemoryStore, note: LeaseNote) -> Lease:
    lease = Lease.take(store, ID, "nb", dead=note.is_dead)
    note.keep(lease.holder)
    return lease


def test_a_lease_is_taken_back_after_a_power_cut(path: Path) -> None:
    store = MemoryStore("nb")
    for generation in (1, 2, 3):
        with LeaseNote(path, HERE) as note:
            assert take(store, note).generation == generation
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_fixture_hides_who_is_dead() -> None:
    assert not is_dead(Lease.take(MemoryStore("nb"), ID, "nb").holder)


@pytest.mark.parametrize("place", ["notebook-b filesystem-1", "notebook-a filesystem-2", ""])
def test_a_copy_of_the_volume_elsewhere_is_refused(path: Path, place: str) -> None:
    store = MemoryStore("nb")
    with LeaseNote(path, HERE) as note:
        take(store, note)
    with LeaseNote(path, place) as note, pytest.raises(LockedError):
        take(store, note)


def test_a_writer_that_lives_keeps_its_lease(path: Path) -> None:
    store = MemoryStore("nb")
    with LeaseNote(path, HERE) as first:
        take(store, first)
        with LeaseNote(path, HERE) as second, pytest.raises(LockedError):
            take(store, second)


def test_somebody_elses_lease_is_not_taken(path: Path) -> None:
    store = MemoryStore("nb")
    with LeaseNote(path, HERE) as note:
        take(store, note)
    Lease.take(store, ID, "nb", dead=lambda holder: True)
    with LeaseNote(path, HERE) as note, pytest.raises(LockedError):
        take(store, note)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"holder": "x"}', b"\xff" * 5000, b"0" * 9999])
def test_a_damaged_note_says_nothing_and_is_written_anew(path: Path, content: bytes) -> None:
    store = MemoryStore("nb")
    with LeaseNote(path, HERE) as note:
        take(store, note)
    kept = path.read_bytes()
    path.write_bytes(content)
    with LeaseNote(path, HERE) as note, pytest.raises(LockedError):
        take(store, note)
    path.write_bytes(kept)
    for generation in (2, 3):
        with LeaseNote(path, HERE) as note:
            assert take(store, note).generation == generation


def test_a_shorter_note_leaves_nothing_of_a_longer_one(path: Path) -> None:
    with LeaseNote(path, HERE) as note:
        note.keep("x" * 500)
        note.keep("y")
    with LeaseNote(path, HERE) as note:
        assert note.is_dead("y") and not note.is_dead("x" * 500)


@pytest.mark.parametrize("trap", ["link", "fifo", "directory"])
def test_what_is_no_file_of_ours_is_left_alone(path: Path, trap: str) -> None:
    victim = path.parent / "victim"
    victim.write_text("precious")
    make = {"link": lambda: path.symlink_to(victim), "fifo": lambda: os.mkfifo(path), "directory": path.mkdir}
    make[trap]()
    with LeaseNote(path, HERE) as note:
        assert take(MemoryStore("nb"), note).generation == 1
    assert victim.read_text() == "precious"
