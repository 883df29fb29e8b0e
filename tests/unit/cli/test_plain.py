"""What others wrote into the repository is shown, and never steers the terminal."""

import logging
from pathlib import Path

import pytest

from smsnapd.cli import output
from smsnapd.format import names
from smsnapd.format.keys import Identity
from smsnapd.format.keyslot import make_keyslot
from smsnapd.format.record import Lease, RepositoryRecord
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.base import Store
from smsnapd.telemetry.plain import plain, plain_lines
from smsnapd.telemetry.secrets import RedactingFormatter

EVIL = "\x1b]0;owned\x07\x1b[2J\r\nsmsnap: all is well\x9b1m\x7f"


@pytest.fixture
def place(configured, tmp_path: Path) -> tuple[Store, bytes]:
    """The store of the repository, as somebody without keys has it, and the repository's id."""
    store = open_store(StoreSettings((tmp_path / "repo").as_uri()))
    return store, RepositoryRecord.decode(store.get(names.REPOSITORY), None).repository_id


def is_tame(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_control_characters_are_shown_as_in_paths() -> None:
    assert plain("Grüße, 你好 \\x") == "Grüße, 你好 \\x"
    assert plain("a\x1b[2Jb\n\x9b\x7f") == "a\\x1b[2Jb\\x0a\\xc2\\x9b\\x7f"
    assert plain_lines("a\n\tb\r\n") == "a\n\\x09b\\x0d\n"


def test_labels_of_keyslots(configured, place: tuple[Store, bytes]) -> None:
    store, repository_id = place
    slot = make_keyslot(Identity.generate(), "any", repository_id, EVIL)
    store.put(names.keyslot_name(slot.slot), slot.encode())
    ran = configured("key", "list")
    assert ran.status == 0 and "owned" in ran.out and is_tame(ran.out)
    assert not any(line.startswith("smsnap: all is well") for line in ran.out.splitlines())


def test_holders_of_leases(configured, place: tuple[Store, bytes]) -> None:
    store, repository_id = place
    lease = Lease(repository_id, "nb", 1, EVIL.replace(" ", "_"), names.TIME_MAX_US)
    store.replace(names.lease_name("nb"), lease.encode(), None)
    ran = configured("backup")
    assert ran.status == 11 and "owned" in ran.err and is_tame(ran.err)
    assert not any(line.startswith("smsnap:_all_is_well") for line in ran.err.splitlines())
    ran = configured("backup", "-v")
    assert "Traceback" in ran.err and "owned" in ran.err and is_tame(ran.err)


def test_what_is_logged() -> None:
    record = logging.LogRecord("smsnapd", logging.WARNING, "", 0, "by %s", (EVIL,), None)
    assert is_tame(RedactingFormatter("%(message)s").format(record))


def test_documents_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.document({"text": EVIL})
    output.array([{"text": EVIL}])
    shown = capsys.readouterr().out
    assert shown.count("\n") > 3 and is_tame(shown)
