"""Applying entries: all metadata, every kind, every overwrite mode, as root and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.errors import TargetError, VolumeError
from smsnapd.model import Entry, Kind
from smsnapd.volume.tarball import writeback
from smsnapd.volume.tarball.apply import Notes, Target
from smsnapd.volume.tarball.marker import PARTIAL
from tests.unit.volume.apply_cases import (
    CAPABILITY,
    MTIME,
    NOBODY,
    OPTIONS,
    acl,
    alias,
    as_user,
    attributes,
    directory,
    entry,
    mounted,
    names,
    options,
    put,
    regular,
    sparse,
    symlink,
    xattrs,
)

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted attributes"),
]
pytestmark = needs_root


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that an ordinary user may write to, reached by everybody."""
    made = Path(tempfile.mkdtemp(prefix="apply-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def root(place: Path) -> bytes:
    return os.fsencode(place)


@pytest.fixture
def target(root: bytes) -> Iterator[Target]:
    with Target(root, OPTIONS) as opened:
        yield opened


def content(root: bytes, path: bytes) -> bytes:
    return Path(os.fsdecode(root + b"/" + path)).read_bytes()


# -- small files


def test_a_file_comes_back_with_all_its_metadata(target: Target, root: bytes) -> None:
    kept = xattrs(user__note=b"n", trusted__t=b"t", system__posix_acl_access=acl(1234))
    put(target, b"f", b"hello", mode=0o660, uid=1000, gid=1001, xattrs=kept)

    found = os.stat(root + b"/f")
    assert content(root, b"f") == b"hello"
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o660)
    assert found.st_mtime_ns == MTIME
    assert attributes(root + b"/f") == {name.decode(): value for name, value in kept}
    assert names(root) == {b"f"}
    assert target.notes == Notes()


def test_capabilities_and_set_id_bits_survive_the_change_of_owner(target: Target, root: bytes) -> None:
    put(
        target, b"ping", b"#!", mode=0o755, uid=1000, gid=1000, xattrs=xattrs(security__capability=CAPABILITY)
    )
    put(target, b"su", b"#!", mode=0o6755, uid=1000, gid=1000)

    assert attributes(root + b"/ping") == {"security.capability": CAPABILITY}
    assert stat.S_IMODE(os.stat(root + b"/su").st_mode) == 0o6755


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_every_mode_is_exact_whatever_the_umask(root: bytes, umask: int) -> None:
    modes = [
        0o000,
        0o400,
        0o444,
        0o600,
        0o604,
        0o640,
        0o644,
        0o646,
        0o664,
        0o755,
        0o777,
        0o1644,
        0o2755,
        0o7777,
    ]
    before = os.umask(umask)
    try:
        with Target(root, OPTIONS) as target:
            for mode in modes:
                put(target, b"%o" % mode, b"x", mode=mode, uid=1000, gid=1000)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(os.stat(root + b"/%o" % mode).st_mode) for mode in modes] == modes


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, -86_400 * 10**9 - 5, 2**31 * 10**9 + 7, MTIME])
def test_times_are_exact_to_the_nanosecond(target: Target, root: bytes, mtime_ns: int) -> None:
    put(target, b"f", b"", mtime_ns=mtime_ns)
    assert os.stat(root + b"/f").st_mtime_ns == mtime_ns


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"..x", b"a" * 255, "日本".encode()]
)
def test_any_name_that_a_file_system_takes(target: Target, root: bytes, name: bytes) -> None:
    put(target, name, b"x")
    assert names(root) == {name}


def test_a_name_too_long_for_the_target_is_reported_and_leaves_nothing(target: Target, root: bytes) -> None:
    assert "length" in target.write_small(b"a" * 256, regular(b"x"), b"x")
    assert names(root) == set()


def test_content_of_the_wrong_length_is_never_given_the_name(target: Target, root: bytes) -> None:
    reason = target.write_small(b"f", regular(b"four"), b"fou")
    assert "3 bytes, and should have 4" in reason
    assert "bytes" in target.write_small(b"g", sparse(8192, (0, 4096)), b"x" * 4095)
    assert names(root) == set()


def test_a_missing_directory_is_a_reason(target: Target) -> None:
    assert "directory is not there" in target.write_small(b"no/f", regular(b"x"), b"x")


# -- sparse files


