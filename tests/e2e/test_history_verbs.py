"""`find`, `diff` and `undelete` as transcripts: the common case, then what can be wrong."""

import os
import time
from pathlib import Path

import pytest

from smsnapd.cli.comparison import describe, differences
from tests.e2e.transcript import PASSPHRASE, Notebook, one_line

TABLE = b"1,2,3\n"


def settle() -> None:
    """A run stores anew what was written in the same tick as it began."""
    time.sleep(0.03)


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    """Three recovery points: files, one of them edited, one of them gone."""
    made = Notebook(tmp_path)
    made.well("init")
    (made.volume / "data" / "old").mkdir(parents=True)
    (made.volume / "data" / "table.csv").write_bytes(TABLE)
    (made.volume / "data" / "old" / "table.csv").write_bytes(TABLE * 100)
    (made.volume / "train.ipynb").write_text("{}\n")
    os.link(made.volume / "train.ipynb", made.volume / "data" / "linked.ipynb")
    settle()
    made.well("backup")
    (made.volume / "data" / "table.csv").write_bytes(TABLE * 2)
    settle()
    made.well("backup")
    (made.volume / "data" / "old" / "table.csv").unlink()
    settle()
    made.well("backup")
    return made


def ids(notebook: Notebook) -> list[str]:
    return [snapshot["id"] for snapshot in notebook.well("snapshots", "--json").json]


# --- find


def test_find_shows_every_version(notebook: Notebook) -> None:
    first, second, third = ids(notebook)
    found = {item["path"]: item["versions"] for item in notebook.well("find", "table.csv", "--json").json}
    assert list(found) == ["data/table.csv", "data/old/table.csv"]
    edited, gone = found["data/table.csv"], found["data/old/table.csv"]
    assert [(item["snapshot"], item["gone"], item["size"]) for item in edited] == [
        (first, False, len(TABLE)),
        (second, False, 2 * len(TABLE)),
    ]
    assert [(item["snapshot"], item["gone"]) for item in gone] == [(first, False), (third, True)]
    assert set(edited[0]) == {
        "snapshot", "time", "gone", "type", "mode", "uid", "gid", "size", "mtime", "mtime_ns", "links",
        "target",
    }  # fmt: skip
    assert set(gone[1]) == {"snapshot", "time", "gone"}
    assert notebook.well("cat", first, "data/table.csv").out == TABLE
    lines = notebook.well("find", "data/**/table.csv").text.splitlines()
    assert [line.split()[0] for line in lines] == [first, second, first, third]
    assert lines[3].split()[-2:] == ["gone", "data/old/table.csv"]


def test_find_what_is_gone(notebook: Notebook) -> None:
    found = notebook.well("find", "*.csv", "--gone", "--json").json
    assert [item["path"] for item in found] == ["data/old/table.csv"]
    said = notebook.say("find", "*.ipynb", "--gone")
    assert (said.status, said.out) == (1, b"")
    assert len(notebook.well("find", "-i", "TRAIN*", "--json").json) == 1
    one_line(notebook.say("find", "/"), 2, "empty pattern")


def test_find_needs_no_passphrase(notebook: Notebook) -> None:
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    assert len(notebook.well("find", "*.csv", "--json").json) == 2
    one_line(notebook.say("cat", "latest", "train.ipynb"), 2, "passphrase")


def test_find_tells_what_it_could_not_search(notebook: Notebook) -> None:
    second = next(notebook.repo.glob("volumes/nb/manifests/0000000002-*"))
    second.write_bytes(second.read_bytes()[:-1])
    said = notebook.say("find", "table.csv", "--json")
    assert said.status == 13
    assert [len(item["versions"]) for item in said.json] == [1, 1]
    assert "0000000002-" in said.err and "2 recovery points could not be searched" in said.err


# --- diff


