"""A scan by stamps finds what one held against all of the index does, whoever looks, and tells the same."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from smsnapd.engine.backup import scanning
from smsnapd.engine.backup.changes import ChangeSet, DirectoryChange
from smsnapd.engine.backup.looks import Look, look_everywhere
from smsnapd.engine.backup.scanning import StampedScan, stretches
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, path_bytes
from smsnapd.state import Head, Stamped, State
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.tree import Tree

NOTHING = Excludes()
HEAD = Head("0" * 16, 1, bytes(32), b"/v", "")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / "state", "00" * 16, "nb")
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of a few directories, deep and wide."""
    chance = random.Random(5)
    here = tmp_path / "volume"
    here.mkdir()
    places = [here]
    for number in range(60):
        place = chance.choice(places) / chance.choice(["a", "a-b", "a.b", "ä", f"d{number}"])
        place.mkdir(exist_ok=True)
        places.append(place)
        for name in range(chance.randrange(5)):
            (place / f"f{name}").write_bytes(b"x" * name)
    (here / "a" if (here / "a").exists() else here).joinpath("link").symlink_to("f0")
    return here


def index(
    state: State, root: Path, excluded: Excludes, flags: Callable[[Entry], int] = lambda entry: 0
) -> None:
    """Take all of the volume into the index, as a commit would."""
    with Tree(os.fsencode(root)) as tree, state.update(anew=True) as update:
        for directory, entries in scan(tree, excluded, ScanReport()):
            update.put(Listing(directory, [_stored(entry, flags(entry)) for entry in entries]))
        update.commit(HEAD)


def _stored(entry: Entry, flags: int) -> Entry:
    return msgspec.structs.replace(entry, header=Extent(1, 0, 512), flags=flags, digest=b"d" * 16)


@dataclass
class Found:
    """What a comparison found, and what the scan had to tell."""

    changes: list[DirectoryChange]
    settled: dict[bytes, list[Entry]]
    report: ScanReport
    looks: list[bytes]


def found(state: State, root: Path, excluded: Excludes, workers: int | None) -> Found:
    """By the stamps, or None: by a scan held against all of the index."""
    report, looks = ScanReport(), []

    def kept(path: bytes) -> bool:
        return any(path == out or path.startswith(out + b"/") for out, _ in report.unreadable)

    def settle(directory: bytes, entry: Entry, indexed: Entry) -> Entry:
        return msgspec.structs.replace(indexed, flags=0)

    with Tree(os.fsencode(root)) as tree, closing(ChangeSet(state)) as changes:
        if workers is None:
            all_looks = look_everywhere(scan(tree, excluded, report), state.listings())
        else:
            all_looks = StampedScan(tree, excluded, report, state, workers).looks(lambda: None)

        def noted() -> Iterator[Look]:
            for look in all_looks:
                looks.append(look.directory)
                yield look

        changes.compare(noted(), kept, settle)
        return Found(list(changes.directories()), changes.settled, report, looks)


def agree(state: State, root: Path, monkeypatch: pytest.MonkeyPatch, excluded: Excludes = NOTHING) -> Found:
    """What it finds, in this process and with others, which is what a scan finds."""
    expected = found(state, root, excluded, None)
    here = found(state, root, excluded, 2)
    with monkeypatch.context() as context:
        context.setattr(scanning, "WORTH_PROCESSES", 0)
        context.setattr(scanning, "NAMES_IN_STRETCH", 20)
        apart = found(state, root, excluded, 2)
    for one in (here, apart):
        assert (one.changes, one.settled, one.report) == (expected.changes, expected.settled, expected.report)
    assert here.looks == apart.looks
    assert set(here.looks) <= set(expected.looks)
    return here


def test_where_nothing_differs_there_is_nothing_to_look_at(
    state: State, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(state, root, NOTHING)
    told = agree(state, root, monkeypatch)
    assert (told.changes, told.looks) == ([], [])


def test_an_empty_index_has_everything_to_learn(
    state: State, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = agree(state, root, monkeypatch)
    assert sum(len(change.changed) for change in told.changes) == sum(1 for _ in root.rglob("*")) + 1


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1), follow_symlinks=False)


