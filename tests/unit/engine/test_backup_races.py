"""What moves, vanishes or cannot be read between the scan and the reading: every recovery point restores."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.progress import Silent
from smsnapd.errors import VolumeError
from smsnapd.volume import scan as scan_module
from smsnapd.volume.tarball.read import PackReader, RangeRead
from tests.property.children import run_child
from tests.property.observed import differences, observe
from tests.property.protected import Protected

MIB = 1024 * 1024
NOBODY = 65_534


class At(Silent):
    """Does something once when a run comes to a phase, or (`stored`) when the first pack is stored."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self._actions = actions

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        if action := self._actions.pop(name, None):
            action()

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        self.phase("stored")


def restored(protected: Protected, snapshot: str = "latest") -> Path:
    """A recovery point, restored and checked against its export."""
    place = protected.root.with_name("restored")
    shutil.rmtree(place, ignore_errors=True)
    outcome = protected.restore(place, snapshot)
    assert (outcome.not_restored, outcome.damaged) == ((), 0)
    return place


def comes_back(protected: Protected) -> None:
    """The newest recovery point is the volume as it is now."""
    assert differences(observe(protected.root), observe(restored(protected))) == []


def settle(protected: Protected) -> None:
    """Back up so that nothing is unsettled: what comes after is compared by its stat alone."""
    time.sleep(0.03)
    protected.backup()


def during(protected: Protected, **actions: Callable[[], object]) -> BackupOutcome:
    return protected.backup(progress=At(**actions))


# --- directories that go while they are stored


def test_a_new_directory_with_the_first_name_of_a_file_is_renamed(protected: Protected) -> None:
    """As installers do: hard links in a temporary directory, which then gets its name."""
    root = protected.root
    (root / "z").mkdir()
    (root / "z" / "second").write_bytes(b"shared")
    protected.backup()
    (root / "new").mkdir()
    os.link(root / "z" / "second", root / "new" / "first")
    during(protected, store=lambda: (root / "new").rename(root / "newer"))
    assert (restored(protected) / "z" / "second").read_bytes() == b"shared"
    protected.backup()
    comes_back(protected)


def test_a_changed_directory_with_the_first_name_of_a_file_is_renamed(protected: Protected) -> None:
    root = protected.root
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "first").write_bytes(b"shared")
    (root / "d" / "deep" / "file").write_bytes(b"below")
    (root / "z").mkdir()
    os.link(root / "d" / "first", root / "z" / "second")
    settle(protected)
    (root / "d" / "more").write_bytes(b"more")
    during(protected, store=lambda: (root / "d").rename(root / "e"))
    assert (restored(protected) / "z" / "second").read_bytes() == b"shared"
    (root / "e").rename(root / "d")
    protected.backup()
    comes_back(protected)


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_that_was_away_during_a_run_is_whole_in_the_next(
    protected: Protected, full: bool
) -> None:
    root, aside = protected.root, protected.root.with_name("aside")
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "deep" / "file").write_bytes(b"below")
    settle(protected)
    (root / "d" / "more").write_bytes(b"more")
    protected.backup(full=full, progress=At(store=lambda: (root / "d").rename(aside)))
    restored(protected)
    aside.rename(root / "d")
    protected.backup()
    comes_back(protected)


def test_a_directory_that_is_a_link_for_a_while(protected: Protected) -> None:
    root, aside = protected.root, protected.root.with_name("aside")
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "deep" / "file").write_bytes(b"below")
    settle(protected)
    (root / "d" / "more").write_bytes(b"more")

    def flip() -> None:
        (root / "d").rename(aside)
        (root / "d").symlink_to("elsewhere")

    during(protected, store=flip)
    restored(protected)
    (root / "d").unlink()
    aside.rename(root / "d")
    protected.backup()
    comes_back(protected)


