"""`smsnap key add|remove|rotate`: who opens the repository and who writes to it is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from smsnapd.cli import output, passphrase
from smsnapd.cli.key_file import reserved
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError

if TYPE_CHECKING:
    from smsnapd.repository import Repository
    from smsnapd.repository.keyring import Keyring

ADD_EXAMPLES = """
smsnap key add --label "second passphrase"
smsnap key add --recipient escrow.recipient --label "the team's escrow"
smsnap key add --kms-key arn:aws:kms:eu-west-1:111122223333:key/…
"""
ADD_REPORT = """
{"kind": "keyslot" or "recipient", "id", "label"}
"""
REMOVE_EXAMPLES = """
smsnap key remove 3f0c
"""
REMOVE_REPORT = """
{"kind": "keyslot", "recipient" or "writer", "id", "revoked_writers": [id], "writers": [id]}
"""
ROTATE_EXAMPLES = """
smsnap key rotate --write-key-file write-key.new
smsnap key rotate --last-good 1f2e3d --write-key-file write-key.new
smsnap key rotate --passphrase
"""
ROTATE_REPORT = """
{"revoked_writers": [id], "writers": [id], "keyslot": id or null}
"""
_KEPT_SLOT: Final = (
    "Nothing here opens with it any more. But whoever knows it and has kept a copy of the keyslot, or can "
    "read deleted objects of a versioned bucket, has the identity still: it opens everything, also what is "
    "still to come. If that may be so, make another repository and copy what is to stay."
)
_KEPT_RECIPIENT: Final = (
    "What is stored from now on is not sealed for it, and what lies here no longer opens with it. But it may "
    "have kept what it has read or copied: files, data keys, and the objects as they were; deleted ones, "
    "too, in a versioned bucket. It knew the write keys: they are revoked, and each writer needs its new one."
)
_KEPT_WRITER: Final = (
    "Whoever has the old write key can still read the names, sizes and times in the catalogs made with it, "
    "if the bucket lets them, and none made from now on. It never opened contents."
)


@verb("add", examples=ADD_EXAMPLES, report=ADD_REPORT)
@click.option("--new-passphrase-file", metavar="FILE", help="Read the new passphrase from FILE.")
@click.option("--recipient", metavar="FILE", help="Add the recipient in FILE, as `smsnap key new` wrote it.")
@click.option("--kms-key", metavar="ARN", help="Add a keyslot that this KMS key opens.")
@click.option("--label", default="", metavar="TEXT", help="A word for people, kept with the key.")
def key_add(new_passphrase_file: str | None, recipient: str | None, kms_key: str | None, label: str) -> int:
    """Add a passphrase, a KMS key, or a recipient, who each open everything.

    A passphrase or KMS key opens a keyslot, which holds the identity itself: whoever has it is an owner.
    A recipient is somebody else's identity (a colleague's, a team's escrow): it reads everything and can
    write, and changes no keys. It opens the repository with `[encryption] root` pinned.
    """
    if sum(map(bool, (new_passphrase_file, recipient, kms_key))) > 1:
        why = "--new-passphrase-file, --recipient and --kms-key are three different things"
        raise UsageError("add a key", why, "give one of them")
    session = Session.current()
    with _keyring(session) as (repository, keyring):
        if recipient:
            id_, label = _add_recipient(keyring, recipient, label), label or "recipient"
            shape = {"kind": "recipient", "id": id_, "label": label}
            told = f"added the recipient {id_}: it opens everything, with root {repository.root_public.hex()}"
        else:
            label = label or ("KMS key" if kms_key else "passphrase")
            id_ = _add_slot(session, keyring, kms_key, new_passphrase_file, label)
            shape = {"kind": "keyslot", "id": id_, "label": label}
            told = f"added the keyslot {id_}"
    _report(session, shape, told)
    return 0


def _add_recipient(keyring: Keyring, file: str, label: str) -> str:
    from smsnapd.daemon.passphrase import read_key_file
    from smsnapd.format.keys import Recipient

    recipient = Recipient.from_text(read_key_file(Path(file), "recipient"))
    keyring.add_recipient(recipient, label or "recipient")
    return recipient.id.hex()


def _add_slot(session: Session, keyring: Keyring, kms_key: str | None, file: str | None, label: str) -> str:
    from smsnapd.instance import kms_encrypt

    if kms_key:
        return keyring.add_kms(kms_key, session.named_volume or session.own_volume, label, kms_encrypt)
    return keyring.add_passphrase(_new_passphrase(file), label)


def _new_passphrase(file: str | None) -> str:
    from smsnapd.daemon.passphrase import read_new_passphrase

    if file is not None:
        return read_new_passphrase(Path(file))
    return passphrase.ask("set the new passphrase", twice=True)


@verb("remove", examples=REMOVE_EXAMPLES, report=REMOVE_REPORT)
@click.argument("id", metavar="ID")
def key_remove(id: str) -> int:
    """Remove a keyslot, recipient or writer by its id, or the beginning of it.

    What is sealed is sealed again for those who stay; what is said then about what a removed holder may
    still have is meant so. To give a writer another key in the place of its own, rotate it.
    """
    session = Session.current()
    with _keyring(session) as (repository, keyring):
        kind, whole = _named(repository, id)
        made: dict[bytes, bytes] = {}
        if kind == "keyslot":
            keyring.remove_slot(whole)
        elif kind == "recipient":
            rotated = keyring.remove_recipient(bytes.fromhex(whole))
            made = {old: key.writer_id for old, key in rotated.keys.items()}
        else:
            keyring.revoke_writer(bytes.fromhex(whole))
    told = {"keyslot": _KEPT_SLOT, "recipient": _KEPT_RECIPIENT, "writer": _KEPT_WRITER}[kind]
    revoked = [whole] if kind == "writer" else [old.hex() for old in made]
    new = [id_.hex() for id_ in made.values()]
    shape = {"kind": kind, "id": whole, "revoked_writers": revoked, "writers": new}
    lines = [f"a writer's new key: smsnap key export-write-key --writer {id_[:8]} FILE" for id_ in new]
    _report(session, shape, "\n".join((f"removed the {kind} {whole}", told, *lines)))
    return 0


@verb("rotate", examples=ROTATE_EXAMPLES, report=ROTATE_REPORT)
@click.option("--writer", default="", metavar="ID", help="Of several writers, the one whose id begins so.")
@click.option("--write-key-file", metavar="FILE", help="Write the new write key to FILE.")
@click.option("--last-good", metavar="SNAPSHOT", help="The last recovery point to believe the old key.")
@click.option(
    "--passphrase", "is_passphrase", is_flag=True, help="Replace the passphrase, not the write key."
)
@click.option("--new-passphrase-file", metavar="FILE", help="Read the new passphrase from FILE.")
def key_rotate(
    writer: str,
    write_key_file: str | None,
    last_good: str | None,
    is_passphrase: bool,
    new_passphrase_file: str | None,
) -> int:
    """Put a new write key in the place of one, after a notebook was compromised, say; or a new passphrase.

    The old write key counts for what it has signed so far, or up to --last-good, and for nothing later. The
    chain goes on with the new one, which also reads what the old one wrote. A running daemon is stopped
    short: give it the new file, as [encryption] write_key_file.

    With --passphrase the keyslot that was opened is replaced, at today's cost of a guess.
    """
    if is_passphrase and (writer or write_key_file or last_good):
        raise UsageError("rotate a key", "--passphrase is not about write keys", "rotate one after the other")
    session = Session.current()
    if is_passphrase:
        return _rotate_passphrase(session, new_passphrase_file)
    with (
        _keyring(session) as (repository, keyring),
        reserved(Path(write_key_file)) if write_key_file else nullcontext(_drop) as write,
    ):
        old = writer_named(repository, writer) if writer else repository.writer_id
        rotated = keyring.rotate_writers([old], _last_good(session, repository, last_good))
        new = rotated.keys[old]
        write(new.to_text(repository.root_public))
    shape = {"revoked_writers": [old.hex()], "writers": [new.writer_id.hex()], "keyslot": None}
    where = (
        f"the new one is in {write_key_file}"
        if write_key_file
        else "export the new one: smsnap key export-write-key FILE"
    )
    _report(session, shape, f"revoked the write key {old.hex()}; {where}\n{_KEPT_WRITER}")
    return 0


def _drop(text: str) -> None:
    """Nobody asked for a file: the repository has the new key, sealed."""


def _rotate_passphrase(session: Session, file: str | None) -> int:
    with _keyring(session) as (repository, keyring):
        if not repository.slot:
            why = "it was not opened with a passphrase, so there is none to replace"
            raise UsageError("rotate the passphrase", why, "smsnap key add; smsnap key remove ID")
        slot = keyring.replace_slot(repository.slot, _new_passphrase(file))
    shape: dict[str, Any] = {"revoked_writers": [], "writers": [], "keyslot": slot}
    _report(session, shape, f"the keyslot is {slot} now; the passphrase before it was removed\n{_KEPT_SLOT}")
    return 0


def _last_good(session: Session, repository: Repository, selector: str | None) -> dict[str, bytes]:
    """The hash of the manifest that a person named, by its volume."""
    if selector is None:
        return {}
    history, found = session.find(repository, selector)
    name = next(name for name in history.names if name.snapshot == found.id)
    return {found.volume: history.record(name).hash}


@contextmanager
def _keyring(session: Session) -> Iterator[tuple[Repository, Keyring]]:
    from smsnapd.repository.keyring import Keyring

    with session.repository(contents=True) as repository:
        yield repository, Keyring(repository)


def writer_named(repository: Repository, prefix: str) -> bytes:
    """The id of the writer in force that a person named by its beginning; UsageError if it is not one."""
    revoked = {item.id for item in repository.roster.revoked}
    return bytes.fromhex(_one(prefix, [i.id.hex() for i in repository.roster.writers if i.id not in revoked]))


def _named(repository: Repository, prefix: str) -> tuple[str, str]:
    """What a person named by the beginning of its id: its kind and whole id."""
    from smsnapd.format.names import KEYSLOTS_PREFIX, parse_keyslot_name

    slots = (parse_keyslot_name(info.name) for info in repository.store.list(KEYSLOTS_PREFIX))
    revoked = {item.id for item in repository.roster.revoked}
    kinds = {slot: "keyslot" for slot in slots if slot is not None}
    kinds |= {item.id.hex(): "recipient" for item in repository.roster.recipients}
    kinds |= {item.id.hex(): "writer" for item in repository.roster.writers if item.id not in revoked}
    whole = _one(prefix, list(kinds))
    return kinds[whole], whole


def _one(prefix: str, ids: list[str]) -> str:
    matches = [id_ for id_ in ids if prefix and id_.startswith(prefix)]
    if len(matches) != 1:
        why = f"{len(matches)} ids begin so" if matches else "no id begins so"
        raise UsageError(f"find the key {prefix}", why, "`smsnap key list` lists them")
    return matches[0]


def _report(session: Session, shape: dict[str, Any], told: str) -> None:
    if session.options.json:
        output.document(shape)
    elif not session.options.quiet:
        for line in told.splitlines():
            output.line(line)