CHANGES: dict[str, Callable[[Path, random.Random], object]] = {
    "touch": lambda path, _: touched(path),
    "chmod": lambda path, _: path.chmod(0o711) if not path.is_symlink() else touched(path),
    "remove": lambda path, _: (
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    ),
    "rename": lambda path, chance: path.rename(path.with_name(f"r{chance.random()}")),
    "add": lambda path, chance: path.with_name(f"n{chance.random()}").touch(),
    "grow": lambda path, chance: (path.with_name("new") / "deep" / "er").mkdir(parents=True, exist_ok=True),
    "link": lambda path, chance: (
        os.link(path, path.with_name(f"l{chance.random()}"), follow_symlinks=False)
        if not path.is_dir() or path.is_symlink()
        else None
    ),
    "replace": lambda path, chance: swapped(path),
}


def swapped(path: Path) -> None:
    """Something of the same name and another inode, a directory with the same names in it."""
    old = path.with_name(path.name + ".old")
    path.rename(old)
    if old.is_dir() and not old.is_symlink():
        shutil.copytree(old, path, symlinks=True)
    else:
        path.touch()
    if not old.is_dir() or old.is_symlink():
        old.unlink()


@pytest.mark.parametrize("seed", range(12))
def test_it_finds_what_a_scan_finds(
    state: State, root: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    index(state, root, NOTHING, lambda entry: Flag.UNSETTLED if chance.random() < 0.02 else 0)
    for _ in range(chance.randrange(1, 8)):
        CHANGES[chance.choice(list(CHANGES))](chance.choice(sorted(root.rglob("*"))), chance)
    agree(state, root, monkeypatch)


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_alone(state: State, root: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index(state, root, NOTHING)
    chance = random.Random(what)
    paths = [path for path in sorted(root.rglob("*")) if what != "link" or not path.is_dir()]
    CHANGES[what](chance.choice(paths), chance)
    assert agree(state, root, monkeypatch).changes


def test_what_is_to_be_read_again_is(state: State, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "d-again").mkdir()
    (root / "d-again" / "it").touch()
    index(state, root, NOTHING, lambda entry: Flag.UNSETTLED if entry.name == b"it" else 0)
    told = agree(state, root, monkeypatch)
    assert (told.changes, told.looks, list(told.settled)) == ([], [b"d-again"], [b"d-again"])


def test_what_is_left_out_and_what_no_sight_shows(
    state: State, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("odd/x.tmp", "odd/kept", "out/way/down", "odd/z"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    os.mkfifo(root / "odd" / "fifo")
    (root / "tmp-only").mkdir()
    (root / "tmp-only" / "a.tmp").touch()
    status = (root / "out").stat()
    excluded = Excludes(["*.tmp"], [(status.st_dev, status.st_ino)])
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "odd" / "socket"))
        index(state, root, excluded)
        assert agree(state, root, monkeypatch, excluded).changes == []
        (root / "odd" / "z").chmod(0o600)
        told = agree(state, root, monkeypatch, excluded)
        assert [change.directory for change in told.changes] == [b"odd"]
        assert told.report.skipped == [(b"odd/socket", "socket")]
        agree(state, root, monkeypatch)  # what was left out is looked at
        index(state, root, NOTHING)
        agree(state, root, monkeypatch, excluded)  # and the other way round


def test_what_cannot_be_read_stays_as_it_was(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "volume"
    for name in ("a/b/c", "a/x", "z/y"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    index(state, root, NOTHING)
    (root / "a" / "b" / "c").unlink()
    (root / "z" / "y").unlink()
    opened = Tree.open_directory

    def refused(self: Tree, path: bytes) -> int:
        if path == b"a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, path)

    with monkeypatch.context() as context:
        context.setattr(Tree, "open_directory", refused)
        told = agree(state, root, monkeypatch)
    assert told.report == ScanReport(unreadable=[(b"a", "Permission denied")])
    assert [(change.directory, change.gone) for change in told.changes] == [(b"", []), (b"z", [b"y"])]


def test_a_directory_that_took_the_place_of_another_is_looked_at_after_it(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked up ahead may be of the one that was there before."""
    root = tmp_path / "volume"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "e" / "old").touch()
    index(state, root, NOTHING)
    handle = scanning.Looker.handle

    def then_swapped(self: scanning.Looker, job: scanning.Stretch) -> list[scanning.Shown]:
        ahead = handle(self, job)
        (root / "d").rename(root / "moved")
        (root / "d" / "e").mkdir(parents=True)
        (root / "d" / "e" / "new").touch()
        # The root is seen as it is after that.
        self._tree.release()
        return [self._shown(b"", b"other"), *ahead[1:]]

    monkeypatch.setattr(scanning.Looker, "handle", then_swapped)
    told = found(state, root, NOTHING, 0)
    changed = {change.directory: [item.entry.name for item in change.changed] for change in told.changes}
    assert changed[b"d/e"] == [b"new"]
    assert changed[b"moved/e"] == [b"old"]
    assert [change.gone for change in told.changes if change.directory == b"d/e"] == [[b"old"]]


def test_each_is_called_for_every_directory(state: State, root: Path) -> None:
    index(state, root, NOTHING)
    calls: list[None] = []
    with Tree(os.fsencode(root)) as tree:
        assert not list(StampedScan(tree, NOTHING, ScanReport(), state, 0).looks(lambda: calls.append(None)))
    assert len(calls) == sum(1 for path in root.rglob("*") if path.is_dir()) + 1


def test_stretches_are_of_one_size_however_names_lie() -> None:
    few = [Stamped(b"%05d" % number, 1, b"s") for number in range(5000)]
    many = [Stamped(b"x", 10**6, b"s"), Stamped(b"y", 0, b"")]
    made = list(stretches([*few, *many]))
    assert [path for stretch in made for path in stretch.directories] == [
        item.directory for item in few + many
    ]
    assert {len(stretch.directories) for stretch in made[:-2]} == {820}
    assert made[-1].directories == [b"y"]
    assert list(stretches([])) == []


@pytest.mark.parametrize("column", ["key", "stamp"])
def test_a_stamp_that_is_damaged_hides_nothing(
    state: State, root: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(state, root, NOTHING)
    with sqlite3.connect(state.path) as db:
        (key,) = db.execute("SELECT max(key) FROM stamp").fetchone()
        db.execute(f"UPDATE stamp SET {column} = ? WHERE key = ?", (b"zz", key))
    db.close()
    if column == "key":
        with pytest.raises(sqlite3.DatabaseError, match="a row is damaged"):
            found(state, root, NOTHING, 0)
    else:
        told = agree(state, root, monkeypatch)
        assert (told.changes, told.looks) == ([], [path_bytes(key.replace(b"\0", b"/").decode())])


def test_entries_that_are_damaged_are_noticed_where_they_count(state: State, root: Path) -> None:
    index(state, root, NOTHING)
    with sqlite3.connect(state.path) as db:
        (key, entries) = db.execute("SELECT key, entries FROM directory ORDER BY key DESC").fetchone()
        garbled = entries[:-1] + bytes([entries[-1] ^ 1])
        db.execute("UPDATE directory SET entries = ? WHERE key = ?", (garbled, key))
    db.close()
    assert found(state, root, NOTHING, 0).changes == []
    (root / os.fsdecode(key.replace(b"\0", b"/")) / "added").touch()
    with pytest.raises(sqlite3.DatabaseError, match="a row is damaged"):
        found(state, root, NOTHING, 0)


def test_an_index_with_a_directory_that_no_other_names(
    state: State, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(state, root, NOTHING)
    with state.update(anew=False) as update:
        update.put(Listing(b"nowhere/at/all", [Entry(b"f", Kind.REGULAR, header=Extent(1, 0, 512))]))
        update.commit(HEAD)
    told = agree(state, root, monkeypatch)
    assert [(change.directory, change.gone) for change in told.changes] == [(b"nowhere/at/all", [b"f"])]