def test_diff_of_two_points(notebook: Notebook) -> None:
    first, _, third = ids(notebook)
    shape = notebook.well("diff", first, "latest", "--json").json
    assert (shape["before"]["id"], shape["after"]["id"]) == (first, third)
    assert [(item["change"], item["path"], item["differs"]) for item in shape["changes"]] == [
        ("changed", "data/old", ["mtime"]),
        ("changed", "data/table.csv", ["mtime", "content"]),
        ("removed", "data/old/table.csv", []),
    ]
    assert shape["summary"] == {
        "added": 0, "removed": 1, "changed": 2, "bytes_added": 0, "bytes_removed": 100 * len(TABLE),
        "bytes_before": len(TABLE), "bytes_after": 2 * len(TABLE), "unsure": 0,
    }  # fmt: skip
    assert shape["unreadable"] == []
    lines = notebook.well("diff", first, third).text.splitlines()
    assert lines[1] == "~ data/table.csv  6 B → 12 B  mtime, content"
    assert lines[2] == "- data/old/table.csv  600 B"
    assert notebook.well("diff", third, third).text == ""


def test_diff_of_the_volume(notebook: Notebook) -> None:
    assert notebook.well("diff", "latest", "--json").json["changes"] == []
    (notebook.volume / "train.ipynb").chmod(0o600)
    (notebook.volume / "new").write_text("new\n")
    table, before = notebook.volume / "data" / "table.csv", os.stat(notebook.volume / "data" / "table.csv")
    table.write_bytes(TABLE[::-1] * 2)
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    (notebook.volume / "data" / "linked.ipynb").unlink()
    shape = notebook.well("diff", "latest", "--json").json
    assert shape["after"] is None
    changes = {item["path"]: (item["change"], item["differs"]) for item in shape["changes"]}
    assert changes == {
        ".": ("changed", ["mtime"]),
        "new": ("added", []),
        "train.ipynb": ("changed", ["mode", "links"]),
        "data": ("changed", ["mtime"]),
        "data/linked.ipynb": ("removed", []),
        "data/table.csv": ("changed", ["content"]),
    }


def test_diff_without_the_passphrase_says_what_it_cannot_know(notebook: Notebook) -> None:
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    os.utime(notebook.volume / "data" / "table.csv")
    (change,) = notebook.well("diff", "latest", "--json").json["changes"]
    assert (change["differs"], change["unsure"]) == (["mtime", "content"], True)
    said = notebook.well("diff", "latest")
    assert "data/table.csv  12 B  mtime, content?" in said.text and "the passphrase" in said.err


def test_diff_of_nonsense(notebook: Notebook) -> None:
    one_line(notebook.say("diff", "zzzz"), 2, "zzzz")
    one_line(notebook.say("diff", "latest", "zzzz"), 2, "zzzz")
    one_line(notebook.say("diff"), 2, "argument")


# --- undelete


def test_what_did_i_just_lose(notebook: Notebook) -> None:
    first, second, third = ids(notebook)
    before = describe(notebook.volume)
    (notebook.volume / "train.ipynb").unlink()
    shape = notebook.well("undelete", "--json").json
    assert shape["since"]["snapshot"] == first
    assert [(item["path"], item["entries"], item["bytes"]) for item in shape["lost"]] == [
        ("train.ipynb", 1, 3),
        ("data/old/table.csv", 1, 600),
    ]
    assert [item["last"]["snapshot"] for item in shape["lost"]] == [third, second]
    assert shape["lost"][0]["gone"] is None and shape["lost"][1]["gone"]["snapshot"] == third
    lines = notebook.well("undelete").text.splitlines()
    assert lines[0].split()[-1] == "train.ipynb" and lines[0].startswith("since the newest")
    back = notebook.well("undelete", "train.ipynb", "--json").json
    assert back["not_restored"] == []
    assert [(item["path"], item["as"], item["snapshot"]) for item in back["restored"]] == [
        ("train.ipynb", "train.ipynb", third)
    ]
    found = {line for line in differences(before, describe(notebook.volume)) if "links" not in line}
    assert found == {".: mtime_ns differs"}
    assert [path.name for path in notebook.volume.iterdir() if path.name.startswith(".smsnap")] == []


