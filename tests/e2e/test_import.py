"""`smsnap import`: what restores equals what GNU tar extracts, and hostile archives do no harm."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.transcript import Notebook, one_line

pytestmark = pytest.mark.root
TAR = ("tar", "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    made = Notebook(tmp_path)
    made.well("init")
    return made


def rsync(one: Path, other: Path, *more: str) -> str:
    """What differs, in the words of rsync; "" if nothing does."""
    command = ["rsync", "-aHAXnci", "--numeric-ids", "--delete", *more, f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def imported(notebook: Notebook, archive: Path, status: int = 0) -> Path:
    """Where the tree of an imported archive was restored."""
    said = notebook.say("import", str(archive), "--json")
    assert said.status == status, said
    back = notebook.place / f"back-{said.json['id']}"
    notebook.well("restore", "--target", str(back))
    notebook.well("check", "--read-data")
    return back


def tarball(place: Path, fill: Callable[[Callable[..., None]], None]) -> Path:
    """A tarball whose members `fill` adds, with whatever names it likes."""
    path = place / "made.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:

        def add(
            name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "", **more: object
        ) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            for field, value in more.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))

        fill(add)
    return path


def test_the_last_of_several_wins_as_it_does_with_tar(notebook: Notebook) -> None:
    def fill(add: Callable[..., None]) -> None:
        add("a", b"first")
        add("b", kind=tarfile.LNKTYPE, target="a")
        add("a", b"second, and b keeps the first")
        add("d", kind=tarfile.DIRTYPE, mode=0o700)
        add("d/x", b"x")
        add("d", kind=tarfile.DIRTYPE, mode=0o755)
        add("e", kind=tarfile.DIRTYPE)
        add("e", b"a file instead of an empty directory")
        add("s", kind=tarfile.SYMTYPE, target="a")
        add("s", b"a file instead of a link")
        add("t", kind=tarfile.SYMTYPE, target="a")
        add("u", kind=tarfile.LNKTYPE, target="t")
        add("z/new/x", b"directories that have no member")
        add("z2", b"2")
        add("z1", kind=tarfile.LNKTYPE, target="z2")

    archive = tarball(notebook.place, fill)
    back = imported(notebook, archive)
    by_tar = notebook.place / "by-tar"
    by_tar.mkdir()
    subprocess.run([*TAR, "-C", by_tar, "-xpf", archive], check=True)
    assert (back / "b").read_bytes() == b"first"
    assert (back / "z1").stat().st_ino == (back / "z2").stat().st_ino
    for path in (by_tar, back):
        for made in (path, path / "z", path / "z" / "new"):
            os.utime(made, (0, 0))
            os.chown(made, 0, 0)
    assert rsync(by_tar, back) == ""


def test_hostile_names_do_no_harm(notebook: Notebook) -> None:
    outside = notebook.place / "outside"
    outside.mkdir()

    def fill(add: Callable[..., None]) -> None:
        add("../climbed", b"x")
        add("ok/../../climbed", b"x")
        add("/etc/absolute", b"kept below the root, as tar does")
        add("way-out", kind=tarfile.SYMTYPE, target=str(outside))
        add("way-out/planted", b"x")
        add("passwd", kind=tarfile.LNKTYPE, target="/etc/passwd")
        add("shadow", kind=tarfile.LNKTYPE, target="../../../etc/shadow")
        add("file", b"x")
        add("file/below", b"x")
        add("n" * 300, b"x")
        add("endless", kind=tarfile.SYMTYPE, target="t" * 5000)
        add("device", kind=tarfile.BLKTYPE, devmajor=2**31, devminor=2**40)
        add("full", kind=tarfile.DIRTYPE)
        add("full/x", b"x")
        add("full", kind=tarfile.SYMTYPE, target=str(outside))
        add("last", b"whole")

    archive = tarball(notebook.place, fill)
    said = notebook.say("import", str(archive), "--json")
    assert said.status == 3 and not said.json["complete"]
    named = {issue["path"] for issue in said.json["incomplete"]}
    assert {
        "climbed",
        "endless",
        "device",
        "way-out/planted",
        "passwd",
        "shadow",
        "file/below",
        "full",
    } <= named
    assert "left out way-out/planted" in said.err
    notebook.well("restore", "--target", "back")
    back = notebook.place / "back"
    assert (back / "etc/absolute").exists() and (back / "last").read_bytes() == b"whole"
    assert os.readlink(back / "way-out") == str(outside) and (back / "full/x").exists()
    assert not list(outside.iterdir()) and not (notebook.place / "climbed").exists()
    assert not notebook.well("snapshots", "--json").json[-1]["complete"]


@pytest.mark.parametrize("tool", ["gzip", "pigz", "xz", "lz4", "zstd"])
@pytest.mark.parametrize("sealed", [False, True])
def test_packed_and_sealed_as_it_may_be(notebook: Notebook, tool: str, sealed: bool) -> None:
    (notebook.volume / "file").write_bytes(os.urandom(300_000))
    secret = notebook.place / "secret"
    secret.write_text("article\n")
    command = f"tar -C volume -c . | {tool} -c"
    if sealed:
        command += " | openssl enc -aes-256-cbc -iter 100000 -pass file:secret"
    subprocess.run(["bash", "-o", "pipefail", "-c", f"{command} > backup"], cwd=notebook.place, check=True)
    more = ("--openssl-passphrase-file", "secret") if sealed else ()
    said = notebook.well("import", "backup", "--json", *more)
    assert said.json["wrapping"] == [*(["openssl"] if sealed else []), {"pigz": "gzip"}.get(tool, tool)]
    notebook.well("restore", "--target", "back")
    assert rsync(notebook.volume, notebook.place / "back") == ""


def snapshots(notebook: Notebook) -> int:
    return len(notebook.well("snapshots", "--json").json) if notebook.repo.joinpath("volumes").exists() else 0


def test_what_is_not_whole_leaves_no_snapshot(notebook: Notebook) -> None:
    (notebook.volume / "file").write_bytes(os.urandom(900_000))
    (notebook.place / "secret").write_text("right\n")
    (notebook.place / "wrong").write_text("wrong\n")
    seal = "openssl enc -aes-256-cbc -iter 100000 -pass file:secret"
    for command in (
        "tar -C volume -cf plain .; head -c 500000 plain > cut; head -c 10 plain > stub; : > nothing",
        "gzip < plain > plain.gz; head -c 500000 plain.gz > cut.gz",
        f"{seal} < plain.gz > sealed; {seal} < plain > sealed-plain; head -c 500000 sealed > cut-sealed",
        "head -c 499984 sealed-plain > cut-sealed-plain",
    ):
        subprocess.run(["bash", "-c", command], cwd=notebook.place, check=True)
    right, wrong = (("--openssl-passphrase-file", name) for name in ("secret", "wrong"))
    one_line(notebook.say("import", "cut"), 13, "cut", "cut off")
    one_line(notebook.say("import", "cut.gz"), 13, "cut.gz", "cut off")
    one_line(notebook.say("import", "cut-sealed", *right), 13, "cut-sealed", "cut off")
    one_line(notebook.say("import", "cut-sealed-plain", *right), 13, "cut off")
    one_line(notebook.say("import", "sealed", *wrong), 12, "sealed", "passphrase is wrong")
    one_line(notebook.say("import", "sealed-plain", *wrong), 12, "passphrase is wrong")
    one_line(notebook.say("import", "sealed"), 2, "--openssl-passphrase-file")
    one_line(notebook.say("import", "stub"), 2, "neither a tarball")
    one_line(notebook.say("import", "nothing"), 2, "neither a tarball")
    one_line(notebook.say("import", "missing"), 2, "missing", "No such file")
    one_line(notebook.say("import", "sealed", "--openssl-passphrase-file", "missing"), 2, "missing")
    one_line(notebook.say("import"), 2, "--from-tags")
    assert snapshots(notebook) == 0
    assert notebook.well("import", "sealed", "--json", *right).json["complete"]


def test_a_chain_goes_on_behind_an_import(notebook: Notebook) -> None:
    (notebook.volume / "same").write_bytes(os.urandom(9_000_000))
    (notebook.volume / "other").write_text("before")
    notebook.well("backup")
    subprocess.run(["tar", "-C", notebook.volume, "-cf", notebook.place / "t.tar", "."], check=True)
    said = notebook.well("import", "t.tar", "--json").json
    assert said["stored_bytes"] < 100_000  # what is there already is not stored again
    (notebook.volume / "other").write_text("after")
    again = notebook.well("backup", "--json")
    assert again.json["parent"] == said["id"] and "not here" not in again.err
    notebook.well("restore", "--target", "back")
    assert rsync(notebook.volume, notebook.place / "back") == ""
    notebook.well("restore", "--target", "before", "--snapshot", said["id"])
    assert (notebook.place / "before/other").read_text() == "before"
    assert not list((notebook.place / "state").glob("import-*"))


def test_a_full_disk_is_told(notebook: Notebook) -> None:
    (notebook.place / "state").mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "smsnap-test", notebook.place / "state"], check=True
    )
    try:
        archive = tarball(
            notebook.place, lambda add: [add(f"{number}-{'n' * 200}") for number in range(20_000)]
        )
        one_line(notebook.say("import", str(archive)), 1, "state", "full", "[state] dir")
    finally:
        subprocess.run(["umount", notebook.place / "state"], check=True)
    assert snapshots(notebook) == 0
