"""A scan held against the index: what is read again, what only moved, which names belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smsnapd.engine.backup.changes import ChangeSet, DirectoryChange
from smsnapd.engine.backup.looks import look_everywhere
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, directory_key
from smsnapd.state import Head, State
from smsnapd.volume.tarball.read import HEADER, READ

HEAD = Head("0" * 16, 1, bytes(32), b"/v", "")
Tree = dict[bytes, Entry]
ROOT = Entry(b"", Kind.DIRECTORY)


def file(inode: int, **more: Any) -> Entry:
    return Entry(b"", Kind.REGULAR, inode=inode, **{"size": 10, "ctime_ns": 5, "mtime_ns": 5, **more})


def directory(inode: int, **more: Any) -> Entry:
    return Entry(b"", Kind.DIRECTORY, inode=inode, **{"links": 2, "ctime_ns": 5, **more})


def listings(tree: Tree) -> list[Listing]:
    found: dict[bytes, list[Entry]] = {}
    for path in sorted(tree):
        above, _, name = path.rpartition(b"/")
        found.setdefault(above, []).append(msgspec.structs.replace(tree[path], name=name))
    return [Listing(above, found[above]) for above in sorted(found, key=directory_key)]


def stored(entry: Entry) -> Entry:
    """As the index has it."""
    content = (Extent(3, 512, 512),) if entry.kind == Kind.REGULAR and not entry.flags & Flag.ALIAS else ()
    return msgspec.structs.replace(entry, header=Extent(3, 0, 512), content=content)


@pytest.fixture
def compare(tmp_path: Path) -> Iterator[Callable[..., ChangeSet]]:
    """`compare(before, now)`: what differs. Nothing is read; `recheck` stands in for that."""
    state = State.open(tmp_path, "00" * 16, "nb")
    made: list[ChangeSet] = []

    def compared(
        before: Tree,
        now: Tree,
        *,
        reread: bool = False,
        kept: Iterable[bytes] = (),
        recheck: Callable[[bytes, Entry, Entry], Entry | None] = lambda directory, scanned, indexed: indexed,
    ) -> ChangeSet:
        with state.update(anew=True) as update:
            for listing in listings({path: stored(entry) for path, entry in before.items()}):
                update.put(listing)
            update.commit(HEAD)
        changes = ChangeSet(state, reread=reread)
        made.append(changes)
        looks = look_everywhere(iter(listings(now)), state.listings())
        changes.compare(looks, lambda path: path in set(kept), recheck)
        return changes

    yield compared
    for changes in made:
        changes.close()
    state.close()


def told(changes: Iterable[DirectoryChange]) -> dict[bytes, str]:
    """Of each path: `gone`, `read`, `header`, or what it is an alias of."""
    out: dict[bytes, str] = {}
    for above, changed, gone in changes:
        prefix = above + b"/" if above else b""
        for entry, _, mode in changed:
            alias = f"alias of {entry.target.decode()}" if entry.flags & Flag.ALIAS else ""
            out[prefix + entry.name] = alias or {READ: "read", HEADER: "header"}[mode]
        out.update((prefix + name, "gone") for name in gone)
    return out


def test_what_is_new_changed_and_gone(compare: Callable[..., ChangeSet]) -> None:
    before = {b"": ROOT, b"a": file(1), b"b": file(2), b"c": file(3), b"d": directory(4), b"d/x": file(5)}
    now = {b"": ROOT, b"a": file(1), b"b": file(2, ctime_ns=6), b"e": directory(7), b"e/y": file(8, size=7)}
    changes = compare(before, now)
    expected = {b"b": "read", b"c": "gone", b"d": "gone", b"d/x": "gone", b"e": "read", b"e/y": "read"}
    assert told(changes.directories()) == expected
    assert told(changes.directories()) == told(changes.directories())
    assert (changes.changed, changes.deleted, changes.empty) == (3, 3, False)
    assert (changes.files_to_read, changes.bytes_to_read) == (2, 17)


@pytest.mark.parametrize(
    "change",
    ["inode", "mode", "uid", "gid", "size", "mtime_ns", "ctime_ns", "links", "rdev"],
)
def test_every_number_that_stat_tells_counts(compare: Callable[..., ChangeSet], change: str) -> None:
    now = msgspec.structs.replace(file(1), **{change: 77})
    assert told(compare({b"": ROOT, b"a": file(1)}, {b"": ROOT, b"a": now}).directories()) == {b"a": "read"}


def test_the_same_is_nothing(compare: Callable[..., ChangeSet]) -> None:
    tree = {b"": ROOT, b"a": file(1), b"d": directory(2), b"d/x": file(3, links=2), b"d/y": file(3, links=2)}
    assert compare(tree, tree).empty


def test_a_renamed_directory_needs_headers_alone(compare: Callable[..., ChangeSet]) -> None:
    before = {b"": ROOT, b"d": directory(1), b"d/x": file(2), b"d/s": directory(3), b"d/s/y": file(4)}
    now = {b"": ROOT, b"e": directory(1, ctime_ns=9), b"e/x": file(2), b"e/s": directory(3)}
    now |= {b"e/s/y": file(4), b"e/s/z": file(9)}
    changes = told(compare(before, now).directories())
    expected = {b"e": "read", b"e/x": "header", b"e/s": "read", b"e/s/y": "header", b"e/s/z": "read"}
    assert {path: what for path, what in changes.items() if what != "gone"} == expected
    # Another file under the inode of one that is gone: its times tell.
    now[b"e/x"] = file(2, ctime_ns=6)
    assert told(compare(before, now).directories())[b"e/x"] == "read"


def test_reread_believes_no_stat(compare: Callable[..., ChangeSet]) -> None:
    before = {b"": ROOT, b"d": directory(1), b"d/x": file(2), b"y": file(3)}
    now = {b"": ROOT, b"e": directory(1, ctime_ns=9), b"e/x": file(2), b"y": file(3)}
    asked: list[bytes] = []

    def differs(above: bytes, scanned: Entry, indexed: Entry) -> Entry | None:
        asked.append(scanned.name)
        return None if scanned.name == b"y" else indexed

    changes = told(compare(before, now, reread=True, recheck=differs).directories())
    assert (changes[b"e/x"], changes[b"y"]) == ("read", "read")
    assert asked == [b"", b"y"]


@pytest.mark.parametrize("flag", [Flag.UNSETTLED, Flag.CHANGED])
def test_what_was_not_sure_is_asked_about(compare: Callable[..., ChangeSet], flag: Flag) -> None:
    before = {b"": ROOT, b"a": file(1, flags=int(flag)), b"b": file(2)}
    now = {b"": ROOT, b"a": file(1), b"b": file(2)}
    settled = compare(before, now, recheck=lambda _, __, indexed: msgspec.structs.replace(indexed, flags=0))
    assert settled.empty
    assert [entry.name for entry in settled.settled[b""]] == [b"a"]
    assert told(compare(before, now, recheck=lambda *_: None).directories()) == {b"a": "read"}


# --- names that belong together

THREE = {b"": ROOT, b"a": file(1, links=3), b"b": file(1, links=3, flags=1, target=b"a")}


def test_all_names_are_recorded_when_one_goes_or_comes(compare: Callable[..., ChangeSet]) -> None:
    """Here by an exclude pattern: the inode itself does not move."""
    before = {**THREE, b"d": directory(2), b"d/c": file(1, links=3, flags=1, target=b"a")}
    now = {b"": ROOT, b"b": file(1, links=3), b"d": directory(2), b"d/c": file(1, links=3)}
    assert told(compare(before, now).directories()) == {b"a": "gone", b"b": "header", b"d/c": "alias of b"}
    now = {b"": ROOT, **{name: file(1, links=3) for name in (b"A", b"a", b"b", b"d/c")}, b"d": directory(2)}
    expected = {b"A": "read", b"a": "alias of A", b"b": "alias of A", b"d/c": "alias of A"}
    assert told(compare(before, now).directories()) == expected


def test_names_of_one_inode_are_one_file_though_it_moved_while_it_was_scanned(
    compare: Callable[..., ChangeSet],
) -> None:
    now = {b"": ROOT, b"a": file(1, links=3, ctime_ns=7), b"b": file(1, links=3, ctime_ns=8)}
    assert told(compare(THREE, now).directories()) == {b"a": "read", b"b": "alias of a"}
    # It is one file, too, if the first look was before it moved; and the first name is not vouched for.
    now[b"a"] = file(1, links=3)
    assert told(compare(THREE, now).directories()) == {b"a": "read", b"b": "alias of a"}


def test_a_name_that_nobody_could_look_at_is_what_it_was(compare: Callable[..., ChangeSet]) -> None:
    """Its inode may have been given to another file meanwhile."""
    before = {**THREE, b"d": directory(2), b"d/c": file(1, links=3, flags=1, target=b"a")}
    now = {b"": ROOT, b"d": directory(2)}
    now |= {name: file(1, links=2, ctime_ns=9) for name in (b"x", b"y")}
    changes = told(compare(before, now, kept=(b"d", b"d/c")).directories())
    assert changes == {b"a": "gone", b"b": "gone", b"d/c": "header", b"x": "read", b"y": "alias of x"}
    # Unless it has the same times: then the directory of the others was renamed.
    now[b"x"] = file(1, links=3)
    changes = told(compare(before, now, kept=(b"d", b"d/c")).directories())
    assert changes[b"d/c"] == "alias of x"


def test_what_is_kept_is_not_gone(compare: Callable[..., ChangeSet]) -> None:
    before = {b"": ROOT, b"d": directory(1), b"d/x": file(2), b"e": file(3)}
    changes = compare(before, {b"": ROOT, b"d": directory(1)}, kept=(b"d", b"d/x", b"e"))
    assert changes.empty
