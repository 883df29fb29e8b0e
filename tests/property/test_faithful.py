"""A tree with everything, changed in every way: both moments come back, as rsync, tar and we judge."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.history import History
from smsnapd.repository.manifests import Recorded
from smsnapd.store import StoreSettings
from tests.property.faithful_tree import DEEP, MOUNTS, SOCKET, change, faithful_tree
from tests.property.observed import Observed, differences, observe
from tests.property.protected import VOLUME, Protected

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]


@dataclass
class Moment:
    """A recovery point and what was there."""

    outcome: BackupOutcome
    tree: Observed

    @property
    def id(self) -> str:
        assert self.outcome.snapshot is not None
        return self.outcome.snapshot.id


@dataclass
class Story:
    """The volume, backed up before and after the changes; restored to `first` before them."""

    protected: Protected
    directory: Path
    first: Moment
    second: Moment
    rsync_of_first: str
    first_restored: Path


def seen(root: Path) -> Observed:
    """The tree without its mounts: what is mounted on a directory hides what that is like."""
    return observe(root, leave_out=MOUNTS)


def rsync_differences(original: Path, restored: Path) -> str:
    """What rsync would have to change. It cannot reach paths beyond PATH_MAX; a socket is not restored."""
    command = ["rsync", "-aHAXnci", "--delete", "-x", "--exclude=/deep/", f"--exclude=/{SOCKET.decode()}"]
    command += [f"--exclude=/{name.decode()}" for name in MOUNTS]
    done = subprocess.run(
        [*command, f"{original}/", f"{restored}/"],
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def story(new_directory: Callable[[], Path]) -> Iterator[Story]:
    directory = new_directory()
    root = directory / "volume"
    root.mkdir()
    protected = Protected.create(
        root, directory / "state", StoreSettings((directory / "repository").as_uri())
    )
    with faithful_tree(root):
        first = Moment(protected.backup(workers=2), seen(root))
        restored = directory / "first"
        protected.restore(restored, first.id)
        rsync = rsync_differences(root, restored)
        change(root)
        second = Moment(protected.backup(workers=2), seen(root))
        yield Story(protected, directory, first, second, rsync, restored)
    shutil.rmtree(directory)


def manifest(story: Story, moment: Moment) -> Recorded:
    with story.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        return history.record(next(name for name in history.names if name.snapshot == moment.id))


def test_the_first_moment_comes_back(story: Story) -> None:
    assert story.rsync_of_first == ""
    assert differences(story.first.tree, seen(story.first_restored)) == []


def test_the_second_moment_comes_back(story: Story) -> None:
    target = story.directory / "second"
    outcome = story.protected.restore(target, story.second.id)
    assert (outcome.not_restored, outcome.notes, outcome.damaged) == ((), (), 0)
    assert rsync_differences(story.protected.root, target) == ""
    assert differences(story.second.tree, seen(target)) == []


def test_the_first_moment_comes_back_after_the_second(story: Story) -> None:
    target = story.directory / "first-again"
    story.protected.restore(target, story.first.id, pool=True)
    assert rsync_differences(story.first_restored, target) == ""
    assert differences(story.first.tree, seen(target)) == []


@pytest.mark.parametrize("number", [0, 1])
def test_gnu_tar_extracts_both(story: Story, number: int) -> None:
    moment = (story.first, story.second)[number]
    target = story.directory / f"extracted-{number}"
    story.protected.extract(target, moment.id, options=("--anchored", "--exclude=deep/*"))
    expected = {path: seen for path, seen in moment.tree.items() if not path.startswith(DEEP + b"/")}
    assert differences(expected, seen(target)) == []


def test_the_mounts_are_empty_directories_and_named(story: Story) -> None:
    for moment in (story.first, story.second):
        skipped = {(item.path, item.reason) for item in manifest(story, moment).manifest.completeness.skipped}
        assert skipped == {(SOCKET, "socket"), *((name, "other file system") for name in MOUNTS)}
        assert moment.outcome.snapshot is not None and moment.outcome.snapshot.complete
    for name in MOUNTS:
        assert os.listdir(os.fsencode(story.first_restored) + b"/" + name) == []


def test_only_what_changed_is_stored_again(story: Story) -> None:
    """Four chunks of 8 MiB each moved a little; the renamed directories and all else did not."""
    assert story.first.outcome.snapshot is not None and story.second.outcome.snapshot is not None
    assert story.second.outcome.snapshot.kind == "incremental"
    entries = manifest(story, story.second).manifest.statistics
    assert entries.changed < 200
    assert story.second.outcome.snapshot.stored_bytes < 40 * 1024 * 1024


def test_the_repository_is_whole(story: Story) -> None:
    report = story.protected.check()
    assert (report.findings, report.snapshots, report.opened) == ((), 2, True)
    report = story.protected.check(write_key=True)
    assert (report.findings, report.opened) == ((), False)


def test_nothing_of_the_modes_is_left_to_the_umask(story: Story) -> None:
    os_umask = os.umask(0o077)
    try:
        target = story.directory / "umask"
        story.protected.restore(target, story.first.id, paths=(b"modes", b"attributes"))
    finally:
        os.umask(os_umask)
    expected = {
        path: seen
        for path, seen in story.first.tree.items()
        if path.split(b"/")[0] in (b"modes", b"attributes", b"")
    }
    assert differences(expected, seen(target)) == []
    assert stat.S_IMODE(target.stat().st_mode) == expected[b""].mode
