"""The recovery script: short, alone, and able to bring back what the real engine stored, or to say why not."""

from __future__ import annotations

import ast
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from smsnapd.engine.backup import BackupRequest, run_backup
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.format import names
from smsnapd.format.keys import Identity, Recipient, seal_data_key
from smsnapd.format.manifest import Manifest
from smsnapd.format.record import record_hash
from smsnapd.format.roster import Head, Revocation, Roster
from smsnapd.repository import Repository
from smsnapd.store import StoreSettings, open_store

SCRIPT = Path(__file__).parents[2] / "smsnapd" / "recover.py"
PASSPHRASE = "Grüße, nimm zwei"
SEED = 20210704
MIB = 1 << 20

needs_tools = pytest.mark.skipif(
    not (shutil.which("rsync") and shutil.which("tar")), reason="needs rsync and GNU tar"
)


@dataclass
class Story:
    """A volume, its repository, and a copy of the volume beside every recovery point."""

    place: Path
    moments: dict[str, Path] = field(default_factory=dict)
    deleted: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.place / "copies").mkdir(parents=True)
        self.volume.mkdir()
        self.settings = StoreSettings((self.place / "repository").as_uri())
        created = Repository.create(open_store(self.settings), PASSPHRASE)
        self.repository, self.recovery_key = created.repository, created.recovery_key

    @property
    def volume(self) -> Path:
        return self.place / "volume"

    @property
    def directory(self) -> Path:
        return self.place / "repository"

    def commit(self, *, full: bool = False, deleted: set[str] | None = None) -> str:
        """A recovery point of what is there now; returns its id. `deleted` is what is gone since."""
        request = BackupRequest(
            os.fsencode(self.volume), "home", self.place / "state", full=full, workers=2
        )
        outcome = run_backup(self.repository, self.settings, request, Silent())
        assert outcome.snapshot is not None
        assert outcome.snapshot.complete
        copy = self.place / "copies" / outcome.snapshot.id
        subprocess.run(["cp", "-a", "--sparse=always", self.volume, copy], check=True)
        self.moments[outcome.snapshot.id] = copy
        self.deleted[outcome.snapshot.id] = deleted or set()
        return outcome.snapshot.id

    def manifest(self, snapshot: str) -> Manifest:
        history = History.load(self.repository, "home")
        return next(history.record(name).manifest for name in history.names if name.snapshot == snapshot)

    def manifest_path(self, snapshot: str) -> Path:
        return next((self.directory / "volumes" / "home" / "manifests").glob(f"*-{snapshot}"))


def populate(volume: Path) -> None:
    chance = random.Random(SEED)
    for number in range(60):
        directory = volume / f"project {number % 4}" / f"part-{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file-{number:02}").write_bytes(chance.randbytes(chance.randrange(3000)))
    (volume / "large.bin").write_bytes(chance.randbytes(17 * MIB + 1234))
    with (volume / "sparse").open("wb") as file:
        file.write(b"head" * 1024)
        file.seek(20 * MIB)
        file.write(b"tail" * 1024)
        file.truncate(30 * MIB)
    (volume / "links").mkdir()
    for name in ("links/one", "links/two", "zero"):
        os.link(volume / "project 1" / "part-1" / "file-01", volume / name)
    (volume / "to file").symlink_to("project 0/part-0/file-00")
    (volume / "dangling").symlink_to("x/" * 200 + "end")
    (volume / ("long" * 60)).mkdir()
    (volume / ("long" * 60) / ("name" * 60)).write_text("a path that ustar cannot hold")
    Path(os.fsdecode(os.fsencode(volume) + b"/not-utf8-\xff\xfe")).write_text("bytes are names\n")
    os.mkfifo(volume / "pipe", 0o640)
    (volume / "empty").mkdir(0o500)
    (volume / "void").touch()
    (volume / "void").chmod(0o4711)
    if os.geteuid() == 0:
        os.chown(volume / "void", 12345, 54321)
        (volume / "void").chmod(0o4711)


def first_edit(volume: Path) -> set[str]:
    (volume / "project 0").rename(volume / "renamed")
    (volume / "renamed" / "new").write_text("new")
    (volume / "project 2" / "part-2" / "file-02").unlink()
    with (volume / "large.bin").open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"a changed stretch")
    os.setxattr(volume / "void", "user.note", b"binary\0=%")
    return {"./project 0/", "./project 0/part-0/file-00", "./project 2/part-2/file-02"}


def second_edit(volume: Path) -> set[str]:
    shutil.rmtree(volume / "project 3")
    (volume / "project 3").write_text("a file where a directory was")
    (volume / "links" / "one").unlink()  # the first name of a group, which carried its content
    with (volume / "sparse").open("r+b") as file:
        file.seek(10 * MIB)
        file.write(b"middle" * 1000)
    (volume / "to file").unlink()
    (volume / "to file").mkdir()
    (volume / "to file" / "inside").write_text("a directory where a link was")
    return {"./project 3/", "./project 3/part-0/file-03", "./links/one"}


