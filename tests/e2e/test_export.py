"""`smsnap export` as the 2021 article's readers get it back: with openssl, pigz and tar, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

from smsnapd.cli.comparison import describe, differences
from tests.e2e.transcript import Notebook, one_line

UNPACK = {"none": "cat", "gzip": "pigz -d", "lz4": "lz4 -d", "xz": "xz -d", "zstd": "zstd -d"}
SECRET = "the article's passphrase"


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    made = Notebook(tmp_path)
    made.well("init")
    (made.volume / "d").mkdir()
    (made.volume / "d/a.txt").write_text("first\n" * 100_000)
    (made.volume / "big.bin").write_bytes(os.urandom(3_000_000))
    os.link(made.volume / "big.bin", made.volume / "d/further")
    made.well("backup")
    (made.place / "secret").write_text(f"{SECRET}\n")
    return made


def extracted(notebook: Notebook, command: str) -> Path:
    """What a shell command, run in the notebook's place, extracts into the directory x."""
    place = notebook.place / "x"
    place.mkdir()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=notebook.place, check=True)
    return place


def same(notebook: Notebook, place: Path) -> bool:
    return differences(describe(notebook.volume), describe(place)) == []


@pytest.mark.parametrize("packing", UNPACK)
def test_packed_for_stock_tools(notebook: Notebook, packing: str) -> None:
    said = notebook.well("export", "latest", "--compress", packing, "--output", "out", "--json").json
    assert said["bytes"] == (notebook.place / "out").stat().st_size and said["compress"] == packing
    assert same(notebook, extracted(notebook, f"{UNPACK[packing]} < out | tar -x -C x"))


def test_the_articles_restore_commands(notebook: Notebook) -> None:
    seal = ("--format", "openssl", "--openssl-passphrase-file", "secret")
    notebook.well("export", "latest", *seal, "--output", "backup.tar.gz.enc")
    unseal = "openssl enc -d -aes-256-cbc -iter 100000 -pass file:secret -in backup.tar.gz.enc"
    command = f"{unseal} | pigz -d | tar -x -C x"
    assert same(notebook, extracted(notebook, command))
    assert b"first" not in (notebook.place / "backup.tar.gz.enc").read_bytes()
    notebook.well("import", "backup.tar.gz.enc", "--openssl-passphrase-file", "secret")
    notebook.well("restore", "--target", "back")
    assert same(notebook, notebook.place / "back")


def test_through_a_pipe(notebook: Notebook) -> None:
    said = notebook.well(
        "export", "latest", "--output", "-", "--format", "openssl", "--openssl-passphrase-file", "secret"
    )
    (notebook.place / "piped").write_bytes(said.out)
    command = "openssl enc -d -aes-256-cbc -iter 100000 -pass file:secret < piped | gzip -d | tar -x -C x"
    assert same(notebook, extracted(notebook, command))


def test_nothing_is_overwritten_unless_told(notebook: Notebook) -> None:
    (notebook.place / "out").write_text("mine")
    one_line(notebook.say("export", "latest", "--output", "out"), 2, "out", "--overwrite")
    assert (notebook.place / "out").read_text() == "mine"
    notebook.well("export", "latest", "--output", "out", "--overwrite")
    assert same(notebook, extracted(notebook, "tar -x -C x < out"))


def test_a_passphrase_and_its_format_go_together(notebook: Notebook) -> None:
    one_line(notebook.say("export", "latest", "--output", "o", "--format", "openssl"), 2, "go together")
    one_line(
        notebook.say("export", "latest", "--output", "o", "--openssl-passphrase-file", "secret"),
        2,
        "go together",
    )
    (notebook.place / "empty").touch()
    seal = ("--format", "openssl", "--openssl-passphrase-file", "empty")
    one_line(notebook.say("export", "latest", "--output", "o", *seal), 2, "empty")
    one_line(notebook.say("export", "latest", "--output", "http://x/y"), 2, "http://x/y", "s3:// URL")
    assert not (notebook.place / "o").exists()