@pytest.mark.parametrize(
    ("size", "segments"),
    [
        (1 << 30, ()),
        (1 << 30, ((512 << 20, 4096),)),
        (1 << 20, ((0, 4096), (65536, 8192))),
        ((1 << 20) + 100, ((1 << 20, 100),)),
        (8192, ((0, 8192),)),
    ],
)
def test_holes_stay_holes(
    target: Target, root: bytes, size: int, segments: tuple[tuple[int, int], ...]
) -> None:
    data = b"".join(bytes([65 + i]) * length for i, (_, length) in enumerate(segments))
    assert target.write_small(b"f", sparse(size, *segments), memoryview(data)) == ""

    found = os.stat(root + b"/f")
    assert found.st_size == size
    assert found.st_blocks * 512 <= len(data) + 8192
    fd = os.open(root + b"/f", os.O_RDONLY)
    position = 0
    for offset, length in segments:
        assert os.pread(fd, length, offset) == data[position : position + length]
        position += length
    os.close(fd)


# -- large files


def test_several_processes_fill_one_large_file(root: bytes) -> None:
    piece, count = 1 << 20, 6
    data = os.urandom(piece * count)
    large = regular(data, mode=0o640, uid=1000, gid=1000, xattrs=xattrs(user__a=b"b"))
    with Target(root, OPTIONS) as target:
        begun = target.begin_large(b"big", large)
        assert not isinstance(begun, str)
        begun.close()
        for worker in range(3):
            if not os.fork():
                with Target(root, OPTIONS) as mine:
                    opened = mine.open_large(b"big", large)
                    assert not isinstance(opened, str)
                    with opened:
                        for index in range(count - 1 - worker, -1, -3):
                            opened.write_range(index * piece, data[index * piece : (index + 1) * piece])
                os._exit(0)
        assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
        assert b"big" not in names(root)
        assert target.finish_large(b"big", large) == ""

    found = os.stat(root + b"/big")
    assert content(root, b"big") == data
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_mtime_ns) == (0o640, 1000, MTIME)
    assert attributes(root + b"/big") == {"user.a": b"b"}
    assert names(root) == {b"big"}


def test_what_is_not_written_of_a_large_file_is_a_hole(target: Target, root: bytes) -> None:
    large = sparse(1 << 32, (1 << 31, 4096))
    begun = target.begin_large(b"big", large)
    assert not isinstance(begun, str)
    with begun:
        begun.write_range(1 << 31, b"d" * 4096)
    assert target.finish_large(b"big", large) == ""
    found = os.stat(root + b"/big")
    assert (found.st_size, found.st_blocks * 512 <= 16384) == (1 << 32, True)


def test_a_large_file_begun_again_forgets_what_was_written(target: Target, root: bytes) -> None:
    for data in (b"old", b""):
        begun = target.begin_large(b"big", regular(b"12345"))
        assert not isinstance(begun, str)
        with begun:
            begun.write_range(0, data)
    assert target.finish_large(b"big", regular(b"12345")) == ""
    assert content(root, b"big") == b"\0" * 5


def test_an_abandoned_large_file_leaves_nothing(target: Target, root: bytes) -> None:
    begun = target.begin_large(b"big", regular(b"12345"))
    assert not isinstance(begun, str)
    begun.close()
    assert target.abandon_large(b"big") == ""
    assert target.abandon_large(b"big") == ""
    assert names(root) == set()
    assert "not there" in str(target.open_large(b"big", regular(b"12345")))


def test_a_size_that_no_file_system_takes_is_a_reason(target: Target, root: bytes) -> None:
    assert isinstance(target.begin_large(b"big", entry(Kind.REGULAR, size=1 << 62)), str)
    assert names(root) == set()


# -- symbolic links, FIFOs, devices


@pytest.mark.parametrize("aim", [b"nowhere", b"/etc/passwd", b"../../..", b"\xff", b"x" * 4000])
def test_symlinks_point_where_they_pointed(target: Target, root: bytes, aim: bytes) -> None:
    link = symlink(aim, uid=1000, gid=1001, xattrs=xattrs(trusted__t=b"t"))
    assert target.make_symlink(b"link", link) == ""
    found = os.lstat(root + b"/link")
    assert os.readlink(root + b"/link") == aim
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (1000, 1001, MTIME)
    assert attributes(root + b"/link") == {"trusted.t": b"t"}
    assert names(root) == {b"link"}


