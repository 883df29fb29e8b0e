"""The article's option 2: what `dd` has written comes in, and what we write it writes back."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.transcript import Notebook, one_line

pytestmark = [pytest.mark.root, pytest.mark.loop]
SEAL = "openssl enc -aes-256-cbc -iter 100000 -pass file:secret"


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    """A notebook, and beside it device.img: an ext4 of 64 MiB with some files."""
    made = Notebook(tmp_path)
    made.well("init")
    (tmp_path / "secret").write_text("article\n")
    files = tmp_path / "files"
    (files / "d").mkdir(parents=True)
    (files / "d/a.txt").write_text("text\n" * 1000)
    (files / "big.bin").write_bytes(os.urandom(5_000_000))
    subprocess.run(["mkfs.ext4", "-q", "-d", files, tmp_path / "device.img", "64M"], check=True)
    return made


def run(notebook: Notebook, command: str) -> None:
    subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], cwd=notebook.place, check=True, capture_output=True
    )


def same(notebook: Notebook, name: str) -> bool:
    return subprocess.run(["cmp", "device.img", name], cwd=notebook.place, check=False).returncode == 0


@pytest.mark.parametrize("wrapped", ["", f"| pigz | {SEAL}"])
def test_what_dd_has_written_comes_in(notebook: Notebook, wrapped: str) -> None:
    run(notebook, f"dd if=device.img bs=1M {wrapped} > backup")
    seal = ("--openssl-passphrase-file", "secret") if "openssl" in wrapped else ()
    said = notebook.well("import", "backup", "--json", *seal).json
    assert (said["mode"], said["form"], said["kind"]) == ("block", "image", "full")
    assert said["stored_bytes"] < 12_000_000
    notebook.well("export", "latest", "--output", "back.img")
    assert same(notebook, "back.img")
    notebook.well("restore", "--target", "back")
    assert (
        subprocess.run(["diff", "-r", "files", "back", "-x", "lost+found"], cwd=notebook.place).returncode
        == 0
    )
    subprocess.run(["truncate", "-s", "90M", "larger.img"], cwd=notebook.place, check=True)
    notebook.well("restore", "--device", "larger.img", "--destroy")
    subprocess.run(["e2fsck", "-fn", notebook.place / "larger.img"], check=True, capture_output=True)
    notebook.well("check", "--read-data")


def test_an_export_is_written_back_by_dd(notebook: Notebook) -> None:
    notebook.well("import", "device.img")
    seal = ("--format", "openssl", "--openssl-passphrase-file", "secret")
    notebook.well("export", "latest", *seal, "--output", "out.enc")
    run(notebook, f"{SEAL} -d -in out.enc | pigz -d | dd of=back.img bs=1M")
    assert same(notebook, "back.img")
    subprocess.run(["e2fsck", "-fn", notebook.place / "back.img"], check=True, capture_output=True)


def test_an_image_that_is_cut_off_leaves_no_snapshot(notebook: Notebook) -> None:
    run(notebook, "head -c 40M device.img > cut; gzip < cut > cut.gz")
    for name in ("cut", "cut.gz"):
        one_line(notebook.say("import", name), 13, "cut off", "67108864")
    assert notebook.well("snapshots", "--json").json == []
