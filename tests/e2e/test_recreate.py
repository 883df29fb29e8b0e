"""`smsnap environment recreate`: real environments and repositories, gone and made again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import SCHEDULE, Daemon
from tests.e2e.transcript import Notebook, Said
from tests.unit.engine.environment.places import bare_venv, commit, distribution, git, pushed_repository

PROJECT = """
[build-system]
requires = ["flit_core >=3.9,<4"]
build-backend = "flit_core.buildapi"
[project]
name = "mine"
version = "0.3"
description = "a package of the notebook's own"
"""
PINNED = ("six==1.16.0", "iniconfig==2.0.0")  # tiny, pure, and not the newest


def make_venv(place: Path, *requirements: str | Path) -> None:
    """A virtual environment, without a pip of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip(place, "install", "--quiet", *requirements)


def pip(place: Path, *arguments: str | Path) -> str:
    """Run pip on an environment."""
    options = ("--disable-pip-version-check", "--python", place / "bin/python")
    command = [sys.executable, "-m", "pip", *options, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def packages(place: Path) -> dict[str, str]:
    """What pip itself says is in an environment."""
    return {row["name"]: row["version"] for row in json.loads(pip(place, "list", "--format=json"))}


def by_path(said: Said) -> dict[str, Any]:
    return {item["path"]: item for item in said.json["items"]}


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    made = Notebook(tmp_path)
    work = made.volume / "work"
    pushed_repository(work, tmp_path / "remotes/work.git")
    (work / "mine.py").write_text("ANSWER = 42\n")
    commit(work, "pyproject.toml", PROJECT, "a package")
    git(work, "add", "mine.py")
    git(work, "commit", "-qm", "its module")
    git(work, "push", "-q")
    made.well("init")
    return made


def wip(notebook: Notebook) -> str:
    """A repository with work that is nowhere else; its unpushed commit."""
    place = notebook.volume / "wip"
    pushed_repository(place, notebook.place / "remotes/wip.git")
    made = commit(place, "idea.txt", "idea\n", "an idea")
    (place / "a.txt").write_text("changed, not committed\n")
    (place / "untracked.txt").write_text("never added\n")
    return made


def kernel(notebook: Notebook) -> Path:
    place = notebook.place / "home/.local/share/jupyter/kernels/mine"
    place.mkdir(parents=True)
    argv = [str(notebook.volume / ".venv/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Mine", "language": "python"})
    )
    return place


def test_on_a_bare_machine_everything_is_as_it_was(notebook: Notebook) -> None:
    unpushed, work = wip(notebook), git(notebook.volume / "work", "rev-parse", "HEAD")
    make_venv(notebook.volume / ".venv", *PINNED, "--editable", notebook.volume / "work")
    before, spec = packages(notebook.volume / ".venv"), kernel(notebook)
    notebook.well("backup")
    bare = notebook.place / "bare"
    bare.mkdir()
    shutil.rmtree(notebook.volume)
    shutil.rmtree(spec)

    plan = notebook.well("environment", "recreate", "--target", str(bare), "--dry-run").text
    assert "git" in plan and "-m venv" in plan and "six==1.16.0" in plan and not list(bare.iterdir())

    said = notebook.say("environment", "recreate", "--target", str(bare), "--json")
    items = by_path(said)
    assert said.status == 0, (said.json, said.err)
    assert {path: item["standing"] for path, item in items.items() if item["kind"] != "kernel"} == {
        "work": "made",
        "wip": "restored",
        ".venv": "made",
    }
    assert packages(bare / ".venv") == before
    ask = [bare / ".venv/bin/python", "-c", "import mine, six; print(mine.ANSWER, mine.__file__)"]
    assert (
        subprocess.run(ask, check=True, capture_output=True, text=True).stdout == f"42 {bare}/work/mine.py\n"
    )
    assert git(bare / "work", "rev-parse", "HEAD") == work
    assert git(bare / "work", "status", "--porcelain", "--branch") == "## main...origin/main"
    assert items["wip"]["unsaved"] == [
        "1 unpushed commits on main",
        "1 uncommitted changes",
        "1 untracked files",
    ]
    assert git(bare / "wip", "rev-parse", "HEAD") == unpushed
    assert git(bare / "wip", "status", "--porcelain").splitlines() == ["M a.txt", "?? untracked.txt"]
    argv = json.loads((spec / "kernel.json").read_text())["argv"]
    assert argv[0] == str(bare / ".venv/bin/python")

    again = notebook.well("environment", "recreate", "--target", str(bare), "--json")
    assert {item["standing"] for item in again.json["items"]} == {"there"}
    assert packages(bare / ".venv") == before


