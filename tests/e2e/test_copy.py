"""`smsnap copy` as people say it: to another repository with keys of its own, again and again."""

import os
from pathlib import Path

import pytest

from smsnapd.cli.comparison import describe, differences
from tests.e2e.transcript import Notebook, one_line


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    made = Notebook(tmp_path)
    made.well("init")
    (made.volume / "a").write_text("first")
    (made.volume / "b").write_bytes(os.urandom(300_000))
    made.well("backup")
    (made.volume / "a").write_text("second")
    made.well("backup")
    (made.place / "there").write_text("another passphrase\n")
    (made.place / "there.toml").write_text(
        f'[repository]\nurl = "{(made.place / "other").as_uri()}"\n'
        f'[encryption]\npassphrase_file = "there"\n[state]\ndir = "state-there"\n[volume]\nname = "nb"\n'
    )
    os.chmod(made.place / "there", 0o600)
    made.well("-c", "there.toml", "init")
    return made


def listed(notebook: Notebook, *options: str) -> list[tuple[str, str, str]]:
    found = notebook.well(*options, "snapshots", "--json").json
    return [(item["id"], item["time"], item["kind"]) for item in found]


@pytest.mark.parametrize("more", [("--to-config", "there.toml"), ("--to-passphrase-file", "there")])
def test_copy_to_other_keys(notebook: Notebook, more: tuple[str, ...]) -> None:
    url = (notebook.place / "other").as_uri()
    planned = notebook.well("copy", "--to", url, *more, "--dry-run", "--json").json
    assert planned["dry_run"] and len(planned["volumes"][0]["copied"]) == 2
    done = notebook.well("copy", "--to", url, *more, "--json", SMSNAP_REPOSITORY=notebook.url).json
    (volume,) = done["volumes"]
    assert (volume["volume"], volume["as"]) == ("nb", "nb") and volume["stored_bytes"] > 300_000
    assert listed(notebook) == listed(notebook, "-c", "there.toml")
    notebook.well("-c", "there.toml", "restore", "--target", "back")
    assert differences(describe(notebook.volume), describe(notebook.place / "back")) == []
    (notebook.volume / "c").write_text("third")
    notebook.well("backup")
    (volume,) = notebook.well("copy", "--to", url, *more, "--json").json["volumes"]
    assert len(volume["copied"]) == 1 and len(volume["there"]) == 2 and volume["stored_bytes"] < 50_000
    assert "copied 0 recovery points of nb (3 are there)" in notebook.well("copy", "--to", url, *more).text
    notebook.well("-c", "there.toml", "check", "--read-data")


def test_the_passphrase_of_the_environment_is_this_repositorys(notebook: Notebook) -> None:
    url = (notebook.place / "other").as_uri()
    notebook.configure(encryption="")
    notebook.well(
        "copy", "--to", url, "--to-config", "there.toml", SMSNAP_PASSPHRASE="correct horse battery staple"
    )
    assert listed(notebook, "-c", "there.toml")


def test_what_cannot_be_copied_says_why(notebook: Notebook) -> None:
    url = (notebook.place / "other").as_uri()
    one_line(notebook.say("copy", "--to", url), 12, "passphrase is wrong")
    one_line(notebook.say("copy", "--to", notebook.url), 2, "same repository")
    none = (notebook.place / "none").as_uri()
    one_line(notebook.say("copy", "--to", none, "--to-passphrase-file", "there"), 10, "none", "smsnap init")
    one_line(notebook.say("copy", "--to", url, "--to-passphrase-file", "there", "--snapshot", "zz"), 2, "zz")
    one_line(notebook.say("copy", "--to", url, "--to-config", "missing.toml"), 2, "missing.toml")
    latest = ("--snapshot", "latest", "--as", "elsewhere", "--to-passphrase-file", "there")
    notebook.well("copy", "--to", url, *latest)
    assert len(listed(notebook, "-c", "there.toml", "--volume", "elsewhere")) == 2
    notebook.well("-c", "there.toml", "--path", "volume", "backup")
    said = notebook.say("copy", "--to", url, "--to-passphrase-file", "there")
    one_line(said, 2, "did not come from here", "--as")


def test_what_is_older_than_what_is_there_is_named(notebook: Notebook) -> None:
    url, there = (notebook.place / "other").as_uri(), ("--to-passphrase-file", "there")
    notebook.well("backup", "--full")
    notebook.well("copy", "--to", url, *there, "--snapshot", "latest")
    said = notebook.say("copy", "--to", url, *there)
    assert said.status == 3 and "left out 2 recovery points of nb" in said.err and "--as" in said.err