@pytest.mark.parametrize(
    ("kind", "kind_bits", "rdev"),
    [
        (Kind.FIFO, stat.S_IFIFO, 0),
        (Kind.CHARACTER, stat.S_IFCHR, (1 << 32) | 3),
        (Kind.BLOCK, stat.S_IFBLK, (259 << 32) | 70_000),
    ],
)
def test_special_files(target: Target, root: bytes, kind: Kind, kind_bits: int, rdev: int) -> None:
    special = entry(kind, mode=0o620, uid=1000, gid=5, rdev=rdev)
    assert target.make_special(b"s", special) == ""
    found = os.lstat(root + b"/s")
    assert found.st_mode == kind_bits | 0o620
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (1000, 5, MTIME)
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (rdev >> 32, rdev & 0xFFFFFFFF)


# -- hard links


def test_all_names_of_a_hard_link_group_are_one_inode(target: Target, root: bytes) -> None:
    assert target.make_directory(b"d") == ""
    put(target, b"a", b"x")
    target.make_symlink(b"s", symlink(b"nowhere"))
    assert target.make_link(b"a", b"d/b", alias(b"a")) == ""
    assert target.make_link(b"s", b"d/s", entry(Kind.SYMLINK, target=b"s")) == ""
    assert os.stat(root + b"/a").st_ino == os.stat(root + b"/d/b").st_ino
    assert os.lstat(root + b"/s").st_ino == os.lstat(root + b"/d/s").st_ino
    assert names(root + b"/d") == {b"b", b"s"}


def test_a_link_made_again_leaves_no_temporary_name(root: bytes) -> None:
    with Target(root, options("always")) as target:
        put(target, b"a", b"x")
        for _ in range(2):
            assert target.make_link(b"a", b"b", alias(b"a")) == ""
    assert names(root) == {b"a", b"b"}
    assert os.stat(root + b"/a").st_nlink == 2


def test_a_link_replaces_what_was_there(root: bytes) -> None:
    os.makedirs(root + b"/dir/below")
    Path(os.fsdecode(root + b"/file")).write_text("old")
    with Target(root, options("if-changed")) as target:
        put(target, b"a", b"x")
        for path in (b"dir", b"file"):
            assert target.wanted(path, alias(b"a"))
            assert target.make_link(b"a", path, alias(b"a")) == ""
            assert not target.wanted(path, alias(b"a"))
    assert os.stat(root + b"/a").st_nlink == 3
    assert names(root) == {b"a", b"dir", b"file"}


def test_a_link_to_nothing_is_reported(target: Target) -> None:
    assert "a/first" in target.make_link(b"a/first", b"b", alias(b"a/first"))


def test_never_links_to_a_file_that_was_kept_and_is_another(root: bytes) -> None:
    Path(os.fsdecode(root + b"/a")).write_text("somebody else's")
    with Target(root, options("never")) as target:
        assert "something else" in target.make_link(b"a", b"b", alias(b"a", size=1))
    assert names(root) == {b"a"}


# -- directories


def test_directories_get_their_metadata_last_whatever_they_forbid(target: Target, root: bytes) -> None:
    kept = xattrs(user__u=b"1", system__posix_acl_access=acl(1234), system__posix_acl_default=acl(99))
    assert target.make_directory(b"d") == ""
    assert target.make_directory(b"d/locked") == ""
    put(target, b"d/locked/f", b"x")
    assert target.finish_directory(b"d/locked", directory(mode=0, uid=1000)) == ""
    assert target.finish_directory(b"d", directory(mode=0o3660, gid=1001, xattrs=kept, mtime_ns=5)) == ""
    assert target.finish_directory(b"", directory(mode=0o1777, mtime_ns=6)) == ""

    locked, made, top = os.stat(root + b"/d/locked"), os.stat(root + b"/d"), os.stat(root)
    assert (stat.S_IMODE(locked.st_mode), locked.st_uid, locked.st_mtime_ns) == (0, 1000, MTIME)
    assert (stat.S_IMODE(made.st_mode), made.st_gid, made.st_mtime_ns) == (0o3660, 1001, 5)
    assert attributes(root + b"/d") == {name.decode(): value for name, value in kept}
    assert (stat.S_IMODE(top.st_mode), top.st_mtime_ns) == (0o1777, 6)


