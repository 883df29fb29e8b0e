"""`smsnap restore`: all, or some paths, as of any recovery point."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.paths import volume_path
from smsnapd.cli.restore_device import DeviceOptions, restore_to_device
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text
from smsnapd.errors import DamageError, UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest
    from smsnapd.repository import Repository

INCOMPLETE = 3

EXAMPLES = """
smsnap restore --target /mnt/new
smsnap restore --target /tmp/back --at "yesterday 14:00" notebooks/train.ipynb
smsnap restore --target ~/SageMaker --overwrite if-changed --delete --dry-run
smsnap restore --target /mnt/new --snapshot 3f9a --map-user 500:1000
smsnap restore --device /dev/nvme2n1 --verify         a block image, onto a device of any size
smsnap restore --device - | ssh other dd of=/dev/xvdf bs=4M
"""
REPORT = """
{"snapshot", "target", "files", "bytes", "fetched_bytes", "skipped",
 "not_restored": [{"path", "reason"}], "notes": [text],
 "requests": {"put", "get", "list", "head", "delete", "bytes_up", "bytes_down"}}
and with --dry-run "would": [text]; with --device
{"snapshot", "device", "way": "image" | "grown" | "files", "size", "bytes", "fetched_bytes",
 "verified", "files", "not_restored", "notes", "requests"}
