"""The command line, as transcripts against a directory repository: the story, then all that can go wrong."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.cli.comparison import describe, differences
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.lease import Lease
from smsnapd.store import StoreSettings, open_store
from tests.e2e.transcript import PASSPHRASE, Notebook, one_line

SNAPSHOT_KEYS = {
    "id", "volume", "time", "kind", "mode", "parent", "files", "bytes", "stored_bytes", "complete",
    "incomplete",
}  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path) -> Notebook:
    """A notebook without a repository."""
    return Notebook(tmp_path)


@pytest.fixture
def notebook(empty: Notebook) -> Notebook:
    """A notebook with a repository, some files and one full backup."""
    empty.well("init")
    (empty.volume / "d").mkdir()
    (empty.volume / "d" / "a.txt").write_text("first\n")
    (empty.volume / "big.bin").write_bytes(os.urandom(300_000))
    Path(os.fsdecode(os.fsencode(empty.volume) + b"/odd-\xff")).write_text("odd\n")
    empty.well("backup")
    return empty


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "smsnap-test", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def now_text() -> str:
    """This moment as a time with a zone; the next change is later by a millisecond at least."""
    time.sleep(0.002)
    moment = time.time_ns() // 1000
    time.sleep(0.002)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 1_000_000)) + f".{moment % 1_000_000:06}Z"


# --- the story


def test_the_whole_story(empty: Notebook) -> None:
    made = empty.well("init", "--json").json
    assert set(made) >= {"repository", "url", "recovery_key"}
    assert made["recovery_key"].startswith("SMSNAP-IDENTITY-1-")
    (empty.volume / "a.txt").write_text("one\n")
    first = empty.well("backup", "--json").json
    assert set(first) >= SNAPSHOT_KEYS
    assert (first["kind"], first["mode"], first["parent"], first["volume"]) == ("full", "tar", None, "nb")
    assert (first["files"], first["complete"], first["incomplete"]) == (1, True, [])
    between, tree = now_text(), describe(empty.volume)
    (empty.volume / "a.txt").write_text("two, and longer\n")
    (empty.volume / "b.txt").write_text("new\n")
    second = empty.well("backup", "--json").json
    assert (second["kind"], second["parent"], second["files"]) == ("incremental", first["id"], 2)

    assert all(set(backup.pop("requests").values()) == {0} for backup in (first, second))  # it is a directory
    assert empty.well("snapshots", "--json").json == [first, second]
    assert [row.split()[0] for row in empty.well("snapshots").text.splitlines()] == [
        "ID",
        first["id"],
        second["id"],
    ]
    assert empty.well("ls", "latest").text.split() == ["a.txt", "b.txt"]
    assert empty.well("ls", first["id"][:6]).text.split() == ["a.txt"]
    assert empty.well("cat", f"nb@{between}", "a.txt").out == b"one\n"
    assert empty.well("cat", f"@{between}", "a.txt").out == b"one\n"
    assert empty.well("cat", "@now", "a.txt").out == b"two, and longer\n"

    restored = empty.well("restore", "--target", "then", "--at", between, "--json").json
    assert set(restored) >= {
        "snapshot",
        "target",
        "files",
        "bytes",
        "fetched_bytes",
        "skipped",
        "not_restored",
    }
    assert (restored["snapshot"], restored["target"]) == (first["id"], str(empty.place / "then"))
    assert (restored["files"], restored["not_restored"]) == (1, [])
    assert differences(tree, describe(empty.place / "then")) == []
    empty.well("restore", "--target", "now")
    assert differences(describe(empty.volume), describe(empty.place / "now")) == []

    report = empty.well("check", "--read-data", "--json").json
    assert (report["ok"], report["findings"], report["snapshots"], report["opened"]) == (True, [], 2, True)
    assert "no damage found" in empty.well("check").text


def test_nothing_changed_is_no_snapshot(notebook: Notebook) -> None:
    assert notebook.well("backup", "--json").json is None
    assert "nothing changed" in notebook.well("backup").text
    assert notebook.well("backup", "--full", "--json").json["kind"] == "full"
    assert len(notebook.well("snapshots", "--json").json) == 2


def test_a_dry_run_stores_nothing(notebook: Notebook) -> None:
    (notebook.volume / "new").write_text("x" * 1000)
    (notebook.volume / "big.bin").unlink()
    before = notebook.objects()
    shape = notebook.well("backup", "--dry-run", "--json").json
    assert shape["dry_run"] is True and shape["changed"] >= 1 and shape["deleted"] == 1
    assert notebook.objects() == before


def test_progress_and_the_document_are_kept_apart(notebook: Notebook) -> None:
    (notebook.volume / "new").write_text("x")
    said = notebook.say("backup", "--json")
    assert said.json["files"] == 4
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert {line["event"] for line in lines} <= {"progress", "note"} and lines
    assert notebook.say("backup", "--json", "-q").err == ""


def test_quiet_says_nothing(notebook: Notebook) -> None:
    (notebook.volume / "new").write_text("x")
    for arguments in (
        ["backup"],
        ["restore", "--target", "t"],
        ["check"],
        ["export", "latest", "--output", "x.tar"],
    ):
        said = notebook.say(*arguments, "-q")
        assert (said.status, said.out, said.err) == (0, b"", "")


def test_looking(notebook: Notebook) -> None:
    assert notebook.well("ls", "latest", "-R").text.splitlines() == [
        "big.bin",
        "d",
        r"odd-\xff",
        "d/a.txt",
    ] or set(notebook.well("ls", "latest", "-R").text.splitlines()) == {
        "big.bin",
        "d",
        "d/a.txt",
        r"odd-\xff",
    }
    assert notebook.well("ls", "latest", "d").text.split() == ["d/a.txt"]
    assert notebook.well("ls", "latest", str(notebook.volume / "d")).text.split() == ["d/a.txt"]
    assert "-rw-r--r--" in notebook.well("ls", "-l", "latest", "d/a.txt").text
    entry = notebook.well("ls", "latest", "d/a.txt", "--json").json[0]
    status = (notebook.volume / "d" / "a.txt").stat()
    assert entry == {
        "path": "d/a.txt", "type": "regular", "mode": "0644", "uid": status.st_uid, "gid": status.st_gid,
        "size": 6,
        "mtime": entry["mtime"], "mtime_ns": status.st_mtime_ns, "links": 1, "target": None,
    }  # fmt: skip
    assert notebook.well("cat", "latest", r"odd-\xff").out == b"odd\n"
    assert notebook.well("cat", "latest", "big.bin").out == (notebook.volume / "big.bin").read_bytes()
    one_line(notebook.say("cat", "latest", "d"), 2, "d")
    one_line(notebook.say("cat", "latest", "none"), 2, "none")
    one_line(notebook.say("ls", "latest", "none"), 2, "none")


def test_names_of_snapshots_that_are_none(notebook: Notebook) -> None:
    one_line(notebook.say("ls", "zzzz"), 2, "zzzz", "smsnap snapshots")
    one_line(notebook.say("ls", "@1971-01-01"), 2, "1971")
    one_line(notebook.say("ls", "@some day"), 2, "some day", "yesterday 14:00")
    one_line(notebook.say("ls", "other@now"), 2, "other", "nb")
    one_line(
        notebook.say("restore", "--target", "t", "--at", "now", "--snapshot", "latest"),
        2,
        "--at and --snapshot",
    )


def test_some_paths(notebook: Notebook) -> None:
    notebook.well("restore", "--target", "t", "d/a.txt")
    assert set(describe(notebook.place / "t")) == {b"", b"d", b"d/a.txt"}
    one_line(notebook.say("restore", "--target", "t2", "d/none"), 2, "d/none")


def test_a_target_that_is_not_empty(notebook: Notebook) -> None:
    target = notebook.place / "t"
    target.mkdir()
    (target / "mine").write_text("mine")
    (target / "big.bin").write_text("changed")
    one_line(notebook.say("restore", "--target", "t"), 1, str(target), "--overwrite")
    assert sorted(os.listdir(target)) == ["big.bin", "mine"]

    dry = notebook.well(
        "restore", "--target", "t", "--overwrite", "always", "--delete", "--dry-run", "--json"
    ).json
    assert dry["would"] and (target / "big.bin").read_text() == "changed" and (target / "mine").exists()

    notebook.well("restore", "--target", "t", "--overwrite", "never")
    assert (target / "big.bin").read_text() == "changed" and (target / "d" / "a.txt").exists()
    notebook.well("restore", "--target", "t", "--overwrite", "if-changed", "--delete")
    assert differences(describe(notebook.volume), describe(target)) == []


@root
@pytest.mark.root
def test_owners_are_mapped(notebook: Notebook) -> None:
    os.chown(notebook.volume / "d" / "a.txt", 500, 500)
    notebook.well("backup")
    notebook.well("restore", "--target", "t", "--map-user", "500:1000")
    assert (notebook.place / "t" / "d" / "a.txt").stat().st_uid == 1000
    one_line(notebook.say("restore", "--target", "t2", "--map-user", "500"), 2, "OLD:NEW")


def test_export(notebook: Notebook) -> None:
    notebook.well("export", "latest", "--output", "out.tar")
    (notebook.place / "x").mkdir()
    subprocess.run(["tar", "-xf", "out.tar", "-C", "x", "--xattrs"], cwd=notebook.place, check=True)
    assert differences(describe(notebook.volume), describe(notebook.place / "x")) == []
    assert notebook.well("export", "latest", "--output", "-").out == (notebook.place / "out.tar").read_bytes()
    one_line(notebook.say("export", "latest", "--output", "out.tar"), 2, "out.tar", "exists")


def test_several_volumes(notebook: Notebook) -> None:
    (notebook.volume / "only in b").write_text("b")
    assert notebook.well("--volume", "b", "backup", "--json").json["volume"] == "b"
    volumes = lambda *more: [item["volume"] for item in notebook.well("snapshots", "--json", *more).json]  # noqa: E731
    assert (volumes(), volumes("--volume", "b"), volumes("--all")) == (["nb"], ["b"], ["nb", "b"])
    assert "only in b" not in notebook.well("ls", "latest").text
    assert "only in b" in notebook.well("ls", "b@now").text
    assert "only in b" in notebook.well("ls", "latest", SMSNAP_VOLUME="b").text
    one_line(notebook.say("ls", "latest", "--volume", "c"), 2, "c", "b, nb")
    (notebook.place / "smsnapd.toml").write_text(
        (notebook.place / "smsnapd.toml").read_text().replace('"nb"', '"stranger"')
    )
    one_line(notebook.say("restore", "--target", "t"), 2, "stranger", "b, nb")


def test_another_machine_finds_the_only_volume(notebook: Notebook) -> None:
    text = (notebook.place / "smsnapd.toml").read_text()
    (notebook.place / "smsnapd.toml").write_text(text.replace('"nb"', '"stranger"'))
    assert "d" in notebook.well("ls", "latest").text.split()
    one_line(notebook.say("ls", "latest", "--volume", "stranger"), 2, "stranger", "nb")


def test_state_and_repository_in_the_volume_are_not_backed_up(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path, url=(tmp_path / "volume" / "my repo").as_uri())
    text = (tmp_path / "smsnapd.toml").read_text()
    (tmp_path / "smsnapd.toml").write_text(text.replace('dir = "state"', 'dir = "volume/.state"'))
    (notebook.volume / "file").write_text("x")
    notebook.well("init")
    notebook.well("backup")
    assert notebook.well("ls", "-R", "latest").text.split() == ["file"]
    assert notebook.well("backup", "--json").json is None


def test_times_as_they_are_listed_can_be_given_back(notebook: Notebook) -> None:
    (notebook.volume / "later").write_text("x")
    notebook.well("backup")
    first, second = (
        row.split()[1:3] for row in notebook.well("snapshots", TZ="Asia/Tokyo").text.splitlines()[1:]
    )
    assert "later" not in notebook.well("ls", "@" + " ".join(first), TZ="Asia/Tokyo").text
    assert "later" in notebook.well("ls", "@" + " ".join(second), TZ="Asia/Tokyo").text


# --- keys


def test_the_recovery_key_opens_without_the_passphrase(empty: Notebook) -> None:
    key = empty.well("init", "--json").json["recovery_key"]
    (empty.volume / "a").write_text("a")
    empty.well("backup")
    assert empty.well("cat", "latest", "a", SMSNAP_PASSPHRASE=key).out == b"a"
    one_line(empty.say("cat", "latest", "a", SMSNAP_PASSPHRASE=key[:-4] + "AAAA"), 12)


def test_a_machine_with_the_write_key_cannot_read_what_it_stored(empty: Notebook) -> None:
    empty.well("init", "--write-key-file", "write-key")
    assert (empty.place / "write-key").stat().st_mode & 0o777 == 0o600
    empty.configure(encryption='write_key_file = "write-key"')
    (empty.volume / "a").write_text("secret\n" * 100)
    assert empty.well("backup", "--json").json["kind"] == "full"
    (empty.volume / "b").write_text("more")
    assert empty.well("backup", "--json").json["kind"] == "incremental"
    assert empty.well("ls", "latest").text.split() == ["a", "b"]
    assert empty.well("check", "--json").json["opened"] is False
    one_line(empty.say("cat", "latest", "a"), 2, "passphrase")
    assert empty.well("cat", "latest", "a", SMSNAP_PASSPHRASE=PASSPHRASE).out == b"secret\n" * 100
    one_line(empty.say("key", "export-write-key", "write-key"), 2, "exists")
    empty.well("key", "export-write-key", "again")
    assert (empty.place / "again").read_text() == (empty.place / "write-key").read_text()


def test_init_leaves_no_key_file_when_it_fails(notebook: Notebook) -> None:
    one_line(notebook.say("init", "--write-key-file", "k"), 1, notebook.url)
    assert not (notebook.place / "k").exists()


def test_key_list(notebook: Notebook) -> None:
    shape = notebook.well("key", "list", "--json").json
    assert [len(shape[kind]) for kind in ("keyslots", "recipients", "writers")] == [1, 1, 1]
    assert shape["writers"][0]["revoked"] is False
    assert shape["keyslots"][0]["id"] in notebook.well("key", "list").text


# --- bad input and failures


def test_wrong_passphrase(notebook: Notebook) -> None:
    for arguments in (["snapshots"], ["backup"], ["cat", "latest", "d/a.txt"], ["restore", "--target", "t"]):
        one_line(notebook.say(*arguments, SMSNAP_PASSPHRASE="wrong"), 12, "passphrase")
    assert not (notebook.place / "t").exists()
    error = notebook.say("snapshots", "--json", SMSNAP_PASSPHRASE="wrong").error
    assert error["error"] == "WrongKeyError" and error["exit_status"] == 12
    assert set(error) == {"error", "what", "why", "hint", "exit_status"}


def test_no_passphrase_and_nobody_to_ask(notebook: Notebook) -> None:
    notebook.configure(encryption="")
    one_line(notebook.say("snapshots"), 2, "no passphrase", "SMSNAP_PASSPHRASE")
    one_line(notebook.say("snapshots", "--passphrase-file", "none"), 2, "none")
    notebook.well("snapshots", "--passphrase-file", "passphrase", SMSNAP_PASSPHRASE="wrong")


@pytest.mark.parametrize("encryption", ['passphrase_file = "passphrase"', ""])
def test_missing_repository(empty: Notebook, encryption: str) -> None:
    empty.configure(encryption=encryption)
    for arguments in (["backup"], ["snapshots"], ["ls", "latest"], ["restore", "--target", "t"], ["check"]):
        one_line(empty.say(*arguments), 10, empty.url, "smsnap init")
    assert not empty.repo.exists() or not empty.objects()
    assert not (empty.place / "t").exists()


def test_no_repository_configured(empty: Notebook) -> None:
    (empty.place / "smsnapd.toml").unlink()
    one_line(empty.say("snapshots"), 2, "repository", "SMSNAP_REPOSITORY")
    one_line(empty.say("backup", "--repository", empty.url), 2, "volume", "--path")


def test_a_repository_is_not_made_twice(notebook: Notebook) -> None:
    before = notebook.objects()
    one_line(notebook.say("init"), 1, notebook.url)
    assert notebook.objects() == before


def test_an_empty_repository(empty: Notebook) -> None:
    empty.well("init")
    assert empty.well("snapshots", "--json").json == []
    assert "no recovery points" in empty.well("snapshots").text
    one_line(empty.say("restore", "--target", "t"), 2, "smsnap backup")


def test_unknown_configuration_key(notebook: Notebook) -> None:
    notebook.configure(more="regoin = 'eu-west-1'")
    one_line(
        notebook.say("snapshots"), 2, "regoin", str(notebook.place / "smsnapd.toml"), "did you mean region?"
    )


def test_missing_volume(notebook: Notebook) -> None:
    shutil.rmtree(notebook.volume)
    one_line(notebook.say("backup"), 1, str(notebook.volume))
    notebook.volume.write_text("a file")
    one_line(notebook.say("backup"), 1, str(notebook.volume))


def test_an_image_of_a_directory_is_refused(notebook: Notebook) -> None:
    one_line(
        notebook.say("backup", "--mode", "block"), 1, "image", "not where a whole file system is mounted"
    )


def damage(notebook: Notebook, kind: str, how: str) -> Path:
    """Damage the largest object of a kind; returns its file."""
    files = [path for path in notebook.repo.rglob("*") if path.is_file() and f"/{kind}/" in str(path)]
    victim = max(files, key=lambda path: path.stat().st_size)
    victim.chmod(0o600)
    content = bytearray(victim.read_bytes())
    if how == "missing":
        victim.unlink()
    elif how == "cut":
        victim.write_bytes(content[:-100])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    return victim


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("kind", ["chunks", "manifests"])
def test_damaged_object(notebook: Notebook, kind: str, how: str) -> None:
    (notebook.volume / "more.bin").write_bytes(os.urandom(300_000))
    notebook.well("backup")
    shutil.rmtree(notebook.place / "state")
    expected = describe(notebook.volume)
    if kind == "manifests" and how == "missing":
        newest_first = sorted(path for path in notebook.repo.rglob("*") if "/manifests/" in str(path))
        newest_first[0].unlink()  # the full, in the middle of nothing but gone
    else:
        damage(notebook, kind, how)
    said = notebook.say("check", "--read-data", "--json")
    assert said.status == 13 and said.json["ok"] is False and said.json["findings"]
    plain = notebook.say("check", "--read-data")
    assert plain.status == 13 and "damaged: " in plain.text and "Traceback" not in plain.err
    restored = notebook.say("restore", "--target", "t")
    assert restored.status == 13 and "Traceback" not in restored.err
    target = notebook.place / "t"
    if target.exists():
        for path, found in describe(target).items():
            if found.content:
                assert path in expected and found.content == expected[path].content


def test_a_newest_end_that_was_cut_off(notebook: Notebook) -> None:
    (notebook.volume / "more").write_text("x")
    head = notebook.well("backup", "--json").json["id"]
    notebook.well("check", "--expect-head", head)
    next(path for path in notebook.repo.rglob("*") if path.name.endswith(head)).unlink()
    assert notebook.say("check").status == 13  # the local state remembers
    shutil.rmtree(notebook.place / "state")
    assert notebook.say("check", "--expect-head", head).status == 13
    notebook.well("check")


def test_another_writer_has_the_lease(notebook: Notebook) -> None:
    store = open_store(StoreSettings(notebook.url))
    repository = Repository.open(store, Credentials(passphrase=PASSPHRASE))
    lease = Lease.take(store, bytes.fromhex(repository.repository_id), "nb")
    (notebook.volume / "new").write_text("x")
    one_line(notebook.say("backup"), 11, "nb", "another writer")
    lease.release()
    notebook.well("backup")


@root
@pytest.mark.root
def test_an_unreadable_file_is_named_and_the_status_is_3(notebook: Notebook) -> None:
    (notebook.volume / "closed").write_text("x")
    (notebook.volume / "closed").chmod(0)
    said = notebook.say_alone("backup", "--json", capable=False)
    assert said.status == 3
    assert said.json["complete"] is False
    assert [item["path"] for item in said.json["incomplete"]] == ["closed"]
    assert "missed closed" in said.err
    assert notebook.well("snapshots", "--json").json[-1]["complete"] is False
    assert "no, 1 missed" in notebook.well("snapshots").text
    assert notebook.well("restore", "--target", "t").status == 0


@root
@pytest.mark.root
def test_read_only_target(notebook: Notebook) -> None:
    target = notebook.place / "t"
    target.mkdir(0o555)
    one_line(notebook.say_alone("restore", "--target", "t", capable=False), 1, str(target))
    assert os.listdir(target) == []


@root
@pytest.mark.root
def test_full_disk_at_the_target(notebook: Notebook, small_disk: Path) -> None:
    (notebook.volume / "large").write_bytes(os.urandom(3 << 20))
    notebook.well("backup")
    one_line(notebook.say("restore", "--target", str(small_disk / "t")), 1, "No space left")
    target = small_disk / "t"
    assert not (target / "large").exists()
    one_line(notebook.say("export", "latest", "--output", str(small_disk / "x.tar")), 1, "No space left")
    assert [name for name in os.listdir(small_disk) if "x.tar" in name] == []


@root
@pytest.mark.root
def test_full_disk_at_the_repository(tmp_path: Path, small_disk: Path) -> None:
    notebook = Notebook(tmp_path, url=(small_disk / "repo").as_uri())
    notebook.well("init")
    (notebook.volume / "small").write_text("x")
    first = notebook.well("backup", "--json").json
    (notebook.volume / "large").write_bytes(os.urandom(3 << 20))
    one_line(notebook.say("backup"), 1, "disk is full")
    assert notebook.well("snapshots", "--json").json[0].items() <= first.items()
    (notebook.volume / "large").unlink()
    (notebook.volume / "small").write_text("y")
    notebook.well("backup")
    notebook.well("check", "--read-data")


def test_a_reader_that_had_enough(notebook: Notebook) -> None:
    """`smsnap cat … | head` ends quietly."""
    (notebook.volume / "long").write_bytes(os.urandom(4 << 20))
    notebook.well("backup")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as out:
        process = notebook.start("cat", "latest", "long", stdout=out)
    assert len(os.read(reader, 10)) == 10
    os.close(reader)
    _, complaints = process.communicate()
    assert (process.returncode, complaints) == (1, b"")


def test_the_demo(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    said = notebook.say_alone(
        "demo", SMSNAP_VOLUME="x", SMSNAP_REPOSITORY="file:///nowhere", TMPDIR=str(tmp_path)
    )
    assert said.status == 0, said
    assert "IDENTICAL" in said.text and "NOT THE SAME" not in said.text
    assert said.text.count(": 0 differences") >= 2
    assert sorted(os.listdir(tmp_path)) == ["home", "passphrase", "smsnapd.toml", "volume"]
