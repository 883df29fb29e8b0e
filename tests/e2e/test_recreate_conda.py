"""Conda environments made again: real ones, of a channel of our own, by a real solver and installer."""

import shutil
from pathlib import Path

import pytest

from tests.e2e import conda_program
from tests.e2e.transcript import Notebook


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    place = tmp_path / "channel"
    for name, version, *depends in (("alpha", "1.0", "beta >=1"), ("beta", "1.5"), ("beta", "2.0")):
        conda_program.make_package(place, name, version, *depends)
    conda_program.index(place)
    return place


@pytest.fixture
def notebook(tmp_path: Path, channel: Path) -> Notebook:
    """A conda environment that is backed up, and gone from the volume."""
    made = Notebook(tmp_path / "notebook")
    place = made.volume / "envs/science"
    conda_program.create(place, [channel.as_uri()], ["alpha", "beta=1.5"], ["alpha", "beta"])
    made.well("init")
    made.well("backup")
    shutil.rmtree(place)
    return made


def test_the_very_same_packages(notebook: Notebook, tmp_path: Path) -> None:
    place, path = notebook.volume / "envs/science", conda_program.put_in_path(tmp_path / "bin")
    (conda,) = notebook.well("environment", "show", "--json").json["condas"]
    assert conda["requested"] == ["alpha", "beta"]
    plan = notebook.well("environment", "recreate", "--dry-run", PATH=path).text
    assert f"conda create --yes --quiet --prefix {place} --file" in plan and not place.exists()
    said = notebook.well("environment", "recreate", "--json", PATH=path)
    (item,) = said.json["items"]
    assert (item["kind"], item["path"], item["standing"]) == ("conda", "envs/science", "made")
    assert conda_program.installed(place) == {"alpha": "1.0 0", "beta": "1.5 0"}
    again = notebook.well("environment", "recreate", "--json", PATH=path)
    assert [item["standing"] for item in again.json["items"]] == ["there"]


def test_what_was_asked_for_when_the_same_is_not_to_be_had(
    notebook: Notebook, tmp_path: Path, channel: Path
) -> None:
    (channel / "noarch/beta-1.5-0.tar.bz2").unlink()
    conda_program.index(channel)
    path = conda_program.put_in_path(tmp_path / "bin")
    said = notebook.say("environment", "recreate", "--json", PATH=path)
    (item,) = said.json["items"]
    assert said.status == 3 and item["standing"] == "failed"
    assert item["problems"] == ["beta is 2.0 0 and not 1.5 0"]
    assert "the very same packages are not to be had: CondaHTTPError" in item["notes"][0]
    assert conda_program.installed(notebook.volume / "envs/science") == {"alpha": "1.0 0", "beta": "2.0 0"}


def test_without_conda_it_is_named(notebook: Notebook) -> None:
    said = notebook.say("environment", "recreate", "--json", PATH="/usr/bin:/bin")
    (item,) = said.json["items"]
    assert said.status == 3 and item["problems"] == [
        "it needs conda, mamba or micromamba, and none was found"
    ]
