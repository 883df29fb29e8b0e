"""Sights of directories: the same as lstat of each name, and a stamp that no difference passes by."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.engine.backup.changes import same_stat
from smsnapd.model import Entry, Flag, Kind
from smsnapd.volume import sight
from smsnapd.volume.scan import Excludes, Scanner, ScanReport, entry_of
from smsnapd.volume.sight import NAMES_AT_ONCE, Sights, stamp_of
from smsnapd.volume.tree import Tree

SEEN = ["inode", "mode", "uid", "gid", "mtime_ns", "ctime_ns", "links"]
MOMENTS = st.integers(-(2**62), 2**62)
KINDS = st.sampled_from([int(Kind.REGULAR), int(Kind.DIRECTORY), int(Kind.SYMLINK)])
NAMES = st.binary(min_size=1, max_size=4).filter(lambda name: not {0, 47} & set(name))


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """A directory of what a sight shows."""
    numbers = st.integers(0, 2**32 - 1)
    names = sorted(draw(st.sets(NAMES, min_size=1, max_size=5)))
    return [
        Entry(
            name,
            kind=draw(KINDS),
            mode=draw(st.integers(0, 0o7777)),
            uid=draw(numbers),
            gid=draw(numbers),
            size=draw(st.integers(0, 2**63 - 1)),
            mtime_ns=draw(MOMENTS),
            ctime_ns=draw(MOMENTS),
            inode=draw(st.integers(0, 2**64 - 1)),
            links=draw(numbers),
        )
        for name in names
    ]


def taken(root: Path, names: list[bytes] | None = None) -> sight.Sight | None:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = sorted(map(os.fsencode, os.listdir(root))) if names is None else names
        return Sights(os.fstat(descriptor).st_dev).take(descriptor, found)
    finally:
        os.close(descriptor)


def seen(root: Path, names: list[bytes] | None = None) -> sight.Sight:
    found = taken(root, names)
    assert found is not None
    return found


def fill(root: Path) -> None:
    (root / "file").write_bytes(b"four")
    (root / "dir").mkdir()
    (root / "\udcff").symlink_to("somewhere" * 9)
    os.link(root / "file", root / "twin")
    os.utime(root / "file", ns=(5, -1_500_000_001))
    (root / "file").chmod(0o6751)


def test_its_entries_are_those_of_lstat(tmp_path: Path) -> None:
    fill(tmp_path)
    found = seen(tmp_path)
    expected = [entry_of(name, os.lstat(os.fsencode(tmp_path) + b"/" + name)) for name in found.names]
    assert found.entries() == expected
    assert found.directories == [(b"dir", (tmp_path / "dir").stat().st_ino)]
    assert found.stamp == stamp_of(expected)
    assert len(found.stamp) == sight.STAMP_BYTES


def test_the_directory_itself_is_the_name_that_is_empty(tmp_path: Path) -> None:
    found = seen(tmp_path, [b""])
    assert found.entries() == [entry_of(b"", tmp_path.stat())]
    assert found.directories == []


def test_any_number_of_names_is_one_sight(tmp_path: Path) -> None:
    for number in range(2 * NAMES_AT_ONCE + 3):
        (tmp_path / f"{number:05}").touch()
    found = seen(tmp_path)
    assert [entry.name for entry in found.entries()] == found.names == sorted(found.names)
    assert {entry.inode for entry in found.entries()} == {item.inode() for item in os.scandir(tmp_path)}
    assert found.stamp == stamp_of(found.entries())
    (tmp_path / f"{2 * NAMES_AT_ONCE:05}").chmod(0o600)
    assert seen(tmp_path).stamp != found.stamp


def test_reading_changes_no_stamp_and_writing_does(tmp_path: Path) -> None:
    fill(tmp_path)
    before = seen(tmp_path)
    os.utime(tmp_path / "file", ns=(10**18, -1_500_000_001))
    after = seen(tmp_path)
    assert after.stamp != before.stamp  # by the ctime alone
    (tmp_path / "file").read_bytes()
    os.sync()
    assert (tmp_path / "file").stat().st_atime_ns != 10**18
    assert seen(tmp_path).stamp == after.stamp


def test_there_is_none_of_what_lstat_must_tell_more_of(tmp_path: Path) -> None:
    fill(tmp_path)
    assert taken(tmp_path, [b"file", b"gone"]) is None
    os.mkfifo(tmp_path / "fifo")
    assert taken(tmp_path) is None
    (tmp_path / "fifo").unlink()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        assert taken(tmp_path) is None
    descriptor = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert Sights(tmp_path.stat().st_dev).take(descriptor, [b"status"]) is None
    finally:
        os.close(descriptor)


def test_a_scan_without_them_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    (tmp_path / "dir" / "x.tmp").touch()
    (tmp_path / "dir" / "y").touch()
    (tmp_path / "dir" / "z.tmp").mkdir()

    def told() -> list[Any]:
        report = ScanReport()
        with Tree(os.fsencode(tmp_path)) as tree:
            scanner = Scanner(tree, Excludes(["*.tmp", "!dir/x.tmp"]))
            return [scanner.listed(path, report) for path in (b"", b"dir", b"none", b"file")] + [report]

    found = told()
    monkeypatch.setattr(sight, "_statx", None)
    assert told() == found
    assert [entry.name for entry in found[1][0]] == [b"x.tmp", b"y"]


@given(entries())
def test_what_is_the_same_has_one_stamp(listed: list[Entry]) -> None:
    """Whatever else the index has of an entry."""
    more = [
        msgspec.structs.replace(
            entry,
            flags=int(Flag.ALIAS),
            target=b"t",
            digest=b"d",
            size=entry.size if entry.kind == Kind.REGULAR else 7,
        )
        for entry in listed
    ]
    assert stamp_of(listed) == stamp_of(more) != b""
    assert all(map(same_stat, listed, more))


@given(entries(), st.data())
def test_every_number_that_counts_is_in_the_stamp(listed: list[Entry], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(listed) - 1))
    of = [*SEEN, "size"] if listed[row].kind == Kind.REGULAR else SEEN
    name = data.draw(st.sampled_from(of))
    value = getattr(listed[row], name) ^ (1 << data.draw(st.integers(0, 11)))
    changed = [*listed]
    changed[row] = msgspec.structs.replace(listed[row], **{name: value})
    assert not same_stat(changed[row], listed[row])
    assert stamp_of(changed) != stamp_of(listed)


@given(entries(), entries())
def test_two_stamps_are_one_only_if_all_is_the_same(first: list[Entry], second: list[Entry]) -> None:
    same = len(first) == len(second) and all(
        one.name == other.name and same_stat(one, other) for one, other in zip(first, second, strict=True)
    )
    assert (stamp_of(first) == stamp_of(second)) == same


@given(entries(), st.data())
def test_a_name_or_a_kind_is_in_the_stamp(listed: list[Entry], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(listed) - 1))
    kind = data.draw(KINDS.filter(lambda kind: kind != listed[row].kind))
    for change in ({"kind": kind}, {"name": listed[row].name + b"x"}):
        changed = [*listed]
        changed[row] = msgspec.structs.replace(listed[row], **change)
        assert stamp_of(changed) != stamp_of(listed)
    assert stamp_of(listed[:row] + listed[row + 1 :]) != stamp_of(listed)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": int(Kind.FIFO)},
        {"kind": int(Kind.BLOCK), "rdev": 1},
        {"kind": int(Kind.TOMBSTONE)},
        {"rdev": 1},
        {"links": 1 << 32},
        {"uid": -1},
        {"mode": 1 << 16},
        {"mode": -1},
        {"inode": 1 << 64},
        {"size": -1},
    ],
    ids=str,
)
def test_what_no_sight_can_show_has_no_stamp(change: dict[str, int]) -> None:
    """A catalog may say anything."""
    plain = Entry(b"a", Kind.REGULAR)
    assert stamp_of([plain])
    assert not stamp_of([plain, msgspec.structs.replace(plain, name=b"b", **change)])


def test_nothing_has_no_stamp() -> None:
    assert stamp_of([]) == b""