def test_nothing_inherits_from_the_target(root: bytes) -> None:
    os.chown(root, 0, 1234)
    os.chmod(root, 0o2777)
    os.setxattr(root, "system.posix_acl_default", acl(99))
    plain = directory(mode=0o750)
    with Target(root, OPTIONS) as target:
        assert target.make_directory(b"d") == ""
        assert target.make_directory(b"d/e") == ""
        assert attributes(root + b"/d") == attributes(root + b"/d/e") == {}
        assert stat.S_IMODE(os.stat(root + b"/d/e").st_mode) == 0o700
        for path in (b"f", b"d/f", b"d/e/f"):
            put(target, path, b"x", mode=0o640)
            put(target, path + b"ull", b"x", mode=0o644)
            assert target.make_special(path + b"ifo", entry(Kind.FIFO, mode=0o640)) == ""
            begun = target.begin_large(path + b"big", regular(b"y"))
            assert not isinstance(begun, str)
            begun.close()
            assert target.finish_large(path + b"big", regular(b"y")) == ""
        for path in (b"d/e", b"d"):
            assert target.finish_directory(path, plain) == ""
    for place, directories, files in os.walk(root):
        for name in directories + files:
            found = os.stat(place + b"/" + name)
            assert attributes(place + b"/" + name) == {}, name
            assert found.st_gid == os.getegid()
            expected = {b"f": 0o640, b"full": 0o644, b"fifo": 0o640, b"fbig": 0o644}.get(name, 0o750)
            assert stat.S_IMODE(found.st_mode) == expected, name


def test_an_existing_directory_loses_attributes_that_the_entry_has_not(root: bytes) -> None:
    os.mkdir(root + b"/d")
    os.setxattr(root + b"/d", "user.old", b"1")
    os.setxattr(root + b"/d", "system.posix_acl_default", acl(99))
    with Target(root, options("if-changed")) as target:
        assert target.make_directory(b"d") == ""
        assert target.finish_directory(b"d", directory(mode=0o750, xattrs=xattrs(user__new=b"2"))) == ""
    assert attributes(root + b"/d") == {"user.new": b"2"}
    assert stat.S_IMODE(os.stat(root + b"/d").st_mode) == 0o750


# -- owners under other numbers


def test_ids_are_mapped_for_users_groups_and_acls(root: bytes) -> None:
    kept = xattrs(system__posix_acl_access=acl(500))
    with Target(root, options(users=((500, 1000), (1000, 2000)))) as target:
        put(target, b"f", b"x", mode=0o660, uid=500, gid=500, xattrs=kept)
        put(target, b"g", b"x", uid=1000, gid=7)
        assert target.make_symlink(b"s", symlink(b"x", uid=7, gid=1000)) == ""
    found = [os.lstat(root + name) for name in (b"/f", b"/g", b"/s")]
    assert [(f.st_uid, f.st_gid) for f in found] == [(1000, 1000), (2000, 7), (7, 2000)]
    assert attributes(root + b"/f") == {"system.posix_acl_access": acl(1000)}
    with Target(root, options("resume", users=((500, 1000), (1000, 2000)))) as target:
        assert not target.wanted(b"f", regular(b"x", mode=0o660, uid=500, gid=500, xattrs=kept))


# -- what is there already


SAME = regular(b"new", mode=0o640, uid=1000, gid=1000, xattrs=xattrs(user__a=b"1"))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False),
        ({"size": 4}, True),
        ({"mtime_ns": MTIME + 1}, True),
        ({"mode": 0o600}, True),
        ({"uid": 1001}, True),
        ({"gid": 1001}, True),
        ({"kind": int(Kind.FIFO)}, True),
        ({"xattrs": ()}, True),
        ({"xattrs": xattrs(user__a=b"2")}, True),
        ({"xattrs": xattrs(user__b=b"1")}, True),
        ({"ctime_ns": 5, "inode": 7, "links": 3}, False),
    ],
)
def test_wanted_compares_all_the_metadata(root: bytes, change: dict[str, object], differs: bool) -> None:
    with Target(root, OPTIONS) as target:
        assert target.write_small(b"f", SAME, b"new") == ""
    fields = {name: getattr(SAME, name) for name in SAME.__struct_fields__}
    other = Entry(**{**fields, **change})  # type: ignore[arg-type]
    for overwrite, expected in [
        ("never", False), ("if-changed", differs), ("resume", differs), ("always", True), ("fresh", True),
    ]:  # fmt: skip
        with Target(root, options(overwrite)) as target:
            assert target.wanted(b"f", other) is expected, overwrite
            assert target.wanted(b"missing", other)
            assert target.wanted(b"no/such/directory", other)


