"""Block mode from the command line and by the daemon: images by the calendar, files in between."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook, one_line
from tests.unit.engine.images import NEEDS_FUSE, NEEDS_LOOP, make_ext4, mounted
from tests.unit.volume.ext4 import watched_over

pytestmark = [*NEEDS_LOOP, NEEDS_FUSE]


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path, more=f'[backup]\nmode = "block"\n{SCHEDULE}')
    with mounted(make_ext4(tmp_path / "device", "64M"), made.volume), watched_over(made.volume):
        (made.volume / "a.txt").write_text("first\n")
        made.well("init")
        yield made


def kinds(notebook: Notebook) -> list[tuple[str, str]]:
    return [(found["kind"], found["mode"]) for found in notebook.well("snapshots", "--json").json]


def test_the_command_line_makes_an_image_and_goes_on_with_files(notebook: Notebook) -> None:
    assert notebook.well("backup", "--dry-run", "--json").json["new_bytes"] > 0
    first = notebook.well("backup", "--json").json
    assert (first["kind"], first["mode"], first["files"], first["complete"]) == ("full", "block", 1, True)
    (notebook.volume / "a.txt").write_text("second\n")
    assert notebook.well("backup", "--json").json["mode"] == "tar"
    assert notebook.say("cat", "latest", "a.txt").out == b"second\n"
    assert notebook.well("backup", "--mode", "block", "--json").json["kind"] == "full"
    assert notebook.well("backup", "--mode", "tar", "--full", "--json").json["kind"] == "full"
    modes = ["block", "tar", "block", "tar"]
    assert kinds(notebook) == list(zip(["full", "incremental", "full", "full"], modes, strict=True))
    assert notebook.well("check", "--read-data", "--json").json["ok"]


def test_who_looks_back_is_told_what_to_do_with_images(notebook: Notebook) -> None:
    """A tree of files, an image, and what follows that."""
    notebook.well("backup", "--mode", "tar")
    image = notebook.well("backup", "--full", "--json").json["id"]
    (notebook.volume / "a.txt").write_text("second\n")
    notebook.well("backup")
    found = notebook.say("find", "a.txt", "--json")
    assert (found.status, [item["path"] for item in found.json]) == (3, ["a.txt"])
    assert "smsnap ls" in found.err and "2 recovery points could not be searched" in found.err
    one_line(notebook.say("diff", image, "latest"), 2, "block image", "restore")
    one_line(notebook.say("undelete"), 2, "block image", "restore")
    assert notebook.well("drill", "--json").json["ok"]
    place = notebook.place / "history"
    place.mkdir()
    assert notebook.say_alone("mount", "--background", "history").status == 0
    try:
        first, second, third = sorted(name for name in os.listdir(place) if name != "latest")
        assert (place / first / "a.txt").read_text() == "first\n"
        for point in (second, third):
            assert os.listdir(place / point) == ["THIS-IS-A-BLOCK-IMAGE"]
        assert image in (place / second / "THIS-IS-A-BLOCK-IMAGE").read_text()
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_the_daemon_takes_images_and_what_changed_in_between(notebook: Notebook) -> None:
    daemon = Daemon(notebook)
    try:
        daemon.start()
        daemon.holds("a.txt", "first\n")
        (notebook.volume / "a.txt").write_text("second\n")
        daemon.holds("a.txt", "second\n")
        assert kinds(notebook)[:2] == [("full", "block"), ("incremental", "tar")]
        assert daemon.say("backup", "--full", "--json").json["mode"] == "block"
        (notebook.volume / "b.txt").write_text("third\n")
        daemon.holds("b.txt", "third\n")
        (notebook.volume / "a.txt").unlink()
        eventually(lambda: daemon.say("ls", "latest", "a.txt").status == 2, "the deletion")
        assert kinds(notebook)[-1] == ("incremental", "tar")
        assert daemon.end() == 0
    finally:
        daemon.close()
    assert notebook.well("check", "--read-data", "--json").json["ok"]