def test_renamed_files_in_a_directory_that_turns_into_a_link(protected: Protected) -> None:
    """They are recorded without being read, so nobody notices there that their directory is none any more."""
    root = protected.root
    (root / "a").mkdir()
    (root / "a" / "file").write_bytes(b"content")
    settle(protected)
    (root / "a").rename(root / "b")

    def flip() -> None:
        (root / "b").rename(root / "c")
        (root / "b").symlink_to("c")

    during(protected, store=flip)
    restored(protected)
    protected.backup()
    comes_back(protected)


# --- files that go while they are stored


def test_both_names_of_a_file_go_one_after_the_other(protected: Protected) -> None:
    root = protected.root
    (root / "a").write_bytes(b"shared")
    os.link(root / "a", root / "b")
    settle(protected)
    (root / "a").write_bytes(b"shared and changed")
    during(protected, store=(root / "a").unlink, stored=(root / "b").unlink)
    assert set(observe(restored(protected))) == {b""}
    protected.backup()
    comes_back(protected)


def test_a_large_file_that_goes_before_it_is_stored_apart(protected: Protected) -> None:
    root = protected.root
    (root / "file").write_bytes(b"small")
    settle(protected)
    (root / "file").write_bytes(b"smaller")

    def grow() -> None:
        (root / "file").write_bytes(os.urandom(9 * MIB))

    during(protected, store=grow, stored=(root / "file").unlink)
    assert set(observe(restored(protected))) == {b""}


