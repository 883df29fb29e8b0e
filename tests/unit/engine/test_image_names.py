"""The tree at the moment of an image: scanned before, and mended by the directories that moved."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from smsnapd.engine.image.names import Names
from smsnapd.model import Flag, directory_key
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.tree import Tree


def change(root: Path, chance: random.Random) -> None:
    """One change of names somewhere."""
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    place = chance.choice(directories)
    name = chance.choice("abcdef")
    kind = chance.randrange(5)
    if kind == 0:
        (place / name).mkdir(exist_ok=True) if not (place / name).is_file() else None
    elif kind == 1 and not (place / name).is_dir():
        (place / name).write_bytes(b"x")
    elif kind == 2 and place != root:
        shutil.rmtree(place)
    elif kind == 3:
        target = chance.choice(directories) / name
        if place != root and not target.exists() and place not in [target, *target.parents]:
            place.rename(target)
    elif (place / name).is_file():
        (place / name).unlink()


def moments(root: Path) -> dict[int, tuple[int, int]]:
    """What of each directory an inode table would show: it moved if this did."""
    found = [root, *(path for path in root.rglob("*") if path.is_dir())]
    statuses = [path.stat() for path in found]
    return {status.st_ino: (status.st_ctime_ns, status.st_mtime_ns) for status in statuses}


@pytest.mark.parametrize("seed", range(40))
def test_what_is_mended_is_what_is_there(tmp_path: Path, seed: int) -> None:
    root, scratch, chance = tmp_path / "root", tmp_path / "scratch", random.Random(seed)
    root.mkdir()
    scratch.mkdir()
    for _ in range(60):
        change(root, chance)
    for path in root.rglob("*"):
        os.utime(path, (1, 1))  # a change within a tick of the clock shows all the same
    os.utime(root, (1, 1))
    with Tree(bytes(root)) as tree:
        names = Names(tree, Excludes(), scratch)
        before = moments(root)
        names.scan()
        for _ in range(chance.randrange(30)):
            change(root, chance)
        after = moments(root)
        moved = {inode for inode in before | after if before.get(inode) != after.get(inode)}
        names.mend(moved, lambda: None)
        found = list(names.listings(1 << 62))
        there = {
            (listing.directory, entry.name, entry.kind)
            for listing in scan(tree, Excludes(), ScanReport())
            for entry in listing.entries
        }
        names.close()
    keys = [directory_key(listing.directory) for listing in found]
    assert keys == sorted(set(keys))
    assert {(one.directory, entry.name, entry.kind) for one in found for entry in one.entries} == there


def test_what_changed_at_the_last_moment_is_unsettled(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").touch()
    with Tree(bytes(root)) as tree:
        names = Names(tree, Excludes(), tmp_path)
        names.scan()
        moment = (root / "f").stat().st_ctime_ns
        (listing,) = names.listings(moment)
        assert [entry.flags for entry in listing.entries if entry.name] == [Flag.UNSETTLED]
        (listing,) = names.listings(moment + 1)
        assert [entry.flags for entry in listing.entries if entry.name] == [0]
        names.close()