def test_what_was_lost_meanwhile_is_put_back_and_the_rest_left_alone(notebook: Notebook) -> None:
    """A restored volume on another instance: its environment's Python is gone, and one package with it."""
    place = notebook.volume / ".venv"
    make_venv(place, *PINNED)
    notebook.well("backup")
    before = packages(place)
    pip(place, "uninstall", "--quiet", "--yes", "six", "iniconfig")
    pip(place, "install", "--quiet", "six==1.17.0")
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        (place / "bin" / name).unlink()
        (place / "bin" / name).symlink_to("/nonexistent/python")
    said = notebook.well("environment", "recreate", "--json")
    assert by_path(said)[".venv"]["standing"] == "brought up to date"
    assert packages(place) == before


def test_what_cannot_be_made_again_is_named(notebook: Notebook) -> None:
    """Versions that no index has, a Python that nobody has, remotes that are gone, a path that was local."""
    distribution(bare_venv(notebook.volume / "future", "3.99.1"), "six", "1.16.0")
    minor = f"3.{sys.version_info.minor}"
    site = bare_venv(notebook.volume / "odd", f"{minor}.0")
    distribution(site, "six", "1.16.0.post99")
    distribution(site, "iniconfig", "2.0.0")
    distribution(site, "local", "1", direct_url__json='{"url": "file:///nowhere/local", "dir_info": {}}')
    distribution(site, "helper", "1", direct_url__json='{"url": "ext::sh -c id", "vcs_info": {"vcs": "git"}}')
    lab = notebook.volume / "odd/share/jupyter/labextensions/hand-made"
    lab.mkdir(parents=True)
    (lab / "package.json").write_text('{"version": "1.0"}')
    pushed_repository(notebook.volume / "lost", notebook.place / "remotes/lost.git")
    commit(notebook.volume / "lost", "b", "b", "only here")
    notebook.well("backup")
    report = notebook.place / "report.json"
    report.write_bytes(notebook.well("environment", "show", "--json").out)
    bare = notebook.place / "bare"
    bare.mkdir()
    shutil.rmtree(notebook.place / "remotes/work.git")

    said = notebook.say("environment", "recreate", "--target", str(bare), "--report", str(report), "--json")
    assert said.status == 3
    problems = {path: "\n".join(item["problems"]) for path, item in by_path(said).items()}
    assert "it needs Python 3.99, and none was found" in problems["future"]
    assert "six==1.16.0.post99 was not installed" in problems["odd"]
    assert (
        "file:///nowhere/local" in problems["odd"] or "/nowhere/local, which is not there" in problems["odd"]
    )
    assert "helper 1 was not installed" in problems["odd"] and "iniconfig" not in problems["odd"]
    assert "the Jupyter lab extension hand-made is not there" in problems["odd"]
    assert "lost: 1 unpushed commits on main" in problems["lost"]
    assert "could not be brought back from the backup either: only a report is at hand" in problems["work"]
    assert packages(bare / "odd") == {"iniconfig": "2.0.0"}
    assert (bare / "lost/a.txt").exists() and not (bare / "lost/b").exists()

    again = notebook.say("environment", "recreate", "--target", str(bare), "--only", "work", "--json")
    assert again.status == 0 and by_path(again)["work"]["standing"] == "restored"


def test_a_report_does_not_lead_out_of_the_target(notebook: Notebook) -> None:
    bare, outside = notebook.place / "bare", notebook.place / "outside"
    bare.mkdir()
    outside.mkdir()
    (bare / "link").symlink_to(outside)
    venv = {"python": "3.11.7", "packages": [{"name": "six", "version": "1.16.0"}]}
    remote = str(notebook.place / "remotes/work.git")
    clone = {"remotes": [{"name": "origin", "url": remote}], "commit": "a" * 40, "branch": "--help"}
    report = {
        "report": 1, "captured": "", "root": "/v",
        "venvs": [{"path": "../outside/v", **venv}, {"path": "link/v", **venv}, {"path": "/etc/v", **venv}],
        "repositories": [
            {"path": "link/r", **clone},
            {"path": "ext", "remotes": [{"name": "origin", "url": f"ext::sh -c touch% {outside}/x"}]},
            {"path": "option", "remotes": [{"name": "--upload-pack=x", "url": remote}]},
        ],
        "kernels": [{"path": "/h/.local/share/jupyter/kernels/../../x", "name": "../../x", "argv": ["x"]}],
    }  # fmt: skip
    (notebook.place / "report.json").write_text(json.dumps(report))
    said = notebook.say("environment", "recreate", "--target", str(bare), "--report", "report.json", "--json")
    assert said.status == 3
    assert all(item["problems"] for item in said.json["items"]) and "/etc/v" not in by_path(said)
    assert not list(outside.iterdir())