def test_wanted_knows_links_devices_and_hard_links(root: bytes) -> None:
    null = entry(Kind.CHARACTER, rdev=(1 << 32) | 3)
    with Target(root, options("resume")) as target:
        put(target, b"a", b"x")
        assert target.make_link(b"a", b"b", alias(b"a")) == ""
        put(target, b"copy", b"x")
        assert target.make_symlink(b"s", symlink(b"here")) == ""
        assert target.make_special(b"null", null) == ""
        assert not target.wanted(b"b", alias(b"a"))
        assert target.wanted(b"copy", alias(b"a", size=1))
        assert target.wanted(b"b", alias(b"gone"))
        assert not target.wanted(b"s", symlink(b"here", mtime_ns=7))
        assert target.wanted(b"s", symlink(b"there"))
        assert not target.wanted(b"null", null)
        assert target.wanted(b"null", entry(Kind.CHARACTER, rdev=(1 << 32) | 5))


def test_never_keeps_whatever_is_there(root: bytes) -> None:
    Path(os.fsdecode(root + b"/file")).write_text("mine")
    os.makedirs(root + b"/dir/below")
    os.symlink("nowhere", root + b"/link")
    with Target(root, options("never")) as target:
        for path in (b"file", b"dir", b"link"):
            assert not target.wanted(path, regular(b"x"))
            assert "kept" in target.write_small(path, regular(b"x"), b"x")
            assert "kept" in target.make_symlink(path, symlink(b"x"))
            assert "kept" in target.make_special(path, entry(Kind.FIFO))
        assert "kept" in target.make_directory(b"file")
        put(target, b"new", b"x")
        assert "kept" in target.make_link(b"new", b"link", alias(b"new", size=1))
    assert content(root, b"file") == b"mine"
    assert names(root) == {b"file", b"dir", b"link", b"new"}


@pytest.mark.parametrize("overwrite", ["if-changed", "always", "resume"])
def test_overwriting_replaces_whatever_is_there(root: bytes, overwrite: str) -> None:
    for name in (b"dir-to-file", b"dir-to-link", b"dir-to-fifo"):
        os.makedirs(root + b"/" + name + b"/below/deeper")
    for name in (b"file-to-file", b"file-to-dir", b"file-to-link"):
        Path(os.fsdecode(root + b"/" + name)).write_text("old")
    os.symlink("nowhere", root + b"/link-to-dir")
    os.mkfifo(root + b"/fifo-to-file")
    with Target(root, options(overwrite)) as target:
        for path in (b"dir-to-file", b"file-to-file", b"fifo-to-file"):
            put(target, path, b"x")
        for path in (b"dir-to-link", b"file-to-link"):
            assert target.make_symlink(path, symlink(b"x")) == ""
        for path in (b"file-to-dir", b"link-to-dir"):
            assert target.make_directory(path) == ""
        assert target.make_special(b"dir-to-fifo", entry(Kind.FIFO)) == ""
    kinds = {"file": stat.S_ISREG, "dir": stat.S_ISDIR, "link": stat.S_ISLNK, "fifo": stat.S_ISFIFO}
    for name in os.listdir(root):
        assert kinds[name.decode().rpartition("-")[2]](os.lstat(root + b"/" + name).st_mode), name
    assert len(names(root)) == 8


def test_a_fresh_target_removes_no_directory(root: bytes) -> None:
    os.makedirs(root + b"/dir/below")
    with Target(root, OPTIONS) as target:
        assert "kept" in target.write_small(b"dir", regular(b"x"), b"x")
    assert names(root) == {b"dir"}


def test_replacing_a_file_keeps_what_others_hold_of_it(root: bytes) -> None:
    Path(os.fsdecode(root + b"/f")).write_text("old")
    os.link(root + b"/f", root + b"/other")
    with Target(root, options("always")) as target:
        put(target, b"f", b"new")
    assert (content(root, b"f"), content(root, b"other")) == (b"new", b"old")


def test_never_finishes_only_directories_of_its_own_also_after_a_crash(root: bytes) -> None:
    os.mkdir(root + b"/theirs", 0o711)
    with Target(root, options("never")) as target:
        assert target.make_directory(b"theirs") == ""
        assert target.make_directory(b"ours") == ""
    with Target(root, options("never")) as target:
        for path in (b"ours", b"theirs"):
            assert target.make_directory(path) == ""
            assert target.finish_directory(path, directory(mode=0o750)) == ""
        assert target.finish_directory(b"", directory(mode=0o700)) == ""
    modes = [stat.S_IMODE(os.stat(root + name).st_mode) for name in (b"/ours", b"/theirs", b"")]
    assert modes == [0o750, 0o711, 0o777]
    assert attributes(root + b"/ours") == {}


# -- as an ordinary user


