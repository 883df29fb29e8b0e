"""What may be left out: nothing of which a byte could be missed."""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.engine.environment import judging
from smsnapd.engine.environment.judging import Judged, check_index, judge
from smsnapd.engine.environment.prints import take_print
from smsnapd.engine.environment.pythons import read_conda, read_venv
from smsnapd.engine.environment.reading import Deadline, TimeUpError
from smsnapd.engine.environment.report import Package
from smsnapd.engine.environment.surveyor import SurveyTask, survey
from tests.unit.engine.environment.places import bare_venv, distribution


def row(site: Path, path: str) -> str:
    data = (site / path).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(data)}\n"


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One as pip leaves it; the index is asked elsewhere."""
    monkeypatch.setattr(judging, "check_index", lambda packages, python, deadline: None)
    place = tmp_path / "venv"
    site = bare_venv(place)
    info = distribution(site, "six", "1.16.0")
    (site / "six.py").write_text("x = 1\n")
    (site / "__pycache__").mkdir()
    (site / "__pycache__/six.cpython-311.pyc").write_bytes(b"compiled")
    (place / "bin").mkdir()
    (place / "bin/python").symlink_to("/usr/bin/python3")
    (place / "bin/activate").write_text("activate")
    (place / "bin/tool").write_text("#!python\n")
    names = ("METADATA", "INSTALLER")
    files = ("six.py", "../../../bin/tool", *(f"six-1.16.0.dist-info/{name}" for name in names))
    rows = "".join(row(site, path) for path in files)
    own = "six-1.16.0.dist-info/RECORD,,\n__pycache__/six.cpython-311.pyc,,\n"
    (info / "RECORD").write_text(rows + own)
    return place


def judged(place: Path) -> Judged:
    prefix = os.fsencode(place)
    conda = (place / "conda-meta").is_dir()
    environment = read_conda(prefix, "venv", b"/", []) if conda else read_venv(prefix, "venv", b"/", [])
    assert environment is not None
    return judge(prefix, b"venv", environment, Deadline(60))


def site_of(place: Path) -> Path:
    return place / "lib/python3.11/site-packages"


def test_what_pip_made_and_nobody_touched(venv: Path) -> None:
    found = judged(venv)
    assert found.why == "" and found.files == 9 and found.digest == take_print(os.fsencode(venv)).digest


EDITABLE = '{"url": "file:///m", "dir_info": {"editable": true}}'
WHEEL = '{"url": "file:///w.whl", "archive_info": {}}'
EGG = "Name: old\nVersion: 1\n"


def to_link(venv: Path) -> None:
    (site_of(venv) / "six.py").unlink()
    (site_of(venv) / "six.py").symlink_to("/etc/passwd")


def record(venv: Path, text: str) -> None:
    (site_of(venv) / "six-1.16.0.dist-info/RECORD").write_text(text)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (lambda v: (site_of(v) / "six.py").write_text("x = 2\n"), "six.py was changed"),
    "a file of one's own": (
        lambda v: (site_of(v) / "mine.py").write_text("x"),
        "mine.py came with no package",
    ),
    "data beside it": (lambda v: (v / "results.csv").write_text("x"), "results.csv came with no package"),
    "a file that is gone": (lambda v: (site_of(v) / "six.py").unlink(), "six"),
    "a changed script": (lambda v: (v / "bin/tool").write_text("#!other\n"), "bin/tool was changed"),
    "settings in activate": (
        lambda v: os.utime(v / "bin/activate", (1e9, 1e9)),
        "activate came with no package",
    ),
    "a link": (lambda v: (v / "data").symlink_to("/etc"), "data came with no package"),
    "a file become a link": (to_link, ""),
    "compiled and no source": (
        lambda v: (site_of(v) / "__pycache__/other.cpython-311.pyc").write_bytes(b"x"),
        "other.cpython-311.pyc came with no package",
    ),
    "a FIFO": (lambda v: os.mkfifo(v / "fifo"), "no installer puts there"),
    "an editable install": (
        lambda v: distribution(site_of(v), "mine", "1", direct_url__json=EDITABLE),
        "mine is not from an index",
    ),
    "a wheel of one's own": (
        lambda v: distribution(site_of(v), "w", "1", direct_url__json=WHEEL),
        "w is not from an index",
    ),
    "an unknown installer": (
        lambda v: distribution(site_of(v), "odd", "1", INSTALLER="mine"),
        "nobody knows what",
    ),
    "no RECORD": (lambda v: distribution(site_of(v), "odd", "1"), "No such file"),
    "an egg": (lambda v: (site_of(v) / "old.egg-info").write_text(EGG), "nobody knows what"),
    "a RECORD of other places": (lambda v: record(v, "../../../../x,,\n"), "names what lies elsewhere"),
    "a RECORD without hashes": (lambda v: record(v, "six.py,,\n"), ""),
    "pip's settings": (lambda v: (v / "pip.conf").write_text("[global]\n"), "pip.conf came with no package"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_anything_of_ones_own_keeps_it_in(venv: Path, name: str) -> None:
    change, why = CHANGES[name]
    change(venv)
    found = judged(venv)
    assert found.why and why in found.why


def test_the_print_sees_every_change_but_compiled_files(venv: Path) -> None:
    prefix = os.fsencode(venv)
    before = take_print(prefix).digest
    (site_of(venv) / "__pycache__/six.cpython-312.pyc").write_bytes(b"compiled again")
    assert take_print(prefix).digest == before
    (site_of(venv) / "__pycache__/data.pyc").write_bytes(b"data")
    assert take_print(prefix).digest != before
    (site_of(venv) / "__pycache__/data.pyc").unlink()
    assert take_print(prefix).digest == before
    status = (site_of(venv) / "six.py").stat()
    (site_of(venv) / "six.py").write_text("x = 9\n")
    os.utime(site_of(venv) / "six.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert take_print(prefix).digest != before


def test_there_must_be_time_to_read_all_of_it(venv: Path) -> None:
    environment = read_venv(os.fsencode(venv), "venv", b"/", [])
    assert environment
    with pytest.raises(TimeUpError):
        judge(os.fsencode(venv), b"venv", environment, Deadline(0))


def conda(place: Path, url: str = "https://conda.anaconda.org/conda-forge/noarch/a-1-0.conda") -> Path:
    (place / "conda-meta").mkdir(parents=True)
    (place / "share").mkdir()
    (place / "share/a.txt").write_text("a\n")
    (place / "share/link").symlink_to("a.txt")
    (place / "conda-meta/history").write_text("# update specs: ['a']\n")
    paths = [
        {"_path": "share/a.txt", "path_type": "hardlink", "sha256": hashlib.sha256(b"a\n").hexdigest()},
        {"_path": "share/link", "path_type": "softlink"},
    ]
    record = {
        "name": "a",
        "version": "1",
        "build": "0",
        "url": url,
        "md5": "0" * 32,
        "paths_data": {"paths": paths},
    }
    (place / "conda-meta/a-1-0.json").write_text(json.dumps(record))
    return place


def test_a_conda_environment_by_its_records(tmp_path: Path) -> None:
    place = conda(tmp_path / "c")
    assert judged(place).why == ""
    (place / "share/a.txt").write_text("b\n")
    assert "was changed" in judged(place).why
    (place / "share/a.txt").write_text("a\n")
    (place / "mine").write_text("x")
    assert "mine came with no package" in judged(place).why
    assert (
        "no channel that everybody has"
        in judged(conda(tmp_path / "d", "file:///channel/noarch/a-1-0.conda")).why
    )


def test_the_index_is_asked_for_every_package() -> None:
    """The real one, by pip."""
    check_index([Package("six", "1.16.0"), Package("iniconfig", "2.0.0")], "3.11.7", Deadline(300))
    with pytest.raises(judging.NotAgainError, match="an index has not all of it"):
        check_index([Package("six", "1.16.0.post99")], "3.11.7", Deadline(300))
    with pytest.raises(judging.NotAgainError, match="cannot be asked for"):
        check_index([Package("--index-url=x", "1")], "3.11.7", Deadline(300))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_cannot_be_looked_at_keeps_it_in(tmp_path: Path) -> None:
    """The survey is the owner's: of a directory that they cannot list, nothing is known."""
    tmp_path.chmod(0o755)
    bare_venv(tmp_path / "volume/venv")
    (tmp_path / "volume/venv/private").mkdir(mode=0o700)
    (tmp_path / "volume/venv/private/data").write_text("data")
    os.chown(tmp_path / "volume", 12345, 12345)
    answer = survey(SurveyTask(os.fsencode(tmp_path / "volume"), 60, judging_s=60), lambda: None)
    (found,) = answer.judged
    assert "Permission denied" in found.why
