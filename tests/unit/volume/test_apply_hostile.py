"""A hostile backup, a hostile neighbour: nothing is written, changed or removed outside the target."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.model import Entry, Kind
from smsnapd.volume.tarball import nodes
from smsnapd.volume.tarball.apply import Target
from smsnapd.volume.tarball.large import partial_name
from smsnapd.volume.tarball.marker import MARKER
from tests.unit.volume.apply_cases import (
    acl,
    alias,
    directory,
    entry,
    names,
    options,
    picture,
    put,
    regular,
    symlink,
    xattrs,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices")]

EVERY_MODE = ["never", "if-changed", "always", "resume", "fresh"]
LOUD = {
    "mode": 0o4777,
    "uid": 4242,
    "gid": 4242,
    "xattrs": xattrs(user__evil=b"1", system__posix_acl_access=acl(5)),
}
"""Metadata that nobody could miss on a file outside."""

Call = Callable[[Target, bytes], Any]


def write_large(target: Target, path: bytes) -> str:
    for opened in (
        target.begin_large(path, regular(b"evil", **LOUD)),
        target.open_large(path, regular(b"evil")),
    ):
        if isinstance(opened, str):
            return opened
        with opened:
            opened.write_range(0, b"evil")
    return target.finish_large(path, regular(b"evil", **LOUD))


CALLS: dict[str, Call] = {
    "small": lambda t, p: t.write_small(p, regular(b"evil", **LOUD), b"evil"),
    "large": write_large,
    "symlink": lambda t, p: t.make_symlink(p, symlink(b"/etc/passwd", uid=4242)),
    "fifo": lambda t, p: t.make_special(p, entry(Kind.FIFO, mode=0o4777, uid=4242)),
    "device": lambda t, p: t.make_special(p, entry(Kind.CHARACTER, rdev=1 << 32 | 3, uid=4242)),
    "link to it": lambda t, p: t.make_link(b"plain", p, alias(b"plain", size=1)),
    "link from it": lambda t, p: t.make_link(p, b"linked", alias(p, size=8)),
    "directory": lambda t, p: t.make_directory(p),
    "finish directory": lambda t, p: t.finish_directory(p, directory(**LOUD)),
}


@pytest.fixture
def place() -> Iterator[bytes]:
    """`root` with a file `plain`, and beside it `outside` with things that nothing may touch."""
    made = os.fsencode(tempfile.mkdtemp(prefix="hostile-"))
    os.mkdir(made + b"/root")
    os.makedirs(made + b"/outside/below")
    for name in (b"/outside/precious", b"/outside/below/precious", b"/root/plain"):
        Path(os.fsdecode(made + name)).write_text("precious")
    os.chmod(made + b"/outside", 0o750)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def root(place: bytes) -> bytes:
    return place + b"/root"


@pytest.fixture
def outside(place: bytes) -> Iterator[bytes]:
    before = picture(place + b"/outside")
    yield place + b"/outside"
    assert picture(place + b"/outside") == before


# -- paths that are none


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "path",
    [b"..", b".", b"../outside/precious", b"/etc/evil", b"//evil", b"a/../../outside/evil", b"a/./evil",
     b"a//evil", b"a/", b"../root/a/evil", b"a/..", b"evil\0", b"a\0/evil", b"/evil"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(root: bytes, outside: bytes, call: str, path: bytes) -> None:
    os.mkdir(root + b"/a")
    before = picture(root)
    with Target(root, options("always")) as target:
        assert "plain relative" in CALLS[call](target, path)
        assert target.wanted(path, regular(b""))
        if path not in (b"evil\0",):
            assert target.remove_extra(path, set()).paths == []
        assert target.abandon_large(path) != ""
    assert picture(root) == before


def test_the_root_is_not_a_file(root: bytes, outside: bytes) -> None:
    with Target(root, options("always")) as target:
        for name in ("small", "large", "symlink", "fifo", "link to it", "link from it"):
            assert CALLS[name](target, b"") != ""
    assert names(root) == {b"plain"}


@pytest.mark.parametrize("call", CALLS)
def test_the_mark_of_the_restore_is_nobody_elses(root: bytes, outside: bytes, call: str) -> None:
    with Target(root, options("always")) as target:
        assert "needs this name" in CALLS[call](target, MARKER)
    assert names(root) == {b"plain"}


# -- links that stand in the way


@pytest.mark.parametrize("overwrite", EVERY_MODE)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("position", [b"a", b"a/b", b"a/b/c"])
@pytest.mark.parametrize("absolute", [True, False])
def test_no_link_among_the_directories_is_followed(
    root: bytes, outside: bytes, overwrite: str, call: str, position: bytes, absolute: bool
) -> None:
    os.makedirs(os.path.dirname(root + b"/" + position), exist_ok=True)
    climb = b"../" * (position.count(b"/") + 1)
    os.symlink(outside if absolute else climb + b"outside", root + b"/" + position)
    with Target(root, options(overwrite)) as target:
        for name in (b"precious", b"below", b"evil"):
            assert CALLS[call](target, position + b"/" + name) != ""
            assert CALLS[call](target, position + b"/below/" + name) != ""
        target.clean_partials(position)
        assert target.remove_extra(position, set()).paths == []
    assert os.path.islink(root + b"/" + position)


@pytest.mark.parametrize("overwrite", EVERY_MODE)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("aim", [b"precious", b"below", b"missing"])
def test_no_link_under_the_final_name_is_followed(
    root: bytes, outside: bytes, overwrite: str, call: str, aim: bytes
) -> None:
    os.symlink(outside + b"/" + aim, root + b"/name")
    with Target(root, options(overwrite)) as target:
        reason = CALLS[call](target, b"name")
    replaced = not os.path.islink(root + b"/name") or not os.readlink(root + b"/name").startswith(outside)
    if call == "finish directory":
        assert reason != ""
    elif call == "link from it":
        # A second name for the link itself: whoever makes it does not look where it points.
        assert not replaced
    elif overwrite == "never":
        assert reason != ""
        assert not replaced
    elif overwrite == "fresh":
        assert replaced is not bool(reason)
    else:
        assert reason == ""
        assert replaced


def test_a_link_from_the_backup_is_not_followed_by_what_comes_after_it(root: bytes, outside: bytes) -> None:
    for overwrite in ("fresh", "always"):
        with Target(root, options(overwrite)) as target:
            assert target.make_symlink(b"trap", symlink(outside)) == ""
            for name, call in CALLS.items():
                if name not in ("directory", "finish directory"):
                    assert call(target, b"trap/below/precious") != ""
            assert "not a directory" in target.make_directory(b"trap/evil")


def test_a_link_becomes_the_directory_that_is_needed_only_where_overwriting_is_allowed(
    root: bytes, outside: bytes
) -> None:
    for overwrite in EVERY_MODE:
        os.symlink(outside, root + b"/d")
        with Target(root, options(overwrite)) as target:
            made = target.make_directory(b"d") == ""
            assert made is (overwrite in ("if-changed", "always", "resume"))
            assert (target.write_small(b"d/f", regular(b"x"), b"x") == "") is made
            assert (target.finish_directory(b"d", directory(mode=0o711)) == "") is made
        if made:
            assert stat.S_IMODE(os.lstat(root + b"/d").st_mode) == 0o711
            shutil.rmtree(root + b"/d")
        else:
            os.unlink(root + b"/d")


# -- files outside that have a second name in the target


@pytest.mark.parametrize("overwrite", ["if-changed", "always", "resume"])
@pytest.mark.parametrize("call", ["small", "large", "symlink", "fifo", "link to it", "directory"])
def test_a_hard_link_to_a_file_outside_is_cut_and_not_written_through(
    place: bytes, overwrite: str, call: str
) -> None:
    root, precious = place + b"/root", place + b"/outside/precious"
    before = os.stat(precious)
    os.link(precious, root + b"/name")
    with Target(root, options(overwrite)) as target:
        assert CALLS[call](target, b"name") == ""
    after = os.stat(precious)
    assert Path(os.fsdecode(precious)).read_text() == "precious"
    assert (after.st_mode, after.st_uid, after.st_mtime_ns, after.st_nlink) == (
        before.st_mode, before.st_uid, before.st_mtime_ns, 1,
    )  # fmt: skip
    assert os.listxattr(precious) == []


# -- changes between two calls


@pytest.mark.parametrize("call", CALLS)
def test_a_directory_that_becomes_a_link_between_two_calls(root: bytes, outside: bytes, call: str) -> None:
    for fresh_descriptors in (False, True):
        os.makedirs(root + b"/a/b")
        with Target(root, options("always")) as first, Target(root, options("always")) as second:
            put(first, b"a/b/precious", b"x")
            os.rename(root + b"/a", root + b"/elsewhere")
            os.symlink(outside, root + b"/a")
            os.mkdir(root + b"/elsewhere/below")
            target = second if fresh_descriptors else first
            for name in (b"a/b/precious", b"a/below/precious", b"a/precious", b"a/b"):
                CALLS[call](target, name)
            target.remove_extra(b"a", set())
        assert os.path.islink(root + b"/a")
        shutil.rmtree(root + b"/elsewhere")
        os.unlink(root + b"/a")


def test_the_name_swapped_for_a_link_before_the_directory_is_finished(root: bytes, outside: bytes) -> None:
    with Target(root, options("fresh")) as target:
        assert target.make_directory(b"d") == ""
        put(target, b"d/f", b"x")
        os.rename(root + b"/d", root + b"/moved")
        os.symlink(outside, root + b"/d")
        assert target.finish_directory(b"d", directory(**LOUD)) != ""


def test_a_node_swapped_for_a_file_outside_while_it_is_made(
    place: bytes, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(b"below", place + b"/outside/link")
    before = os.lstat(place + b"/outside/link")

    def swap(aim: bytes, name: bytes, *, dir_fd: int) -> None:
        os.link(place + b"/outside/link", name, dst_dir_fd=dir_fd, follow_symlinks=False)

    monkeypatch.setattr(nodes.os, "symlink", swap)
    with Target(root, options("fresh")) as target:
        assert "replaced" in target.make_symlink(b"s", symlink(b"below", uid=4242))
    after = os.lstat(place + b"/outside/link")
    assert (after.st_uid, after.st_mtime_ns, after.st_nlink) == (before.st_uid, before.st_mtime_ns, 1)
    assert names(root) == {b"plain"}


@pytest.mark.parametrize("kind", ["hard link", "symlink", "fifo", "directory", "other size"])
def test_a_planted_partial_file_is_not_written_to(place: bytes, kind: str) -> None:
    root, precious = place + b"/root", place + b"/outside/precious"
    before = picture(place + b"/outside")
    partial = root + b"/" + partial_name(b"big")

    def plant() -> None:
        if os.path.lexists(partial):
            os.unlink(partial)
        match kind:
            case "hard link":
                os.link(precious, partial)
            case "symlink":
                os.symlink(precious, partial)
            case "fifo":
                os.mkfifo(partial)
            case "directory":
                os.mkdir(partial)
            case _:
                Path(os.fsdecode(partial)).write_text("a longer text")

    large = regular(b"evilevil", **LOUD)
    with Target(root, options("always")) as target:
        begun = target.begin_large(b"big", large)
        assert not isinstance(begun, str)
        with begun:
            plant()
            assert isinstance(target.open_large(b"big", large), str)
            begun.write_range(0, b"evilevil")
            assert target.finish_large(b"big", large) != ""
        assert not os.path.lexists(root + b"/big")
        if kind != "directory":
            plant()
            again = target.begin_large(b"big", large)
            assert not isinstance(again, str)
            again.close()
            assert target.finish_large(b"big", large) == ""
    assert os.path.lexists(partial) == (kind == "directory")
    assert {path: facts[:1] + facts[6:] for path, facts in picture(place + b"/outside").items()} == {
        path: facts[:1] + facts[6:] for path, facts in before.items()
    }


# -- numbers that no kernel takes


@pytest.mark.parametrize(
    "numbers",
    [
        {"uid": 1 << 40},
        {"gid": -5},
        {"mtime_ns": (1 << 63) - 1},
        {"mtime_ns": -(1 << 63)},
        {"mode": 0o177777},
        {"mode": 1 << 20},
        {"rdev": -1},
        {"rdev": 1 << 62},
    ],
)
def test_impossible_numbers_spoil_one_entry_at_most(
    root: bytes, outside: bytes, numbers: dict[str, int]
) -> None:
    with Target(root, options("if-changed")) as target:
        odd: list[tuple[bytes, Entry]] = [
            (b"small", regular(b"1234", **numbers)),
            (b"fifo", entry(Kind.FIFO, **numbers)),
            (b"device", entry(Kind.CHARACTER, **{"rdev": 1 << 32 | 3, **numbers})),
        ]
        reasons = [
            target.write_small(*odd[0], b"1234"),
            target.make_special(*odd[1]),
            target.make_special(*odd[2]),
        ]
        for (path, item), reason in zip(odd, reasons, strict=True):
            assert os.path.lexists(root + b"/" + path) is not bool(reason)
            target.wanted(path, item)
        put(target, b"next", b"x")
    assert not [name for name in names(root) if name.startswith(b".smsnap")]


@pytest.mark.parametrize("aim", [b"", b"a\0b", b"x" * 5000])
def test_links_that_no_kernel_makes(root: bytes, outside: bytes, aim: bytes) -> None:
    with Target(root, options("always")) as target:
        assert target.make_symlink(b"s", symlink(aim)) != ""
    assert names(root) == {b"plain"}
