"""The recovery script: short, alone, and brings back what the real engine stored, or says why not."""

from __future__ import annotations

import ast
import copy
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.export import export_tar
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.format import names
from smsnapd.format.keys import Identity
from smsnapd.format.manifest import Manifest
from smsnapd.format.record import KmsSlot, record_hash
from smsnapd.format.roster import Roster
from smsnapd.repository import Repository
from smsnapd.repository.access import Credentials
from smsnapd.repository.keyring import Keyring
from smsnapd.repository.lease import Lease
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

    def reopen(self) -> None:
        """Open the repository that now lies at its place."""
        self.settings = StoreSettings(self.directory.as_uri())
        credentials = Credentials(recovery_key=self.recovery_key)
        self.repository = Repository.open(open_store(self.settings), credentials)

    @property
    def volume(self) -> Path:
        return self.place / "volume"

    @property
    def directory(self) -> Path:
        return self.place / "repository"

    def commit(self, *, full: bool = False, deleted: set[str] | None = None) -> str:
        """A recovery point of what is there now; returns its id. `deleted` is what is gone since."""
        request = BackupRequest(os.fsencode(self.volume), "home", self.place / "state", full=full, workers=2)
        outcome = run_backup(self.repository, self.settings, request, Silent())
        assert outcome.snapshot is not None
        assert outcome.snapshot.complete
        kept = self.place / "copies" / outcome.snapshot.id
        subprocess.run(["cp", "-a", "--sparse=always", self.volume, kept], check=True)
        self.moments[outcome.snapshot.id] = kept
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
def small(made_small: Story, tmp_path: Path) -> Story:
    """A story of three recovery points that a test may spoil."""
    story = copy.copy(made_small)
    story.place = tmp_path / "small"
    shutil.copytree(made_small.directory, story.directory)
    story.reopen()
    return story


Run = Callable[..., bytes]


class RefusedError(Exception):
    """The script ended with another status than 0."""


