from __future__ import annotations

import os
import random
import socket
import subprocess
from pathlib import Path

import pytest

from smsnapd.errors import UsageError
from smsnapd.model import Kind, Listing, directory_key, join_path
from smsnapd.volume.scan import Excludes, ScanReport, list_directory, scan
from smsnapd.volume.tree import Tree
from tests.unit.volume.ext4 import as_nobody, loop_ext4
from tests.unit.volume.test_tree import deep_directory

NOTHING = Excludes()


def scanned(root: Path, excluded: Excludes = NOTHING, below: bytes = b"") -> tuple[list[Listing], ScanReport]:
    report = ScanReport()
    with Tree(os.fsencode(root)) as tree:
        return list(scan(tree, excluded, report, below)), report


def paths(listings: list[Listing]) -> list[bytes]:
    return [join_path(listing.directory, entry.name) for listing in listings for entry in listing.entries]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_listings_come_in_catalog_order(tmp_path: Path) -> None:
    touch(tmp_path, "a/z", "a-b/x", "a/b/c", "a.txt", "b", "a/b-/q", "ä", "a/\udcff")
    (tmp_path / "empty").mkdir()
    listings, report = scanned(tmp_path)
    assert [listing.directory for listing in listings] == [b"", b"a", b"a/b", b"a/b-", b"a-b"]
    assert [entry.name for entry in listings[0].entries] == [
        b"", b"a", b"a-b", b"a.txt", b"b", b"empty", "ä".encode(),
    ]  # fmt: skip
    assert [entry.name for entry in listings[1].entries] == [b"b", b"b-", b"z", b"\xff"]
    assert report == ScanReport()


def test_order_holds_for_any_names(tmp_path: Path) -> None:
    chance = random.Random(7)
    alphabet = ["a", "b", "-", ".x", " ", "ü", "\udc80", "\U0001f600", "￿", "0"]
    for _ in range(300):
        touch(tmp_path, "/".join("".join(chance.choices(alphabet, k=2)) + "d" for _ in range(3)) + "f")
    listings, _ = scanned(tmp_path)
    keys = [directory_key(listing.directory) for listing in listings]
    assert keys == sorted(set(keys))
    for listing in listings:
        names = [entry.name for entry in listing.entries]
        assert names == sorted(set(names))
    walked = {
        os.path.relpath(os.path.join(base, name), os.fsencode(tmp_path))
        for base, directories, files in os.walk(os.fsencode(tmp_path))
        for name in directories + files
    }
    assert set(paths(listings)) == walked | {b""}


