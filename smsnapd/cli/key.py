"""`smsnap key`: who opens the repository and who writes to it; and the daemon's key file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.key_change import key_add, key_remove, key_rotate, writer_named
from smsnapd.cli.key_file import reserved
from smsnapd.cli.key_paper import key_new, key_recovery
from smsnapd.cli.options import shared_options, verb
from smsnapd.cli.session import Session

if TYPE_CHECKING:
    from smsnapd.format.record import Keyslot, KmsSlot
    from smsnapd.format.roster import Roster
    from smsnapd.repository import Repository

LIST_EXAMPLES = """
smsnap key list
"""
LIST_REPORT = """
{"keyslots": [{"id", "label", "kind": "passphrase" or "kms", "weak": true or false}],
 "recipients": [{"id", "label"}],
 "writers": [{"id", "label", "revoked": true or false}],
 "root": "64 hex digits", "roster": number}
"""
EXPORT_EXAMPLES = """
smsnap key export-write-key /etc/smsnapd/write-key
"""


@click.group("key")
@shared_options
def key() -> None:
    """Show and change who opens the repository and who writes to it."""


@verb("list", examples=LIST_EXAMPLES, report=LIST_REPORT)
def key_list() -> int:
    """List the keyslots, recipients and writers, and the root that vouches for them.

    A keyslot is weak if it was made when guesses at a passphrase could cost less: see
    `smsnap key rotate --passphrase`.
    """
    session = Session.current()
    with session.repository(contents=False) as repository:
        roster = repository.roster
        shape = _shape(_keyslots(repository), roster)
        root = repository.root_public.hex()
    if session.options.json:
        output.document({**shape, "root": root, "roster": roster.sequence})
    else:
        rows = [_row(kind, item) for kind, items in shape.items() for item in items]
        output.table(("KEY", "ID", "LABEL"), [*rows, ("root", root, "")])
    return 0


def _shape(slots: list[Keyslot | KmsSlot], roster: Roster) -> dict[str, list[dict[str, Any]]]:
    from smsnapd.format.keyslot import is_weaker
    from smsnapd.format.record import KmsSlot

    revoked = {item.id for item in roster.revoked}
    writers = [
        {"id": item.id.hex(), "label": item.label, "revoked": item.id in revoked} for item in roster.writers
    ]
    keyslots: list[dict[str, Any]] = [
        {"id": slot.slot, "label": slot.label, "kind": "kms", "weak": False}
        if isinstance(slot, KmsSlot)
        else {"id": slot.slot, "label": slot.label, "kind": "passphrase", "weak": is_weaker(slot)}
        for slot in slots
    ]
    return {
        "keyslots": keyslots,
        "recipients": [{"id": item.id.hex(), "label": item.label} for item in roster.recipients],
        "writers": writers,
    }


def _row(kind: str, item: dict[str, Any]) -> tuple[str, str, str]:
    said = [word for word in ("revoked", "weak") if item.get(word)]
    said += ["KMS"] if item.get("kind") == "kms" else []
    label = f"{item['label']} ({', '.join(said)})" if said else item["label"]
    return kind.removesuffix("s"), item["id"], label


def _keyslots(repository: Repository) -> list[Keyslot | KmsSlot]:
    from smsnapd.repository.unlocking import keyslots

    slots, damage = keyslots(repository.store, repository.id)
    if damage is not None:
        output.warn(str(damage))
    return sorted(slots, key=lambda slot: slot.slot)


@verb("export-write-key", examples=EXPORT_EXAMPLES)
@click.option("--writer", default="", metavar="ID", help="Of several writers, the one whose id begins so.")
@click.argument("file")
def export_write_key(writer: str, file: str) -> int:
    """Write the key of a daemon that can back up, and cannot read what it has stored, to a new FILE.

    Only its owner may read the file. Name it as [encryption] write_key_file in the daemon's
    configuration, and leave the passphrase out of that.
    """
    session = Session.current()
    with session.repository(contents=bool(writer)) as repository, reserved(Path(file)) as write:
        chosen = repository.write_key
        if writer:
            chosen = repository.write_key_of(writer_named(repository, writer))
        write(chosen.to_text(repository.root_public))
    if not session.options.quiet:
        output.line(f"wrote the write key to {file}")
    return 0


for command in (key_list, key_add, key_remove, key_rotate, key_new, key_recovery, export_write_key):
    key.add_command(command)
