"""The local index as a file: nobody else's to read, and not somewhere else."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.errors import SmsnapError
from smsnapd.model import ChunkRef, Entry, Extent, Flag, Kind, Listing
from smsnapd.state import Head, State, move_state

ID = "00" * 16


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_nobody_else_may_read_it_wherever_it_is_moved(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = State.open(tmp_path / "a", ID, "nb")
        state.journal.add([])
        assert set(modes(tmp_path / "a").values()) == {0o600}
        state.close()
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / f"{state.path.name}.new").write_bytes(b"of a move that was cut off")
        (tmp_path / "b" / f"{state.path.name}.new").chmod(0o666)
        move_state(state.path, tmp_path / "b")
    finally:
        os.umask(before)
    assert set(modes(tmp_path / "b").values()) == {0o600}
    moved = State.open(tmp_path / "b", ID, "nb")
    assert moved.head is None
    moved.close()


@pytest.mark.parametrize("suffix", ["", ".journal"])
def test_a_link_in_its_place_is_not_followed(tmp_path: Path, suffix: str) -> None:
    path = State.path_of(tmp_path, ID, "nb")
    Path(f"{path}{suffix}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((SmsnapError, OSError), match="symbolic links"):
        state = State.open(tmp_path, ID, "nb")
        try:
            state.journal.add([])
        finally:
            state.close()
    assert not (tmp_path / "elsewhere").exists()


# --- what it holds


def listing(directory: bytes, *entries: Entry) -> Listing:
    return Listing(directory, list(entries))


def linked(name: bytes, inode: int, target: bytes = b"", *chunks: int) -> Entry:
    flags = Flag.ALIAS if target else Flag.NONE
    header, *content = [Extent(chunk, 0, 512) for chunk in chunks] or [None]
    return Entry(
        name,
        Kind.REGULAR,
        int(flags),
        inode=inode,
        links=2,
        target=target,
        header=header,
        content=tuple(extent for extent in content if extent),
    )


def head(number: int) -> Head:
    return Head(f"{number:016x}", number, bytes([number]) * 32, b"/volume", "uuid")


def ref(number: int) -> ChunkRef:
    return ChunkRef(bytes([number]) * 32, bytes(16), 512, 4096, bytes(32))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / "state", ID, "nb")
    yield opened
    opened.close()


def fill(state: State) -> None:
    with state.update(anew=True) as update:
        update.put(listing(b"", Entry(b"", Kind.DIRECTORY), Entry(b"a", Kind.DIRECTORY)))
        update.put(listing(b"a", linked(b"x", 1 << 63, b"", 7, 8), linked(b"y", 5, b"", 8)))
        update.put(listing(b"a.b", linked(b"z", 1 << 63, b"a/x", 8)))
        update.put(listing(b"a/b", linked(b"z", 5, b"a/y")))
        update.put_chunks({6: ref(6), 7: ref(7), 8: ref(8)})
        update.commit(head(1))


def test_an_update_is_kept_whole(tmp_path: Path, state: State) -> None:
    fill(state)
    state.close()
    state = State.open(tmp_path / "state", ID, "nb")
    # Component by component: what is in `a` comes before `a.b`.
    assert [found.directory for found in state.listings()] == [b"", b"a", b"a/b", b"a.b"]
    assert state.entry(b"a.b/z") == linked(b"z", 1 << 63, b"a/x", 8)
    assert state.entry(b"a/nothing") is None
    assert state.listing(b"nowhere") == []
    assert sorted(state.names_of(1 << 63)) == [b"a.b/z", b"a/x"]
    assert (state.chunks(), state.chunks_by_number([8])) == ({7: ref(7), 8: ref(8)}, {8: ref(8)})
    assert (state.head, state.newest_seen) == (head(1), (1, head(1).snapshot))
    state.close()


def test_a_later_update_replaces_directories(state: State) -> None:
    fill(state)
    with state.update(anew=False) as update:
        update.put(listing(b"a", linked(b"w", 5, b"", 8, 9, 9)), state.listing(b"a"))
        update.put(listing(b"a.b"), state.listing(b"a.b"))
        # Until the commit, readers see the state before.
        assert len(state.listing(b"a")) == 2
        update.put_chunks({9: ref(9), 10: ref(10)})
        update.commit(head(2))
    assert [found.directory for found in state.listings()] == [b"", b"a", b"a/b"]
    assert (state.names_of(1 << 63), sorted(state.names_of(5))) == ([], [b"a/b/z", b"a/w"])
    assert state.chunks() == {8: ref(8), 9: ref(9)}
    assert state.head == head(2)
    with state.update(anew=False) as update:
        update.put(listing(b"a", linked(b"w", 5, b"", 8, 9)), state.listing(b"a"))
        update.commit(head(3))
    assert state.chunks() == {8: ref(8), 9: ref(9)}
    with state.update(anew=False) as update:
        update.put(listing(b"a", linked(b"w", 5, b"", 8)), state.listing(b"a"))
        update.commit(head(4))
    assert state.chunks() == {8: ref(8)}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, OSError])
def test_an_update_without_a_commit_is_nothing(state: State, error: type[BaseException] | None) -> None:
    fill(state)
    with contextlib.suppress(KeyboardInterrupt, OSError), state.update(anew=True) as update:
        update.put(listing(b"other", Entry(b"x", Kind.REGULAR)))
        if error is not None:
            update.commit(head(2))
            raise error
    assert len(list(state.listings())) == 4
    assert state.head == head(1)


def test_forgotten_it_knows_the_newest_snapshot_still(state: State) -> None:
    fill(state)
    state.forget()
    assert (state.head, list(state.listings()), state.chunks(), state.names_of(5)) == (None, [], {}, [])
    assert state.newest_seen == (1, head(1).snapshot)
    with state.update(anew=True) as update:
        update.commit(head(0))
    assert (state.head, state.newest_seen) == (head(0), (1, head(1).snapshot))


def test_many_directories_and_long_ones(state: State) -> None:
    entries = [Entry(b"%06d" % number, Kind.REGULAR, size=number) for number in range(3000)]
    with state.update(anew=True) as update:
        for number in range(1200):
            update.put(Listing(b"%04d" % number, entries[number : number + 2]))
        update.put(Listing(b"all", entries))
        update.commit(head(1))
    assert state.listing(b"all") == entries
    assert sum(len(found.entries) for found in state.listings()) == 2 * 1200 + 3000


# --- what may have become of the file


def test_a_file_of_another_kind_is_made_anew(tmp_path: Path, state: State) -> None:
    fill(state)
    state.close()
    for damage in (b"garbage" * 1000, state.path.read_bytes()[:5000]):
        state.path.write_bytes(damage)
        anew = State.open(tmp_path / "state", ID, "nb")
        assert anew.head is None
        fill(anew)
        anew.close()


def test_a_file_that_is_locked_is_not_thrown_away(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is using it at this moment."""
    fill(state)
    monkeypatch.setattr("smsnapd.state.LOCK_TIMEOUT_S", 0.1)
    state.close()
    other = sqlite3.connect(state.path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SmsnapError, match="locked"):
        State.open(tmp_path / "state", ID, "nb")
    other.execute("ROLLBACK")
    other.close()
    again = State.open(tmp_path / "state", ID, "nb")
    assert again.head == head(1)
    again.close()


# --- the journal


def test_the_journal_gives_what_was_added_until_it_is_cleared(state: State) -> None:
    assert state.journal.read() == []
    state.journal.add([ref(1), ref(2)])
    state.journal.add([ref(3)])
    assert state.journal.read() == [ref(1), ref(2), ref(3)]
    state.journal.clear()
    assert state.journal.read() == []
    state.journal.clear()


def test_a_journal_that_was_cut_off_or_garbled_gives_what_is_whole(state: State) -> None:
    path = Path(f"{state.path}.journal")
    state.journal.add([ref(1), ref(2)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = state.journal.read()
        assert found == [ref(1), ref(2)][: len(found)]
    for damage in (whole[: len(whole) // 2] + bytes(100), bytes(1000), b"\xff" * 1000):
        path.write_bytes(damage)
        assert state.journal.read() in ([], [ref(1)])
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        found = state.journal.read()
        assert found == [ref(1), ref(2)][: len(found)]
