"""`smsnap backup`: one snapshot now."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.loading import loading
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.daemon import protection
from smsnapd.errors import UsageError
from smsnapd.model import path_text
from smsnapd.store.counting import Requests
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.backup.request import BackupRequest
    from smsnapd.engine.backup.run import BackupOutcome

INCOMPLETE = 3
_log = logging.getLogger(__name__)

EXAMPLES = """
smsnap backup                    what changed since the last snapshot, else everything
smsnap backup --full             a snapshot that is complete in itself
smsnap backup --mode block       an image of the volume's device, whatever is configured
smsnap backup --dry-run          say what would be stored
smsnap backup --take-over        go on with a chain that another machine has written to
"""
REPORT = """
the new snapshot, as `smsnap snapshots --json` has it, with "requests", what was asked of S3:
{"put", "get", "list", "head", "delete", "bytes_up", "bytes_down"}; null when nothing changed.
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
    help="What a full is made of; default: the configuration's. With block it is made now.",
)
@click.option("--reread", is_flag=True, help="Read what seems unchanged too.")
@click.option("--dry-run", is_flag=True, help="Store nothing; say what would be.")
@click.option(
    "--take-over", is_flag=True, help="Take the lease from another writer, whose runs fail from then on."
)
def backup(full: bool, mode: str | None, reread: bool, dry_run: bool, take_over: bool) -> int:
    """Store one snapshot now: an incremental if there is a chain, else a full.

    Exit status 3 means that the snapshot was stored but misses files, which are named. When nothing
    changed since the last snapshot, and no full was asked for, there is no new one. If a daemon protects
    this volume, it makes the snapshot, and goes on with it if this command is interrupted.

    An image (--mode block) is always a full: what the volume's file system has in use, read while it is in
    use, and then, while the volume is frozen for a moment, what changed meanwhile. Snapshots behind it are of
    files again.

    One writer at a time owns a volume's chain. If it is another one that is to end, --take-over takes the
    chain from it; if it is another notebook, give this one's volume a name of its own (volume.name) instead.
    """
    if take_over and dry_run:
        raise UsageError("take the chain over", "a dry run changes nothing", "leave out --dry-run")
    session = Session.current()
    config, volume = session.config, session.own_volume
    if mode is not None:
        config = replace(config, backup=replace(config.backup, mode=mode))
    request = replace(
        protection.backup_request(config, volume),
        full=full or mode == "block", reread=reread, dry_run=dry_run, take_over=take_over,
    )  # fmt: skip
    outcome = None if dry_run else _by_daemon(session, request, mode or "")
    if outcome is None:
        outcome = replace(_alone(session, request), requests=session.requests)
    _report(session, outcome, dry_run)
    return INCOMPLETE if outcome.incomplete else 0


def _by_daemon(session: Session, request: BackupRequest, mode: str) -> BackupOutcome | None:
    """What the daemon did; None if there is none for this volume and repository, or it is out of reach."""
    from smsnapd.daemon.runtime import is_there, runtime_dir

    if not is_there(runtime_dir(os.environ)):
        return None
    from smsnapd.daemon.asking import NotAllowedError, ask_backup
    from smsnapd.daemon.control import Request

    path, url = os.fsdecode(request.root), session.settings.url
    wanted = {"full": request.full, "reread": request.reread, "take_over": request.take_over}
    asked = Request("backup", request.volume, path, url, mode, **wanted)
    with session.progress() as progress:
        try:
            return ask_backup(runtime_dir(os.environ), asked, progress)
        except NotAllowedError as error:
            # If it is this volume's daemon, the lease will tell.
            _log.info("%s", error)
            return None


def _alone(session: Session, request: BackupRequest) -> BackupOutcome:
    with ExitStack() as stack:
        with loading("smsnapd.engine.backup.run"):
            repository = stack.enter_context(session.repository(contents=False))
        from smsnapd.engine.backup.run import run_backup

        progress = stack.enter_context(session.progress())
        return run_backup(repository, session.settings, request, progress)


def _report(session: Session, outcome: BackupOutcome, dry_run: bool) -> None:
    for issue in outcome.incomplete:
        print(f"smsnap: missed {path_text(issue.path)}: {issue.reason}", file=sys.stderr)
    if session.options.json:
        output.document(_outcome_object(outcome, dry_run))
        return
    if session.options.verbose and outcome.requests:
        output.tell_requests(outcome.requests)
    if not session.options.quiet:
        for text in outcome.notes:
            print(f"smsnap: note: {text}", file=sys.stderr)
        output.line(_summary(outcome, dry_run))


def _outcome_object(outcome: BackupOutcome, dry_run: bool) -> object:
    if dry_run:
        counts = {"changed": outcome.changed, "deleted": outcome.deleted, "new_bytes": outcome.new_bytes}
        return {"dry_run": True, **counts}
    if outcome.snapshot is None:
        return None
    requests = output.requests_object(outcome.requests or Requests())
    return {**output.snapshot_object(outcome.snapshot), "requests": requests}


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