def test_a_large_file_whose_first_ranges_go_with_the_manifest_changes_while_it_is_read(
    protected: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored anew, by somebody who attaches nothing."""
    place = protected.root / "large"
    place.write_bytes(bytes(32 * MIB))
    settle(protected)
    place.write_bytes(b"".join(bytes([number]) * (8 * MIB) for number in range(1, 5)))
    original, changes = PackReader.read_range, [1]

    def moving(self: PackReader, path: bytes, entry: Any, start: int, *rest: Any) -> RangeRead:
        if start >= 24 * MIB and changes:
            with place.open("r+b") as file:
                file.seek(start)
                file.write(bytes([changes.pop()] * 100))
        return original(self, path, entry, start, *rest)

    with monkeypatch.context() as context:
        context.setattr(PackReader, "read_range", moving)
        protected.backup(workers=0)
    assert not changes
    comes_back(protected)
    assert protected.check().findings == ()
    protected.backup()
    comes_back(protected)


# --- what cannot be read


def as_nobody(work: Callable[[], Any]) -> Any:
    """For whom modes count."""
    return run_child(work, uid=NOBODY if os.geteuid() == 0 else 0)


def give_away(top: Path) -> None:
    """All that is nobody's to change or to read; of files with several names the times shall stay."""
    for place in (top, *top.rglob("*")):
        if place.is_dir() or place.lstat().st_nlink == 1:
            os.lchown(place, NOBODY, NOBODY)
    for above in top.parents:
        if above != Path("/") and above.stat().st_mode & 0o5 != 0o5:
            above.chmod(above.stat().st_mode | 0o5)


@pytest.mark.root
@pytest.mark.parametrize("closed", ["directory", "file"])
def test_a_name_that_cannot_be_read_keeps_the_content_of_a_first_name_that_is_gone(
    on_disk: Protected, tmp_path: Path, closed: str
) -> None:
    root = on_disk.root
    (root / "a").mkdir()
    (root / "z").mkdir()
    (root / "a" / "first").write_bytes(b"shared")
    os.link(root / "a" / "first", root / "z" / "second")
    os.link(root / "a" / "first", root / "z" / "third")
    settle(on_disk)
    (root / "a" / "first").unlink()
    if closed == "directory":
        (root / "z").chmod(0)
    else:
        (root / "z" / "second").chmod(0)
    give_away(tmp_path)
    outcome = as_nobody(on_disk.backup)
    assert outcome.incomplete
    place = restored(on_disk)
    assert (place / "z" / "second").read_bytes() == b"shared"
    assert (place / "z" / "second").samefile(place / "z" / "third")
    assert not (place / "a" / "first").exists()
    (root / "z").chmod(0o755)
    (root / "z" / "second").chmod(0o644)
    as_nobody(on_disk.backup)
    assert differences(observe(root), observe(restored(on_disk))) == []


@pytest.mark.root
def test_a_name_that_is_replaced_by_what_cannot_be_read(on_disk: Protected, tmp_path: Path) -> None:
    root = on_disk.root
    (root / "a").write_bytes(b"shared")
    os.link(root / "a", root / "b")
    settle(on_disk)
    (root / ".new").write_bytes(b"secret")
    (root / ".new").chmod(0)
    (root / ".new").rename(root / "b")
    give_away(tmp_path)
    outcome = as_nobody(on_disk.backup)
    assert [issue.path for issue in outcome.incomplete] == [b"b"]
    place = restored(on_disk)
    assert (place / "a").read_bytes() == (place / "b").read_bytes() == b"shared"


@pytest.mark.root
def test_a_linked_name_in_a_closed_directory_stays_linked(on_disk: Protected, tmp_path: Path) -> None:
    root = on_disk.root
    (root / "d").mkdir()
    (root / "z").mkdir()
    (root / "d" / "first").write_bytes(b"shared")
    os.link(root / "d" / "first", root / "z" / "second")
    settle(on_disk)
    (root / "d").rename(root / "e")
    (root / "z").chmod(0)
    give_away(tmp_path)
    as_nobody(on_disk.backup)
    place = restored(on_disk)
    assert (place / "e" / "first").samefile(place / "z" / "second")
    (root / "z").chmod(0o755)
    as_nobody(on_disk.backup)
    assert differences(observe(root), observe(restored(on_disk))) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_root_that_cannot_be_listed_deletes_nothing(
    protected: Protected, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (protected.root / "directory").mkdir()
    (protected.root / "directory" / "file").write_bytes(b"content")
    (protected.root / "top").write_bytes(b"content")
    settle(protected)
    before = observe(protected.root)

    listdir = os.listdir

    def broken(place: Any) -> list[str]:
        if isinstance(place, int) and os.fstat(place).st_ino == protected.root.stat().st_ino:
            raise OSError(number, os.strerror(number))
        return listdir(place)

    with monkeypatch.context() as context:
        context.setattr(scan_module.os, "listdir", broken)
        if number == errno.ESTALE:
            with pytest.raises(VolumeError, match="gone"):
                protected.backup()
        else:
            outcome = protected.backup()
            assert [issue.path for issue in outcome.incomplete] == [b""]
            assert outcome.deleted == 0
    assert differences(before, observe(restored(protected))) == []


@pytest.mark.parametrize("previous", [False, True])
def test_a_large_file_with_a_bad_sector_is_named_and_the_run_ends(
    protected: Protected, monkeypatch: pytest.MonkeyPatch, previous: bool
) -> None:
    place = protected.root / "large"
    if previous:
        place.write_bytes(b"before")
        settle(protected)
    place.write_bytes(bytes(17 * MIB))
    (protected.root / "other").write_bytes(b"other")
    original = PackReader.read_range

    def broken(self: PackReader, path: bytes, entry: Any, start: int, *rest: Any) -> RangeRead:
        if start:
            return RangeRead(0, "unreadable: Input/output error")
        return original(self, path, entry, start, *rest)

    with monkeypatch.context() as context:
        context.setattr(PackReader, "read_range", broken)
        outcome = protected.backup()
    assert [tuple(issue) for issue in outcome.incomplete] == [(b"large", "unreadable: Input/output error")]
    found = restored(protected)
    assert (found / "other").read_bytes() == b"other"
    assert not (found / "large").exists() if not previous else (found / "large").read_bytes() == b"before"
    protected.backup()
    comes_back(protected)
