"""`smsnap tag`: names for recovery points, which stay for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text, utc_text
from smsnapd.errors import SmsnapError, UsageError

if TYPE_CHECKING:
    from smsnapd.engine.history import History
    from smsnapd.repository import Repository
    from smsnapd.repository.tags import Tagged

EXAMPLES = """
smsnap tag                            what has a tag
smsnap tag latest before-upgrade      this recovery point stays, whatever [retention] says
smsnap tag --remove latest before-upgrade
"""
REPORT = """
an array of {"snapshot", "tag", "volume", "time"}: the tags that there are then;
"time" of the recovery point, null if it is gone
"""


@verb("tag", examples=EXAMPLES, report=REPORT)
@click.option("--remove", is_flag=True, help="Take the tag away.")
@click.argument("snapshot", required=False)
@click.argument("tag", required=False)
def tag(remove: bool, snapshot: str | None, tag: str | None) -> int:
    """Give a recovery point a tag: no prune lets it go then. Without arguments, list the tags.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. A recovery point may have several tags, and stays until the last one is taken away.
    """
    from smsnapd.engine.history import History

    session = Session.current()
    if (snapshot is None) != (tag is None) or (remove and tag is None):
        raise UsageError("set a tag", "a snapshot and a tag are needed", "smsnap tag latest before-upgrade")
    with session.repository(contents=False) as repository:
        if snapshot is not None and tag is not None:
            history, found = session.find(repository, snapshot)
            _change(repository, history, found.id, tag, is_set=not remove)
        else:
            history = History.load(repository, session.volume_in(repository))
        rows = _rows(repository, history)
    _report(session, history.volume, rows)
    return 0


def _change(repository: Repository, history: History, snapshot: str, label: str, *, is_set: bool) -> None:
    from smsnapd.engine.history import History
    from smsnapd.repository.garbage import signer_for
    from smsnapd.repository.tags import Tagged, put_tag, read_tags

    tagged = Tagged(snapshot, label)
    if (tagged in read_tags(repository, history.volume)) == is_set:
        return
    head = history.head_name
    writer_id = history.record(head).writer_id if head else None
    put_tag(repository, history.volume, tagged, signer_for(repository, writer_id), is_set=is_set)
    # A prune that read the tags before may have let it go meanwhile; it reads them again before it does.
    after = History.load(repository, history.volume)
    if is_set and all(name.snapshot != snapshot for name in after.names):
        raise SmsnapError(
            f"tag snapshot {snapshot}",
            "a prune has let it go at this moment",
            "`smsnap snapshots` shows which stay",
        )


def _rows(repository: Repository, history: History) -> list[tuple[Tagged, int | None]]:
    """Each tag, and the time of its recovery point."""
    from smsnapd.repository.tags import read_tags

    times = {name.snapshot: name.time_us for name in history.names}
    return [(tagged, times.get(tagged.snapshot)) for tagged in read_tags(repository, history.volume)]


def _report(session: Session, volume: str, rows: list[tuple[Tagged, int | None]]) -> None:
    if session.options.json:
        output.array(
            {
                "snapshot": tagged.snapshot,
                "tag": tagged.label,
                "volume": volume,
                "time": None if time_us is None else utc_text(time_us),
            }
            for tagged, time_us in rows
        )
    elif rows:
        texts = [
            (tagged.snapshot, tagged.label, "gone" if time_us is None else local_text(time_us))
            for tagged, time_us in rows
        ]
        output.table(("ID", "TAG", "TIME"), texts)
    elif not session.options.quiet:
        output.line("no tags")
