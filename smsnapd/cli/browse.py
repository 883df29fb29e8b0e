"""`smsnap ls` and `smsnap cat`: look into a snapshot without restoring it."""

from __future__ import annotations

from collections.abc import Iterable

import click

from smsnapd.cli import output
from smsnapd.cli.entries import entry_object, long_text
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.paths import volume_path
from smsnapd.cli.session import Session
from smsnapd.model import Entry, path_text

LS_EXAMPLES = """
smsnap ls latest
smsnap ls -l 3f9a experiments
smsnap ls -R "@yesterday 14:00" notebooks
"""
LS_REPORT = """
an array of {"path", "type", "mode": "0644", "uid", "gid", "size", "mtime",
 "mtime_ns", "links", "target"}; target is null but for symbolic links
"""
CAT_EXAMPLES = """
smsnap cat latest notebooks/train.ipynb
smsnap cat "@2h ago" data/table.csv > table-before.csv
"""


@verb("ls", examples=LS_EXAMPLES, report=LS_REPORT)
@click.argument("snapshot")
@click.argument("path", default="")
@click.option("-l", "long", is_flag=True, help="Mode, owner, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="What lies below, too.")
@repository_at
def ls(snapshot: str, path: str, long: bool, recursive: bool) -> int:
    r"""List what a snapshot holds: a directory's entries, or one path.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. PATH is relative to the volume's root. Bytes that are not UTF-8 are shown as \xNN, and
    may be given so.
    """
    from smsnapd.engine.lookback.browse import list_entries

    session = Session.current()
    wanted = volume_path(path, session.config.volume.path)
    with session.repository(contents=False) as repository, session.files(repository, snapshot) as tree:
        entries = list_entries(tree, wanted, recursive)
        if session.options.json:
            output.array(entry_object(path, entry) for path, entry in entries)
        else:
            _print(entries, long)
    return 0


def _print(entries: Iterable[tuple[bytes, Entry]], long: bool) -> None:
    for path, entry in entries:
        output.line(long_text(path, entry) if long else path_text(path))


@verb("cat", examples=CAT_EXAMPLES)
@click.argument("snapshot")
@click.argument("path")
@repository_at
def cat(snapshot: str, path: str) -> int:
    """Write a file of a snapshot to standard output.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. PATH is relative to the volume's root.
    """
    from smsnapd.engine.lookback.browse import open_file

    session = Session.current()
    wanted = volume_path(path, session.config.volume.path)
    with session.repository(contents=True) as repository, session.files(repository, snapshot) as tree:
        for piece in open_file(tree, wanted):
            output.data(piece)
        output.flush()
    return 0