def test_a_user_gets_all_but_owners_and_privileges(root: bytes) -> None:
    def restore() -> Notes:
        with Target(root, options()) as target:
            assert target.make_directory(b"d") == ""
            put(target, b"d/mine", b"x", mode=0o6755, uid=NOBODY, gid=NOBODY, xattrs=xattrs(user__u=b"1"))
            put(
                target,
                b"d/roots",
                b"x",
                mode=0o6755,
                uid=0,
                gid=0,
                xattrs=xattrs(trusted__t=b"1", user__u=b"1"),
            )
            put(target, b"d/half", b"x", mode=0o6755, uid=0, gid=NOBODY)
            put(
                target,
                b"d/shared",
                b"x",
                mode=0o660,
                uid=0,
                gid=0,
                xattrs=xattrs(system__posix_acl_access=acl(5)),
            )
            put(target, b"d/locked", b"x", mode=0, uid=NOBODY, gid=NOBODY)
            assert target.make_symlink(b"d/link", symlink(b"x", uid=0)) == ""
            assert target.make_special(b"d/fifo", entry(Kind.FIFO, uid=NOBODY, gid=NOBODY)) == ""
            assert "root" in target.make_special(b"d/null", entry(Kind.CHARACTER, rdev=(1 << 32) | 3))
            assert target.finish_directory(b"d", directory(mode=0o500, uid=0, gid=0)) == ""
            return target.notes

    notes = as_user(restore)
    d = root + b"/d"
    modes = {
        name: stat.S_IMODE(os.lstat(d + b"/" + name).st_mode)
        for name in (b"mine", b"roots", b"half", b"locked")
    }
    assert modes == {b"mine": 0o6755, b"roots": 0o755, b"half": 0o2755, b"locked": 0}
    assert {(os.lstat(d + b"/" + name).st_uid) for name in names(d)} == {NOBODY}
    assert attributes(d + b"/roots") == {"user.u": b"1"}
    assert attributes(d + b"/shared") == {"system.posix_acl_access": acl(5)}
    assert stat.S_IMODE(os.stat(d).st_mode) == 0o500
    assert names(d) == {b"mine", b"roots", b"half", b"shared", b"locked", b"link", b"fifo"}
    assert (notes.owners_not_set, notes.owner_example) == (5, b"d/roots")
    assert (notes.xattrs_not_set, notes.xattr_example) == (1, b"d/roots")
    assert (notes.modes_reduced, notes.mode_example) == (2, b"d/roots")


def test_a_user_can_restore_below_directories_that_lock_him_out_and_resume(root: bytes) -> None:
    foreign = regular(b"x", mode=0o4755, uid=0, gid=0, xattrs=xattrs(trusted__t=b"1"))

    def restore(overwrite: str) -> list[bool]:
        with Target(root, options(overwrite)) as target:
            assert target.make_directory(b"a") == ""
            assert target.make_directory(b"a/b") == ""
            wanted = target.wanted(b"a/b/f", foreign)
            if wanted:
                assert target.write_small(b"a/b/f", foreign, b"x") == ""
            assert target.finish_directory(b"a/b", directory(mode=0)) == ""
            assert target.finish_directory(b"a", directory(mode=0o100)) == ""
            return [wanted]

    assert as_user(restore, "fresh") == [True]
    assert as_user(restore, "resume") == [False]
    assert stat.S_IMODE(os.stat(root + b"/a").st_mode) == 0o100
    assert stat.S_IMODE(os.stat(root + b"/a/b").st_mode) == 0


def test_a_user_sets_the_group_that_he_may_on_every_file(root: bytes) -> None:
    os.chown(root, 0, 1234)
    os.chmod(root, 0o2777)

    def restore() -> int:
        with Target(root, options()) as target:
            for name in (b"a", b"b", b"c"):
                put(target, name, b"x", uid=0, gid=NOBODY, mode=0o2755)
            return target.notes.owners_not_set

    assert as_user(restore) == 3
    for name in (b"/a", b"/b", b"/c"):
        found = os.stat(root + name)
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, 0o2755)


def test_a_user_gives_attributes_to_files_that_he_may_not_write(root: bytes) -> None:
    def restore() -> Notes:
        with Target(root, options()) as target:
            kept = xattrs(user__a=b"1")
            put(target, b"f", b"x", mode=0o444, uid=NOBODY, gid=NOBODY, xattrs=kept)
            assert target.make_directory(b"d") == ""
            locked = directory(mode=0o555, uid=NOBODY, gid=NOBODY, xattrs=kept)
            assert target.finish_directory(b"d", locked) == ""
            return target.notes

    assert as_user(restore) == Notes()
    assert attributes(root + b"/f") == attributes(root + b"/d") == {"user.a": b"1"}