def third_edit(volume: Path) -> set[str]:
    (volume / "project 3").unlink()
    (volume / "project 3").mkdir()
    (volume / "project 3" / "again").write_text("a directory once more, and none of what it held")
    (volume / "renamed").rename(volume / "project 1" / "moved")
    (volume / "zero").write_bytes(b"written through one name of several")
    (volume / "void").chmod(0o600)
    (volume / "large.bin").unlink()
    return {"./renamed/", "./large.bin", "./project 3/part-0/file-03"}


def last_edit(volume: Path) -> set[str]:
    (volume / "links" / "two").unlink()
    (volume / "project 1" / "moved" / "new").write_text("newer")
    shutil.rmtree(volume / ("long" * 60))
    return {"./links/two", "./" + "long" * 60 + "/"}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A full, three incrementals, a second full and another incremental. Nothing may change it."""
    made = Story(tmp_path_factory.mktemp("recover") / "story")
    populate(made.volume)
    made.commit()
    for edit in (first_edit, second_edit, third_edit):
        made.commit(deleted=edit(made.volume))
    made.commit(full=True)
    made.commit(deleted=last_edit(made.volume))
    return made


@pytest.fixture(scope="module")
def made_small(tmp_path_factory: pytest.TempPathFactory) -> Story:
    made = Story(tmp_path_factory.mktemp("recover") / "small")
    (made.volume / "kept").write_text("first")
    # Too much to be attached to a manifest: chunks and a catalog segment of their own.
    (made.volume / "noise").write_bytes(random.Random(SEED).randbytes(300_000))
    made.commit()
    (made.volume / "kept").write_text("second")
    made.commit()
    made.commit(full=True)
    return made


@pytest.fixture
def small(made_small: Story, tmp_path: Path) -> Iterator[Story]:
    """A story of three recovery points that a test may spoil."""
    saved = tmp_path / "saved"
    shutil.copytree(made_small.directory, saved)
    yield made_small
    shutil.rmtree(made_small.directory)
    shutil.copytree(saved, made_small.directory)


Run = Callable[..., bytes]


class Refused(Exception):
    """The script ended with another status than 0."""


@pytest.fixture
def recover(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """`recover(directory, *options, key=…, passphrase=…)`: what the script prints; Refused with its message."""

    def run(directory: Path, *options: str, key: str = "", passphrase: str = "") -> bytes:
        monkeypatch.setenv("SMSNAP_RECOVERY_KEY", key)
        monkeypatch.setenv("SMSNAP_PASSPHRASE", passphrase)
        monkeypatch.setattr(sys, "argv", ["recover.py", os.fspath(directory), *options])
        capfdbinary.readouterr()
        try:
            runpy.run_path(os.fspath(SCRIPT), run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            if end.code:
                raise Refused(end.code) from end
        return capfdbinary.readouterr().out

    return run


def refusal(error: pytest.ExceptionInfo[Refused]) -> str:
    """The message, which must be one line."""
    message = error.value.args[0]
    assert isinstance(message, str)
    assert "\n" not in message
    assert len(message) < 400
    return message


def extract(archive: bytes, target: Path) -> Path:
    target.mkdir()
    command = ["tar", "-xpf", "-", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]
    done = subprocess.run(
        [*command, "--delay-directory-restore", "-C", target], input=archive, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return target


def differences(before: Path, after: Path) -> str:
    command = ["rsync", "-aHAXnci", "--delete", "--modify-window=-1", f"{before}/", f"{after}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- what it is


def test_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 400


def test_imports_nothing_of_smsnapd() -> None:
    allowed = sys.stdlib_module_names | {"cryptography", "zstandard", "blake3"}
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert {name.partition(".")[0] for name in imported} <= allowed


def test_help_says_how_to_fetch_from_s3_and_extract(recover: Run) -> None:
    help_text = recover(Path("-h")).decode()
    for words in ("aws s3 sync", "$SMSNAP_RECOVERY_KEY", "$SMSNAP_PASSPHRASE", "--delay-directory-restore"):
        assert words in help_text


# --- what it brings back


@needs_tools
@pytest.mark.parametrize("number", range(6))
def test_every_recovery_point_comes_back(story: Story, recover: Run, tmp_path: Path, number: int) -> None:
    snapshot, copy = list(story.moments.items())[number]
    archive = recover(story.directory, "--snapshot", snapshot, key=story.recovery_key)
    assert differences(copy, extract(archive, tmp_path / "out")) == ""


@needs_tools
def test_holes_stay_holes(story: Story, recover: Run, tmp_path: Path) -> None:
    target = extract(recover(story.directory, key=story.recovery_key), tmp_path / "out")
    assert (target / "sparse").stat().st_blocks * 512 < MIB


def test_what_was_deleted_is_not_there(story: Story, recover: Run) -> None:
    for snapshot, deleted in story.deleted.items():
        archive = recover(story.directory, "--snapshot", snapshot, key=story.recovery_key)
        listed = subprocess.run(["tar", "-tf", "-"], input=archive, capture_output=True, check=True).stdout
        found = {"./" + line.removeprefix("./") for line in os.fsdecode(listed).splitlines()}
        assert "./" in found
        assert not found & deleted


@needs_tools
def test_as_a_command_with_a_passphrase(story: Story, tmp_path: Path) -> None:
    snapshot, copy = list(story.moments.items())[-1]
    environment = {"SMSNAP_PASSPHRASE": PASSPHRASE, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", SCRIPT, story.directory, "--volume", "home"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert differences(copy, extract(done.stdout, tmp_path / "out")) == ""


def test_passphrases_are_normalised(small: Story, recover: Run) -> None:
    decomposed = PASSPHRASE.replace("ü", "u\u0308")
    assert recover(small.directory, passphrase=decomposed) == recover(small.directory, key=small.recovery_key)


def test_recovery_keys_are_read_as_people_write_them(small: Story, recover: Run) -> None:
    spaced = re.sub("(....)", r"\1 - ", small.recovery_key.lower())
    assert recover(small.directory, key=spaced) == recover(small.directory, key=small.recovery_key)


def test_list(story: Story, recover: Run) -> None:
    lines = recover(story.directory, "--list", key=story.recovery_key).decode().splitlines()
    assert [line.split()[0] for line in lines] == list(story.moments)
    assert [line.split()[2] for line in lines] == ["full", *["incremental"] * 3, "full", "incremental"]
    assert not any("INCOMPLETE" in line or "DAMAGED" in line for line in lines)


def test_latest_and_a_prefix_of_an_id(small: Story, recover: Run) -> None:
    last = list(small.moments)[-1]
    by_prefix = recover(small.directory, "--snapshot", last[:12], key=small.recovery_key)
    assert by_prefix == recover(small.directory, "--snapshot", "latest", key=small.recovery_key)


def test_only_the_chain_is_needed(small: Story, recover: Run) -> None:
    """A full stands on attachments of manifests before it, at most; its chain's own are enough else."""
    first, _, second_full = small.moments
    whole = recover(small.directory, "--snapshot", first, key=small.recovery_key)
    small.manifest_path(second_full).write_bytes(b"rubbish")
    assert recover(small.directory, "--snapshot", first, key=small.recovery_key) == whole
    with pytest.raises(Refused):
        recover(small.directory, key=small.recovery_key)


