from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.tree import Tree
from tests.unit.volume.ext4 import loop_ext4


def deep_directory(root: Path, depth: int) -> bytes:
    """Make directories one in the other, with paths far longer than PATH_MAX; the path of the deepest."""
    name = "d" * 200
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor), "wb") as file:
        file.write(b"found")
    os.symlink("away", "link", dir_fd=descriptor)
    os.close(descriptor)
    return b"/".join([name.encode()] * depth)


def content(tree: Tree, path: bytes) -> bytes:
    with open(tree.open_file(path), "rb") as file:
        return file.read()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_are_opened_and_looked_at_relative_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_bytes(b"x")
    (tmp_path / "a" / "l").symlink_to("b/f")
    with Tree(os.fsencode(tmp_path)) as tree:
        assert content(tree, b"a/b/f") == b"x"
        assert tree.stat(b"a/b/f").st_size == 1
        assert tree.stat(b"").st_ino == tmp_path.stat().st_ino
        assert tree.readlink(b"a/l") == b"b/f"
        assert os.listdir(tree.open_directory(b"a/b")) == ["f"]
        with pytest.raises(FileNotFoundError):
            tree.open_directory(b"a/absent")


@pytest.mark.parametrize("path", [b"link/f", b"link", b"d/up/d/f"])
def test_no_symbolic_link_is_followed(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    (tmp_path / "d" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to("d")
    with Tree(os.fsencode(tmp_path)) as tree:
        with pytest.raises(OSError) as caught:
            tree.open_file(path)
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_paths_beyond_path_max_work_with_few_descriptors(tmp_path: Path) -> None:
    path = deep_directory(tmp_path, 60)
    before = open_descriptors()
    with Tree(os.fsencode(tmp_path), kept_descriptors=8) as tree:
        for _ in range(2):
            assert content(tree, path + b"/file") == b"found"
            assert tree.readlink(path + b"/link") == b"away"
            assert tree.stat(path.rpartition(b"/")[0]).st_nlink == 3
        assert open_descriptors() <= before + 9
    assert open_descriptors() == before
    subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)


def test_a_failed_look_up_leaves_the_tree_usable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(name.encode())
    with Tree(os.fsencode(tmp_path), kept_descriptors=1) as tree:
        assert content(tree, b"a/f") == b"a"
        with pytest.raises(FileNotFoundError):
            tree.open_directory(b"b/absent")
        assert content(tree, b"a/f") == b"a"
        assert content(tree, b"b/f") == b"b"


def test_forget_sees_a_directory_that_took_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"old")
    with Tree(os.fsencode(tmp_path)) as tree:
        assert content(tree, b"a/f") == b"old"
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f").write_bytes(b"new")
        tree.forget()
        assert content(tree, b"a/f") == b"new"


def test_a_fifo_does_not_hang_and_access_times_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "f").write_bytes(b"x")
    os.utime(tmp_path / "f", ns=(1, 2))
    with Tree(os.fsencode(tmp_path)) as tree:
        os.close(tree.open_file(b"fifo"))
        assert content(tree, b"f") == b"x"
    assert (tmp_path / "f").stat().st_atime_ns == 1


def test_a_root_that_is_no_directory_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(VolumeError, match="Not a directory") as caught:
        Tree(os.fsencode(tmp_path / "f"))
    assert caught.value.hint


@pytest.mark.root
@pytest.mark.loop
def test_other_file_systems_and_bind_mounts_are_not_entered(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        for name in ("tmpfs", "bound", "a"):
            (point / name).mkdir()
        (point / "a" / "f").write_bytes(b"x")
        subprocess.run(["mount", "-t", "tmpfs", "none", point / "tmpfs"], check=True)
        subprocess.run(["mount", "--bind", point / "a", point / "bound"], check=True)
        try:
            with Tree(os.fsencode(point)) as tree:
                assert tree.is_mount_point(b"bound")
                for name in (b"tmpfs", b"bound"):
                    with pytest.raises(OSError) as caught:
                        tree.open_directory(name)
                    assert caught.value.errno == errno.EXDEV
                assert content(tree, b"a/f") == b"x"
        finally:
            subprocess.run(["umount", point / "tmpfs", point / "bound"], check=True)
