from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from smsnapd.model import BLOCK, Entry, Flag, Kind, Segment, Xattr
from smsnapd.volume.attributes import ACL_ACCESS
from smsnapd.volume.tarball.header import header

RECENT = 1_795_447_818_107_407_614


def entry(name: bytes = b"f", kind: int = Kind.REGULAR, **more: object) -> Entry:
    values: dict[str, object] = {"mode": 0o644, "uid": 1000, "gid": 100, "mtime_ns": RECENT, **more}
    return Entry(name, kind, **values)  # type: ignore[arg-type]


def parsed(block: bytes) -> tarfile.TarInfo:
    """What Python's tarfile, which has its own reading of the standard, makes of a header."""
    assert len(block) % BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(block), errors="surrogateescape", encoding="utf-8") as archive:
        member = archive.next()
    assert member is not None
    return member


def listed(stream: bytes, *options: str) -> str:
    """What GNU tar lists."""
    result = subprocess.run(
        ["tar", "--numeric-owner", "--full-time", "--utc", *options, "-tvf", "-"],
        input=stream + bytes(1024), check=True, capture_output=True,
        env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert result.stderr == b""
    return result.stdout.decode("utf-8", "surrogateescape")


def test_a_plain_file_takes_three_blocks_and_one_if_its_time_is_whole() -> None:
    assert len(header(b"a/f", entry(size=5), b"u", b"g")) == 3 * BLOCK
    assert len(header(b"a/f", entry(mtime_ns=RECENT // 10**9 * 10**9), b"u", b"g")) == BLOCK


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"f", Kind.REGULAR),
        (b"a/" * 49 + b"ff", Kind.REGULAR),
        (b"a/" * 50 + b"f", Kind.REGULAR),
        (b"x" * 255, Kind.REGULAR),
        (b"y/" * 3000 + b"f", Kind.REGULAR),
        ("ü€".encode(), Kind.REGULAR),
        (b"n\xff\xe9", Kind.REGULAR),
        (b"new\nline =7 \x01", Kind.REGULAR),
        (b"-rf", Kind.FIFO),
        (b"d" * 99, Kind.DIRECTORY),
        (b"d" * 100, Kind.DIRECTORY),
    ],
)
def test_any_path_is_carried(path: bytes, kind: Kind) -> None:
    member = parsed(header(path, entry(path.rpartition(b"/")[2], kind), b"u", b"g"))
    assert member.name.encode("utf-8", "surrogateescape") == path


@pytest.mark.parametrize("time_ns", [
    0, 1, -1, -1_500_000_000, -1_000_000_000, RECENT, 10**18 - 1, 10**18, 10**18 + 5 * 10**8,
    (1 << 33) * 10**9 - 1, (1 << 33) * 10**9, 4_000_000_000_000_000_001, -(1 << 31) * 10**9 - 7,
])  # fmt: skip
def test_any_time_is_carried_to_the_nanosecond(time_ns: int) -> None:
    for kind in (Kind.REGULAR, Kind.FIFO):
        member = parsed(header(b"f", entry(kind=kind, mtime_ns=time_ns), b"u", b"g"))
        text = member.pax_headers.get("mtime")
        if text is None:
            assert member.mtime * 10**9 == time_ns
        else:
            seconds, _, fraction = text.partition(".")
            assert len(fraction) in (0, 9)
            sign = -1 if text.startswith("-") else 1
            assert int(seconds) * 10**9 + sign * int(fraction or 0) == time_ns


@pytest.mark.parametrize("owner", [0, 1000, 0o7777777, 0o10000000, 4_294_967_294])
@pytest.mark.parametrize("name", [b"", b"ec2-user", b"n" * 31, b"n" * 32, "ünal".encode()])
def test_any_owner_is_carried(owner: int, name: bytes) -> None:
    member = parsed(header(b"f", entry(uid=owner, gid=owner), name, name))
    assert (member.uid, member.gid) == (owner, owner)
    assert (member.uname.encode(), member.gname.encode()) == (name, name)


def test_checksums_are_right_over_all_modes() -> None:
    for mode in range(0, 0o10000, 5):
        assert parsed(header(b"f", entry(mode=mode), b"u", b"g")).mode == mode


def test_kinds_are_what_gnu_tar_lists() -> None:
    stream = b"".join(
        header(path, made, b"", b"")
        for path, made in [
            (b"", entry(b"", Kind.DIRECTORY, mode=0o1755)),
            (b"c", entry(b"c", Kind.CHARACTER, rdev=1 << 32 | 3)),
            (b"d", entry(b"d", Kind.BLOCK, rdev=4095 << 32 | 1_048_575)),
            (b"e", entry(b"e", size=0, mode=0o6755)),
            (b"g", entry(b"g", flags=Flag.ALIAS, target=b"e", size=77)),
            (b"l", entry(b"l", Kind.SYMLINK, target=b"t" * 101, size=101)),
            (b"p", entry(b"p", Kind.FIFO)),
            (b"q", entry(b"q", Kind.SYMLINK, target=b"\xff")),
        ]
    )
    when = "2026-11-23 15:30:18.107407614"
    lines = [" ".join(line.split()) for line in listed(stream).splitlines()]
    assert lines == [
        f"drwxr-xr-t 1000/100 0 {when} ./",
        f"crw-r--r-- 1000/100 1,3 {when} c",
        f"brw-r--r-- 1000/100 4095,1048575 {when} d",
        f"-rwsr-sr-x 1000/100 0 {when} e",
        f"hrw-r--r-- 1000/100 0 {when} g link to e",
        f"lrw-r--r-- 1000/100 0 {when} l -> {'t' * 101}",
        f"prw-r--r-- 1000/100 0 {when} p",
        f"lrw-r--r-- 1000/100 0 {when} q -> \\377",
    ]


@pytest.mark.parametrize("size", [0, 1, 8 * 1024**3 - 1, 8 * 1024**3, 1 << 45])
def test_any_size_is_carried(size: int) -> None:
    assert parsed(header(b"f", entry(size=size), b"u", b"g")).size == size


def test_attributes_are_records_that_tell_names_from_values() -> None:
    xattrs = (
        Xattr(b"security.capability", b"\1\0\0\2"),
        Xattr(ACL_ACCESS, b"\2\0\0\0" + b"\1\0\6\0\xff\xff\xff\xff"),
        Xattr(b"user.%=", b"=\n\0"),
    )
    block = header(b"f", entry(xattrs=xattrs), b"u", b"g")
    assert b"36 SCHILY.xattr.security.capability=\1\0\0\2\n"[2:] in block
    assert b"SCHILY.acl.access=user::rw-\n\n" in block
    assert b"SCHILY.xattr.user.%25%3D==\n\0\n" in block
    assert len(header(b"g", entry(xattrs=xattrs, flags=Flag.ALIAS, target=b"f"), b"u", b"g")) == 3 * BLOCK


def test_an_acl_that_cannot_be_understood_goes_as_it_is() -> None:
    block = header(b"f", entry(xattrs=(Xattr(ACL_ACCESS, b"\x09odd"),)), b"u", b"g")
    assert b"SCHILY.xattr.system.posix_acl_access=\x09odd\n" in block


@pytest.mark.parametrize("name", [b"sparse", "ü".encode() * 90, b"n" * 101])
def test_a_sparse_file_is_that_of_gnu_tar(tmp_path: Path, name: bytes) -> None:
    size = 9 * 1024**3 + 1
    segments = (Segment(4096, 8192), Segment(9 * 1024**3 - 4096, 4097))
    data = b"a" * 8192 + b"b" * 4097
    made = entry(name, flags=Flag.SPARSE, size=size, segments=segments)
    stream = header(b"d/" + name, made, b"", b"") + data + bytes(-len(data) % BLOCK)
    assert f" {size} " in listed(stream)
    subprocess.run(["tar", "-xf", "-", "-C", tmp_path], input=stream + bytes(1024), check=True)
    with open(bytes(tmp_path) + b"/d/" + name, "rb") as file:
        assert file.seek(0, 2) == size
        for segment, letter in zip(segments, (b"a", b"b"), strict=True):
            file.seek(segment.offset - 1)
            assert file.read(segment.length + 1) == b"\0" + letter * segment.length


def test_the_map_of_many_segments_fills_whole_blocks() -> None:
    segments = tuple(Segment(number * 8192, 4096) for number in range(1000))
    made = entry(flags=Flag.SPARSE, size=1000 * 8192, segments=segments)
    stream = header(b"f", made, b"", b"") + bytes(1000 * 4096)
    with tarfile.open(fileobj=io.BytesIO(stream + bytes(1024))) as archive:
        member = archive.next()
        assert member is not None and member.size == 1000 * 8192
        found = member.sparse  # type: ignore[attr-defined]
    assert [Segment(*pair) for pair in found] == [*segments, Segment(1000 * 8192, 0)]


def test_the_fast_way_and_the_general_one_agree() -> None:
    """An attribute that adds a record forces the general way; without its record both are the same."""
    for kind, size in itertools.product((Kind.REGULAR, Kind.DIRECTORY), (0, 4096)):
        plain = header(b"a/b", entry(kind=kind, size=size), b"u", b"g")
        general = header(b"a/b", entry(kind=kind, size=size, xattrs=(Xattr(b"user.x", b"1"),)), b"u", b"g")
        assert plain[-BLOCK:] == general[-BLOCK:]
        assert plain[BLOCK : BLOCK + 30] == general[BLOCK : BLOCK + 30]