@pytest.mark.root
def test_entries_have_what_lstat_tells(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    file.chmod(0o6755)
    os.chown(file, 12, 3_000_000)
    os.chmod(file, 0o6755)
    os.utime(file, ns=(0, -1_500_000_001))
    os.link(file, tmp_path / "g")
    os.symlink("over there", tmp_path / "l")
    os.mkfifo(tmp_path / "p")
    os.mknod(tmp_path / "c", 0o020600, os.makedev(1, 3))
    os.mknod(tmp_path / "d", 0o060600, os.makedev(259, 70_000))
    [listing], _ = scanned(tmp_path)
    found = {entry.name: entry for entry in listing.entries}
    status = file.lstat()
    first = found[b"f"]
    assert (first.kind, first.mode, first.uid, first.gid) == (Kind.REGULAR, 0o6755, 12, 3_000_000)
    assert (first.size, first.mtime_ns, first.ctime_ns) == (5, -1_500_000_001, status.st_ctime_ns)
    assert (first.inode, first.links) == (status.st_ino, 2) == (found[b"g"].inode, found[b"g"].links)
    assert (found[b"l"].kind, found[b"l"].size, found[b"l"].target) == (Kind.SYMLINK, 10, b"")
    assert found[b"p"].kind == Kind.FIFO
    assert (found[b"c"].kind, found[b"c"].rdev) == (Kind.CHARACTER, 1 << 32 | 3)
    assert (found[b"d"].kind, found[b"d"].rdev) == (Kind.BLOCK, 259 << 32 | 70_000)
    assert (found[b""].kind, found[b""].size, found[b""].mode) == (Kind.DIRECTORY, 0, 0o700)


def test_sockets_are_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listings, report = scanned(tmp_path)
    assert paths(listings) == [b""]
    assert report == ScanReport(skipped=[(b"s", "socket")])


@pytest.mark.root
@pytest.mark.loop
def test_mount_points_are_empty_directories_and_named(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        touch(point, "a/f", "bound/below", "tmpfs/below", "file")
        subprocess.run(["mount", "-t", "tmpfs", "none", point / "tmpfs"], check=True)
        subprocess.run(["mount", "--bind", point / "a", point / "bound"], check=True)
        try:
            touch(point, "tmpfs/above")
            listings, report = scanned(point)
            assert paths(listings) == [b"", b"a", b"bound", b"file", b"tmpfs", b"a/f"]
            assert report.skipped == [(b"bound", "other file system"), (b"tmpfs", "other file system")]
            listings, report = scanned(point, below=b"tmpfs")
            assert (listings, report.skipped) == ([], [(b"tmpfs", "other file system")])
        finally:
            subprocess.run(["umount", point / "tmpfs", point / "bound"], check=True)


@pytest.mark.root
def test_what_may_not_be_read_is_unknown_and_not_gone(tmp_path: Path) -> None:
    touch(tmp_path, "closed/f", "open/f", "listed/f")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "listed").chmod(0o744)
    tmp_path.chmod(0o755)
    report = ScanReport()
    with Tree(os.fsencode(tmp_path)) as tree, as_nobody():
        listings = list(scan(tree, NOTHING, report))
    assert paths(listings) == [b"", b"closed", b"listed", b"open", b"open/f"]
    assert report == ScanReport(
        unreadable=[(b"closed", "Permission denied"), (b"listed/f", "Permission denied")]
    )
    assert b"closed/f" in paths(scanned(tmp_path)[0])


def test_a_directory_that_vanishes_meanwhile_is_a_deletion(tmp_path: Path) -> None:
    touch(tmp_path, "a/f", "b/f", "c/f", "d/f")
    report = ScanReport()
    with Tree(os.fsencode(tmp_path)) as tree:
        listings = scan(tree, NOTHING, report)
        next(listings)
        (tmp_path / "a" / "f").unlink()
        (tmp_path / "a").rmdir()
        (tmp_path / "b" / "f").unlink()
        (tmp_path / "b").rmdir()
        (tmp_path / "b").symlink_to("c")
        (tmp_path / "c" / "f").rename(tmp_path / "moved")
        (tmp_path / "c").rmdir()
        (tmp_path / "c").touch()
        assert [listing.directory for listing in listings] == [b"d"]
    assert report == ScanReport(vanished=[b"a", b"b", b"c"])


def test_a_part_is_scanned_from_below(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/c/f", "a/b/f", "a/g", "z")
    listings, _ = scanned(tmp_path, below=b"a/b")
    assert paths(listings) == [b"a/b/c", b"a/b/f", b"a/b/c/f"]
    listings, report = scanned(tmp_path, below=b"a/absent")
    assert (listings, report.vanished) == ([], [b"a/absent"])


def test_one_directory_can_be_listed_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/f", "a/g")
    with Tree(os.fsencode(tmp_path)) as tree:
        listing = list_directory(tree, NOTHING, ScanReport(), b"a")
        root = list_directory(tree, NOTHING, ScanReport(), b"")
    assert paths([listing]) == [b"a/b", b"a/g"]
    assert paths([root]) == [b"", b"a"]


def test_directories_are_left_out_by_inode_under_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/state/f", "a/g")
    status = (tmp_path / "a" / "state").stat()
    excluded = Excludes(directories=[(status.st_dev, status.st_ino)])
    (tmp_path / "a" / "state").rename(tmp_path / "a" / "moved")
    assert paths(scanned(tmp_path, excluded)[0]) == [b"", b"a", b"a/g"]
    assert scanned(tmp_path, excluded, below=b"a/moved")[0] == []


PATTERNS = [
    (["*.tmp"], ["x.tmp", "a/x.tmp", "a/d.tmp"]),
    (["/build/"], ["build"]),
    (["cache/"], ["a/cache"]),
    (["a/**/z"], ["a/b/c/z", "a/z"]),
    (["*.tmp", "!a/*.tmp"], ["x.tmp"]),
    (["/*", "!/a/"], ["build", "b", "cache", "x.tmp", "\udcff.log"]),
    (["a/*", "!a/keep"], ["a/cache", "a/b", "a/z", "a/x.tmp", "a/d.tmp"]),
    (["?.log", "# no pattern", ""], ["\udcff.log"]),
]


@pytest.mark.parametrize(("patterns", "gone"), PATTERNS)
def test_patterns_leave_out_what_they_match_and_all_below(
    tmp_path: Path, patterns: list[str], gone: list[str]
) -> None:
    touch(
        tmp_path, "x.tmp", "a/x.tmp", "a/d.tmp/f", "build/f", "b/build", "a/cache/f", "cache", "a/z",
        "a/b/c/z", "a/keep/f", "\udcff.log",
    )  # fmt: skip
    everything = paths(scanned(tmp_path)[0])
    tops = [os.fsencode(name) for name in gone]
    expected = [path for path in everything if not any((path + b"/").startswith(top + b"/") for top in tops)]
    assert paths(scanned(tmp_path, Excludes(patterns))[0]) == expected


def test_git_itself_ignores_the_same(tmp_path: Path) -> None:
    patterns = ["*.tmp", "/build/", "cache/", "data/*", "!data/keep", "!data/keep/*.tmp", "**/deep/x"]
    touch(
        tmp_path, "x.tmp", "build/f", "a/build/f", "a/cache/f", "b/cache", "data/f", "data/keep/f",
        "data/keep/g.tmp", "data/other/h", "q/deep/x", "q/deep/y", "deep/x",
    )  # fmt: skip
    (tmp_path / ".gitignore").write_text("\n".join(patterns))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")[:-1]
    listings, _ = scanned(tmp_path, Excludes([*patterns, "/.git/"]))
    files = {
        join_path(listing.directory, entry.name)
        for listing in listings
        for entry in listing.entries
        if entry.kind == Kind.REGULAR
    }
    assert files == set(listed)


def test_a_scan_from_below_what_is_excluded_lists_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a/cache/b/f")
    assert scanned(tmp_path, Excludes(["cache/"]), below=b"a/cache/b")[0] == []


def test_a_pattern_that_git_would_refuse_is_an_error() -> None:
    with pytest.raises(UsageError, match="exclude patterns"):
        Excludes(["!"])


def test_paths_beyond_path_max_are_listed(tmp_path: Path) -> None:
    path = deep_directory(tmp_path, 40)
    try:
        listings, report = scanned(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)
    assert listings[-1].directory == path
    assert [entry.name for entry in listings[-1].entries] == [b"file", b"link"]
    assert report == ScanReport()
