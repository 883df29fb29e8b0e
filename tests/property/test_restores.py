"""Restores: of some paths, over what is there, by whom, and cut off in the middle."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.progress import Silent
from smsnapd.engine.restore.run import RestoreOutcome
from smsnapd.errors import TargetError, UsageError
from smsnapd.store import StoreSettings
from tests.property.children import KILLED, run_child
from tests.property.observed import Observed, differences, observe
from tests.property.protected import Protected

MIB = 1024 * 1024
NOBODY = 65_534
pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture(scope="module")
def protected(new_directory: Callable[[], Path]) -> Iterator[Protected]:
    """One volume for all tests of the module: they only read it."""
    directory = new_directory()
    directory.chmod(0o755)
    root = directory / "volume"
    root.mkdir()
    rng = random.Random(1)
    for number in range(700):
        place = root / f"directory-{number % 9}" / f"deeper-{number % 2}" / f"file-{number}"
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes(rng.randbytes(number * 20))
        os.chown(place, number % 3 * 500, number % 5 * 250)
    (root / "large").write_bytes(rng.randbytes(33 * MIB))
    with (root / "sparse").open("wb") as file:
        os.pwrite(file.fileno(), rng.randbytes(9 * MIB), 40 * MIB)
    (root / "links").mkdir()
    for name in ("b", "links/a", "links/z", "zz"):
        os.link(root / "large", root / name)
    (root / "links" / "z-symlink").symlink_to("a")
    os.setxattr(root / "links", "trusted.one", b"1")
    (root / "owned").write_bytes(b"set-id")
    os.chown(root / "owned", 500, 500)
    (root / "owned").chmod(0o6755)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    made = Protected.create(root, directory / "state", StoreSettings((directory / "repository").as_uri()))
    made.backup()
    (root / "directory-1" / "deeper-1" / "file-1").write_bytes(b"changed")
    shutil.rmtree(root / "directory-8")
    made.backup()
    yield made
    shutil.rmtree(directory)


@pytest.fixture
def target(new_directory: Callable[[], Path]) -> Iterator[Path]:
    directory = new_directory()
    yield directory / "target"
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def truth(protected: Protected) -> Observed:
    return observe(protected.root)


def below(tree: Observed, *paths: bytes) -> Observed:
    """The part of a tree that a selection takes, and the directories above; link groups as they are in it."""
    taken = {
        path: seen
        for path, seen in tree.items()
        if any(path == p or path.startswith(p + b"/") or (p + b"/").startswith(path + b"/") for p in paths)
        or not path
    }
    return {
        path: type(seen)(**{**vars(seen), "group": tuple(name for name in seen.group if name in taken)})
        for path, seen in taken.items()
    }


# --- some paths


@pytest.mark.parametrize(
    "paths",
    [
        (b"directory-1",),
        (b"directory-1/deeper-1/file-1",),
        (b"directory-1", b"directory-1/deeper-0", b"large"),
        (b"zz", b"links/z"),
        (b"links",),
        (b"sparse", b"null"),
    ],
)
def test_some_paths(protected: Protected, truth: Observed, target: Path, paths: tuple[bytes, ...]) -> None:
    """With the directories above; a file with several names comes whichever of them is asked for."""
    outcome = protected.restore(target, paths=paths)
    assert outcome.not_restored == ()
    assert differences(below(truth, *paths), observe(target)) == []


def test_a_path_that_is_not_there(protected: Protected, target: Path) -> None:
    with pytest.raises(UsageError, match="directory-8"):
        protected.restore(target, paths=(b"large", b"directory-8"))
    assert not target.exists()


def test_an_older_moment_has_what_was_deleted_since(protected: Protected, target: Path) -> None:
    first = protected.snapshots()[0].id
    protected.restore(target, first, paths=(b"directory-8",))
    assert len(list((target / "directory-8").rglob("file-*"))) == 77


# --- over what is there


def test_a_target_that_is_not_empty_is_refused(protected: Protected, target: Path) -> None:
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    with pytest.raises(TargetError, match="not empty"):
        protected.restore(target)
    assert os.listdir(target) == ["mine"]


def disturb(target: Path) -> None:
    (target / "owned").write_bytes(b"mine, and longer")
    (target / "links" / "mine").write_bytes(b"mine")
    (target / "directory-1" / "mine").mkdir()
    (target / "zz").unlink()
    (target / "zz").write_bytes(b"no link any more")
    (target / "directory-2" / "deeper-0" / "file-2").unlink()
    status = (target / "directory-3" / "deeper-1" / "file-3").stat()
    (target / "directory-3" / "deeper-1" / "file-3").write_bytes(bytes(status.st_size))
    os.utime(target / "directory-3" / "deeper-1" / "file-3", ns=(0, status.st_mtime_ns))
    (target / "directory-4").rename(target / "moved")
    (target / "directory-4").write_bytes(b"a file in its place")
    (target / "null").unlink()
    (target / "null").mkdir()


@pytest.mark.parametrize("delete", [False, True])
def test_overwrite_always_makes_everything_as_it_was(
    protected: Protected, truth: Observed, target: Path, delete: bool
) -> None:
    protected.restore(target)
    disturb(target)
    outcome = protected.restore(target, overwrite="always", delete=delete)
    assert outcome.not_restored == ()
    found = observe(target)
    if not delete:
        assert {b"links/mine", b"directory-1/mine", b"moved"} <= found.keys()
        for path in set(found) - set(truth):
            del found[path]
    assert differences(truth, found) == []


def test_overwrite_if_changed_goes_by_the_metadata(
    protected: Protected, truth: Observed, target: Path
) -> None:
    protected.restore(target)
    disturb(target)
    outcome = protected.restore(target, overwrite="if-changed", delete=True)
    assert outcome.not_restored == ()
    assert outcome.skipped > 500
    found = observe(target)
    hidden = found.pop(b"directory-3/deeper-1/file-3")
    assert (
        hidden.mtime_ns == truth[b"directory-3/deeper-1/file-3"].mtime_ns
    )  # times put back: taken as unchanged
    expected = {path: seen for path, seen in truth.items() if path != b"directory-3/deeper-1/file-3"}
    assert differences(expected, found) == []


def test_overwrite_never_adds_alone(protected: Protected, truth: Observed, target: Path) -> None:
    protected.restore(target)
    disturb(target)
    before = observe(target)
    outcome = protected.restore(target, overwrite="never")
    after = observe(target)
    assert after[b"directory-2/deeper-0/file-2"] == truth[b"directory-2/deeper-0/file-2"]
    kept = {path for path in before if before[path].kind != stat.S_IFDIR}
    for path in kept:
        assert (before[path].content, before[path].mtime_ns) == (after[path].content, after[path].mtime_ns), (
            path
        )
    assert {issue.path for issue in outcome.not_restored} >= {b"directory-4", b"directory-4/deeper-0"}


def test_delete_needs_overwrite(protected: Protected, target: Path) -> None:
    with pytest.raises(UsageError, match="--overwrite"):
        protected.restore(target, delete=True)


def test_delete_within_a_selection_spares_the_rest(
    protected: Protected, truth: Observed, target: Path
) -> None:
    protected.restore(target)
    (target / "directory-1" / "mine").write_bytes(b"mine")
    (target / "directory-2" / "mine").write_bytes(b"mine")
    protected.restore(target, paths=(b"directory-1",), overwrite="if-changed", delete=True)
    found = observe(target)
    assert b"directory-1/mine" not in found and b"directory-2/mine" in found
    assert truth.keys() <= found.keys()


def test_a_dry_run_writes_nothing(protected: Protected, target: Path) -> None:
    outcome = protected.restore(target, dry_run=True)
    assert not target.exists()
    assert "write directory-0/deeper-0/file-0" in outcome.would
    protected.restore(target, paths=(b"directory-1",))
    before = observe(target)
    outcome = protected.restore(target, overwrite="if-changed", delete=True, dry_run=True)
    assert differences(before, observe(target)) == []
    assert "write owned" in outcome.would and "write directory-1/deeper-1/file-1" not in outcome.would


# --- by whom


def test_users_are_mapped(protected: Protected, truth: Observed, target: Path) -> None:
    protected.restore(target, users=(("500", "1000"), ("1000", "2000")))
    owners = {0: 0, 500: 1000, 1000: 2000}
    for path, seen in observe(target).items():
        assert seen.owner[0] == owners[truth[path].owner[0]], path
    assert stat.S_IMODE((target / "owned").stat().st_mode) == 0o6755


def test_an_ordinary_user_gets_his_own_files_and_is_told_so(
    protected: Protected, truth: Observed, target: Path
) -> None:
    target.parent.chmod(0o777)

    def as_nobody() -> RestoreOutcome:
        return protected.restore(target, pool=True)

    for path in [protected.root.parent / "repository", *(protected.root.parent / "repository").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    outcome = run_child(as_nobody, uid=NOBODY)
    assert [issue.path for issue in outcome.not_restored] == [b"null"]
    assert any("belong to you" in note for note in outcome.notes)
    assert any("extended attributes" in note for note in outcome.notes)
    assert any("set-user" in note for note in outcome.notes)
    found = observe(target)
    assert found.keys() == truth.keys() - {b"null"}
    for path, seen in found.items():
        one = truth[path]
        assert (seen.content, seen.mtime_ns, seen.target, seen.group, seen.data) == (
            one.content,
            one.mtime_ns,
            one.target,
            one.group,
            one.data,
        ), path
        assert seen.owner == (NOBODY, NOBODY)
        assert seen.mode == one.mode & ~0o6000


# --- cut off


class KillAt(Silent):
    """Kills the process at the n-th sign of progress."""

    def __init__(self, number: int) -> None:
        self._left = number

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        self.advance()

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), 9)


def whole_or_absent(truth: Observed, target: Path) -> None:
    """Whatever has its final name has its whole content."""
    for path, seen in observe(target).items():
        name = path.rpartition(b"/")[2]
        if not name.startswith((b".smsnap-partial-", b".smsnap-restore")) and seen.kind != stat.S_IFDIR:
            assert (seen.content, seen.size) == (truth[path].content, truth[path].size), path


@pytest.mark.parametrize("pool", [False, True])
def test_a_restore_that_is_killed_goes_on(
    protected: Protected, truth: Observed, target: Path, pool: bool
) -> None:
    """At every sign of progress in turn, into one target: each time further, at last whole."""
    number, killed = 1, 0
    while True:
        number += 2
        progress = KillAt(number)
        if run_child(partial(protected.restore, target, pool=pool, progress=progress)) is not KILLED:
            break
        killed += 1
        whole_or_absent(truth, target)
    assert killed >= 3
    shutil.rmtree(target)
    for at in (2, 4, 6):
        progress = KillAt(at)
        assert run_child(partial(protected.restore, target, pool=pool, progress=progress)) is KILLED
    outcome = protected.restore(target, pool=pool)
    assert outcome.not_restored == ()
    assert differences(truth, observe(target)) == []
    assert outcome.skipped > 0
