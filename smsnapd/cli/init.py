"""`smsnap init`: a repository, its keys, and the recovery key shown once."""

from __future__ import annotations

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
"""
REPORT = """
{"repository": id, "url", "recovery_key": "SMSNAP-IDENTITY-1-…",
 "write_key_file": path or null}
"""


@verb("init", examples=EXAMPLES, report=REPORT)
@click.option("--write-key-file", metavar="FILE", help="Write the key of a daemon that cannot read its past.")
@click.option("--label", default="", metavar="TEXT", help="A word for people, kept with the keys.")
def init(write_key_file: str | None, label: str) -> int:
    """Make the repository and its keys, and print the recovery key.

    The passphrase protects the keys in the repository; the recovery key opens them without it. It is
    printed once: keep it on paper or in a password manager, and not on the volume. Who has neither
    cannot be helped. With --write-key-file a daemon can back up with that file alone, and cannot
    read what it has stored.
    """
    session = Session.current()
    with reserved(Path(write_key_file)) if write_key_file else nullcontext(_drop) as write_key_to:
        repository_id, recovery_key, write_key_text = _create(session, label)
        if session.options.json:
            shape = {"repository": repository_id, "url": session.settings.url, "recovery_key": recovery_key}
            output.document({**shape, "write_key_file": write_key_file})
        else:
            _show(session.settings.url, repository_id, recovery_key)
        output.flush()  # the recovery key is out before anything else can fail
        write_key_to(write_key_text)
    return 0


def _drop(write_key_text: str) -> None:
    """Nobody asked for a key file: the repository has the write key, sealed."""


def _create(session: Session, label: str) -> tuple[str, str, str]:
    """The id of the repository made, its recovery key and the text of its write key file."""
    from smsnapd.repository import Repository
    from smsnapd.store import open_store

    store = open_store(session.settings)
    try:
        created = Repository.create(store, session.new_passphrase(), label=label)
        return created.repository.repository_id, created.recovery_key, created.write_key_text
    finally:
        store.close()


def _show(url: str, repository_id: str, recovery_key: str) -> None:
    output.line(f"Repository {repository_id} made at {url}")
    output.line()
    output.line("Recovery key, shown this once. It opens everything without the passphrase:")
    output.line("keep it on paper or in a password manager, and not on the volume.")
    output.line()
    output.line(f"  {recovery_key}")
