"""`smsnap drill` as a transcript: what it says, its JSON, its metrics, its exit status."""

import os
from pathlib import Path

import pytest

from tests.e2e.transcript import Notebook, one_line


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    made = Notebook(tmp_path)
    made.well("init")
    for number in range(20):
        (made.volume / f"file-{number}").write_bytes(os.urandom(20_000))
    made.well("backup")
    (made.volume / "file-3").write_text("new\n")
    (made.place / "scratch").mkdir()
    return made


def metrics(notebook: Notebook) -> dict[str, float]:
    lines = (notebook.place / "drill.prom").read_text().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


def test_all_is_well(notebook: Notebook) -> None:
    arguments = ("drill", "--all", "--scratch", "scratch", "--metrics-file", "drill.prom")
    shape = notebook.well(*arguments, "--json").json
    assert (shape["ok"], shape["scope"], shape["files"], shape["bytes"]) == (True, "all", 20, 400_000)
    assert (shape["entries"], shape["differences"], shape["not_restored"]) == (21, [], [])
    assert shape["age_s"] > 0 < shape["restore_s"] and shape["compare_s"] > 0
    found = metrics(notebook)
    assert (found["smsnap_drill_success"], found["smsnap_drill_files"]) == (1, 20)
    assert found["smsnap_drill_recovery_point_age_seconds"] == pytest.approx(shape["age_s"], abs=600)
    said = notebook.well("drill", "--files", "3").text.splitlines()
    assert said[1].startswith("restored a sample: 3 files, 58.6 KiB, ")
    assert said[2].endswith(": all came back as they were")
    assert notebook.well("drill", "-q").text == ""
    assert list((notebook.place / "scratch").iterdir()) == []


def test_what_is_damaged_does_not_come_back(notebook: Notebook) -> None:
    (chunk,) = notebook.repo.glob("volumes/nb/chunks/*/*")
    data = bytearray(chunk.read_bytes())
    data[-100] ^= 1
    chunk.write_bytes(data)
    said = notebook.say("drill", "--metrics-file", "drill.prom", "--json")
    assert (said.status, said.json["ok"], said.json["differences"]) == (13, False, [])
    assert len(said.json["not_restored"]) == 20
    assert (metrics(notebook)["smsnap_drill_success"], metrics(notebook)["smsnap_drill_differences"]) == (
        0,
        20,
    )


def test_where_it_cannot_be_done(notebook: Notebook) -> None:
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    said = notebook.say("drill", "--metrics-file", "drill.prom")
    one_line(said, 2, "passphrase")
    assert metrics(notebook)["smsnap_drill_success"] == 0
    one_line(notebook.say("drill", "--all", "--files", "3"), 2, "--all and --files")
    notebook.configure()
    one_line(notebook.say("drill", "--scratch", "none"), 1, "--scratch")
