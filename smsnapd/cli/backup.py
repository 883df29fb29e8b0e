"""`smsnap backup`: one snapshot now."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.backup import BackupOutcome, BackupRequest

INCOMPLETE = 3

EXAMPLES = """
smsnap backup                    what changed since the last snapshot, else everything
smsnap backup --full             a snapshot that is complete in itself
smsnap backup --dry-run          say what would be stored
"""
REPORT = """
the new snapshot, as `smsnap snapshots --json` has it; null when nothing changed.
with --dry-run: {"dry_run": true, "changed", "deleted", "new_bytes"}
progress, on standard error, a line each:
{"event": "progress", "phase", "files", "files_total", "bytes", "bytes_total",
 "stored_bytes", "elapsed_s", "done"} and {"event": "note", "text"}
"""


@verb("backup", examples=EXAMPLES, report=REPORT)
@click.option("--full", is_flag=True, help="Make a full even if there is a chain to add to.")
@click.option(
    "--mode",
    type=click.Choice(["tar", "block"]),
    help="What a full is made of; default: the configuration's.",
)
@click.option("--reread", is_flag=True, help="Read what seems unchanged too.")
@click.option("--dry-run", is_flag=True, help="Store nothing; say what would be.")
def backup(full: bool, mode: str | None, reread: bool, dry_run: bool) -> int:
    """Store one snapshot now: an incremental if there is a chain, else a full.

    Exit status 3 means that the snapshot was stored but misses files, which are named. When nothing
    changed since the last snapshot, and no full was asked for, there is no new one.
    """
    from smsnapd.engine.backup import run_backup

    session = Session.current()
    request = _request(session, full=full, mode=mode, reread=reread, dry_run=dry_run)
    with session.repository(contents=False) as repository, session.progress() as progress:
        outcome = run_backup(repository, session.settings, request, progress)
    _report(session, outcome, dry_run)
    return INCOMPLETE if outcome.incomplete else 0


def _request(session: Session, *, full: bool, mode: str | None, reread: bool, dry_run: bool) -> BackupRequest:
    from smsnapd.engine.backup import BackupRequest

    config = session.config
    if (mode or config.backup.mode) == "block":
        raise UsageError("back up in block mode", "it is not yet available", "use --mode tar")
    if config.volume.path is None:
        hint = "give --path, set SMSNAP_PATH, or write [volume] path"
        raise UsageError("find the volume", "no path is configured", hint)
    root = config.volume.path
    return BackupRequest(
        root=os.fsencode(root),
        volume=session.own_volume,
        exclude=config.volume.exclude + own_places(root, session.state_dir, config.repository.url),
        state_dir=session.state_dir,
        full=full,
        reread=reread,
        dry_run=dry_run,
        consistency=config.backup.consistency,
        level=config.backup.compression_level,
        workers=None,
    )


def own_places(root: Path, state_dir: Path, url: str) -> tuple[str, ...]:
    """Exclude patterns for the local state and the repository, where they lie in the volume itself.

    Writing state must not look like a change of the volume, and a repository that swallows itself
    never ends growing.
    """
    places = [state_dir]
    if url.startswith("file://"):
        places.append(Path(os.fsdecode(unquote_to_bytes(url.removeprefix("file://")))))
    real_root = root.resolve()
    inside = [place.resolve() for place in places if place.resolve().is_relative_to(real_root)]
    if real_root in inside:
        raise UsageError(
            f"back up {root}", "the repository or the local state is the volume itself", "put it elsewhere"
        )
    return tuple("/" + _literal(str(place.relative_to(real_root))) + "/" for place in inside)


def _literal(path: str) -> str:
    """A path as a pattern of gitignore(5) that means just this path."""
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


def _report(session: Session, outcome: BackupOutcome, dry_run: bool) -> None:
    for issue in outcome.incomplete:
        print(f"smsnap: missed {path_text(issue.path)}: {issue.reason}", file=sys.stderr)
    if session.options.json:
        output.document(_outcome_object(outcome, dry_run))
        return
    if not session.options.quiet:
        for text in outcome.notes:
            print(f"smsnap: note: {text}", file=sys.stderr)
        output.line(_summary(outcome, dry_run))


def _outcome_object(outcome: BackupOutcome, dry_run: bool) -> object:
    if dry_run:
        counts = {"changed": outcome.changed, "deleted": outcome.deleted, "new_bytes": outcome.new_bytes}
        return {"dry_run": True, **counts}
    return output.snapshot_object(outcome.snapshot) if outcome.snapshot else None


def _summary(outcome: BackupOutcome, dry_run: bool) -> str:
    counts = f"{outcome.changed:,} changed, {outcome.deleted:,} deleted, {size_text(outcome.new_bytes)} new"
    if dry_run:
        return f"would store {counts}"
    snapshot = outcome.snapshot
    if snapshot is None:
        return "nothing changed since the last snapshot"
    stored = f"stored {snapshot.kind} {snapshot.id} of {snapshot.volume}: {counts}"
    return f"{stored}, {size_text(snapshot.stored_bytes)} stored" + (
        "" if snapshot.complete else "; incomplete"
    )
