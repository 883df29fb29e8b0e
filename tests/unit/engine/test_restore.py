"""What a restore removes, what it leaves alone, and that a dry run says the same."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.popen_fork  # noqa: F401 (loaded here: nobody may not read where it lies)
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smsnapd.engine.restore import worklist
from smsnapd.engine.restore.run import RestoreOutcome
from smsnapd.errors import TargetError, UsageError
from tests.property.observed import differences, observe
from tests.property.protected import Protected
from tests.unit.engine.test_backup_races import NOBODY, as_nobody, give_away

MIB = 1024 * 1024


@pytest.fixture
def on_volume(protect: Callable[..., Protected], tmp_path: Path) -> Protected:
    """The repository and the index lie on the volume itself."""
    (tmp_path / "volume" / "backups").mkdir(parents=True)
    made = protect((tmp_path / "volume" / "backups" / "repository").as_uri())
    made.state_dir = tmp_path / "volume" / ".state"
    return made


@contextlib.contextmanager
def tmpfs(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


# --- several workers


def grow(top: Path) -> None:
    """Directories in directories, some closed to who is not root, with files, links and a further name."""
    for number in range(40):
        inner = top / f"{number % 4}" / f"{number}" / "deep" / "deeper"
        inner.mkdir(parents=True)
        (inner / "file").write_bytes(b"%d" % number)
        (inner / "link").symlink_to("file")
        os.link(inner / "file", top / f"{number % 4}" / f"further-{number}")
    for number in range(40):
        place = top / f"{number % 4}" / f"{number}"
        (place / "deep" / "deeper").chmod(0o2750)
        (place / "deep").chmod((0o000, 0o411, 0o555, 0o700)[number % 4])
        os.utime(place / "deep", ns=(10**18 + number, 10**18 + number))


@pytest.mark.root
def test_several_workers_make_and_close_directories_for_whom_modes_count(
    on_disk: Protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worklist, "DIRECTORIES_PER_JOB", 3)
    monkeypatch.setattr(worklist, "LINKS_PER_JOB", 3)
    grow(on_disk.root)
    give_away(tmp_path)
    for place in on_disk.root.rglob("further-*"):
        os.chown(place, NOBODY, NOBODY)
    on_disk.backup()
    before = observe(on_disk.root)
    back = tmp_path / "back"
    give_away(tmp_path)
    tmp_path.chmod(0o777)
    outcome = as_nobody(lambda: on_disk.restore(back, pool=True, workers=3))
    assert (outcome.not_restored, outcome.notes) == ((), ())
    assert differences(before, observe(back)) == []


def test_a_directory_is_finished_by_who_made_it_where_it_cannot_be_marked(
    on_disk: Protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(worklist, "DIRECTORIES_PER_JOB", 1)
    for number in range(40):
        (on_disk.root / f"{number}").mkdir(mode=0o711)
    on_disk.backup()
    before = observe(on_disk.root)
    back = tmp_path / "back"
    back.mkdir()
    (back / "mine").write_bytes(b"mine")
    with monkeypatch.context() as without:
        without.setattr(os, "setxattr", refuse)
        without.setattr(os, "getxattr", refuse)
        on_disk.restore(back, overwrite="never", pool=True, workers=3)
    (back / "mine").unlink()
    root = on_disk.root.stat()
    back.chmod(root.st_mode & 0o7777)
    os.utime(back, ns=(root.st_atime_ns, root.st_mtime_ns))
    assert differences(before, observe(back)) == []


# --- what --delete removes


def test_extra_names_go_and_what_is_in_them(protected: Protected) -> None:
    root = protected.root
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"content")
    (root / "empty").mkdir()
    protected.backup()
    before = observe(root)
    (root / "d" / "extra").write_bytes(b"extra")
    (root / "empty" / "extra").mkdir()
    (root / "more" / "deep").mkdir(parents=True)
    would = protected.restore(root, overwrite="if-changed", delete=True, dry_run=True).would
    assert {line for line in would if line.startswith("remove")} == {
        "remove d/extra",
        "remove empty/extra",
        "remove more",
    }
    outcome = protected.restore(root, overwrite="if-changed", delete=True)
    assert outcome.not_restored == ()
    assert differences(before, observe(root)) == []


@pytest.mark.parametrize("paths", [(b"d",), (b"",), ()])
def test_extra_names_go_where_all_was_asked_for(protected: Protected, paths: tuple[bytes, ...]) -> None:
    root = protected.root
    (root / "d" / "deep").mkdir(parents=True)
    protected.backup()
    (root / "d" / "deep" / "extra").write_bytes(b"extra")
    (root / "extra").write_bytes(b"extra")
    protected.restore(root, paths=paths, overwrite="if-changed", delete=True)
    assert not (root / "d" / "deep" / "extra").exists()
    assert (root / "extra").exists() == (paths == (b"d",))


def test_the_repository_and_the_index_stay(on_volume: Protected) -> None:
    """They are in no snapshot, and without them there is none."""
    root = on_volume.root
    (root / "file").write_bytes(b"content")
    on_volume.backup()
    (root / "extra").mkdir()
    (root / "backups" / "extra").mkdir()
    keep = (os.fsencode(on_volume.state_dir),)
    would = on_volume.restore(root, overwrite="if-changed", delete=True, keep=keep, dry_run=True).would
    assert {line for line in would if line.startswith("remove")} == {"remove extra", "remove backups/extra"}
    on_volume.restore(root, overwrite="if-changed", delete=True, keep=keep)
    assert not (root / "extra").exists()
    assert on_volume.check().findings == ()
    assert on_volume.backup(full=True).snapshot is not None


def test_what_the_backup_could_not_look_at_stays(on_disk: Protected, tmp_path: Path) -> None:
    """Nobody knows whether it is extra: it may be the only copy."""
    root = on_disk.root
    (root / "closed").mkdir()
    (root / "closed" / "file").write_bytes(b"only copy")
    (root / "secret").write_bytes(b"only copy")
    (root / "closed").chmod(0)
    (root / "secret").chmod(0)
    give_away(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.fsencode(root / "socket"))
    outcome = as_nobody(on_disk.backup)
    assert {issue.path for issue in outcome.incomplete} == {b"closed", b"secret"}
    (root / "extra").write_bytes(b"extra")
    outcome = on_disk.restore(root, overwrite="if-changed", delete=True)
    assert (root / "closed" / "file").read_bytes() == (root / "secret").read_bytes() == b"only copy"
    assert (root / "socket").is_socket()
    assert not (root / "extra").exists()


@pytest.mark.root
def test_nothing_is_removed_from_what_is_mounted_on_the_target(protected: Protected) -> None:
    root = protected.root
    (root / "mounted").mkdir()
    (root / "later").mkdir()
    with tmpfs(root / "mounted"):
        protected.backup()
        (root / "mounted" / "other").write_bytes(b"another volume's")
        with tmpfs(root / "later"):
            (root / "later" / "other").write_bytes(b"another volume's")
            outcome = protected.restore(root, overwrite="if-changed", delete=True)
            assert (root / "later" / "other").exists()
        assert (root / "mounted" / "other").exists()
    assert [issue.path for issue in outcome.not_restored] == [b"later"]


@pytest.mark.root
def test_what_cannot_be_removed_is_named(protected: Protected) -> None:
    root = protected.root
    protected.backup()
    (root / "extra").mkdir()
    with tmpfs(root / "extra"):
        (root / "extra" / "other").write_bytes(b"another volume's")
        outcome = protected.restore(root, overwrite="always", delete=True)
        assert (root / "extra" / "other").exists()
    ((path, reason),) = outcome.not_restored
    assert (path, "mounted" in reason) == (b"extra", True)


# --- what a dry run says


def lines(outcome: RestoreOutcome) -> set[str]:
    assert len(set(outcome.would)) == len(outcome.would)
    return set(outcome.would)


def test_a_dry_run_says_what_the_run_does(protected: Protected, tmp_path: Path) -> None:
    root, target = protected.root, tmp_path / "target"
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"content")
    os.link(root / "d" / "file", root / "d" / "link")
    (root / "large").write_bytes(os.urandom(9 * MIB))
    (root / "symlink").symlink_to("x")
    protected.backup()
    for _ in range(2):  # the directory is not there, and then it is empty
        foreseen = protected.restore(target, dry_run=True)
        assert lines(foreseen) == {
            f"write {name}" for name in (".", "d", "d/file", "d/link", "large", "symlink")
        }
        assert (foreseen.files, foreseen.bytes, foreseen.skipped) == (3, 9 * MIB + 7, 0)
        target.mkdir(exist_ok=True)
        assert os.listdir(target) == []
    done = protected.restore(target)
    assert (done.files, done.bytes, done.skipped) == (3, 9 * MIB + 7, 0)
    (target / "d" / "file").write_bytes(b"other, longer")
    (target / "symlink").unlink()
    (target / "extra").mkdir()
    before = observe(target)
    foreseen = protected.restore(target, overwrite="if-changed", delete=True, dry_run=True)
    assert lines(foreseen) == {"remove extra", "write d/file", "write symlink"}
    assert differences(before, observe(target)) == []
    done = protected.restore(target, overwrite="if-changed", delete=True)
    assert (foreseen.files, foreseen.skipped) == (1, 2)
    assert differences(observe(root), observe(target)) == []


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_dry_run_refuses_what_the_run_refuses(protected: Protected, tmp_path: Path, dry_run: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    protected.backup()
    with pytest.raises(TargetError, match="not empty"):
        protected.restore(target, dry_run=dry_run)
    with pytest.raises(UsageError, match="--overwrite"):
        protected.restore(target, delete=True, dry_run=dry_run)
    with pytest.raises(TargetError, match="mine"):
        protected.restore(target / "mine", dry_run=dry_run)
    assert os.listdir(target) == ["mine"]
