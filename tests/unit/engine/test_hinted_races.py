"""Hinted runs and what moves meanwhile: nothing is missed by them that no later hint tells of."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.history import History
from smsnapd.errors import StoreError
from smsnapd.format.manifest import Manifest
from smsnapd.volume.tarball.read import Packed, PackItem, PackReader
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, At, Protected

EVERYWHERE = Hints(frozenset(), frozenset({b""}))


def hinted(*directories: bytes) -> Hints:
    return Hints(frozenset(directories))


def newest(protected: Protected) -> Manifest:
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        return history.record(history.names[-1]).manifest


def restored(protected: Protected) -> Path:
    place = protected.root.with_name("restored")
    shutil.rmtree(place, ignore_errors=True)
    protected.restore(place)
    return place


def comes_back(protected: Protected) -> None:
    assert differences(observe(protected.root), observe(restored(protected))) == []


def counts_right(protected: Protected) -> None:
    """The manifest counts what comes back."""
    seen = observe(restored(protected)).values()
    files = [one for one in seen if one.kind == 0o100000]
    told = newest(protected).statistics
    assert (told.entries, told.files, told.bytes) == (len(seen), len(files), sum(one.size for one in files))


def settle(protected: Protected) -> None:
    """Back up so that nothing is unsettled: what comes after is compared by its stat alone."""
    time.sleep(0.03)
    protected.backup()


def test_a_recovery_point_stands_for_the_moment_up_to_which_hints_are_known(protected: Protected) -> None:
    """The lease and the list of manifests may take long: what is written meanwhile is in no hint."""
    (protected.root / "d").mkdir()
    settle(protected)
    (protected.root / "d" / "told").touch()
    as_of_ns = time.time_ns()
    time.sleep(0.002)
    (protected.root / "untold").touch()
    time.sleep(0.002)
    protected.backup(hints=Hints(frozenset({b"d"}), frozenset(), as_of_ns))
    assert newest(protected).name.time_us == as_of_ns // 1000
    assert not (restored(protected) / "untold").exists()
    time.sleep(0.002)
    later_ns = time.time_ns()
    protected.backup(hints=hinted(b""))
    assert newest(protected).name.time_us >= later_ns // 1000
    comes_back(protected)


def test_hints_are_not_believed_about_a_commit_of_somebody_else(protected: Protected) -> None:
    """Another machine committed another tree under the same name; the index is made of that."""
    root, other = protected.root, protected.root.with_name("other")
    (root / "ours").write_bytes(b"ours")
    settle(protected)
    shutil.copytree(root, other)
    (other / "ours").write_bytes(b"theirs")
    theirs = Protected(
        other, protected.state_dir / "other", protected.settings, protected.recovery_key,
        protected.write_key_text,
    )  # fmt: skip
    theirs.backup()
    (root / "new").touch()

    def fail() -> None:
        raise StoreError("list it", "the network is gone", transient=True)

    # A first run that fails has made the index anew already: the second must not take it for its own.
    with pytest.raises(StoreError):
        protected.backup(hints=hinted(b""), progress=At(scan=fail))
    protected.backup(hints=hinted(b""))
    assert newest(protected).completeness.method == "scan"
    comes_back(protected)
    (root / "newer").touch()
    protected.backup(hints=hinted(b""))
    assert newest(protected).completeness.method == "events"
    comes_back(protected)


def test_a_scan_that_finds_nothing_makes_hints_good_again(protected: Protected) -> None:
    (protected.root / "file").touch()
    settle(protected)
    time.sleep(0.03)
    protected.backup()
    protected.lose_state()
    assert protected.backup().snapshot is None
    (protected.root / "new").touch()
    protected.backup(hints=hinted(b""))
    assert newest(protected).completeness.method == "events"
    comes_back(protected)
    counts_right(protected)


@pytest.mark.parametrize("hints", [None, EVERYWHERE])
def test_what_vanishes_is_not_counted(protected: Protected, hints: Hints | None) -> None:
    root = protected.root
    for name in ("a", "b", "c"):
        (root / name).write_bytes(b"content")
    protected.backup()

    def vanish() -> None:
        (root / "new").unlink()
        (root / "b").unlink()

    (root / "new").write_bytes(b"new")
    (root / "b").write_bytes(b"changed, and then gone")
    (root / "c").write_bytes(b"changed")
    protected.backup(hints=hints, progress=At(store=vanish))
    counts_right(protected)
    (root / "d").touch()
    protected.backup(hints=hinted(b""))
    counts_right(protected)
    comes_back(protected)


@pytest.mark.parametrize("hints", [None, EVERYWHERE])
def test_a_directory_that_vanishes_stays_as_it_was_when_the_run_began(
    protected: Protected, hints: Hints | None
) -> None:
    place = protected.root / "d"
    place.mkdir(mode=0o755)
    (place / "inside").write_bytes(b"unchanged")
    protected.backup()
    place.chmod(0o700)
    os.utime(place, ns=(0, 7))
    protected.backup(hints=hints, progress=At(store=lambda: place.rename(protected.root / "e")))
    status = (restored(protected) / "d").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o700, 7)
    assert (restored(protected) / "d" / "inside").read_bytes() == b"unchanged"
    protected.backup()
    comes_back(protected)


@pytest.mark.parametrize("becomes", ["gone", "another file", "a directory"])
def test_a_name_that_goes_after_the_looks_is_no_alias_of_what_is_gone(
    protected: Protected, becomes: str
) -> None:
    root = protected.root
    (root / "z").mkdir()
    (root / "a").write_bytes(b"shared by three")
    os.link(root / "a", root / "z" / "b")
    os.link(root / "a", root / "z" / "c")
    settle(protected)
    (root / "a").unlink()

    def change() -> None:
        (root / "z" / "b").unlink()
        if becomes == "another file":
            (root / "z" / "b").write_bytes(b"another")
        elif becomes == "a directory":
            (root / "z" / "b" / "deep").mkdir(parents=True)

    protected.backup(hints=hinted(b""), progress=At(store=change))
    assert newest(protected).completeness.method == "events"
    assert (restored(protected) / "z" / "c").read_bytes() == b"shared by three"
    counts_right(protected)
    protected.backup(hints=hinted(b"z", b"z/b"))
    comes_back(protected)


def test_a_write_through_another_name_between_the_readings_of_both_is_found_by_that_name(
    protected: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first name was stored already; the hint is of the other one's directory alone."""
    root = protected.root
    (root / "z").mkdir()
    (root / "a").write_bytes(b"one")
    os.link(root / "a", root / "z" / "b")
    settle(protected)
    original: Callable[..., tuple[int, Packed]] = PackReader._read_alias

    def write_first(reader: PackReader, item: PackItem, view: memoryview, offset: int) -> tuple[int, Packed]:
        (root / "z" / "b").write_bytes(b"two")
        return original(reader, item, view, offset)

    (root / "a").chmod(0o600)
    time.sleep(0.03)
    with monkeypatch.context() as context:
        context.setattr(PackReader, "_read_alias", write_first)
        protected.backup(hints=hinted(b""), workers=0)
    assert (restored(protected) / "z" / "b").read_bytes() == b"one"
    time.sleep(0.03)
    protected.backup(hints=hinted(b"z"))
    comes_back(protected)
