"""`smsnap environment`, as transcripts: real repositories, real environments made by pip."""

import json
import os
from pathlib import Path

import pytest

from tests.e2e.transcript import Notebook, one_line
from tests.unit.engine.environment.places import bare_venv, commit, distribution, pushed_repository


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    """A notebook with a repository of backups, and one of git with unpushed work."""
    made = Notebook(tmp_path)
    pushed_repository(made.volume / "work", tmp_path / "remote.git")
    commit(made.volume / "work", "b.txt", "b\n", "only here")
    distribution(bare_venv(made.volume / ".venv"), "six", "1.16.0")
    made.well("init")
    return made


def test_what_a_full_knows_is_shown_later(notebook: Notebook) -> None:
    one_line(notebook.say("environment", "show"), 2, "the repository holds no backup yet")
    notebook.well("backup")
    shown = notebook.well("environment", "show")
    assert ".venv  Python 3.11.7, 1 packages" in shown.text
    assert "ONLY HERE: 1 unpushed commits on main" in shown.text
    report = notebook.well("environment", "show", "latest", "--json").json
    (repository,) = report["repositories"]
    assert repository["path"] == "work" and repository["unpushed"] == 1
    assert report["venvs"][0]["packages"] == [{"name": "six", "version": "1.16.0", "installer": "pip"}]
    now = notebook.well("environment", "capture", "--json").json
    assert now["repositories"] == report["repositories"]


def test_a_configuration_can_leave_it_out(notebook: Notebook) -> None:
    notebook.configure("[backup]\nenvironment = false\n")
    notebook.well("backup")
    one_line(notebook.say("environment", "show"), 2, "no full up to it has one", "smsnap environment capture")
    assert "ONLY HERE" in notebook.well("environment", "capture").text


def test_the_write_key_makes_a_report_and_cannot_read_it(notebook: Notebook) -> None:
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    notebook.well("backup")
    said = notebook.say("environment", "show", "--passphrase-file", "write-key")
    assert said.status == 12
    notebook.configure()
    assert json.loads(notebook.well("environment", "show", "--json").out)["venvs"]


def test_a_volume_that_is_not_there(notebook: Notebook) -> None:
    one_line(
        notebook.say("environment", "capture", "--path", "nowhere"),
        1,
        "look at the environments",
        "No such file",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_privileges_and_in_a_container(notebook: Notebook) -> None:
    """Root without capabilities, as containers have it, looks at what is root's own."""
    said = notebook.say_alone("environment", "capture", "--json", capable=False)
    assert said.status == 0 and said.json["repositories"][0]["unpushed"] == 1
