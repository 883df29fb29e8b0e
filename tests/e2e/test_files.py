"""Plain files: what the real `aws s3 sync` has written comes in, and it brings back what we write."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from smsnapd.instance import Notebook as Notebook_
from smsnapd.store import StoreSettings
from tests.e2e.transcript import Notebook, one_line
from tests.servers import S3Server

pytestmark = [pytest.mark.server, pytest.mark.root]
KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
AWS = Path(sys.executable).with_name("aws")


@pytest.fixture
def bucket(s3_settings: Callable[..., StoreSettings], seaweed: S3Server) -> str:
    return s3_settings(seaweed).url


@pytest.fixture
def notebook(tmp_path: Path, seaweed: S3Server) -> Notebook:
    more = f'region = "us-east-1"\nendpoint_url = "{seaweed.endpoint}"\npath_style = true'
    made = Notebook(tmp_path, more=more)
    made.well("init")
    root = made.volume
    (root / "d/deep er").mkdir(parents=True)
    (root / "a.txt").write_text("a\n")
    (root / "d/b+ü&.bin").write_bytes(os.urandom(5_000_000))
    (root / "d/deep er/zeros").write_bytes(bytes(12_000_000))
    (root / "empty file").touch()
    os.chown(root / "a.txt", 500, 600)
    os.chmod(root / "a.txt", 0o4751)
    os.utime(root / "a.txt", ns=(0, 1_234_567_890_123_456_789))
    return made


def aws(server: S3Server, *arguments: str) -> str:
    """The real command line tool of AWS, as the article and the samples use it."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "AWS_DEFAULT_REGION": "us-east-1",
        **KEYS,
    }
    # Now and then it misses this server's answer behind a 100 Continue, and waits for a minute by default.
    command = [AWS, "--cli-read-timeout", "5", "--endpoint-url", server.endpoint, "s3", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def rsync(one: Path, other: Path, *options: str) -> str:
    command = ["rsync", *options, "-nci", "--delete", f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def contents_differ(one: Path, other: Path) -> str:
    """What differs in names and contents of files; directories and all metadata left alone."""
    return rsync(one, other, "-r", "--no-D", "--no-links", "--omit-dir-times", "--prune-empty-dirs")


def test_a_copy_of_aws_s3_sync_comes_in(notebook: Notebook, bucket: str, seaweed: S3Server) -> None:
    aws(seaweed, "sync", str(notebook.volume), f"{bucket}/old-nb_2026-01-31-09-00-00/")
    client = seaweed.client()
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="old-nb_2026-01-31-09-00-00/folder/", Body=b"")
    client.close()
    for name in ("old-nb_2026-01-31-09-00-00/", "old-nb_2026-01-31-09-00-00"):
        said = notebook.well(
            "import", f"{bucket}/{name}", "--volume", "old", "--owner", "1000:1001", "--json", **KEYS
        )
        assert (said.json["form"], said.json["complete"], said.json["files"]) == ("files", True, 4)
    notebook.well("restore", "--target", "back", "--volume", "old")
    back = notebook.place / "back"
    assert (back / "folder").is_dir()
    os.rmdir(back / "folder")
    assert contents_differ(notebook.volume, back) == ""
    status = (back / "a.txt").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1000, 1001, 0o644)
    one_line(notebook.say("import", f"{bucket}/none/", **KEYS), 2, "no objects")


def test_an_export_is_brought_back_by_aws_s3_sync(notebook: Notebook, bucket: str, seaweed: S3Server) -> None:
    notebook.well("backup")
    said = notebook.well(
        "export", "latest", "--format", "files", "--output", f"{bucket}/out/nb/", "--json", **KEYS
    )
    assert said.json["files"] == 4
    synced = notebook.place / "synced"
    aws(seaweed, "sync", f"{bucket}/out/nb/", str(synced))
    assert contents_differ(notebook.volume, synced) == ""
    client = seaweed.client()
    metadata = client.head_object(Bucket=bucket.removeprefix("s3://"), Key="out/nb/a.txt")["Metadata"]
    client.close()
    assert int(metadata["file-permissions"], 8) == 0o4751
    assert (metadata["file-owner"], metadata["file-group"]) == ("500", "600")
    assert metadata["file-mtime"] == "1234567890123456789ns"
    again = notebook.say("export", "latest", "--format", "files", "--output", f"{bucket}/out/nb", **KEYS)
    one_line(again, 2, "out/nb", "there are objects")