@pytest.mark.parametrize("hindrance", ["acl", "umask"])
def test_neither_default_acl_nor_umask_locks_a_user_out_of_what_he_makes(root: bytes, hindrance: str) -> None:
    def restore() -> Notes:
        if hindrance == "umask":
            os.umask(0o777)
        mine = {"uid": NOBODY, "gid": NOBODY}
        with Target(root, options()) as target:
            for path in (b"d", b"d/e"):
                assert target.make_directory(path) == ""
            put(target, b"d/e/f", b"x", mode=0o640, **mine)
            for path in (b"d/e", b"d"):
                assert target.finish_directory(path, directory(mode=0o750, **mine)) == ""
            return target.notes

    if hindrance == "acl":
        os.setxattr(root, "system.posix_acl_default", acl(99))
    assert as_user(restore) == Notes()
    assert [stat.S_IMODE(os.stat(root + path).st_mode) for path in (b"/d", b"/d/e", b"/d/e/f")] == [
        0o750, 0o750, 0o640,
    ]  # fmt: skip


def test_a_user_may_not_write_where_he_may_not(root: bytes) -> None:
    os.mkdir(root + b"/roots", 0o755)

    def restore() -> list[str]:
        with Target(root, options("always")) as target:
            return [
                target.write_small(b"roots/f", regular(b"x"), b"x"),
                target.finish_directory(b"roots", directory()),
            ]

    assert as_user(restore) == ["Permission denied", "Operation not permitted"]


def test_notes_of_workers_are_merged() -> None:
    notes = Notes(1, b"a", 0, b"", 2, b"m")
    notes.merge(Notes(2, b"b", 3, b"x", 1, b"n"))
    assert notes == Notes(3, b"a", 3, b"x", 3, b"m")


# -- a target that fails


def test_a_full_target_ends_the_restore_and_leaves_no_half_file(place: Path) -> None:
    with (
        mounted("tmpfs", place / "small", "size=256k") as small,
        Target(os.fsencode(small), OPTIONS) as target,
    ):
        data = b"x" * 100_000
        put(target, b"a", data)
        put(target, b"b", data)
        with pytest.raises(TargetError, match=r"restore c: No space left.*same command again"):
            target.write_small(b"c", regular(data), data)
        assert names(os.fsencode(small)) == {b"a", b"b"}
        begun = target.begin_large(b"big", regular(data))
        assert not isinstance(begun, str)
        with begun, pytest.raises(TargetError, match="restore big: No space left"):
            begun.write_range(0, data)


def test_a_read_only_target_ends_the_restore(place: Path) -> None:
    with mounted("tmpfs", place / "ro", "ro") as small, Target(os.fsencode(small), OPTIONS) as target:
        for call in (
            lambda: target.write_small(b"c", regular(b""), b""),
            lambda: target.make_directory(b"d"),
            lambda: target.make_symlink(b"s", symlink(b"x")),
            lambda: target.begin_large(b"b", regular(b"")),
        ):
            with pytest.raises(TargetError, match=r"Read-only.*writable"):
                call()


def test_attributes_that_the_file_system_cannot_hold_are_counted(
    place: Path, target: Target, root: bytes
) -> None:
    put(target, b"f", b"x", xattrs=xattrs(user__big=b"x" * 60_000, user__small=b"1"))
    stored = attributes(root + b"/f")
    assert stored["user.small"] == b"1"
    assert target.notes.xattrs_not_set == 2 - len(stored)
    with mounted("ramfs", place / "none") as bare, Target(os.fsencode(bare), OPTIONS) as other:
        put(other, b"f", b"x", xattrs=xattrs(user__a=b"1", system__posix_acl_access=acl(5)))
        assert other.notes.xattrs_not_set == 2
        assert names(os.fsencode(bare)) == {b"f"}


def test_a_target_that_is_no_directory(root: bytes) -> None:
    Path(os.fsdecode(root + b"/f")).touch()
    for path in (root + b"/f", root + b"/missing"):
        with pytest.raises(TargetError, match="open the target"):
            Target(path, OPTIONS)


# -- depth, descriptors, leftovers


