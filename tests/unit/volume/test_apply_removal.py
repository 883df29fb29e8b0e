"""Removing what a snapshot does not have: all of it, however deep, and nothing that lies elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.errors import TargetError
from smsnapd.volume.tarball import removal
from smsnapd.volume.tarball.apply import Removed, Target
from smsnapd.volume.tarball.marker import MARKER
from tests.unit.volume.apply_cases import as_user, mounted, names, options, picture

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, users")]


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="removal-"))
    made.chmod(0o755)
    (made / "root").mkdir()
    (made / "root").chmod(0o777)
    (made / "outside" / "below").mkdir(parents=True)
    (made / "outside" / "below" / "precious").write_text("precious")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def root(place: Path) -> bytes:
    return os.fsencode(place / "root")


@pytest.fixture
def outside(place: Path) -> bytes:
    return os.fsencode(place / "outside")


def remove(root: bytes, directory: bytes, keep: set[bytes], *, dry_run: bool = False) -> Removed:
    with Target(root, options("always")) as target:
        return target.remove_extra(directory, keep, dry_run=dry_run)


def deep(root: bytes, depth: int) -> bytes:
    """A directory `deep` below root with `depth` levels of files and directories; returns its path."""
    os.mkdir(root + b"/deep")
    fd = os.open(root + b"/deep", os.O_RDONLY)
    for level in range(depth):
        for name in (b"file", b"\xff"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir(b"d%d" % level, dir_fd=fd)
        below = os.open(b"d%d" % level, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    return root + b"/deep"


def test_removes_all_that_is_not_kept(root: bytes, outside: bytes) -> None:
    os.makedirs(root + b"/d/extra/below")
    for path in (b"/d/keep", b"/d/file", b"/d/extra/f", b"/d/extra/below/g", b"/other"):
        Path(os.fsdecode(root + path)).touch()
    os.symlink(outside, root + b"/d/link")
    os.symlink(outside, root + b"/d/extra/link")
    os.mkfifo(root + b"/d/fifo")
    before, found = picture(outside), picture(root)

    would = remove(root, b"d", {b"keep"}, dry_run=True)
    assert picture(root) == found
    done = remove(root, b"d", {b"keep"})
    assert (sorted(done.paths), done.count, done.kept) == (sorted(would.paths), would.count, would.kept)
    assert sorted(done.paths) == [b"d/extra", b"d/fifo", b"d/file", b"d/link"]
    assert (done.count, done.kept) == (8, [])
    assert names(root + b"/d") == {b"keep"}
    assert names(root) == {b"d", b"other"}
    assert picture(outside) == before


def test_the_root_keeps_lost_and_found_and_the_mark(root: bytes) -> None:
    os.mkdir(root + b"/lost+found")
    Path(os.fsdecode(root + b"/" + MARKER)).touch()
    os.makedirs(root + b"/d/lost+found")
    assert remove(root, b"", set()).paths == [b"d"]
    assert names(root) == {b"lost+found", MARKER}


def test_a_tree_deeper_than_descriptors_and_paths_go(root: bytes) -> None:
    deep(root, 1500)
    before = len(os.listdir("/proc/self/fd"))
    assert remove(root, b"", set(), dry_run=True).count == 4501
    assert remove(root, b"", set()) == Removed([b"deep"], 4501, [])
    assert names(root) == set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_other_mount_is_entered(root: bytes, outside: bytes, place: Path) -> None:
    before = picture(outside)
    os.makedirs(root + b"/d/memory")
    os.makedirs(root + b"/d/same")
    Path(os.fsdecode(root + b"/d/f")).touch()
    Path(os.fsdecode(root + b"/file")).touch()
    with (
        mounted("tmpfs", place / "root" / "d" / "memory") as memory,
        mounted("bind", place / "root" / "d" / "same", source=os.fsdecode(outside)),
        mounted_file(place / "outside" / "below" / "precious", place / "root" / "file"),
    ):
        (memory / "precious").write_text("precious")
        for dry_run in (True, False):
            done = remove(root, b"", set(), dry_run=dry_run)
            reasons = dict(done.kept)
            assert "another file system" in reasons[b"d/memory"]
            assert "another file system" in reasons[b"d/same"]
            assert b"d" not in done.paths
        assert b"file" in reasons
        assert b"d" not in reasons
        assert (memory / "precious").read_text() == "precious"
        assert names(root + b"/d") == {b"memory", b"same"}
    assert picture(outside) == before


class mounted_file:  # noqa: N801
    """A file bound over another."""

    def __init__(self, source: Path, where: Path) -> None:
        self.source, self.where = source, where

    def __enter__(self) -> None:
        subprocess.run(["mount", "--bind", str(self.source), str(self.where)], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.where)], check=True)


@pytest.mark.parametrize("link", [b"d", b"d/e"])
def test_a_link_on_the_way_leads_nowhere(root: bytes, outside: bytes, link: bytes) -> None:
    if b"/" in link:
        os.mkdir(root + b"/d")
    os.symlink(outside, root + b"/" + link)
    before = picture(outside)
    done = remove(root, b"d/e", set())
    assert done.paths == []
    assert len(done.kept) == 1
    assert picture(outside) == before


def test_a_directory_swapped_for_a_link_just_before_it_is_entered(root: bytes, outside: bytes) -> None:
    before = picture(outside)
    os.symlink(outside, root + b"/d")
    fd = os.open(root, os.O_RDONLY)
    work = removal.Removal(fd, b"")
    work.tree(b"d")
    os.close(fd)
    assert [path for path, _ in work.removed.kept] == [b"d"]
    assert picture(outside) == before


def test_a_directory_moved_away_meanwhile_is_not_climbed_out_of(
    root: bytes, outside: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going up by `..` from a directory that somebody moved outside must not empty what is there."""
    deep(root, 200)
    before = picture(outside + b"/below")
    middle = root + b"/deep/" + b"/".join(b"d%d" % level for level in range(50))
    unlink = os.unlink
    calls = 0

    def move_then_unlink(name: bytes, *, dir_fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 390:
            os.rename(middle, outside + b"/moved")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(removal.os, "unlink", move_then_unlink)
    done = remove(root, b"", set())
    assert done.kept == [(b"deep", "it was moved while it was being removed")]
    assert done.paths == []
    assert names(outside) == {b"below", b"moved"}
    assert picture(outside + b"/below") == before


def test_a_user_removes_what_he_has_locked(root: bytes) -> None:
    def build_and_remove() -> Removed:
        os.makedirs(root + b"/a/b/c")
        Path(os.fsdecode(root + b"/a/b/c/f")).touch()
        for path in (b"/a/b/c", b"/a/b", b"/a"):
            os.chmod(root + path, 0)
        return remove(root, b"", {b"roots"})

    os.mkdir(root + b"/roots")
    assert as_user(build_and_remove) == Removed([b"a"], 4, [])
    assert names(root) == {b"roots"}


def test_what_a_user_may_not_remove_is_named(root: bytes) -> None:
    os.makedirs(root + b"/roots/below")
    Path(os.fsdecode(root + b"/roots/below/f")).touch()
    done = as_user(remove, root, b"", set())
    assert done.paths == []
    assert dict(done.kept)[b"roots/below/f"] == "Permission denied"
    assert names(root + b"/roots/below") == {b"f"}


def test_a_missing_directory_and_a_broken_target(root: bytes, place: Path) -> None:
    assert remove(root, b"missing", set()).kept == [(b"missing", "its directory is not there")]
    (place / "ro").mkdir()
    with mounted("tmpfs", place / "ro"):
        (place / "ro" / "f").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(place / "ro")], check=True)
        with pytest.raises(TargetError, match="Read-only"):
            remove(os.fsencode(place / "ro"), b"", set())
