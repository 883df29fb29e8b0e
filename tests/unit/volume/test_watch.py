from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.scan import Excludes
from smsnapd.volume.watch import Watcher
from tests.unit.volume.ext4 import as_nobody, loop_ext4
from tests.unit.volume.watched import KINDS, PATIENCE_S, news, watching

pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture(scope="module")
def volume() -> Iterator[Path]:
    """An ext4 of its own, that anybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        with loop_ext4(Path(name), "volume") as point:
            yield point


@pytest.fixture
def root(volume: Path, request: pytest.FixtureRequest) -> Path:
    """A directory somewhere on it: events from its neighbours are nobody's business."""
    path = volume / request.node.name.replace("/", "_")
    path.mkdir()
    return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"changed")


def give_name_to_nameless(directory: Path) -> None:
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(descriptor, b"new")
    # With a descriptor Python calls linkat, which can follow; the path is absolute.
    os.link(f"/proc/self/fd/{descriptor}", directory / "named", src_dir_fd=descriptor, follow_symlinks=True)
    os.close(descriptor)


CHANGES: dict[str, tuple[Callable[[Path], Any], set[bytes]]] = {
    "create": (lambda root: (root / "a" / "new").touch(), {b"a"}),
    "create in root": (lambda root: (root / "new").touch(), {b""}),
    "overwrite": (lambda root: overwrite(root / "a" / "file"), {b"a"}),
    "truncate": (lambda root: os.truncate(root / "a" / "file", 3), {b"a"}),
    "times": (lambda root: os.utime(root / "a" / "file", (1, 1)), {b"a"}),
    "mode": (lambda root: (root / "a" / "file").chmod(0o600), {b"a"}),
    "owner": (lambda root: os.chown(root / "a" / "file", 7, 7), {b"a"}),
    "attribute": (lambda root: os.setxattr(root / "a" / "file", "user.x", b"1"), {b"a"}),
    "mode of a directory": (lambda root: (root / "a" / "b").chmod(0o700), {b"a"}),
    "mode of the root": (lambda root: root.chmod(0o711), {b""}),
    "attribute of a directory": (lambda root: os.setxattr(root / "a" / "b", "user.x", b"1"), {b"a"}),
    "delete": (lambda root: (root / "a" / "file").unlink(), {b"a"}),
    "symlink": (lambda root: (root / "a" / "link").symlink_to("/"), {b"a"}),
    "fifo": (lambda root: os.mkfifo(root / "a" / "fifo"), {b"a"}),
    "hard link": (lambda root: (root / "c" / "link").hardlink_to(root / "a" / "file"), {b"c"}),
    "file renamed": (lambda root: (root / "a" / "file").rename(root / "a" / "other"), {b"a"}),
    "file moved": (lambda root: (root / "a" / "file").rename(root / "c" / "file"), {b"a", b"c"}),
    "file replaced": (lambda root: (root / "a" / "file").rename(root / "a" / "b" / "file"), {b"a", b"a/b"}),
    "mkdir": (lambda root: (root / "a" / "new").mkdir(), {b"a", b"a/new"}),
    "mkdir -p": (lambda root: (root / "x/y/z").mkdir(parents=True), {b"", b"x", b"x/y", b"x/y/z"}),
    "rmdir": (lambda root: (root / "c").rmdir(), {b""}),
    "directory renamed": (lambda root: (root / "a").rename(root / "d"), {b"", b"d", b"d/b"}),
    "directory moved": (lambda root: (root / "a").rename(root / "c" / "a"), {b"", b"c", b"c/a", b"c/a/b"}),
    "nameless": (lambda root: give_name_to_nameless(root / "a"), {b"a"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_hinted_and_no_look_is(root: Path, kind: str, change: str) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "c").mkdir()
    for path in ("a/file", "a/b/file"):
        (root / path).write_bytes(b"content")
    act, covered = CHANGES[change]
    with watching(root, kind) as watcher:
        assert watcher.kind == kind
        for directory, _, files in os.walk(root):
            for name in files:
                Path(directory, name).read_bytes()
        assert not news(watcher)
        act(root)
        assert watcher.wait(PATIENCE_S)
        hints = news(watcher)
        assert {path for path in covered if hints.covers(path)} == covered
        assert b"" not in hints.subtrees
        assert not hints.covers(b"untouched")
        assert hints.events > 0
        assert 0 < hints.first_event_s <= hints.last_event_s
        assert not watcher.gaps
        assert watcher.is_healthy


def test_only_the_directory_of_the_event_is_named(root: Path, kind: str) -> None:
    (root / "a" / "b").mkdir(parents=True)
    with watching(root, kind) as watcher:
        (root / "a" / "b" / "file").touch()
        hints = news(watcher)
        assert (hints.directories, hints.subtrees) == ({b"a/b"}, set())


def test_what_is_taken_is_pending_no_longer_until_it_is_given_back(root: Path, kind: str) -> None:
    with watching(root, kind) as watcher:
        (root / "file").touch()
        hints = news(watcher)
        assert not watcher.take()
        assert not watcher.wait(0)
        watcher.give_back(hints)
        assert watcher.peek().directories == 1
        again = watcher.take()
        assert again == hints


def test_a_mapped_write_is_told_when_the_mapping_ends(root: Path, kind: str) -> None:
    (root / "a").mkdir()
    (root / "a" / "file").write_bytes(bytes(8192))
    with watching(root, kind) as watcher:
        with (root / "a" / "file").open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 8192)
        news(watcher)
        mapped[0:1] = b"x"
        mapped.close()
        assert news(watcher).directories == {b"a"}


def test_a_full_directory_that_moves_in_is_a_subtree_and_watched(volume: Path, root: Path, kind: str) -> None:
    outside = volume / f"outside-{root.name}"
    (outside / "p" / "q").mkdir(parents=True)
    (outside / "p" / "q" / "file").touch()
    with watching(root, kind) as watcher:
        (outside / "p" / "q" / "file").write_bytes(b"nobody asked")
        assert not news(watcher)
        outside.rename(root / "inside")
        hints = news(watcher)
        assert hints.covers(b"")
        assert hints.subtrees == {b"inside"}
        (root / "inside" / "p" / "q" / "file").write_bytes(b"now it matters")
        assert news(watcher).directories == {b"inside/p/q"}


def test_a_directory_that_moves_out_is_told_of_once(volume: Path, root: Path, kind: str) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    outside = volume / f"outside-{root.name}"
    with watching(root, kind) as watcher:
        (root / "a" / "b").rename(outside)
        assert news(watcher).directories == {b"a"}
        (outside / "c" / "file").touch()
        assert not news(watcher)
        # Another one takes its name, and then it comes back beside it.
        (root / "a" / "b" / "new").mkdir(parents=True)
        assert news(watcher).covers(b"a/b/new")
        (root / "a" / "b" / "new" / "file").touch()
        assert news(watcher).covers(b"a/b/new")
        outside.rename(root / "back")
        assert news(watcher).covers(b"back/c")
        (root / "back" / "c" / "file2").touch()
        assert news(watcher).directories == {b"back/c"}
        (root / "a" / "b" / "new" / "file2").touch()
        assert news(watcher).directories == {b"a/b/new"}


def test_a_directory_keeps_no_watch_when_it_has_moved_out(volume: Path, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    with watching(root, "inotify") as watcher:
        emitter: Any = watcher._observer and watcher._observer.emitter
        (root / "a").rename(volume / f"outside-{root.name}")
        news(watcher)
        deadline = time.monotonic() + PATIENCE_S
        while len(emitter._reader._watch_for_wd) > 1:
            assert time.monotonic() < deadline, "what has moved out is watched still"
            threading.Event().wait(0.05)
        assert not emitter._tree.has_detached


def test_names_change_hands_faster_than_anybody_can_follow(root: Path, kind: str) -> None:
    with watching(root, kind) as watcher:
        for number in range(200):
            (root / "a" / "x").mkdir(parents=True)
            (root / "a").rename(root / f"b{number}")
        assert news(watcher).covers(b"b7/x")
        for number in range(200):
            (root / f"b{number}" / "x" / "file").touch()
        assert news(watcher).directories == {b"b%d/x" % number for number in range(200)}


def test_two_directories_swap_again_and_again(root: Path, kind: str) -> None:
    for name in ("a", "b"):
        (root / name / "deep").mkdir(parents=True)
    with watching(root, kind) as watcher:
        for _ in range(51):
            (root / "a").rename(root / "c")
            (root / "b").rename(root / "a")
            (root / "c").rename(root / "b")
        hints = news(watcher)
        assert hints.subtrees >= {b"a", b"b"}
        (root / "a" / "deep" / "file").touch()
        assert news(watcher).directories == {b"a/deep"}
        (root / "b" / "deep" / "file").touch()
        assert news(watcher).directories == {b"b/deep"}


def test_deep_directories_made_in_a_hurry_are_all_watched(root: Path, kind: str) -> None:
    script = "for i in $(seq 40); do mkdir -p $i/a/b/c/d; : > $i/a/b/c/d/file; : > $i/a/file; done"
    with watching(root, kind) as watcher:
        makers = [
            subprocess.Popen(["sh", "-c", f"mkdir {maker}; cd {maker}; {script}"], cwd=root)
            for maker in (1, 2)
        ]
        assert [maker.wait() for maker in makers] == [0, 0]
        hints = news(watcher)
        below = [
            os.fsencode(os.path.relpath(path, root)) for path, _, _ in os.walk(root) if path != str(root)
        ]
        assert len(below) == 2 + 2 * 40 * 5
        assert [path for path in below if not hints.covers(path)] == []
        for path in below:
            (root / os.fsdecode(path) / "later").touch()
        assert news(watcher).directories == set(below)
        assert not watcher.gaps


def test_excluded_directories_and_names_are_nobodys_business(root: Path, kind: str) -> None:
    for name in ("state/in", "cache/in", "kept/cache", "kept/x"):
        (root / name).mkdir(parents=True)
    (root / "kept" / "x" / "old.log").touch()
    status = (root / "state").stat()
    excluded = Excludes(["cache/", "*.log"], [(status.st_dev, status.st_ino)])
    with watching(root, kind, excluded) as watcher:
        (root / "state" / "in" / "file").touch()
        (root / "state" / "file").touch()
        (root / "cache" / "in" / "file").touch()
        (root / "kept" / "cache" / "file").touch()
        (root / "kept" / "x" / "old.log").write_bytes(b"on and on")
        assert not news(watcher)
        (root / "kept" / "x" / "file").touch()
        assert news(watcher).directories == {b"kept/x"}
        # Where the name comes or goes, the directory's own times change.
        (root / "kept" / "x" / "new.log").touch()
        assert news(watcher).directories == {b"kept/x"}
        (root / "kept" / "cache").rename(root / "kept" / "wanted")
        assert news(watcher).covers(b"kept/wanted")
        (root / "kept" / "wanted" / "file").touch()
        assert news(watcher).directories == {b"kept/wanted"}
        (root / "state").rename(root / "kept" / "elsewhere")
        news(watcher)
        (root / "kept" / "elsewhere" / "in" / "file").touch()
        assert not news(watcher)


def test_other_mounts_are_left_alone(root: Path, kind: str, tmp_path: Path) -> None:
    for name in ("bound", "real/sub", "other"):
        (root / name).mkdir(parents=True)
    with loop_ext4(tmp_path, "other-volume") as other:
        subprocess.run(["mount", "--bind", root / "real", root / "bound"], check=True)
        subprocess.run(["mount", "--bind", other, root / "other"], check=True)
        try:
            with watching(root, kind) as watcher:
                (root / "other" / "file").touch()
                assert not news(watcher)
                (root / "bound" / "sub" / "file").touch()
                assert news(watcher).directories == {b"real/sub"}
                (root / "real" / "sub" / "file2").touch()
                assert news(watcher).directories == {b"real/sub"}
        finally:
            subprocess.run(["umount", root / "bound", root / "other"], check=True)


def test_a_volume_is_watched_through_a_bind_mount_of_a_part_of_it(root: Path, kind: str) -> None:
    for name in ("part/a", "beside", "elsewhere"):
        (root / name).mkdir(parents=True)
    subprocess.run(["mount", "--bind", root / "part", root / "elsewhere"], check=True)
    try:
        with watching(root / "elsewhere", kind) as watcher:
            (root / "beside" / "file").touch()
            assert not news(watcher)
            (root / "part" / "a" / "file").touch()
            assert news(watcher).directories == {b"a"}
            (root / "elsewhere" / "file").touch()
            assert news(watcher).directories == {b""}
    finally:
        subprocess.run(["umount", root / "elsewhere"], check=True)


def test_a_name_that_ends_like_the_kernels_mark_of_deletion(root: Path, kind: str) -> None:
    odd = root / "plain (deleted)"
    odd.mkdir()
    with watching(root, kind) as watcher:
        (odd / "file").touch()
        assert news(watcher).directories == {b"plain (deleted)"}
        directory = os.open(odd, os.O_RDONLY)
        (odd / "file").unlink()
        odd.rmdir()
        assert news(watcher).covers(b"")
        os.close(directory)


def test_names_that_are_no_text(root: Path, kind: str) -> None:
    name = os.path.join(os.fsencode(root), b"\xff\n\\")
    with watching(root, kind) as watcher:
        os.mkdir(name)
        os.mkdir(name + b"/\xfe ")
        news(watcher)
        os.close(os.open(name + b"/\xfe /x", os.O_CREAT))
        assert news(watcher).directories == {b"\xff\n\\/\xfe "}


def test_a_path_longer_than_the_kernel_can_tell_is_covered_from_above(root: Path) -> None:
    directory = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=directory)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    deep = b"/".join([b"d" * 250] * 20)
    with watching(root, "fanotify") as watcher:
        os.close(os.open("file", os.O_CREAT, dir_fd=directory))
        hints = news(watcher)
        assert hints.covers(deep)
        assert b"" not in hints.subtrees
    with watching(root, "inotify", poll_interval_s=0.1) as watcher:
        assert watcher.wait(PATIENCE_S)
        assert watcher.take().covers(deep)
        assert not watcher.is_healthy
        assert watcher.unwatched == 1
        assert "polled" in watcher.gaps[0].reason
    os.close(directory)


def test_auto_takes_fanotify_where_it_may(root: Path) -> None:
    with watching(root) as watcher:
        assert watcher.kind == "fanotify"
        assert "whole file system" in watcher.reason


def test_auto_takes_inotify_from_the_unprivileged_and_says_why(root: Path) -> None:
    root.chmod(0o777)
    with as_nobody(), watching(root) as watcher:
        assert watcher.kind == "inotify"
        assert "fanotify" in watcher.reason
        assert "not permitted" in watcher.reason
        (root / "file").touch()
        assert news(watcher).directories == {b""}
        with pytest.raises(VolumeError, match="fanotify"):
            Watcher().start(os.fsencode(root), "fanotify")


@pytest.mark.parametrize("kind", ["auto", "fanotify", "inotify", "poll"])
def test_no_directory_no_watcher(root: Path, kind: Any) -> None:
    (root / "file").touch()
    for path in (root / "none", root / "file"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(VolumeError, match="watch"):
            Watcher().start(os.fsencode(path), kind)
        assert len(os.listdir("/proc/self/fd")) == before


def test_polling_has_everything_looked_at_and_invents_no_event(root: Path) -> None:
    with watching(root, "poll", poll_interval_s=0.05) as watcher:
        assert watcher.wait(PATIENCE_S)
        hints = watcher.take()
        assert hints.subtrees == {b""}
        assert (hints.events, hints.last_event_s) == (0, 0.0)
        assert watcher.wait(PATIENCE_S)
        assert not watcher.catch_up(0.01)
        assert watcher.is_healthy


def test_a_stopped_watcher_leaves_nothing_behind(root: Path, kind: str) -> None:
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with watching(root, kind) as watcher:
        (root / "file").touch()
        assert watcher.catch_up(PATIENCE_S)
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not watcher.is_healthy
    assert not watcher.catch_up(0.01)
    assert watcher.take().directories == {b""}
    watcher.stop()


def test_a_watcher_at_rest_sleeps(tmp_path: Path, kind: str) -> None:
    def switches() -> int:
        count = 0
        for thread in threading.enumerate():
            if thread.name.startswith("watch-"):
                status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
                count += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return count

    def switches_in_a_second() -> int:
        before = switches()
        threading.Event().wait(1.0)
        return switches() - before

    # On a file system of its own: what others do on theirs wakes nobody here.
    with loop_ext4(tmp_path, "own") as point, watching(point, kind) as watcher:
        (point / "file").touch()
        news(watcher)
        # A thread that polls wakes far more often than this in every second; one that sleeps does so in one
        # of them at least, however busy the machine is with others.
        fewest = min(switches_in_a_second() for _ in range(10))
        assert fewest <= 10


def test_the_volume_can_be_unmounted_and_that_is_no_silence(tmp_path: Path, kind: str) -> None:
    with loop_ext4(tmp_path, "own") as point, watching(point, kind) as watcher:
        (point / "file").touch()
        assert news(watcher).directories == {b""}
        subprocess.run(["umount", point], check=True)
        assert watcher.wait(PATIENCE_S)
        assert watcher.gaps
        subprocess.run(["mount", "-o", "loop", tmp_path / "own.img", point], check=True)
        # It may have begun on the bare mount point, and has to notice the mount then.
        watcher.take()
        while not watcher.take().covers(b""):
            (point / "file").touch()
            watcher.wait(0.1)
        assert watcher.kind == kind
        assert all("unmounted" in gap.reason or "place of" in gap.reason for gap in watcher.gaps)


def test_two_directories_that_change_places_are_both_watched_still(root: Path, kind: str) -> None:
    for name in "ab":
        (root / name / "in").mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    with watching(root, kind) as watcher:
        for _ in range(3):
            done = libc.renameat2(-100, os.fsencode(root / "a"), -100, os.fsencode(root / "b"), 2)  # EXCHANGE
            assert done == 0, os.strerror(ctypes.get_errno())
            threading.Event().wait(1.5)  # a watch that was let go of would be taken away by then
            news(watcher)
            for name in ("a", "b", "a/in", "b/in"):
                (root / name / "file").touch()
                assert news(watcher).covers(os.fsencode(name)), name
                (root / name / "file").unlink()
                news(watcher)