def test_paths_longer_than_the_kernel_takes(root: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    components = [b"%d-" % depth + b"x" * 200 for depth in range(150)]
    with Target(root, OPTIONS) as target:
        for depth in range(1, 151):
            assert target.make_directory(b"/".join(components[:depth])) == ""
        deep = b"/".join(components)
        assert len(deep) > 30_000
        put(target, deep + b"/f", b"deep")
        put(target, b"f", b"high")
        assert target.make_link(deep + b"/f", b"link", alias(deep + b"/f")) == ""
        assert target.make_link(b"f", deep + b"/link", alias(b"f")) == ""
        for depth in range(150, 0, -1):
            assert target.finish_directory(b"/".join(components[:depth]), directory(mtime_ns=depth)) == ""
        assert len(os.listdir("/proc/self/fd")) < before + 80
    assert len(os.listdir("/proc/self/fd")) == before

    fd = os.open(root, os.O_RDONLY)
    for depth, name in enumerate(components, 1):
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        assert os.fstat(fd).st_mtime_ns == depth
    assert os.stat(b"link", dir_fd=fd).st_ino == os.stat(root + b"/f").st_ino
    os.close(fd)
    assert content(root, b"link") == b"deep"


def test_directories_that_fail_to_open_do_not_spoil_those_that_are(root: bytes) -> None:
    chain = b"/".join([b"d"] * 15)
    os.mkdir(root + b"/0")
    for top in range(1, 9):
        os.makedirs(root + b"/%d/" % top + chain)
    with Target(root, OPTIONS) as target:
        put(target, b"0/f", b"x")
        for top in range(1, 9):
            path = b"%d/" % top + chain + b"/missing/f"
            assert "not there" in target.write_small(path, regular(b"x"), b"x")
        put(target, b"0/g", b"x")
    assert names(root + b"/0") == {b"f", b"g"}


def test_leftovers_of_an_interrupted_restore_are_cleaned(root: bytes) -> None:
    with Target(root, options("resume")) as target:
        assert target.make_directory(b"d") == ""
        put(target, b"d/f", b"x")
        begun = target.begin_large(b"d/big", regular(b"12345"))
        assert not isinstance(begun, str)
        begun.close()
        Path(os.fsdecode(root + b"/d/" + PARTIAL + b"123")).touch()
        assert target.clean_partials(b"d") == 2
        assert target.clean_partials(b"") == 0
        assert target.clean_partials(b"missing") == 0
    assert names(root + b"/d") == {b"f"}


def test_processes_share_a_directory(root: bytes) -> None:
    for worker in range(3):
        if not os.fork():
            with Target(root, OPTIONS) as target:
                failures = [
                    target.write_small(b"%d-%d" % (worker, i), regular(b"%d" % i), b"%d" % i)
                    for i in range(200)
                ]
            os._exit(1 if any(failures) else 0)
    assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
    assert names(root) == {b"%d-%d" % (worker, i) for worker in range(3) for i in range(200)}


def test_sync_returns(target: Target) -> None:
    put(target, b"f", b"x")
    target.sync()


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_written_goes_to_the_disk_early(
    target: Target, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """By a descriptor of its own: a failure that is told there is told to `sync` all the same."""
    asked: list[int] = []
    twice = threading.Event()

    def syncfs(descriptor: int) -> None:
        asked.append(descriptor)
        if fails or len(asked) > 1:
            twice.set()
        if fails:
            raise VolumeError("write", "it is broken")

    monkeypatch.setattr(writeback, "INTERVAL_S", 0.001)
    monkeypatch.setattr(writeback, "syncfs", syncfs)
    with target.early_writeback():
        assert twice.wait(60)
        put(target, b"f", b"x")
    assert fails == (len(asked) == 1)
    assert "writeback" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(asked[0])
    target.sync()


@pytest.mark.parametrize("calls", range(1, 9))
def test_killed_at_any_call_a_file_is_whole_or_not_there(root: bytes, calls: int) -> None:
    whole = regular(b"x" * 5000, mode=0o664, uid=1000, gid=1000, xattrs=xattrs(user__a=b"1"))
    child = os.fork()
    if not child:
        left = calls

        def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        with Target(root, OPTIONS) as target:
            for name in ("open", "pwrite", "chown", "setxattr", "chmod", "utime", "close", "rename"):
                setattr(os, name, deadly(getattr(os, name)))
            target.write_small(b"f", whole, b"x" * 5000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert b"f" not in names(root)

    with Target(root, options("resume")) as target:
        assert target.clean_partials(b"") == (calls > 1)
        assert target.wanted(b"f", whole)
        assert target.write_small(b"f", whole, b"x" * 5000) == ""
        assert not target.wanted(b"f", whole)
    assert names(root) == {b"f"}