@pytest.fixture
def recover(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """`recover(directory, *options, key=…, passphrase=…)`: what the script prints, or RefusedError."""

    def run(directory: Path, *options: str, key: str = "", passphrase: str = "") -> bytes:
        monkeypatch.setenv("SMSNAP_RECOVERY_KEY", key)
        monkeypatch.setenv("SMSNAP_PASSPHRASE", passphrase)
        monkeypatch.setattr(sys, "argv", ["recover.py", os.fspath(directory), *options])
        monkeypatch.chdir(directory.anchor or ".")  # the script changes it; this brings it back in the end
        capfdbinary.readouterr()
        try:
            runpy.run_path(os.fspath(SCRIPT), run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            if end.code:
                raise RefusedError(end.code) from end
        return capfdbinary.readouterr().out

    return run


def refusal(error: pytest.ExceptionInfo[RefusedError]) -> str:
    """The message, which must be one line."""
    message = error.value.args[0]
    assert isinstance(message, str)
    assert "\n" not in message
    assert len(message) < 400
    return message


def extract(archive: bytes, target: Path) -> Path:
    target.mkdir()
    command = ["tar", "-xpf", "-", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]
    done = subprocess.run([*command, "-C", target], input=archive, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return target


def differences(before: Path, after: Path) -> str:
    command = ["rsync", "-aHAXnci", "--delete", "--modify-window=-1", f"{before}/", f"{after}/"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- what it is


def test_is_as_short_as_the_specification_says() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 210


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
    for words in ("aws s3 sync", "$SMSNAP_RECOVERY_KEY", "$SMSNAP_PASSPHRASE", "tar -xpf"):
        assert words in help_text


# --- what it brings back


@needs_tools
@pytest.mark.parametrize("number", range(6))
def test_every_recovery_point_comes_back(story: Story, recover: Run, tmp_path: Path, number: int) -> None:
    snapshot, kept = list(story.moments.items())[number]
    archive = recover(story.directory, "--snapshot", snapshot, key=story.recovery_key)
    assert differences(kept, extract(archive, tmp_path / "out")) == ""


def test_keys_that_were_sealed_again_and_slots_of_other_kinds(
    story: Story, recover: Run, tmp_path: Path
) -> None:
    before = recover(story.directory, key=story.recovery_key)
    shutil.copytree(story.directory, tmp_path / "changed")
    store = open_store(StoreSettings((tmp_path / "changed").as_uri()))
    other = Identity.generate().recipient
    for change in (lambda ring: ring.add_recipient(other, "x"), lambda ring: ring.remove_recipient(other.id)):
        change(Keyring(Repository.open(store, Credentials(recovery_key=story.recovery_key))))
    repository = Repository.open(store, Credentials(recovery_key=story.recovery_key))
    repository.new_data_key("home")  # by the newest roster
    slot = KmsSlot(repository.id, "0" * 16, "first of all", "arn:aws:kms:x:1:key/y", "home", bytes(99))
    store.put(names.keyslot_name(slot.slot), slot.encode())
    assert recover(tmp_path / "changed", key=story.recovery_key) == before
    assert recover(tmp_path / "changed", passphrase=PASSPHRASE) == before


def test_the_archive_is_that_of_export(story: Story, recover: Run) -> None:
    history = History.load(story.repository, "home")
    for snapshot in story.moments:
        exported = bytearray()
        export_tar(story.repository, history, history.find(snapshot), exported.extend, Silent())
        assert recover(story.directory, "--snapshot", snapshot, key=story.recovery_key) == exported


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
    kept = list(story.moments.values())[-1]
    environment = {"SMSNAP_PASSPHRASE": PASSPHRASE, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", SCRIPT, story.directory, "--volume", "home"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert differences(kept, extract(done.stdout, tmp_path / "out")) == ""


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


def test_latest_is_the_last_id(small: Story, recover: Run) -> None:
    last = list(small.moments)[-1]
    by_id = recover(small.directory, "--snapshot", last, key=small.recovery_key)
    assert by_id == recover(small.directory, "--snapshot", "latest", key=small.recovery_key)


def test_only_the_chain_is_needed(small: Story, recover: Run) -> None:
    """A full stands on attachments of manifests before it, at most; its chain's own are enough else."""
    first, _, second_full = small.moments
    whole = recover(small.directory, "--snapshot", first, key=small.recovery_key)
    small.manifest_path(second_full).write_bytes(b"rubbish")
    assert recover(small.directory, "--snapshot", first, key=small.recovery_key) == whole
    with pytest.raises(RefusedError):
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


def test_the_highest_generation_counts(recover: Run, tmp_path: Path) -> None:
    """A manifest that another writer's overtook is no recovery point."""
    story = Story(tmp_path / "story")
    (story.volume / "file").write_text("first")
    story.commit()
    parts = {story.directory: tmp_path / "repository", story.place / "state": tmp_path / "state"}
    for part, saved in parts.items():
        shutil.copytree(part, saved)
    (story.volume / "file").write_text("fenced")
    fenced = story.manifest_path(story.commit())
    fenced_bytes = fenced.read_bytes()
    for part, saved in parts.items():
        shutil.rmtree(part)
        shutil.copytree(saved, part)
    story.reopen()
    lease = Lease.take(story.repository.store, story.repository.id, "home")
    lease.rise_above(7)
    lease.release()
    (story.volume / "file").write_text("the winner")
    winner = story.commit()
    fenced.write_bytes(fenced_bytes)
    listed = recover(story.directory, "--list", key=story.recovery_key).decode().splitlines()
    assert [line.split()[0] for line in listed] == [*list(story.moments)[:1], winner]
    archive = recover(story.directory, key=story.recovery_key)
    assert b"the winner" in archive
    assert b"fenced" not in archive


# --- what it refuses


@pytest.fixture
def reads(recover: Run) -> Callable[..., list[str]]:
    """`reads(story, *options)`: the names of the objects that the script opens, none twice."""
    within = ""
    found: dict[str, None] = {}

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and within and os.path.isfile(name := os.path.join(within, str(arguments[0]))):
            found.update({name.removeprefix(within): None} if name.startswith(within) else {})

    def run(story: Story, *options: str) -> list[str]:
        nonlocal within
        found.clear()
        within = f"{story.directory}/"
        recover(story.directory, *options, key=story.recovery_key)
        within = ""  # a hook cannot be removed
        return list(found)

    sys.addaudithook(note)
    return run


def test_a_flipped_byte_in_any_object_is_refused(
    small: Story, recover: Run, reads: Callable[..., list[str]]
) -> None:
    snapshot = list(small.moments)[1]
    options = ("--snapshot", snapshot)
    read = reads(small, *options)
    kinds = {re.sub("[0-9a-f]{16,}|[0-9]{10}", "#", name).split("-")[0] for name in read}
    assert kinds >= {"repository", "keys/roster/#", "keys/writers/#", "volumes/home/keys/#"}
    assert {name.split("/")[2] for name in read if name.startswith("volumes/")} == {
        "keys",
        "manifests",
        "chunks",
    }
    for name in read:
        path = small.directory / name
        data = path.read_bytes()
        for position in {*range(0, len(data), -(-len(data) // 12)), len(data) - 1}:
            spoilt = bytearray(data)
            spoilt[position] ^= 1 << position % 8
            path.write_bytes(spoilt)
            with pytest.raises(RefusedError) as error:
                recover(small.directory, *options, key=small.recovery_key)
            refusal(error)
        path.write_bytes(data[:-1])
        with pytest.raises(RefusedError) as error:
            recover(small.directory, *options, key=small.recovery_key)
        refusal(error)
        # What stands behind the last manifest's attachments, nothing reads.
        if not name.endswith(snapshot):
            path.write_bytes(data + b"\n")
            with pytest.raises(RefusedError) as error:
                recover(small.directory, *options, key=small.recovery_key)
            refusal(error)
        path.unlink()
        with pytest.raises(RefusedError) as error:
            recover(small.directory, *options, key=small.recovery_key)
        refusal(error)
        path.write_bytes(data)
    recover(small.directory, *options, key=small.recovery_key)


def test_a_flipped_byte_in_catalogs_and_chunks_of_their_own(
    story: Story, recover: Run, reads: Callable[..., list[str]]
) -> None:
    snapshot = next(iter(story.moments))
    read = reads(story, "--snapshot", snapshot)
    chosen = [next(name for name in read if f"/{kind}/" in name) for kind in ("catalogs", "chunks")]
    for name in chosen:
        path = story.directory / name
        data = path.read_bytes()
        path.write_bytes(bytes([*data[:100], data[100] ^ 1]) + data[101:])
        with pytest.raises(RefusedError) as error:
            recover(story.directory, "--snapshot", snapshot, key=story.recovery_key)
        path.write_bytes(data)
        assert name in refusal(error)


def test_a_flipped_byte_in_a_keyslot_is_refused(small: Story, recover: Run) -> None:
    (path,) = (small.directory / "keys" / "slots").iterdir()
    data = path.read_bytes()
    for position in range(0, len(data), len(data) // 12):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(RefusedError) as error:
            recover(small.directory, passphrase=PASSPHRASE)
        assert "passphrase" not in refusal(error)


def test_a_wrong_passphrase_in_one_line_and_a_status(small: Story) -> None:
    environment = {"SMSNAP_PASSPHRASE": "guess", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, SCRIPT, small.directory], env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert b"the passphrase is wrong" in done.stderr


def test_a_wrong_recovery_key(small: Story, recover: Run) -> None:
    with pytest.raises(RefusedError) as error:
        recover(small.directory, key=Identity.generate().recovery_key())
    assert "repository: InvalidSignature (other key?)" in refusal(error)
    mistyped = (
        small.recovery_key[:-9] + ("A" if small.recovery_key[-9] != "A" else "B") + small.recovery_key[-8:]
    )
    with pytest.raises(RefusedError) as error:
        recover(small.directory, key=mistyped)
    assert "mistyped" in refusal(error)


def test_a_snapshot_that_is_not_there(small: Story, recover: Run) -> None:
    for wanted in ("f" * 16, "latest or so", "("):
        with pytest.raises(RefusedError) as error:
            recover(small.directory, "--snapshot", wanted, key=small.recovery_key)
        assert wanted in refusal(error)
    with pytest.raises(RefusedError) as error:
        recover(small.directory, "--volume", "hom.", key=small.recovery_key)
    refusal(error)


def test_a_manifest_under_another_name_is_refused(small: Story, recover: Run) -> None:
    """Neither an old manifest as the newest, nor one of a lower generation as the winner."""
    path = small.manifest_path(next(iter(small.moments)))
    sequence, _, rest = path.name.split("-", 2)
    for name in (f"{4:010}-{9:010}-{rest}", f"{sequence}-{9:010}-{rest}"):
        shutil.copy(path, path.with_name(name))
        wanted = "latest" if name.startswith(f"{4:010}") else path.name.rpartition("-")[2]
        with pytest.raises(RefusedError) as error:
            recover(small.directory, "--snapshot", wanted, key=small.recovery_key)
        refusal(error)
        path.with_name(name).unlink()


def test_a_missing_manifest_is_noticed(story: Story, recover: Run) -> None:
    path = story.manifest_path(list(story.moments)[2])
    data = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(RefusedError) as error:
            recover(story.directory, "--snapshot", list(story.moments)[3], key=story.recovery_key)
        assert "missing" in refusal(error)
        recover(story.directory, "--snapshot", list(story.moments)[1], key=story.recovery_key)
    finally:
        path.write_bytes(data)


def test_the_list_stops_at_damage(small: Story, recover: Run) -> None:
    damaged = small.manifest_path(list(small.moments)[1])
    for rubbish in (b"SMSN", b"", damaged.read_bytes()[:3000]):
        damaged.write_bytes(rubbish)
        with pytest.raises(RefusedError) as error:
            recover(small.directory, "--list", key=small.recovery_key)
        refusal(error)


def test_the_newest_roster_holds_and_is_signed(small: Story, recover: Run) -> None:
    second, identity = small.directory / names.roster_name(2), small.repository.identity
    assert identity is not None
    previous = record_hash((small.directory / names.roster_name(1)).read_bytes())
    roster = small.repository.roster
    for writers, key, accepted in (
        (roster.writers, identity.root_private, True),
        (roster.writers, Identity.generate().root_private, False),
        ((), identity.root_private, False),
    ):
        made = Roster(small.repository.id, 2, previous, roster.recipients, writers)
        second.write_bytes(made.encode(key))
        if accepted:
            recover(small.directory, key=small.recovery_key)
            continue
        with pytest.raises(RefusedError) as error:
            recover(small.directory, key=small.recovery_key)
        refusal(error)


def test_one_volume_of_several(small: Story, recover: Run) -> None:
    whole = recover(small.directory, key=small.recovery_key)
    shutil.copytree(small.directory / "volumes" / "home", small.directory / "volumes" / "other")
    with pytest.raises(RefusedError) as error:
        recover(small.directory, key=small.recovery_key)
    refusal(error)
    assert recover(small.directory, "--volume", "home", key=small.recovery_key) == whole
    with pytest.raises(RefusedError) as error:  # what is sealed for one volume is not another's
        recover(small.directory, "--volume", "other", key=small.recovery_key)
    refusal(error)
