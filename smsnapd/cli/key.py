"""`smsnap key`: what opens the repository, and the daemon's key file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.key_file import reserved
from smsnapd.cli.options import shared_options, verb
from smsnapd.cli.session import Session

if TYPE_CHECKING:
    from smsnapd.format.record import Keyslot
    from smsnapd.format.roster import Roster
    from smsnapd.repository import Repository

LIST_EXAMPLES = """
smsnap key list
"""
LIST_REPORT = """
{"keyslots": [{"id", "label"}], "recipients": [{"id", "label"}],
 "writers": [{"id", "label", "revoked": true or false}]}
"""
EXPORT_EXAMPLES = """
smsnap key export-write-key /etc/smsnapd/write-key
"""


@click.group("key")
@shared_options
def key() -> None:
    """Show the repository's keys; write the daemon's key file."""


@verb("list", examples=LIST_EXAMPLES, report=LIST_REPORT)
def key_list() -> int:
    """List the keyslots, each opened by a passphrase, the recipients and the writers.

    No secret is shown.
    """
    session = Session.current()
    with session.repository(contents=False) as repository:
        slots = _keyslots(repository)
        roster = repository.roster
    shape = _shape(slots, roster)
    if session.options.json:
        output.document(shape)
    else:
        rows = [_row(kind, item) for kind, items in shape.items() for item in items]
        output.table(("KEY", "ID", "LABEL"), rows)
    return 0


def _shape(slots: list[tuple[str, Keyslot]], roster: Roster) -> dict[str, list[dict[str, Any]]]:
    revoked = {item.id for item in roster.revoked}
    writers = [
        {"id": item.id.hex(), "label": item.label, "revoked": item.id in revoked} for item in roster.writers
    ]
    return {
        "keyslots": [{"id": slot, "label": keyslot.label} for slot, keyslot in slots],
        "recipients": [{"id": item.id.hex(), "label": item.label} for item in roster.recipients],
        "writers": writers,
    }


def _row(kind: str, item: dict[str, Any]) -> tuple[str, str, str]:
    label = f"{item['label']} (revoked)" if item.get("revoked") else item["label"]
    return kind.removesuffix("s"), item["id"], label


def _keyslots(repository: Repository) -> list[tuple[str, Keyslot]]:
    from smsnapd.format.names import parse_keyslot_name
    from smsnapd.format.record import Keyslot

    listed = [(info.name, parse_keyslot_name(info.name)) for info in repository.store.list("keys/slots/")]
    return [
        (slot, Keyslot.decode(repository.store.get(name), slot, repository.id))
        for name, slot in listed
        if slot
    ]


@verb("export-write-key", examples=EXPORT_EXAMPLES)
@click.argument("file")
def export_write_key(file: str) -> int:
    """Write the key of a daemon that can back up, and cannot read what it has stored, to a new FILE.

    Only its owner may read the file. Name it as [encryption] write_key_file in the daemon's
    configuration, and leave the passphrase out of that.
    """
    session = Session.current()
    with session.repository(contents=False) as repository, reserved(Path(file)) as write:
        write(repository.write_key.to_text(repository.root_public))
    if not session.options.quiet:
        output.line(f"wrote the write key to {file}")
    return 0


key.add_command(key_list)
key.add_command(export_write_key)