def test_a_version_comes_back_beside_the_file(notebook: Notebook) -> None:
    table = notebook.volume / "data" / "table.csv"
    (back,) = notebook.well("undelete", "data/table.csv", "--json").json["restored"]
    assert back["snapshot"] == ids(notebook)[0] and back["path"] == "data/table.csv"
    beside = notebook.volume / back["as"]
    assert (table.read_bytes(), beside.read_bytes()) == (TABLE * 2, TABLE)
    assert beside.parent == table.parent and beside.name.startswith("table.restored-")
    assert beside.suffix == ".csv"
    table.write_bytes(b"spoilt\n")
    (again,) = notebook.well("undelete", "data/table.csv", "--json").json["restored"]
    assert (notebook.volume / again["as"]).read_bytes() == TABLE * 2
    assert table.read_bytes() == b"spoilt\n"
    (at,) = notebook.well("undelete", "data/table.csv", "--at", back["time"], "--json").json["restored"]
    assert (notebook.volume / at["as"]).read_bytes() == TABLE and at["as"] != back["as"]


def test_a_directory_that_is_gone_comes_back_whole(notebook: Notebook) -> None:
    before = describe(notebook.volume)
    for path in ("data/table.csv", "data/linked.ipynb"):
        (notebook.volume / path).unlink()
    (notebook.volume / "data" / "old").rmdir()
    (notebook.volume / "data").rmdir()
    settle()
    notebook.well("backup")
    said = notebook.well("undelete", "data", "--dry-run")
    assert said.text.startswith("would bring back data of ") and not (notebook.volume / "data").exists()
    notebook.well("undelete", "data")
    found = [line for line in differences(before, describe(notebook.volume)) if "links" not in line]
    assert found == [".: mtime_ns differs"]


def test_what_is_missing_in_a_directory_comes_back(notebook: Notebook) -> None:
    (notebook.volume / "data" / "table.csv").unlink()
    back = notebook.well("undelete", "data", "--json").json["restored"]
    assert sorted(item["as"] for item in back) == ["data/old/table.csv", "data/table.csv"]
    assert (notebook.volume / "data" / "old" / "table.csv").read_bytes() == TABLE * 100


def test_nothing_is_followed_or_replaced(notebook: Notebook) -> None:
    """What took a directory's place stays; what was in it comes back beside that."""
    (notebook.volume / "data").rename(notebook.place / "elsewhere")
    (notebook.volume / "data").symlink_to(notebook.place / "elsewhere")
    (back,) = notebook.well("undelete", "--at", "now", "data/table.csv", "--json").json["restored"]
    assert back["as"].startswith("data.restored-") and back["as"].endswith("/table.csv")
    assert (notebook.volume / back["as"]).read_bytes() == TABLE * 2
    assert (notebook.volume / "data").is_symlink()


def test_undelete_of_nothing(notebook: Notebook) -> None:
    one_line(notebook.say("undelete", "none"), 1, "none", "smsnap find")
    one_line(notebook.say("undelete", "train.ipynb"), 1, "nothing of this name was lost or changed")
    one_line(notebook.say("undelete", "."), 2, "smsnap restore")
    one_line(notebook.say("undelete", "--at", "now"), 2, "PATH")
    one_line(notebook.say("undelete", "--at", "now", "none"), 2, "none")
    assert notebook.say("undelete", SMSNAP_PASSPHRASE=PASSPHRASE).status == 0


# --- check, in shares


def test_check_remembers_what_was_read_from_here(notebook: Notebook) -> None:
    assert notebook.well("check", "--json").json["contents"] == {"nb": {"read": None, "opened": None}}
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    first = notebook.well("check", "--read-data", "next/2", "--json").json
    assert (first["opened"], first["contents"]["nb"]) == (False, {"read": None, "opened": None})
    second = notebook.well("check", "--read-data", "next/2", "--json").json["contents"]["nb"]
    assert second["read"] is not None and second["opened"] is None
    notebook.configure()
    third = notebook.well("check", "--read-data", "--json").json["contents"]["nb"]
    assert third["opened"] == third["read"] > second["read"]
    one_line(notebook.say("check", "--read-data", "next/0"), 2, "next/T")
