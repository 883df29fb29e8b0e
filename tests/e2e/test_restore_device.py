"""Block images on the command line: `restore` to a device, a pipe and a directory, `export`, `ls`, `cat`."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.image.restore import DeviceRequest, restore_device
from smsnapd.engine.progress import Silent
from smsnapd.store import StoreSettings
from tests.e2e.transcript import PASSPHRASE, Notebook
from tests.property.observed import differences, observe
from tests.property.protected import PASSPHRASE as OURS
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.images import NEEDS_FUSE, NEEDS_LOOP, fsck, make_ext4, mounted

pytestmark = [*NEEDS_LOOP, NEEDS_FUSE]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "device", "16M", "-b", "4096")


@pytest.fixture
def notebook(tmp_path: Path, device: Path) -> Notebook:
    """A notebook whose repository has one block full, in the volume `notebook`, and a delta behind it."""
    assert PASSPHRASE == OURS
    notebook = Notebook(tmp_path)
    settings = StoreSettings(notebook.url)
    with mounted(device, tmp_path / "mounted") as root:
        (root / "d").mkdir()
        (root / "d" / "a.txt").write_text("first\n")
        (root / "big").write_bytes(os.urandom(2_000_000))
        protected = Protected.create(root, tmp_path / "own-state", settings)
        protected.backup(mode="block")
        (root / "d" / "a.txt").write_text("second\n")
        protected.backup()
    return notebook


FULL = ("--volume", "notebook")


def full_of(notebook: Notebook) -> str:
    listed = json.loads(notebook.well("snapshots", *FULL, "--json").out)
    assert [(item["kind"], item["mode"]) for item in listed] == [("full", "block"), ("incremental", "tar")]
    return str(listed[0]["id"])


def sized(path: Path, size: str) -> Path:
    subprocess.run(["truncate", "-s", size, path], check=True)
    return path


LONG = os.environ.get("SMSNAP_LONG") == "1"
FILE_BYTES = (8 if LONG else 1) * 1024 * 1000


@pytest.mark.slow
def test_four_gigabytes_with_half_a_gigabyte_of_files(tmp_path: Path) -> None:
    """A smaller and a larger device; without SMSNAP_LONG=1 all sizes are an eighth of these."""
    device = make_ext4(tmp_path / "device", "4G" if LONG else "512M")
    settings = StoreSettings((tmp_path / "repo").as_uri())
    protected = Protected.create(tmp_path / "volume", tmp_path / "state", settings)
    with mounted(device, tmp_path / "volume") as root:
        for number in range(64):
            (root / f"d{number % 8}").mkdir(exist_ok=True)
            (root / f"d{number % 8}" / f"file-{number}").write_bytes(os.urandom(FILE_BYTES))
        first = protected.backup(mode="block")
        original = observe(root)
        (root / "d0" / "file-0").write_bytes(b"changed")
        second = protected.backup(mode="block", full=True)
    assert first.new_bytes < 1.05 * 64 * FILE_BYTES  # sealed sizes are padded
    assert second.new_bytes < first.new_bytes / (100 if LONG else 20)
    assert first.snapshot is not None
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        for size, way in (("2G", "files"), ("8G", "grown")):
            back = sized(tmp_path / size, size if LONG else f"{int(size[0]) * 128}M")
            request = DeviceRequest(bytes(back), workers=2)
            outcome = restore_device(
                repository, protected.settings, history, history.find(first.snapshot.id), request, Silent()
            )
            assert (outcome.way, outcome.not_restored) == (way, ())
            fsck(back)
            with mounted(back, tmp_path / "look", "loop,ro") as look:
                assert list(differences(original, observe(look))) == []
                room = os.statvfs(look)
                assert room.f_blocks * room.f_frsize > 0.9 * back.stat().st_size
            back.unlink()


def test_an_image_goes_to_a_file_a_pipe_and_back_to_files(
    notebook: Notebook, device: Path, tmp_path: Path
) -> None:
    full = full_of(notebook)
    said = notebook.say("restore", *FULL, "--device", "back", "--snapshot", full, "--dry-run")
    assert said.status == 0 and b"would restore" in said.out and not (tmp_path / "back").exists()
    report = json.loads(
        notebook.well("restore", *FULL, "--device", "back", "--snapshot", full, "--verify", "--json").out
    )
    assert (report["way"], report["size"], report["not_restored"]) == ("image", 16 * 1024 * 1024, [])
    assert report["verified"] == report["bytes"] > 2_000_000
    fsck(tmp_path / "back")

    said = notebook.say("restore", *FULL, "--device", "back", "--snapshot", full)
    assert said.status == 1 and "--destroy" in said.err and "ext4" in said.err

    original = notebook.well("restore", *FULL, "--device", "-", "--snapshot", full).out
    assert len(original) == 16 * 1024 * 1024
    (tmp_path / "piped").write_bytes(original)
    fsck(tmp_path / "piped", clean=False)
    notebook.well("export", *FULL, full, "--output", "exported")
    exported = tmp_path / "exported"
    assert exported.read_bytes() == original
    assert exported.stat().st_blocks * 512 < len(original) // 2
    notebook.well("export", *FULL, full, "--output", "exported.gz", "--compress", "gzip")
    assert gzip.decompress((tmp_path / "exported.gz").read_bytes()) == original

    assert notebook.well("cat", *FULL, full, "d/a.txt").out == b"first\n"
    assert notebook.well("cat", *FULL, "latest", "d/a.txt").out == b"second\n"
    assert b"d/a.txt\n" in notebook.well("ls", *FULL, "-R", full).out
    notebook.well("restore", *FULL, "--target", "files", "d")
    assert (tmp_path / "files" / "d" / "a.txt").read_text() == "second\n"


def test_a_drill_compares_what_comes_out_of_an_image(notebook: Notebook, tmp_path: Path) -> None:
    drilled = json.loads(notebook.well("drill", *FULL, "--all", "--json").out)
    assert drilled["differences"] == [] and drilled["files"] >= 2
    assert drilled["bytes"] > 2_000_000


def test_a_moment_behind_an_image_goes_to_a_pipe(notebook: Notebook, tmp_path: Path) -> None:
    piped = tmp_path / "piped"
    piped.write_bytes(notebook.well("restore", *FULL, "--device", "-").out)
    fsck(piped)
    with mounted(piped, tmp_path / "look", "loop,ro") as root:
        assert (root / "d" / "a.txt").read_text() == "second\n"
        assert sorted(path.name for path in root.iterdir()) == ["big", "d", "lost+found"]


def test_what_does_not_go_together_is_said(notebook: Notebook) -> None:
    for arguments in (
        ("--device", "back", "d/a.txt"),
        ("--device", "back", "--target", "files"),
        ("--device", "back", "--overwrite", "always"),
        ("--target", "files", "--verify"),
        ("--device", "-", "--verify"),
        (),
    ):
        said = notebook.say("restore", *FULL, *arguments)
        assert said.status == 2, said


@pytest.mark.parametrize("wrapping", ["", "gzip", "zstd"])
def test_an_image_that_dd_has_written_is_taken_in(tmp_path: Path, wrapping: str) -> None:
    device = make_ext4(tmp_path / "volume.img", "16M", "-b", "4096")
    with mounted(device, tmp_path / "mounted") as root:
        (root / "a.txt").write_text("in the image\n")
        (root / "b.bin").write_bytes(os.urandom(1_000_000))
        original = observe(root)
    notebook = Notebook(tmp_path)
    notebook.well("init")
    name = device.name
    if wrapping:
        subprocess.run([wrapping, "-q", device], check=True)
        name = f"{device.name}.{'gz' if wrapping == 'gzip' else 'zst'}"
    taken = json.loads(notebook.well("import", name, "--json").out)
    assert (taken["kind"], taken["mode"], taken["form"]) == ("full", "block", "image")
    assert taken["wrapping"] == ([wrapping] if wrapping else [])
    assert notebook.well("cat", "latest", "a.txt").out == b"in the image\n"
    notebook.well("restore", "--device", "back", "--verify")
    fsck(tmp_path / "back")
    with mounted(tmp_path / "back", tmp_path / "look", "loop,ro") as look:
        assert list(differences(original, observe(look))) == []
    again = json.loads(notebook.well("import", name, "--json").out)
    assert again["stored_bytes"] < taken["stored_bytes"] / 2
    notebook.well("check", "--read-data")


def test_an_image_in_use_is_taken_in_as_what_it_is(tmp_path: Path) -> None:
    device = make_ext4(tmp_path / "volume.img", "16M", "-b", "4096")
    with mounted(device, tmp_path / "mounted") as root:
        (root / "a.txt").write_text("written\n")
        subprocess.run(["sync", "-f", root], check=True)
        shutil.copy(device, tmp_path / "copy.img")
    notebook = Notebook(tmp_path)
    notebook.well("init")
    notebook.well("import", "copy.img")
    assert notebook.well("cat", "latest", "a.txt").out == b"written\n"
    notebook.well("restore", "--device", "back")
    fsck(tmp_path / "back")
    (tmp_path / "cut.img").write_bytes((tmp_path / "copy.img").read_bytes()[:-100])
    said = notebook.say("import", "cut.img")
    assert said.status == 13 and "cut off" in said.err
