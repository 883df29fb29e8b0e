"""`smsnap environment recreate`: what a report tells of, made again on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.paths import volume_path
from smsnapd.cli.session import Session
from smsnapd.daemon import protection
from smsnapd.errors import SmsnapError, UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.plain import plain

if TYPE_CHECKING:
    from smsnapd.engine.environment.rebuilding import Item
    from smsnapd.engine.environment.recreate import RecreateRequest
    from smsnapd.engine.environment.report import Report
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.repository import Repository

INCOMPLETE = 3
REPORT_BYTES = 16 * 1024 * 1024

EXAMPLES = """
smsnap environment recreate --dry-run           the commands, one a line
smsnap environment recreate                     all of the newest full's report
smsnap environment recreate --only project/.venv --target /mnt/new
smsnap environment recreate --report environment.json
"""
REPORT = """
{"snapshot": id or null, "target", "dry_run", "items": [{"kind": "git"|"conda"|"venv"|"kernel", "path",
 "standing": "made"|"there"|"brought up to date"|"restored"|"failed",
 "commands": [text], "problems": [text], "notes": [text], "unsaved": [text]}]}
"unsaved" is what was not pushed or not committed; "restored" is from the backup, with all of it
"""


@verb("recreate", examples=EXAMPLES, report=REPORT)
@click.argument("snapshot", default="latest")
@click.option("--target", metavar="DIR", help="Where the volume is now; default: the configured path.")
@click.option("--only", multiple=True, metavar="PATH", help="Make only what lies at PATH or below it.")
@click.option("--outside", is_flag=True, help="Also make conda environments that were not on the volume.")
@click.option("--report", "file", metavar="FILE", help="Use a report of `environment capture --json`.")
@click.option("--dry-run", is_flag=True, help="Change nothing; print the commands.")
def recreate(
    snapshot: str, target: str | None, only: tuple[str, ...], outside: bool, file: str | None, dry_run: bool
) -> int:
    """Make environments again: clone, create, install, register, as the report with SNAPSHOT tells.

    Git repositories are cloned at their commits; what was not pushed or not committed is named, and comes
    from the backup. Virtual environments get the Python version and the very packages that they had, conda
    environments the same builds or else what was asked for. What is there stays, so it may be run again.
    Exit status 3 means that something could not be made again; it is named.
    """
    session = Session.current()
    request = _request(session, target, only, outside, dry_run)
    if file is not None:
        return _run(session, _read(Path(file)), request, _nothing_at_hand, None)
    from smsnapd.engine.environment.keeping import newest_report

    with session.repository(contents=True) as repository:
        history, found = session.find(repository, snapshot)
        report, _ = newest_report(repository, history, found)
        bring_back = _from_backup(session, repository, history, found, request)
        return _run(session, report, request, bring_back, found.id)


def _request(
    session: Session, target: str | None, only: tuple[str, ...], outside: bool, dry_run: bool
) -> RecreateRequest:
    from smsnapd.engine.environment.recreate import RecreateRequest

    root = Path(target).expanduser().absolute() if target else protection.volume_root(session.config)
    paths = tuple(volume_path(path, session.config.volume.path) for path in only)
    return RecreateRequest(os.fsencode(root), paths, outside, dry_run)


def _read(file: Path) -> Report:
    from smsnapd.engine.environment.report import decode_report

    what = f"read the report {file}"
    try:
        with file.open("rb") as opened:
            data = opened.read(REPORT_BYTES + 1)
    except OSError as error:
        raise UsageError(what, error.strerror or str(error)) from error
    return decode_report(data, what)


def _nothing_at_hand(path: bytes) -> str:
    return "only a report is at hand"


def _from_backup(
    session: Session,
    repository: Repository,
    history: History,
    snapshot: SnapshotSummary,
    request: RecreateRequest,
) -> Callable[[bytes], str]:
    """Brings a path back from the recovery point."""
    from smsnapd.engine.restore.run import RestoreRequest, run_restore

    def bring_back(path: bytes) -> str:
        asked = RestoreRequest(request.target, (path,), overwrite="never", dry_run=request.dry_run)
        try:
            with session.progress() as progress:
                outcome = run_restore(repository, session.settings, history, snapshot, asked, progress)
        except SmsnapError as error:
            return error.why
        missed = outcome.not_restored
        return f"{path_text(missed[0].path)}: {missed[0].reason}" if missed else ""

    return bring_back


def _run(
    session: Session,
    report: Report,
    request: RecreateRequest,
    bring_back: Callable[[bytes], str],
    snapshot: str | None,
) -> int:
    from smsnapd.engine.environment.recreate import recreate as make_again

    quiet = session.options.json or session.options.quiet

    def told(command: str) -> None:
        if request.dry_run and not session.options.json:
            output.line(command)
        elif not quiet:
            print(f"smsnap: {plain(command)[:300]}", file=sys.stderr)

    items = []
    for item in make_again(report, request, bring_back, told):
        items.append(item)
        if not session.options.json:
            _tell(item, request, session.options.quiet)
    if session.options.json:
        output.document(_shape(items, request, snapshot))
    return INCOMPLETE if any(item.problems for item in items) else 0


def _tell(item: Item, request: RecreateRequest, quiet: bool) -> None:
    for problem in item.problems:
        print(plain(f"smsnap: {item.kind} {item.path}: {problem}"), file=sys.stderr)
    if item.standing == "restored":
        what = "; ".join(item.unsaved) or "not to be had elsewhere"
        print(plain(f"smsnap: {item.kind} {item.path}: from the backup: {what}"), file=sys.stderr)
    if not quiet:
        for note in item.notes:
            print(plain(f"smsnap: note: {item.kind} {item.path}: {note}"), file=sys.stderr)
        if not request.dry_run:
            output.line(f"{item.standing}  {item.kind} {item.path}")


def _shape(items: list[Item], request: RecreateRequest, snapshot: str | None) -> dict[str, Any]:
    rows = [{**vars(item), "unsaved": list(item.unsaved)} for item in items]
    return {
        "snapshot": snapshot,
        "target": path_text(request.target),
        "dry_run": request.dry_run,
        "items": rows,
    }
