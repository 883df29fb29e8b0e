"""Environments that are left out: until anything in them changes, and never a byte that is nowhere else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.request import EnvironmentRequest
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.environment import leaving
from smsnapd.engine.environment.keeping import newest_report
from smsnapd.engine.history import History
from tests.property.protected import VOLUME, Protected, comes_back

LEAVING = EnvironmentRequest(60.0, leave_out=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real environment with a package from an index."""
    place = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--quiet", "six==1.16.0"]
    subprocess.run(pip, check=True)
    return place


@pytest.fixture
def volume(protected: Protected, made: Path, monkeypatch: pytest.MonkeyPatch) -> Protected:
    """A volume of which a full has left out an environment; the clock's ticks are waited for elsewhere."""
    monkeypatch.setattr(leaving, "SETTLED_NS", 0)
    shutil.copytree(made, protected.root / "p/.venv", symlinks=True)
    (protected.root / "p/notes.txt").write_text("notes\n")
    outcome = protected.backup(environment=LEAVING)
    assert [note for note in outcome.notes if note.startswith("left out, because")], outcome.notes
    return protected


def again(volume: Protected, *hints: bytes, **request: object) -> BackupOutcome:
    """The next run, which looks where it is told to; without hints everywhere."""
    if hints:
        request["hints"] = Hints(frozenset(hints))
    return volume.backup(**{"environment": LEAVING, **request})


def has_it(volume: Protected, tmp_path: Path) -> bool:
    target = tmp_path / "restored"
    volume.restore(target)
    found = (target / "p/.venv/pyvenv.cfg").exists()
    shutil.rmtree(target)
    return found


def test_it_is_left_out_and_whoever_restores_is_told(volume: Protected, tmp_path: Path) -> None:
    outcome = volume.restore(tmp_path / "restored")
    assert (tmp_path / "restored/p/notes.txt").exists() and not (tmp_path / "restored/p/.venv").exists()
    assert outcome.notes == (
        "p/.venv was left out; make it again: smsnap environment recreate --only p/.venv",
    )
    assert volume.restore(tmp_path / "other", paths=(b"p/notes.txt",)).notes == ()
    with volume.repository() as repository:
        history = History.load(repository, VOLUME)
        (left,) = newest_report(repository, history, history.find("latest"))[0].left_out
    assert left.path == "p/.venv" and left.files > 10 and left.bytes > 10_000
    assert volume.check().findings == ()


def test_a_restore_onto_the_volume_does_not_delete_it(volume: Protected) -> None:
    (volume.root / "extra").write_text("x")
    volume.restore(volume.root, overwrite="if-changed", delete=True)
    assert (volume.root / "p/.venv/pyvenv.cfg").exists() and not (volume.root / "extra").exists()


@pytest.mark.parametrize("hinted", [False, True])
def test_it_stays_out_while_nothing_in_it_changes(volume: Protected, tmp_path: Path, hinted: bool) -> None:
    hints = (b"p", b"p/.venv/lib", b"p/.venv") if hinted else ()
    (volume.root / "p/notes.txt").write_text("more notes\n")
    subprocess.run([volume.root / "p/.venv/bin/python", "-c", "import six, colorsys"], check=True)
    for text in ("even more\n", "and more\n"):
        (volume.root / "p/notes.txt").write_text(text)
        assert again(volume, *hints).snapshot and not has_it(volume, tmp_path)
    outcome = volume.restore(tmp_path / "last")
    assert outcome.notes, "an incremental tells of it too"


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("change", ["file", "new", "pip"])
def test_whatever_changes_brings_all_of_it_back(
    volume: Protected, tmp_path: Path, hinted: bool, change: str
) -> None:
    site = next((volume.root / "p/.venv/lib").glob("python*/site-packages"))
    if change == "file":
        (site / "six.py").write_text("# mine\n")
    elif change == "new":
        (site / "mine.py").write_text("mine = 1\n")
    else:
        pip = [sys.executable, "-m", "pip", "--python", volume.root / "p/.venv/bin/python"]
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "six"], check=True)
    outcome = again(volume, *([os.path.relpath(site, volume.root).encode()] if hinted else []))
    assert any("p/.venv has changed" in note for note in outcome.notes)
    comes_back(volume)
    (volume.root / "p/notes.txt").write_text("later\n")
    again(volume, *([b"p"] if hinted else []))
    comes_back(volume)


def test_the_next_full_judges_anew(volume: Protected, tmp_path: Path) -> None:
    site = next((volume.root / "p/.venv/lib").glob("python*/site-packages"))
    (site / "mine.py").write_text("mine = 1\n")
    outcome = again(volume, full=True)
    assert any("p/.venv is not left out" in note and "mine.py" in note for note in outcome.notes)
    comes_back(volume)
    (site / "mine.py").unlink()
    again(volume)
    comes_back(volume)
    again(volume, full=True)
    assert not has_it(volume, tmp_path)
    assert volume.check().findings == ()


def test_without_what_is_known_here_it_is_backed_up(volume: Protected) -> None:
    volume.lose_state()
    again(volume)
    comes_back(volume)


def test_without_the_setting_it_is_backed_up(volume: Protected) -> None:
    volume.backup()
    comes_back(volume)


@pytest.mark.parametrize("hinted", [False, True])
def test_one_that_was_moved_is_backed_up_where_it_is(volume: Protected, hinted: bool) -> None:
    (volume.root / "p/.venv").rename(volume.root / "moved")
    again(volume, *([b"", b"p"] if hinted else []))
    comes_back(volume)


def test_what_changes_by_a_name_elsewhere_is_seen(volume: Protected) -> None:
    """As in environments whose files are links to those of a cache: nothing is heard of there."""
    site = next((volume.root / "p/.venv/lib").glob("python*/site-packages"))
    os.link(site / "six.py", volume.root / "cached")
    again(volume)
    again(volume, full=True)
    assert not any("not left out" in note for note in again(volume, full=True).notes)
    (volume.root / "cached").write_text("changed through the other name\n")
    outcome = again(volume, b"")
    assert any("p/.venv has changed" in note for note in outcome.notes)
    comes_back(volume)


def test_a_link_in_its_place_is_no_environment(volume: Protected, tmp_path: Path) -> None:
    (volume.root / "p/.venv").rename(tmp_path / "elsewhere")
    (volume.root / "p/.venv").symlink_to(tmp_path / "elsewhere")
    again(volume)
    comes_back(volume)


def test_a_dry_run_leaves_it_out_and_changes_nothing(volume: Protected, tmp_path: Path) -> None:
    assert again(volume, dry_run=True).changed == 0
    assert again(volume).snapshot is None
    assert not has_it(volume, tmp_path)
