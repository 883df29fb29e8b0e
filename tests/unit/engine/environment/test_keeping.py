"""The report goes with a full: sealed as contents are, kept as long as it, and no reason for one to fail."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd import recover
from smsnapd.engine.backup.request import EnvironmentRequest
from smsnapd.engine.environment import companion, surveyor
from smsnapd.engine.environment.keeping import newest_report
from smsnapd.engine.environment.report import Report
from smsnapd.engine.export import export_tar
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.errors import UsageError, WrongKeyError
from tests.property.protected import VOLUME, Protected, comes_back
from tests.property.pruned import Pruned
from tests.unit.engine.environment.places import bare_venv, distribution

WANTED = EnvironmentRequest(60.0)


def report_of(protected: Protected, snapshot: str = "latest", *, write_key: bool = False) -> Report:
    with protected.repository(write_key=write_key) as repository:
        history = History.load(repository, VOLUME)
        return newest_report(repository, history, history.find(snapshot))[0]


def install(protected: Protected, name: str) -> None:
    distribution(protected.root / ".venv/lib/python3.11/site-packages", name, "1.0")


@pytest.fixture
def volume(protected: Protected) -> Protected:
    bare_venv(protected.root / ".venv")
    install(protected, "six")
    return protected


def names_in(report: Report) -> list[str]:
    return [package.name for package in report.venvs[0].packages]


def test_every_full_has_one_that_only_the_identity_opens(volume: Protected) -> None:
    outcome = volume.backup(environment=WANTED)
    assert outcome.notes == ()
    assert names_in(report_of(volume)) == ["six"]
    with pytest.raises(WrongKeyError):
        report_of(volume, write_key=True)


def test_a_recovery_point_has_that_of_its_full(volume: Protected) -> None:
    first = volume.backup(environment=WANTED).snapshot
    install(volume, "later")
    second = volume.backup(environment=WANTED).snapshot
    third = volume.backup(full=True, environment=WANTED).snapshot
    fourth = volume.backup(full=True).snapshot
    assert first and second and third and fourth
    shown = [names_in(report_of(volume, found.id)) for found in (first, second, third, fourth)]
    assert shown == [["six"], ["six"], ["later", "six"], ["later", "six"]]


def test_a_volume_with_nothing_to_make_again_has_none(protected: Protected) -> None:
    (protected.root / "notes.txt").write_text("no environment\n")
    protected.backup(environment=WANTED)
    with pytest.raises(UsageError, match="no full up to it has one"):
        report_of(protected)


def test_it_is_checked_kept_and_in_nobodys_way(volume: Protected) -> None:
    volume.backup(environment=WANTED)
    install(volume, "later")
    volume.backup(environment=WANTED)
    for write_key in (False, True):
        assert volume.check(write_key=write_key).findings == ()
    comes_back(volume)
    volume.lose_state()
    install(volume, "again")
    volume.backup(environment=WANTED)
    volume.backup(full=True, environment=WANTED)
    assert volume.check().findings == ()
    comes_back(volume)
    assert names_in(report_of(volume)) == ["again", "later", "six"]


def test_a_full_in_which_nothing_else_changed(volume: Protected) -> None:
    """Then there would be no data key without it."""
    volume.backup()
    volume.backup(full=True, environment=WANTED)
    assert names_in(report_of(volume)) == ["six"] and volume.check().findings == ()


def test_prune_keeps_it_as_long_as_its_full(tmp_path: Path) -> None:
    pruned = Pruned.create(tmp_path)
    bare_venv(pruned.root / ".venv")
    install(pruned.protected, "six")
    pruned.backup(environment=WANTED)
    pruned.cut_off(full=True, environment=WANTED)
    for _ in range(3):
        pruned.prune()
        pruned.passes(100)
    assert names_in(report_of(pruned.protected)) == ["six"]
    assert pruned.protected.check().findings == ()
    assert pruned.objects() - pruned.lists() == pruned.needed()


def test_the_recovery_script_minds_it_not(protect: Callable[..., Protected], tmp_path: Path) -> None:
    volume = protect((tmp_path / "repository").as_uri())
    bare_venv(volume.root / ".venv")
    install(volume, "six")
    volume.backup(environment=WANTED)
    environment = {"SMSNAP_RECOVERY_KEY": volume.recovery_key, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", recover.__file__, tmp_path / "repository"]
    archive = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert "./.venv/pyvenv.cfg" in {f"./{name.removeprefix('./')}" for name in found.getnames()}
    with volume.repository() as repository:
        history = History.load(repository, VOLUME)
        whole = bytearray()
        export_tar(repository, history, history.find("latest"), whole.extend, Silent())
    assert archive == whole


@pytest.mark.parametrize("trouble", ["no process", "dies", "lies", "hangs", "floods"])
def test_whatever_becomes_of_it_the_full_is_made(
    volume: Protected, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {
        "dies": "import os; os.abort()",
        "lies": "print('{}')",
        "hangs": "import time; time.sleep(600)",
        "floods": "import sys; sys.stdout.write('x' * (30 << 20))",
    }.get(trouble, "")
    if trouble == "no process":
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(surveyor, "_START", code)
    monkeypatch.setattr(surveyor, "GRACE_S", 0.3)
    wanted = EnvironmentRequest(0.2 if trouble == "hangs" else 60.0)
    outcome = volume.backup(environment=wanted)
    assert outcome.snapshot is not None and outcome.snapshot.complete
    assert [note for note in outcome.notes if note.startswith("there is no environment report: ")]
    comes_back(volume)


def test_no_process_outlives_a_run_that_fails(volume: Protected, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[surveyor.Surveyor] = []

    class Noted(surveyor.Surveyor):
        def __init__(self, task: surveyor.SurveyTask) -> None:
            super().__init__(task)
            started.append(self)

    monkeypatch.setattr(companion, "Surveyor", Noted)
    monkeypatch.setattr(surveyor, "_START", "import time; time.sleep(600)")
    monkeypatch.setattr("smsnapd.engine.backup.run.SnapshotWriter", None)
    with pytest.raises(TypeError):
        volume.backup(environment=WANTED)
    (only,) = started
    assert isinstance(only._process, subprocess.Popen) and only._process.returncode is not None
