"""`smsnap init`: a repository, its keys, and the recovery key shown once, or put into a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click

from smsnapd.cli import output
from smsnapd.cli.key_file import reserved
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session

EXAMPLES = """
smsnap init --repository s3://bucket/notebooks/analysis
smsnap init --repository file:///srv/backups --write-key-file /etc/smsnapd/write-key
smsnap init --repository s3://bucket/nb --identity-out identity.key --write-key-file write-key
"""
REPORT = """
{"repository": id, "url", "recovery_key": "SMSNAP-IDENTITY-1-…" or null,
 "write_key_file": path or null, "identity_file": path or null, "root": "64 hex digits"}
"""


@verb("init", examples=EXAMPLES, report=REPORT)
@click.option("--write-key-file", metavar="FILE", help="Write the key of a daemon that cannot read its past.")
@click.option("--identity-out", metavar="FILE", help="Write the recovery key to FILE instead of printing it.")
@click.option("--label", default="", metavar="TEXT", help="A word for people, kept with the keys.")
def init(write_key_file: str | None, identity_out: str | None, label: str) -> int:
    """Make the repository and its keys, and print the recovery key.

    The passphrase protects the keys in the repository; the recovery key opens them without it. It is
    printed once: keep it on paper or in a password manager, and not on the volume. Who has neither
    cannot be helped. With --write-key-file a daemon can back up with that file alone, and cannot
    read what it has stored.

    The careful way is to do this on a laptop with both --identity-out and --write-key-file, and to take the
    write key alone to the notebook. Nobody is asked for a passphrase then: if none is named, the
    repository has none, and the file of --identity-out is all that opens it.
    """
    session = Session.current()
    with (
        reserved(Path(write_key_file)) if write_key_file else nullcontext(_drop) as write_key_to,
        reserved(Path(identity_out)) if identity_out else nullcontext(_drop) as write_identity,
    ):
        found = session.found_passphrase() if identity_out else session.new_passphrase()
        made = _create(session, label, found, None if identity_out is None else write_identity)
        repository_id, recovery_key, write_key_text, root = made
        if session.options.json:
            shown = None if identity_out else recovery_key
            shape = {"repository": repository_id, "url": session.settings.url, "recovery_key": shown}
            files = {"write_key_file": write_key_file, "identity_file": identity_out}
            output.document({**shape, **files, "root": root})
        elif identity_out:
            output.line(f"Repository {repository_id} made at {session.settings.url}")
            output.line(f"The recovery key is in {identity_out}: keep it, and a copy, off the notebook.")
        else:
            _show(session.settings.url, repository_id, recovery_key)
        output.flush()  # the recovery key is out before anything else can fail
        write_key_to(write_key_text)
    return 0


def _drop(text: str) -> None:
    """Nobody asked for this file: the repository has the write key, sealed, and the identity is printed."""


def _create(
    session: Session, label: str, passphrase: str | None, keep: Callable[[str], None] | None
) -> tuple[str, str, str, str]:
    """Make it: its id, recovery key, the text of its write key file and its root's public key in hex.

    `keep` gets the recovery key before there is a repository that would need it.
    """
    from smsnapd.repository import Repository
    from smsnapd.store import open_store

    store = open_store(session.settings)
    try:
        created = Repository.create(store, passphrase, label=label, keep=keep)
        root = created.repository.root_public.hex()
        return created.repository.repository_id, created.recovery_key, created.write_key_text, root
    finally:
        store.close()


def _show(url: str, repository_id: str, recovery_key: str) -> None:
    output.line(f"Repository {repository_id} made at {url}")
    output.line()
    output.line("Recovery key, shown this once. It opens everything without the passphrase:")
    output.line("keep it on paper or in a password manager, and not on the volume.")
    output.line()
    output.line(f"  {recovery_key}")
