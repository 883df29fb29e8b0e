"""What a report tells of a volume, friendly or hostile, and of what a user keeps beside it."""

import json
import os
from pathlib import Path

import pytest

from smsnapd.engine.environment import capture as capturing
from smsnapd.engine.environment import survey as surveying
from smsnapd.engine.environment import surveyor
from smsnapd.engine.environment.capture import capture
from smsnapd.engine.environment.pythons import requested_specs
from smsnapd.engine.environment.report import Package, Report, decode_report, encode_report
from smsnapd.engine.environment.surveyor import SurveyError, Surveyor, SurveyTask, survey
from smsnapd.errors import DamageError
from tests.unit.engine.environment.places import bare_venv, distribution, pushed_repository

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for the owner of the volume."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setattr(capturing, "home_of", lambda root: os.fsencode(place))
    return place


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    place = tmp_path / "volume"
    place.mkdir()
    return place


def look(volume: Path, seconds: float = 60) -> Report:
    return capture(os.fsencode(volume), (), seconds)


def test_a_virtual_environment_and_where_its_packages_are_from(volume: Path) -> None:
    site = bare_venv(volume / "p/.venv")
    distribution(site, "six", "1.16.0")
    distribution(
        site,
        "mine",
        "0.1",
        direct_url__json=json.dumps({"url": "file:///v/mine", "dir_info": {"editable": True}}),
    )
    vcs = {"url": "https://u:s3cret@example.org/x", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}
    distribution(site, "fromgit", "2.0", direct_url__json=json.dumps(vcs))
    archive = {"url": "https://example.org/y.whl?t=s3cret", "archive_info": {"hash": "sha256=" + "0" * 64}}
    distribution(site, "wheel_of", "3", direct_url__json=json.dumps(archive))
    (volume / "p/.venv/pip.conf").write_text(
        "[global]\nindex-url = https://u:s3cret@index.example.org/simple\nextra-index-url = https://b.example.org/s\n"
    )
    report = look(volume)
    (venv,) = report.venvs
    assert (venv.path, venv.python) == ("p/.venv", "3.11.7")
    assert venv.packages == (
        Package("fromgit", "2.0", f"git+https://example.org/x@{'ab' * 20}", installer="pip"),
        Package("mine", "0.1", "file:///v/mine", editable=True, installer="pip"),
        Package("six", "1.16.0", installer="pip"),
        Package("wheel_of", "3", "https://example.org/y.whl#sha256=" + "0" * 64, installer="pip"),
    )
    assert venv.indexes == ("https://index.example.org/simple", "https://b.example.org/s")
    assert b"s3cret" not in encode_report(report)


