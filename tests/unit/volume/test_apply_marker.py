"""Which directories may become a target, and how an interrupted restore is found again."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from smsnapd.errors import TargetError
from smsnapd.volume.tarball.apply import ApplyOptions, Target
from smsnapd.volume.tarball.marker import MARKER, PARTIAL, begin_restore, finish_restore
from tests.unit.volume.apply_cases import as_user, mounted, names

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, users")


@pytest.fixture
def place() -> Iterator[bytes]:
    made = tempfile.mkdtemp(prefix="marker-")
    os.chmod(made, 0o755)
    yield os.fsencode(made)
    shutil.rmtree(made)


def test_a_missing_target_is_made_for_its_owner_alone_with_its_parents(place: bytes) -> None:
    root = place + b"/a/b/\xff"
    assert begin_restore(root, "aa11") == "fresh"
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o700
    assert names(root) == {MARKER}
    finish_restore(root)
    finish_restore(root)
    assert names(root) == set()


def test_an_empty_target_is_fresh_lost_and_found_and_leftovers_aside(place: bytes) -> None:
    os.mkdir(place + b"/lost+found")
    Path(os.fsdecode(place + b"/" + PARTIAL + b"marker")).touch()
    assert begin_restore(place, "aa11", overwrite="always") == "fresh"
    assert names(place) == {b"lost+found", MARKER}


@root_only
def test_a_mark_that_another_user_made_is_not_believed(place: bytes) -> None:
    assert begin_restore(place, "aa11") == "fresh"
    os.chown(place + b"/" + MARKER, 1234, 1234)
    for overwrite in ("", "always"):
        with pytest.raises(TargetError, match="made by another user"):
            begin_restore(place, "aa11", overwrite=overwrite)


def test_a_target_that_was_exchanged_behind_the_mark_is_not_written_to(place: bytes) -> None:
    root, other = place + b"/root", place + b"/other"
    os.mkdir(other)
    options = ApplyOptions(overwrite=begin_restore(root, "aa11"))  # type: ignore[arg-type]
    with Target(root, options) as target:
        target.check_marked()
    os.rename(root, root + b"-moved")
    os.symlink(other, root)
    with Target(root, options) as target, pytest.raises(TargetError, match="another directory in its place"):
        target.check_marked()


def test_a_target_with_something_in_it_needs_a_word(place: bytes) -> None:
    Path(os.fsdecode(place + b"/f")).touch()
    with pytest.raises(TargetError, match=r"not empty.*--overwrite never, if-changed or always"):
        begin_restore(place, "aa11")
    assert names(place) == {b"f"}
    for overwrite in ("never", "if-changed", "always"):
        assert begin_restore(place, "aa11", overwrite=overwrite) == overwrite
        finish_restore(place)


@pytest.mark.parametrize(
    ("first", "again", "expected"),
    [
        ("", "", "resume"),
        ("", "never", "resume"),
        ("", "if-changed", "resume"),
        ("", "always", "always"),
    ],
)
def test_the_same_restore_resumes(place: bytes, first: str, again: str, expected: str) -> None:
    assert begin_restore(place, "aa11", "paths", first) == "fresh"
    Path(os.fsdecode(place + b"/restored")).touch()
    assert begin_restore(place, "aa11", "paths", again) == expected
    assert begin_restore(place, "aa11", "paths", again) == expected


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_a_restore_over_something_resumes_by_its_own_rule(place: bytes, overwrite: str) -> None:
    Path(os.fsdecode(place + b"/f")).touch()
    assert begin_restore(place, "aa11", "", overwrite) == overwrite
    assert begin_restore(place, "aa11") == overwrite
    assert begin_restore(place, "aa11", "", overwrite) == overwrite
    other = "always" if overwrite == "never" else "never"
    with pytest.raises(TargetError, match=rf"--overwrite {overwrite} and not finished.*same again"):
        begin_restore(place, "aa11", "", other)


def test_another_restore_is_not_mixed_in(place: bytes) -> None:
    begin_restore(place, "aa11", "x")
    with pytest.raises(
        TargetError, match=r"snapshot aa11 .*finish it with --snapshot aa11.*\.smsnap-restore"
    ):
        begin_restore(place, "bb22", "x", "always")
    with pytest.raises(TargetError, match="other paths"):
        begin_restore(place, "aa11", "y")
    assert begin_restore(place, "aa11", "x") == "resume"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"snapshot": 5}', b"\xff" * 100])
def test_a_mark_that_cannot_be_understood(place: bytes, text: bytes) -> None:
    Path(os.fsdecode(place + b"/" + MARKER)).write_bytes(text)
    with pytest.raises(TargetError, match=r"cannot be understood.*remove it"):
        begin_restore(place, "aa11")


def test_the_mark_is_json_for_people(place: bytes) -> None:
    begin_restore(place, "aa11", "digest")
    mark = msgspec.json.decode(Path(os.fsdecode(place + b"/" + MARKER)).read_bytes())
    assert mark == {"snapshot": "aa11", "selection": "digest", "overwrite": "fresh", "format": 1}


def test_planted_marks_are_not_followed(place: bytes) -> None:
    mark = place + b"/target/" + MARKER
    os.mkdir(place + b"/target")
    begin_restore(place + b"/other", "aa11")
    os.symlink(place + b"/other/" + MARKER, mark)
    with pytest.raises(TargetError, match="symbolic links"):
        begin_restore(place + b"/target", "aa11")
    os.unlink(mark)
    os.mkfifo(mark)
    with pytest.raises(TargetError, match="cannot be understood"):
        begin_restore(place + b"/target", "aa11")
    os.unlink(mark)
    os.symlink(b"/nowhere", place + b"/target/" + PARTIAL + b"marker")
    assert begin_restore(place + b"/target", "aa11") == "fresh"
    assert not os.path.islink(mark)


def test_what_cannot_be_a_target(place: bytes) -> None:
    Path(os.fsdecode(place + b"/file")).touch()
    os.symlink(b"nowhere", place + b"/dangling")
    for path, why in (
        (b"/file", "Not a directory"),
        (b"/file/below", "Not a directory"),
        (b"/dangling", "No such"),
    ):
        with pytest.raises(TargetError, match=why):
            begin_restore(place + path, "aa11")
    with pytest.raises(TargetError, match="No such"):
        finish_restore(place + b"/missing")


def test_a_link_to_a_directory_may_be_the_target(place: bytes) -> None:
    os.mkdir(place + b"/real")
    os.symlink(b"real", place + b"/link")
    assert begin_restore(place + b"/link", "aa11") == "fresh"
    assert names(place + b"/real") == {MARKER}


@pytest.mark.root
@root_only
def test_a_target_that_may_not_be_written(place: bytes) -> None:
    os.mkdir(place + b"/roots", 0o755)
    for path in (b"/roots", b"/new"):
        with pytest.raises(TargetError, match=r"Permission denied.*root"):
            as_user(begin_restore, place + path, "aa11")


@pytest.mark.root
@root_only
def test_a_read_only_target(place: bytes) -> None:
    with (
        mounted("tmpfs", Path(os.fsdecode(place)) / "ro", "ro") as where,
        pytest.raises(TargetError, match=r"Read-only.*writable"),
    ):
        begin_restore(os.fsencode(where), "aa11")
