from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import bytes_in_use, find_mount, mount_points_below, syncfs
from tests.unit.volume.ext4 import loop_ext4

pytestmark = [pytest.mark.root, pytest.mark.loop]


def test_a_loop_mount_is_found_with_its_uuid(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "a volume", "loop,nosuid,noatime") as point:
        inside = point / "deep" / "er"
        inside.mkdir(parents=True)
        mount = find_mount(os.fsencode(inside))
        status = point.stat()
        assert mount.device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        assert mount.mount_point == os.fsencode(point)  # its space is \040 in mountinfo
        assert (mount.root, mount.fs_type) == (b"/", "ext4")
        assert {"nosuid", "noatime"} <= set(mount.options)
        assert mount.super_options[0] == "rw"
        shown = subprocess.run(
            ["blkid", "-p", "-o", "value", "-s", "UUID", tmp_path / "a volume.img"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        assert mount.filesystem_uuid in (shown, "")
        if os.uname().release >= "6.9" or Path("/dev/disk/by-uuid").exists():
            assert mount.filesystem_uuid == shown


def test_of_two_mounts_at_one_point_the_upper_counts(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
        try:
            mount = find_mount(os.fsencode(point))
        finally:
            subprocess.run(["umount", point], check=True)
        assert (mount.fs_type, mount.filesystem_uuid) == ("tmpfs", "")
        assert find_mount(os.fsencode(point)).fs_type == "ext4"


def test_a_mount_hidden_under_another_does_not_mislead(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        hidden = point / "below"
        hidden.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", hidden], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", point], check=True)
        try:
            hidden.mkdir()
            assert find_mount(os.fsencode(hidden)).mount_point == os.fsencode(point)
        finally:
            subprocess.run(["umount", point], check=True)
            subprocess.run(["umount", hidden], check=True)


def test_mount_points_below_are_relative(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        inner = point / "a" / "b\\c d"
        inner.mkdir(parents=True)
        subprocess.run(["mount", "--bind", point, inner], check=True)
        try:
            assert mount_points_below(os.fsencode(point)) == {b"a/b\\c d"}
            assert find_mount(os.fsencode(inner)).mount_point == os.fsencode(inner)
        finally:
            subprocess.run(["umount", inner], check=True)
        assert mount_points_below(os.fsencode(point)) == frozenset()


def test_a_path_that_is_not_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="No such file") as caught:
        find_mount(os.fsencode(tmp_path / "absent"))
    assert caught.value.hint


def test_syncfs_writes_and_refuses_a_closed_descriptor(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    syncfs(descriptor)
    os.close(descriptor)
    with pytest.raises(VolumeError, match="Bad file descriptor"):
        syncfs(descriptor)


def test_what_a_whole_file_system_holds_is_known_about(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as root:
        (root / "file").write_bytes(bytes(3_000_000))
        os.sync()
        found = bytes_in_use(bytes(root))
        assert found is not None
        assert 3_000_000 <= found < 8_000_000
        (root / "below").mkdir()
        assert bytes_in_use(bytes(root / "below")) is None
    assert bytes_in_use(bytes(tmp_path)) is None