def test_a_conda_environment_by_its_own_records(volume: Path, home: Path) -> None:
    def record(prefix: Path, name: str, **more: str) -> None:
        (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
        url = f"https://conda.anaconda.org/t/s3cret/conda-forge/noarch/{name}-1.0-py_0.conda"
        row = {
            "name": name,
            "version": "1.0",
            "build": "py_0",
            "url": url,
            "md5": "0" * 32,
            "files": ["x"] * 9,
        }
        (prefix / "conda-meta" / f"{name}-1.0-py_0.json").write_text(json.dumps(row | more))

    record(volume / "conda", "conda")
    record(volume / "conda/envs/science", "xarray")
    distribution(volume / "conda/envs/science/lib/python3.11/site-packages", "six", "1.16.0")
    distribution(
        volume / "conda/envs/science/lib/python3.11/site-packages", "xarray", "1.0", INSTALLER="conda\n"
    )
    (volume / "conda/envs/science/conda-meta/history").write_text(
        "==> 2026 <==\n# update specs: ['python=3.11', 'conda-forge::xarray >=2']\n+x\n"
        "# update specs: ['numpy']\n# remove specs: ['numpy']\n# update specs: [__import__('os')]\n"
    )
    elsewhere = home / "miniconda3/envs/other"
    record(elsewhere, "numpy")
    (home / ".conda").mkdir()
    (home / ".conda/environments.txt").write_text(f"{elsewhere}\n{volume}/conda/envs/science\n/nowhere\n")
    report = look(volume)
    by_path = {conda.path: conda for conda in report.condas}
    assert by_path.keys() == {"conda", "conda/envs/science", str(elsewhere)}
    science = by_path["conda/envs/science"]
    assert science.requested == ("python=3.11", "conda-forge::xarray >=2")
    assert science.channels == ("https://conda.anaconda.org/conda-forge",)
    assert science.packages[0].url == "https://conda.anaconda.org/conda-forge/noarch/xarray-1.0-py_0.conda"
    assert [package.name for package in science.pip] == ["six"]


def test_specs_of_a_history_are_the_last_of_each_name() -> None:
    history = "# update specs: ['a=1', 'b']\n# update specs: ['a=2']\n# remove specs: ['b']\n"
    assert requested_specs(history) == ("a=2",)
    assert requested_specs("# update specs: [" + "[" * 50_000) == ()


def test_kernels_and_extensions(volume: Path, home: Path) -> None:
    kernel = home / ".local/share/jupyter/kernels/mine"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/v/.venv/bin/python", "-m", "k"], "display_name": "Mine", "env": {"TOKEN": "s3cret"}}
    (kernel / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    lab = home / ".local/share/jupyter/labextensions/@team/thing"
    lab.mkdir(parents=True)
    (lab / "package.json").write_text('{"name": "@team/thing", "version": "1.2"}')
    bare_venv(volume / ".venv")
    config = volume / ".venv/etc/jupyter/jupyter_server_config.d"
    config.mkdir(parents=True)
    (config / "x.json").write_text('{"ServerApp": {"jpserver_extensions": {"jupyterlab_git": true}}}')
    report = look(volume)
    (found,) = report.kernels
    assert (found.name, found.display_name, found.variables) == ("mine", "Mine", ("TOKEN",))
    assert found.argv[0] == "/v/.venv/bin/python"
    assert {(item.kind, item.name, item.version) for item in report.extensions} == {
        ("lab", "@team/thing", "1.2"),
        ("server", "jupyterlab_git", ""),
    }
    assert b"s3cret" not in encode_report(report)


def test_repositories_and_large_files(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "LARGE_BYTES", 1000)
    monkeypatch.setattr(surveying, "LARGE_FILES", 2)
    pushed_repository(volume / "r", tmp_path / "remote.git")
    (volume / "r/nested").mkdir()
    pushed_repository(volume / "r/nested/s", tmp_path / "s.git")
    for size in (999, 1000, 1001, 1002):
        (volume / f"{size}.bin").write_bytes(b"x" * size)
    report = look(volume)
    assert [repository.path for repository in report.repositories] == ["r", "r/nested/s"]
    assert [(file.path, file.size) for file in report.data] == [("1002.bin", 1002), ("1001.bin", 1001)]


def test_a_hostile_volume_has_a_report(volume: Path, tmp_path: Path) -> None:
    site = bare_venv(volume / ".venv")
    distribution(site, "good", "1")
    os.mkfifo(distribution(site, "fifo", "1") / "direct_url.json")
    huge = distribution(site, "huge", "1")
    with (huge / "METADATA").open("r+b") as file:
        file.truncate(1 << 40)
    distribution(site, "names", "1", METADATA="Name: -r /etc/passwd\nVersion: 1\n\n")
    distribution(site, "lines", "1", METADATA="Name: a\r\x1b[2J\nVersion: 1; rm\n\n")
    (site / "link-1.dist-info").symlink_to("/etc")
    (site / "deep-1.dist-info").mkdir()
    (site / "deep-1.dist-info/METADATA").symlink_to("/etc/passwd")
    distribution(site, "nested", "1", direct_url__json="[" * 100_000)
    (volume / "linked").symlink_to(volume / ".venv")
    (volume / "loop").symlink_to("..")
    fifo = volume / "fifovenv"
    fifo.mkdir()
    os.mkfifo(fifo / "pyvenv.cfg")
    strange = Path(os.fsdecode(os.fsencode(volume) + b"/\x1b]0;x\x07\xff"))
    distribution(bare_venv(strange), "inner", "1")
    conda = volume / "c/conda-meta"
    conda.mkdir(parents=True)
    (conda / "bad.json").write_bytes(b"\xff" * 50)
    (conda / "deep.json").write_text("[" * 200_000)
    (conda / "name.json").write_text('{"name": "--file=/etc/passwd", "version": "1"}')
    os.mkfifo(conda / "fifo.json")
    kernel = volume / "kernels/k"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").symlink_to("/etc/passwd")
    report = look(volume)
    by_path = {venv.path: [package.name for package in venv.packages] for venv in report.venvs}
    assert by_path == {".venv": ["good"], "\\x1b]0;x\\x07\\xff": ["inner"]}
    (found,) = report.condas
    assert found.packages == () and not report.kernels
    notes = "\n".join(report.notes)
    assert "\x1b" not in notes
    for name in (
        "fifo-1",
        "huge-1",
        "names-1",
        "lines-1",
        "link-1",
        "deep-1",
        "nested-1",
        "fifovenv",
        "bad.json",
    ):
        assert name in notes


def test_a_tree_too_large_for_the_time_is_told_of(volume: Path) -> None:
    bare_venv(volume / ".venv")
    report = look(volume, 0)
    assert report.venvs == () and "the time was up" in report.notes[0]


def test_memory_is_bounded_however_many_names_there_are(volume: Path) -> None:
    """A wide and a deep tree; the whole of it is looked at."""
    deep = volume
    for _ in range(surveying.DEPTH + 5):
        deep /= "d"
    bare_venv(deep)
    for number in range(300):
        (volume / f"w{number}").mkdir()
    bare_venv(volume / "w7/here")
    assert [venv.path for venv in look(volume).venvs] == ["w7/here"]


def test_a_report_that_is_too_large_is_shortened_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smsnapd.engine.environment.report.REPORT_BYTES", 2000)
    report = Report(1, "t", "/v", notes=tuple(f"note {number}" for number in range(1000)))
    data = encode_report(report)
    assert len(data) <= 2000 and b"only" in data
    decode_report(data, "read it")


def test_what_is_no_report_is_damage() -> None:
    for data in (
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"report": 1}',
        b'{"report":2,"captured":"","root":""}',
        b"\xff",
    ):
        with pytest.raises(DamageError):
            decode_report(data, "read it")


def test_the_survey_is_a_process_of_its_own(volume: Path) -> None:
    distribution(bare_venv(volume / ".venv"), "six", "1.16.0")
    answer = survey(SurveyTask(os.fsencode(volume), 60), lambda: None)
    assert decode_report(answer.report, "read it").venvs[0].packages[0].name == "six"


def test_a_survey_of_nothing_says_why(tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="No such file"):
        survey(SurveyTask(os.fsencode(tmp_path / "nothing"), 60), lambda: None)


def test_a_survey_that_is_given_up_ends_with_all_it_started(volume: Path) -> None:
    bare_venv(volume / ".venv")
    surveyor = Surveyor(SurveyTask(os.fsencode(volume), 60))
    surveyor.close()
    surveyor.close()


def test_a_survey_that_hangs_is_given_up(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveyor, "_START", "import time; time.sleep(600)")
    hanging = Surveyor(SurveyTask(os.fsencode(volume), 0.1 - surveyor.GRACE_S))
    with pytest.raises(SurveyError, match="too long"):
        hanging.collect(lambda: None)
    process = hanging._process
    hanging.close()
    assert process.returncode is not None


@needs_root
def test_the_survey_has_no_more_rights_than_the_owner(volume: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    distribution(bare_venv(volume / "theirs"), "six", "1.16.0")
    secret = bare_venv(volume / "roots")
    distribution(secret, "hidden", "1")
    (volume / "roots").chmod(0o700)
    os.chown(volume, 12345, 12345)
    report = decode_report(survey(SurveyTask(os.fsencode(volume), 60), lambda: None).report, "read it")
    assert [venv.path for venv in report.venvs] == ["theirs"]
    assert b"hidden" not in encode_report(report)