def rich(root: Path) -> None:
    """Everything that plain files cannot carry."""
    os.link(root / "a.txt", root / "0-first in order")
    os.link(root / "a.txt", root / "d/further")
    os.symlink("../a.txt", root / "d/link")
    os.symlink("/nowhere", root / "dangling")
    (root / "empty directory").mkdir()
    os.chmod(root / "empty directory", 0o2770)
    os.chown(root / "d", 500, 500)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.setxattr(root / "a.txt", "user.note", b"\0binary\xff")
    Path(os.fsdecode(os.fsencode(root) + b"/no-utf8-\xff")).write_text("odd")
    (root / "line\nfeed").write_text("odd")
    (root / "back\\slash").write_text("odd")
    with open(root / "sparse", "wb") as file:
        file.truncate(3_000_000)


@pytest.mark.parametrize("where", ["bucket", "directory"])
def test_an_export_comes_back_whole_with_its_sidecar(notebook: Notebook, bucket: str, where: str) -> None:
    well = partial(notebook.well, **KEYS)
    rich(notebook.volume)
    well("backup")
    output = f"{bucket}/out/" if where == "bucket" else "out"
    said = well("export", "latest", "--format", "files", "--output", output, "--json")
    assert said.json["sidecar_only"] == {
        "hard links": 2, "extended attributes": 1, "empty directories": 1, "symbolic links": 2,
        "special files": 2, "holes": 1,
    }  # fmt: skip
    assert "in the sidecar alone: 2 hard links" in said.err
    said = well("import", output, "--volume", "back", "--json")
    assert said.json["complete"]
    well("restore", "--target", "back", "--volume", "back")
    assert rsync(notebook.volume, notebook.place / "back", "-aHAX", "--numeric-ids") == ""
    well("check", "--read-data")


def test_what_was_changed_in_the_copy_is_taken_as_it_is(notebook: Notebook, bucket: str) -> None:
    rich(notebook.volume)
    notebook.well("backup")
    notebook.well("export", "latest", "--format", "files", "--output", "out")
    out = notebook.place / "out"
    (out / "d/further").write_text("now a file of its own\n")
    (out / "new").write_text("new")
    (out / "empty file").unlink()
    said = notebook.well("import", "out", "--volume", "back", "--json")
    notebook.well("restore", "--target", "back", "--volume", "back")
    back = notebook.place / "back"
    assert (back / "d/further").read_text() == "now a file of its own\n"
    assert (back / "new").read_text() == "new" and not (back / "empty file").exists()
    assert (back / "0-first in order").stat().st_ino == (back / "a.txt").stat().st_ino
    assert said.json["complete"]


def test_a_sidecar_that_is_none(notebook: Notebook) -> None:
    notebook.well("backup")
    notebook.well("export", "latest", "--format", "files", "--output", "out")
    sidecar = notebook.place / "out.smsnap-sidecar.jsonl.gz"
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole[: len(whole) // 2])
    one_line(notebook.say("import", "out"), 13, "sidecar", "cut off")
    one_line(notebook.say("import", "out", "--sidecar", "missing"), 2, "missing")
    sidecar.unlink()
    notebook.well("import", "out")
    one_line(notebook.say("export", "latest", "--format", "files", "--output", "out"), 2, "not empty")
    one_line(notebook.say("export", "latest", "--format", "files", "--output", "-"), 2, "give --output DIR")


def test_the_copy_that_the_tags_name(
    notebook: Notebook, bucket: str, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = bucket.removeprefix("s3://")
    client = seaweed.client()
    for key in ("nb_2026-01-31-09-00-00", "nb_2026-02-01-09-00-00", "nb_2-other_2026-03-01-09-00-00", "nb_x"):
        client.put_object(Bucket=name, Key=f"{key}/which", Body=key.encode())
    client.close()
    tags: dict[str, str] = {}
    monkeypatch.setattr("smsnapd.cli.filesources.read_notebook", lambda: Notebook_("nb", "us-east-1", "1"))
    monkeypatch.setattr("smsnapd.cli.filesources.notebook_tags", lambda: tags)
    one_line(notebook.say("import", "--from-tags", **KEYS), 2, "no tag ebs-backup-bucket")
    tags["ebs-backup-bucket"] = name
    assert (
        notebook.well("import", "--from-tags", "--json", **KEYS)
        .json["source"]
        .endswith("nb_2026-02-01-09-00-00/")
    )
    tags["backup-snapshot"] = "nb_2026-01-31-09-00-00"
    assert (
        notebook.well("import", "--from-tags", "--json", **KEYS)
        .json["source"]
        .endswith("nb_2026-01-31-09-00-00/")
    )
    tags["backup-snapshot"] = "gone"
    one_line(notebook.say("import", "--from-tags", **KEYS), 2, "gone", "no objects")
