from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from smsnapd.model import Xattr
from smsnapd.volume.attributes import ACL_ACCESS, ACL_DEFAULT, Owners, acl_text, name_target, read_xattrs
from tests.unit.volume.ext4 import loop_ext4

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # vfs_cap_data: CAP_NET_RAW, effective


@pytest.mark.root
@pytest.mark.loop
def test_all_namespaces_are_read_sorted_from_files_and_names(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        file = point / "f"
        file.touch()
        given = {
            "user.z": b"",
            "user.a=b%c": b"q\0\nz",
            "trusted.t": b"\xff" * 300,
            "security.capability": CAPABILITY,
        }
        for name, value in given.items():
            os.setxattr(file, name, value)
        subprocess.run(["setfacl", "-m", "u:1000:r--", file], check=True)
        expected = sorted(Xattr(name.encode(), value) for name, value in given.items())
        descriptor = os.open(file, os.O_RDONLY)
        directory = os.open(point, os.O_RDONLY)
        try:
            read = read_xattrs(descriptor)
            assert read_xattrs(name_target(directory, b"f")) == read
            assert read_xattrs(name_target(directory, b".")) == ()
        finally:
            os.close(descriptor)
            os.close(directory)
        assert [xattr for xattr in read if xattr.name != ACL_ACCESS] == expected
        assert [xattr.name for xattr in read] == sorted(xattr.name for xattr in read)
        assert ACL_ACCESS in [xattr.name for xattr in read]


@pytest.mark.root
@pytest.mark.loop
def test_links_and_special_files_have_attributes_of_their_own(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        (point / "f").touch()
        os.setxattr(point / "f", "trusted.of", b"file")
        (point / "l").symlink_to("f")
        os.setxattr(point / "l", "trusted.of", b"link", follow_symlinks=False)
        os.mkfifo(point / "p")
        os.setxattr(point / "p", "trusted.of", b"fifo")
        directory = os.open(point, os.O_RDONLY)
        try:
            assert read_xattrs(name_target(directory, b"l")) == (Xattr(b"trusted.of", b"link"),)
            assert read_xattrs(name_target(directory, b"p")) == (Xattr(b"trusted.of", b"fifo"),)
            with pytest.raises(FileNotFoundError):
                read_xattrs(name_target(directory, b"absent"))
        finally:
            os.close(directory)


def test_a_file_system_without_attributes_has_none() -> None:
    with open("/proc/self/status", "rb") as file:
        assert read_xattrs(file.fileno()) == ()


@pytest.mark.parametrize(
    ("settings", "attribute"),
    [
        (["-m", "u:1000:r--,u:3000000000:rwx,g:77:-w-,m::rw-,o::---"], ACL_ACCESS),
        (["-d", "-m", "u::rwx,g::r-x,o::---,u:0:--x"], ACL_DEFAULT),
    ],
)
@pytest.mark.root
@pytest.mark.loop
def test_acls_read_as_getfacl_prints_them(tmp_path: Path, settings: list[str], attribute: bytes) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        subprocess.run(["setfacl", *settings, point], check=True)
        printed = subprocess.run(
            ["getfacl", "-ncE", "-d" if attribute == ACL_DEFAULT else "-a", point],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        directory = os.open(point, os.O_RDONLY)
        value = dict(read_xattrs(directory))[attribute]
        os.close(directory)
    assert acl_text(value) == printed.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    "value",
    [b"", b"\2\0\0", b"\1\0\0\0", b"\2\0\0\0\1", struct.pack("<IHHI", 2, 0x40, 7, 0)],
    ids=["empty", "short", "version", "cut entry", "unknown tag"],
)
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="POSIX ACL"):
        acl_text(value)


def test_owners_are_named_or_empty() -> None:
    owners = Owners()
    for _ in range(2):
        assert (owners.user(0), owners.group(0)) == (b"root", b"root")
        assert (owners.user(3_999_999_999), owners.group(3_999_999_999)) == (b"", b"")
