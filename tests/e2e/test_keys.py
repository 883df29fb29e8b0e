"""Keys in use: the careful set-up from laptop to fresh instance, and who opens it after each change."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook


@pytest.fixture
def laptop(tmp_path: Path) -> Notebook:
    """Where the identity is; its configuration names no passphrase."""
    made = Notebook(tmp_path / "laptop")
    made.configure(encryption="")
    return made


@pytest.fixture
def notebook(tmp_path: Path, laptop: Notebook) -> Notebook:
    """It gets the write key, and nothing else."""
    laptop.well("init", "--identity-out", "identity", "--write-key-file", "write-key")
    made = Notebook(tmp_path / "notebook", url=laptop.url)
    (made.place / "passphrase").unlink()
    give(laptop, made, "write-key")
    (made.volume / "file").write_text("content\n")
    return made


def give(source: Notebook, target: Notebook, name: str) -> None:
    text = (source.place / name).read_text()
    (target.place / name).touch(0o600)
    (target.place / name).write_text(text)
    target.configure(encryption=f'write_key_file = "{name}"')


def owner(laptop: Notebook, *arguments: str) -> str:
    return laptop.well(*arguments, "--identity-file", "identity").text


def restored(machine: Notebook, *arguments: str) -> str:
    """The file, brought back on a machine."""
    machine.well("restore", "--target", "back", "--overwrite", "always", *arguments)
    return (machine.place / "back/file").read_text()


def test_the_careful_way(laptop: Notebook, notebook: Notebook, tmp_path: Path) -> None:
    for name in ("identity", "write-key"):
        assert stat.S_IMODE((laptop.place / name).stat().st_mode) == 0o600
    identity = (laptop.place / "identity").read_text().strip()
    assert not list((laptop.repo / "keys").glob("slots/*"))
    notebook.well("backup")
    (notebook.volume / "file").write_text("changed\n")
    notebook.well("backup")
    said = notebook.say("restore", "--target", "back")
    assert said.status == 2 and not (notebook.place / "back").exists()
    fresh = Notebook(tmp_path / "fresh", url=laptop.url)
    fresh.configure(encryption="")
    (fresh.place / "key").write_text(identity)
    (fresh.place / "key").chmod(0o600)
    assert restored(fresh, "--identity-file", "key") == "changed\n"
    assert restored(fresh, "--passphrase-file", "key") == "changed\n"
    for place in (notebook.place, laptop.repo):
        for file in place.rglob("*"):
            assert not file.is_file() or identity.encode() not in file.read_bytes()


def test_the_notebook_proves_that_it_cannot_read_back(laptop: Notebook, notebook: Notebook) -> None:
    notebook.well("backup")
    assert contents(notebook) == {"contents": "ok"}
    told = notebook.say("doctor").text
    assert "tried: the write key opens none of the 1 data keys" in told
    (notebook.place / "forgotten").write_text((laptop.place / "identity").read_text())
    assert contents(notebook) == {"contents": "ok", "identity-file": "warn"}
    (notebook.place / "forgotten").unlink()
    notebook.configure(encryption='write_key_file = "write-key"\nkms_key = "arn:aws:kms:x:1:key/y"')
    assert contents(notebook) == {"contents": "warn"}


def contents(machine: Notebook) -> dict[str, str]:
    """The verdicts about whether a machine can read back what it stored."""
    checks = machine.say("doctor", "--json").json["checks"]
    return {c["check"]: c["verdict"] for c in checks if c["check"] in ("contents", "identity-file")}


def test_a_second_passphrase_and_the_first_is_gone(laptop: Notebook, notebook: Notebook) -> None:
    notebook.well("backup")
    for name in ("one", "two"):
        (laptop.place / name).write_text(f"passphrase {name}\n")
        (laptop.place / name).chmod(0o600)
        owner(laptop, "key", "add", "--new-passphrase-file", name, "--label", name)
    assert restored(laptop, "--passphrase-file", "one") == "content\n"
    slots = laptop.well("key", "list", "--json", "--passphrase-file", "two").json["keyslots"]
    assert sorted(slot["label"] for slot in slots) == ["one", "two"]
    (first,) = (slot["id"] for slot in slots if slot["label"] == "one")
    told = owner(laptop, "key", "remove", first[:6])
    assert "has kept a copy of the keyslot" in told
    assert laptop.say("snapshots", "--passphrase-file", "one").status == 12
    laptop.well("key", "rotate", "--passphrase", "--passphrase-file", "two", "--new-passphrase-file", "one")
    assert laptop.say("snapshots", "--passphrase-file", "two").status == 12
    assert restored(laptop, "--passphrase-file", "one") == "content\n"


def test_an_escrow_comes_and_goes(laptop: Notebook, notebook: Notebook, tmp_path: Path) -> None:
    notebook.well("backup")
    escrow = Notebook(tmp_path / "escrow", url=laptop.url)
    escrow.configure(encryption="")
    escrow.well("key", "new", "--identity-out", "mine", "--recipient-out", "recipient")
    assert escrow.say("restore", "--target", "back", "--identity-file", "mine").status == 12
    (laptop.place / "recipient").write_text((escrow.place / "recipient").read_text())
    added = laptop.well(
        "key", "add", "--recipient", "recipient", "--label", "escrow", "--json", "--identity-file", "identity"
    ).json
    root = laptop.well("key", "list", "--json", "--identity-file", "identity").json["root"]
    escrow.configure(encryption=f'root = "{root}"')
    assert restored(escrow, "--identity-file", "mine") == "content\n"
    told = owner(laptop, "key", "remove", added["id"][:8])
    assert "may have kept what it has read" in " ".join(told.split())
    assert escrow.say("restore", "--target", "back", "--identity-file", "mine").status == 12
    said = notebook.say("backup", "--full")
    assert said.status == 12 and "revoked" in said.err
    owner(laptop, "key", "export-write-key", "new")
    give(laptop, notebook, "new")
    notebook.well("backup", "--full")
    assert laptop.well("check", "--read-data", "--identity-file", "identity").status == 0


def test_after_a_compromise_the_chain_goes_on_and_the_old_key_counts_no_more(
    laptop: Notebook, notebook: Notebook, tmp_path: Path
) -> None:
    good = notebook.well("backup", "--json").json["id"]
    thief = Notebook(tmp_path / "thief", url=laptop.url)
    give(notebook, thief, "write-key")
    (thief.volume / "file").write_text("forged\n")
    thief.well("backup", "--take-over")
    rotated = ("key", "rotate", "--last-good", good, "--write-key-file", "new")
    assert "revoked the write key" in owner(laptop, *rotated)
    give(laptop, notebook, "new")
    assert thief.say("backup", "--take-over").status == 12
    (notebook.volume / "file").write_text("later\n")
    made = notebook.well("backup", "--json").json
    assert made["kind"] == "incremental" and made["parent"] == good
    ids = [item["id"] for item in notebook.well("snapshots", "--json").json]
    assert ids == [good, made["id"]]
    said = laptop.well("check", "--read-data", "--identity-file", "identity")
    assert "is fenced and a revoked writer's; it does not count" in said.text + said.err
    assert restored(laptop, "--identity-file", "identity") == "later\n"
    assert restored(laptop, "--identity-file", "identity", "--snapshot", good) == "content\n"


def test_words_and_a_picture_of_the_recovery_key(laptop: Notebook, notebook: Notebook) -> None:
    notebook.well("backup")
    printed = owner(laptop, "key", "recovery", "--words").split()
    words = [word for word in printed if word.isalpha()]
    assert len(words) == 24
    for name, text in (
        ("good", words),
        ("swapped", [words[1], words[0], *words[2:]]),
        ("no", ["xyzzy", *words[1:]]),
    ):
        (laptop.place / name).write_text(" ".join(text))
        (laptop.place / name).chmod(0o600)
    assert restored(laptop, "--identity-file", "good") == "content\n"
    wrong = laptop.say("restore", "--target", "back", "--identity-file", "no")
    assert wrong.status == 12 and "word 1 is not on the list" in wrong.err and "xyzzy" not in wrong.err
    assert laptop.say("snapshots", "--identity-file", "swapped").status == 12
    for name in ("key.svg", "key.png"):
        owner(laptop, "key", "recovery", "--qr", name)
        assert stat.S_IMODE((laptop.place / name).stat().st_mode) == 0o600
    assert (laptop.place / "key.png").read_bytes().startswith(b"\x89PNG")
    identity = (laptop.place / "identity").read_text().strip()
    assert owner(laptop, "key", "recovery").strip() == identity


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("key", "remove", "zzz"), 2),
        (("key", "add", "--recipient", "x", "--kms-key", "y"), 2),
        (("key", "rotate", "--passphrase"), 2),
        (("key", "rotate", "--passphrase", "--writer", "1"), 2),
        (("key", "recovery", "--words", "--qr", "-"), 2),
        (("key", "recovery", "--qr", "x.gif"), 2),
        (("key", "add", "--recipient", "identity"), 12),
        (("key", "add", "--kms-key", "nonsense"), 1),
    ],
)
def test_what_makes_no_sense(
    laptop: Notebook, notebook: Notebook, arguments: tuple[str, ...], status: int
) -> None:
    said = laptop.say(*arguments, "--identity-file", "identity")
    assert said.status == status
    assert (laptop.place / "identity").read_text().strip() not in said.err + said.text


def test_a_write_key_changes_nothing(laptop: Notebook, notebook: Notebook) -> None:
    for arguments in (("add", "--recipient", "write-key"), ("remove", "a"), ("rotate",), ("recovery",)):
        assert notebook.say("key", *arguments).status in (2, 12)
    assert len(list((laptop.repo / "keys/roster").iterdir())) == 1


def holds(laptop: Notebook, content: str) -> None:
    """Wait until the last recovery point has the file so."""
    arguments = ("cat", "latest", "file", "--volume", "nb", "--identity-file", "identity")
    eventually(lambda: laptop.say(*arguments).out == content.encode(), "the file in a snapshot")


def test_a_running_daemon_is_stopped_short_by_a_rotation_and_goes_on_with_the_new_key(
    laptop: Notebook, notebook: Notebook
) -> None:
    notebook.configure(SCHEDULE, encryption='write_key_file = "write-key"')
    daemon = Daemon(notebook)
    try:
        daemon.start()
        holds(laptop, "content\n")
        owner(laptop, "key", "rotate", "--write-key-file", "new")
        (notebook.volume / "file").write_text("later\n")
        # The lease is lost first; the next try finds out why.
        eventually(lambda: "revoked" in str(daemon.status()["last_error"]), "the revocation")
        (notebook.place / "write-key").write_text((laptop.place / "new").read_text())
        daemon.send(signal.SIGHUP)
        holds(laptop, "later\n")
        assert daemon.end() == 0
    finally:
        daemon.close()
    assert laptop.well("check", "--read-data", "--identity-file", "identity").status == 0


def test_a_newest_end_that_was_cut_off_is_told_by_whoever_has_seen_it(
    laptop: Notebook, notebook: Notebook
) -> None:
    notebook.well("backup")
    (notebook.volume / "file").write_text("later\n")
    newest = notebook.well("backup", "--json").json["id"]
    (gone,) = (laptop.repo / "volumes/nb/manifests").glob(f"*{newest}*")
    gone.unlink()
    told = f"snapshot {newest}, made from here, is not there"
    assert told in notebook.well("ls", "latest").err
    assert told in notebook.say("check").text and notebook.say("check").status == 13
    assert laptop.say("check", "--expect-head", newest, "--identity-file", "identity").status == 13
    said = laptop.well("ls", "latest", "--identity-file", "identity")
    assert "is not there" not in said.err  # it has seen none, and nothing tells it
