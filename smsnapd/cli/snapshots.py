"""`smsnap snapshots`: the recovery points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text
from smsnapd.errors import DamageError, SmsnapError
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import SnapshotSummary
    from smsnapd.repository import Repository

EXAMPLES = """
smsnap snapshots
smsnap snapshots --volume analysis-nb --json
smsnap snapshots --all           of every volume in the repository
"""
REPORT = """
an array, oldest first, of
{"id", "volume", "time", "kind": "full" or "incremental", "mode": "tar" or "block",
 "parent", "files", "bytes", "stored_bytes", "complete": true or false,
 "incomplete": [{"path", "reason"}]}
times in UTC, ISO 8601 with microseconds; bytes of paths that are not UTF-8 as \\xNN
"""
_HEADER = ("ID", "TIME", "KIND", "MODE", "FILES", "SIZE", "STORED", "COMPLETE", "VOLUME")


@verb("snapshots", examples=EXAMPLES, report=REPORT)
@click.option("--all", "every", is_flag=True, help="Of every volume, not of this machine's alone.")
@repository_at
def snapshots(every: bool) -> int:
    """List the recovery points: time, kind, mode, files, bytes, stored bytes, completeness.

    Times are local; any of them can be given to `restore --at` as it stands. Those of this machine's
    volume are listed, or of all volumes if the repository does not hold it.
    """
    session = Session.current()
    with session.repository(contents=False) as repository:
        found, damaged = _found(repository, _volumes(session, repository, every))
    if session.options.json:
        output.array(output.snapshot_object(snapshot) for snapshot in found)
    elif found:
        output.table(_HEADER, [_row(item) for item in found], frozenset({"FILES", "SIZE", "STORED"}))
    else:
        output.line("no recovery points yet")
    for error in damaged:
        output.complain(error, as_json=session.options.json)
    return DamageError.exit_status if damaged else 0


def _volumes(session: Session, repository: Repository, every: bool) -> list[str]:
    if not every and (session.named_volume or repository.holds(session.own_volume)):
        return [session.volume_in(repository)]
    return repository.volumes()


def _found(repository: Repository, volumes: list[str]) -> tuple[list[SnapshotSummary], list[SmsnapError]]:
    from smsnapd.engine.history import History

    histories = [History.load(repository, volume) for volume in volumes]
    found = [snapshot for history in histories for snapshot in history.snapshots]
    damaged: list[SmsnapError] = [item.error for history in histories for item in history.damaged]
    # Within one volume the order is the history's own, whatever the clocks said.
    return (sorted(found, key=lambda item: item.time_us) if len(histories) > 1 else found), damaged


def _row(snapshot: SnapshotSummary) -> tuple[str, ...]:
    missed = len(snapshot.incomplete)
    return (
        snapshot.id,
        local_text(snapshot.time_us),
        snapshot.kind,
        snapshot.mode,
        f"{snapshot.files:,}",
        size_text(snapshot.bytes),
        size_text(snapshot.stored_bytes),
        "yes" if snapshot.complete else f"no, {missed} missed",
        snapshot.volume,
    )