progress on standard error, as `smsnap backup --help` has it
"""


@verb("restore", examples=EXAMPLES, report=REPORT)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--target", metavar="DIR", help="Where to; made if it is not there.")
@click.option("--device", metavar="DEV|FILE|-", help="Write a block image there, in place of files.")
@click.option("--at", metavar="TIME", help="The last recovery point at or before TIME.")
@click.option(
    "--snapshot", metavar="ID", help="An id, a unique prefix, `latest` or VOLUME@TIME.  [default: latest]"
)
@click.option(
    "--overwrite",
    type=click.Choice(["never", "if-changed", "always"]),
    help="What to do with files that exist in a target that is not empty.",
)
@click.option("--delete", is_flag=True, help="Remove from the target what the snapshot has not.")
@click.option(
    "--map-user", "users", multiple=True, metavar="OLD:NEW", help="Give OLD's files to NEW; names or numbers."
)
@click.option("--destroy", is_flag=True, help="With --device: what is there may be overwritten.")
@click.option("--verify", is_flag=True, help="With --device: read back what was written, and compare.")
@click.option(
    "--remount", is_flag=True, help="With --device: the volume in use, that this program itself runs from."
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be.")
@repository_at
def restore(
    paths: tuple[str, ...],
    target: str | None,
    device: str | None,
    at: str | None,
    snapshot: str | None,
    overwrite: str | None,
    delete: bool,
    users: tuple[str, ...],
    destroy: bool,
    verify: bool,
    remount: bool,
    dry_run: bool,
) -> int:
    """Bring back all of a volume, or some paths, as of any recovery point.

    A target that is not empty is refused unless --overwrite says how. A restore that was cut off
    goes on where it stopped when it is run again. As root everything is set; an ordinary user gets
    files of their own and is told what could not be set. Exit status 3 means that something could
    not be restored; it is named. Exit status 13 means that the repository could not give it back.

    With --device a recovery point whose chain begins with a block image is written to a device or
    file: as it was and grown to its size, or by files if that is smaller. It must not be mounted;
    with --remount the program moves itself off the volume that is mounted from it, unmounts that or
    makes it read-only, writes it, and asks for a restart.
    """
    session = Session.current()
    if at and snapshot:
        raise UsageError("choose a recovery point", "--at and --snapshot are both given", "give one of them")
    if device is not None:
        _check_for_device(paths, target, overwrite, delete)
        pairs = tuple(user_pair(text) for text in users)
        asked = DeviceOptions(device, destroy, verify, pairs, dry_run)
        return (_onto_volume if remount else _to_device)(session, at, snapshot, asked)
    if target is None or destroy or verify or remount:
        why = "--destroy, --verify and --remount are for --device" if target else "no place is named"
        raise UsageError("restore", why, "say where to: --target DIR, or --device DEV")
    request = _request(session, paths, target, overwrite, delete, users, dry_run)
    return _to_directory(session, at, snapshot, request)


def _to_directory(session: Session, at: str | None, snapshot: str | None, request: RestoreRequest) -> int:
    from smsnapd.engine.restore.run import run_restore

    with session.repository(contents=not request.dry_run) as repository:
        history, found = _chosen(session, repository, at, snapshot)
        if not session.options.quiet:
            _announce(found)
        with session.progress() as progress:
            outcome = run_restore(repository, session.settings, history, found, request, progress)
    _report(session, found, request, outcome)
    if outcome.damaged:
        return DamageError.exit_status
    return INCOMPLETE if outcome.not_restored else 0


def _check_for_device(
    paths: tuple[str, ...], target: str | None, overwrite: str | None, delete: bool
) -> None:
    """UsageError for what goes with files alone."""
    if paths or target or overwrite or delete:
        raise UsageError(
            "restore to a device",
            "paths, --target, --overwrite and --delete are for a restore of files",
            "leave them out: a device gets the whole volume, and --destroy says that it may be overwritten",
        )


def _onto_volume(session: Session, at: str | None, snapshot: str | None, asked: DeviceOptions) -> int:
    """As `_to_device`, of the volume in use; this process ends on the way, and goes on from elsewhere."""
    from smsnapd.cli import remount

    if not asked.destroy or asked.dry_run:
        raise UsageError(
            "restore onto the volume in use",
            "--dry-run goes without --remount" if asked.dry_run else "all that is on it now will be gone",
            "add --destroy if that is meant",
        )
    found = remount.move_off(session, asked.device)
    if found is None:
        return _to_device(session, at, snapshot, asked)
    with session.repository(contents=True) as repository:
        history, chosen = _chosen(session, repository, at, snapshot)
        _announce(chosen)
        with remount.taken_over(session, found) as device:
            there = replace(asked, device=os.fsdecode(device.path))
            status = restore_to_device(session, repository, history, chosen, there)
    remount.leave(found)
    return status


def _to_device(session: Session, at: str | None, snapshot: str | None, asked: DeviceOptions) -> int:
    with session.repository(contents=True) as repository:
        history, found = _chosen(session, repository, at, snapshot)
        if not session.options.quiet:
            _announce(found)
        return restore_to_device(session, repository, history, found, asked)


def _request(
    session: Session,
    paths: tuple[str, ...],
    target: str,
    overwrite: str | None,
    delete: bool,
    users: tuple[str, ...],
    dry_run: bool,
) -> RestoreRequest:
    from smsnapd.engine.restore.run import RestoreRequest

    return RestoreRequest(
        target=os.fsencode(Path(target).expanduser().absolute()),
        paths=tuple(volume_path(path, session.config.volume.path) for path in paths),
        overwrite=overwrite,
        delete=delete,
        users=tuple(user_pair(text) for text in users),
        dry_run=dry_run,
        keep=(os.fsencode(session.state_dir),),
        workers=None,
    )


def user_pair(text: str) -> tuple[str, str]:
    """OLD and NEW of `OLD:NEW`, neither of them empty."""
    old, colon, new = text.partition(":")
    if not (colon and old and new) or ":" in new:
        raise UsageError(
            f"map the user {text!r}", "it is not OLD:NEW", "write for example --map-user 500:1000"
        )
    return old, new


def _chosen(
    session: Session, repository: Repository, at: str | None, snapshot: str | None
) -> tuple[History, SnapshotSummary]:
    return session.find_at(repository, at) if at else session.find(repository, snapshot or "latest")


def _announce(snapshot: SnapshotSummary) -> None:
    """Say which moment it will be, before anything is changed."""
    when = local_text(snapshot.time_us)
    print(f"smsnap: {snapshot.kind} {snapshot.id} of {snapshot.volume}, {when}", file=sys.stderr)
    if not snapshot.complete:
        missed = ", ".join(path_text(issue.path) for issue in snapshot.incomplete[:5])
        more = f" and {len(snapshot.incomplete) - 5} more" if len(snapshot.incomplete) > 5 else ""
        print(f"smsnap: the backup itself is incomplete: it missed {missed}{more}", file=sys.stderr)


def _report(
    session: Session, snapshot: SnapshotSummary, request: RestoreRequest, outcome: RestoreOutcome
) -> None:
    if session.options.json:
        requests = {"requests": output.requests_object(session.requests)}
        output.document({**_outcome_object(snapshot, request, outcome), **requests})
        return
    if session.options.verbose:
        output.tell_requests(session.requests)
    for text in outcome.would:
        output.line(text)
    for issue in outcome.not_restored:
        print(f"smsnap: not restored: {path_text(issue.path)}: {issue.reason}", file=sys.stderr)
    if session.options.quiet:
        return
    for text in outcome.notes:
        print(f"smsnap: note: {text}", file=sys.stderr)
    output.line(f"{_summary(request, outcome)} to {path_text(request.target)}")


def _summary(request: RestoreRequest, outcome: RestoreOutcome) -> str:
    did = "would restore" if request.dry_run else "restored"
    text = f"{did} {outcome.files:,} files, {size_text(outcome.bytes)}"
    if outcome.skipped:
        text += f", {outcome.skipped:,} left as they were"
    return text if request.dry_run else f"{text}, {size_text(outcome.fetched_bytes)} fetched"


def _outcome_object(
    snapshot: SnapshotSummary, request: RestoreRequest, outcome: RestoreOutcome
) -> dict[str, object]:
    shape: dict[str, object] = {
        "snapshot": snapshot.id,
        "target": path_text(request.target),
        "files": outcome.files,
        "bytes": outcome.bytes,
        "fetched_bytes": outcome.fetched_bytes,
        "skipped": outcome.skipped,
        "not_restored": output.issue_objects(outcome.not_restored),
        "notes": list(outcome.notes),
    }
    return {**shape, "would": list(outcome.would)} if request.dry_run else shape