def test_attached_chunks_that_became_objects(small: Story, recover: Run) -> None:
    """What prune does before it deletes a manifest: its attachments are put as they are."""
    whole = recover(small.directory, key=small.recovery_key)
    full = small.manifest(list(small.moments)[-1])
    hosts = {ref.manifest for ref in full.chunks} - {"", full.name.object_name()}
    assert hosts
    for ref in full.chunks:
        if ref.manifest in hosts:
            data = (small.directory / ref.manifest).read_bytes()
            start = 64 + int.from_bytes(data[56:64], "little") + ref.offset
            chunk = small.directory / names.chunk_name("home", ref.name_hash, ref.key_id)
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(data[start : start + ref.stored_length])
    for host in hosts:
        (small.directory / host).unlink()
    assert recover(small.directory, key=small.recovery_key) == whole


def test_a_data_key_that_was_sealed_again(small: Story, recover: Run) -> None:
    whole = recover(small.directory, key=small.recovery_key)
    assert small.repository.identity is not None
    everybody = [Identity.generate().recipient, Recipient(small.repository.identity.recipient.public)]
    for path in (small.directory / "volumes" / "home" / "keys").iterdir():
        key = small.repository.data_key("home", bytes.fromhex(path.name))
        again = seal_data_key(key, "home", everybody, small.repository.write_key, 2)
        path.with_name(f"{path.name}-{2:010}").write_bytes(again)
        path.unlink()
    assert recover(small.directory, key=small.recovery_key) == whole


def test_the_highest_generation_counts(small: Story, recover: Run, tmp_path: Path) -> None:
    """A manifest that another writer's overtook is no recovery point."""
    other = Story(tmp_path / "other")
    (other.volume / "file").write_text("first")
    other.commit()
    saved = [tmp_path / "saved repository", tmp_path / "saved state"]
    for source, copy in zip((other.directory, other.place / "state"), saved, strict=True):
        shutil.copytree(source, copy)
    (other.volume / "file").write_text("fenced")
    fenced = other.commit()
    fenced_path = other.manifest_path(fenced)
    fenced_bytes = fenced_path.read_bytes()
    for target, copy in zip((other.directory, other.place / "state"), saved, strict=True):
        shutil.rmtree(target)
        shutil.copytree(copy, target)
    other.repository.close()
    request = BackupRequest(os.fsencode(other.volume), "home", other.place / "state", dry_run=False)
    (other.volume / "file").write_text("first")
    # TAKEN
    del request
    assert fenced_bytes