def test_a_volume_that_is_a_repository_itself(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    git(notebook.volume, "init", "-q")
    made = commit(notebook.volume, "a", "a", "only here")
    notebook.well("init")
    notebook.well("backup")
    bare = notebook.place / "bare"
    said = notebook.well("environment", "recreate", "--target", str(bare), "--json")
    assert by_path(said)["."]["standing"] == "restored" and git(bare, "rev-parse", "HEAD") == made


def test_an_environment_that_is_left_out_is_made_again(notebook: Notebook) -> None:
    notebook.configure("[backup]\nexclude_recreatable = true\n")
    place = notebook.volume / ".venv"
    make_venv(place, *PINNED)
    before = packages(place)
    settle(place)
    said = notebook.well("backup")
    assert "left out, because `smsnap environment recreate` rebuilds it: .venv; that saves" in said.err
    assert notebook.well("environment", "show", "--json").json["left_out"][0]["files"] > 10
    bare = notebook.place / "bare"
    told = notebook.well("restore", "--target", str(bare)).err
    assert ".venv was left out; make it again: smsnap environment recreate --only .venv" in told
    assert (bare / "work/mine.py").exists() and not (bare / ".venv").exists()
    notebook.well("environment", "recreate", "--only", ".venv", "--target", str(bare))
    assert packages(bare / ".venv") == before


def test_a_daemon_leaves_it_out_and_takes_back_what_changes(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, more=f"{SCHEDULE}[backup]\nexclude_recreatable = true\n")
    place = notebook.volume / ".venv"
    make_venv(place, *PINNED[:1])
    site = next(place.glob("lib/python*/site-packages"))
    settle(place)
    notebook.well("init")
    daemon = Daemon(notebook)
    try:
        daemon.start()
        daemon.until("idle")
        assert notebook.say("ls", "latest", ".venv").status == 2
        (notebook.volume / "a.txt").write_text("a\n")
        daemon.holds("a.txt", "a\n")
        assert notebook.say("ls", "latest", ".venv").status == 2
        (site / "mine.py").write_text("mine = 1\n")
        daemon.holds(str((site / "mine.py").relative_to(notebook.volume)), "mine = 1\n")
        assert daemon.end() == 0
        daemon.is_whole()
    finally:
        daemon.close()


def settle(place: Path) -> None:
    """Wait: what has only just been written may be written again unseen, and is not left out."""
    settled_s = max(path.lstat().st_ctime for path in place.rglob("*")) + 2.1
    while time.time() < settled_s:
        time.sleep(0.1)


def test_a_commit_that_its_remote_has_no_more_comes_from_the_backup(notebook: Notebook) -> None:
    before = git(notebook.volume / "work", "rev-parse", "HEAD")
    notebook.well("backup")
    remote = notebook.place / "remotes/work.git"
    git(remote, "update-ref", "refs/heads/main", git(remote, "rev-list", "--max-parents=0", "main"))
    git(remote, "reflog", "expire", "--expire=now", "--all")
    git(remote, "gc", "-q", "--prune=now")
    bare = notebook.place / "bare"
    said = notebook.well("environment", "recreate", "--target", str(bare), "--json")
    assert by_path(said)["work"]["standing"] == "restored"
    assert (
        git(bare / "work", "rev-parse", "HEAD") == before
        and git(bare / "work", "status", "--porcelain") == ""
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_as_root_commands_run_as_the_owner_of_the_volume(notebook: Notebook) -> None:
    notebook.well("backup")
    for directory in (notebook.place, *notebook.place.parents[:-2]):
        directory.chmod(0o755)
    bare, remote = notebook.place / "bare", notebook.place / "remotes/work.git"
    bare.mkdir()
    for path in (bare, remote, *remote.rglob("*")):  # git trusts no others with what it clones
        os.chown(path, 12345, 12345)
    said = notebook.well("environment", "recreate", "--target", str(bare), "--json", HOME="/nonexistent")
    assert by_path(said)["work"]["standing"] == "made", said
    assert (bare / "work").stat().st_uid == 12345 == (bare / "work/a.txt").stat().st_uid
