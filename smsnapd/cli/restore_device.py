"""`smsnap restore --device`: a block image onto a device, a file or a pipe."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smsnapd.cli import output
from smsnapd.cli.session import Session
from smsnapd.errors import DamageError, UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.engine.image.restore import DeviceOutcome
    from smsnapd.repository import Repository

INCOMPLETE = 3
_WAYS = {
    "image": "as it was",
    "grown": "and grown to the whole device",
    "files": "by files, into a new and smaller file system",
}


@dataclass(frozen=True)
class DeviceOptions:
    """What was said about a device. `device` is a path, or `-` for standard output."""

    device: str
    destroy: bool
    verify: bool
    users: tuple[tuple[str, str], ...]
    dry_run: bool = False


def restore_to_device(
    session: Session, repository: Repository, history: History, found: SnapshotSummary, asked: DeviceOptions
) -> int:
    """Do it and report; the exit status."""
    if asked.device == "-":
        return _to_standard_output(session, repository, history, found, asked)
    from smsnapd.engine.image.restore import DeviceRequest, restore_device

    path = os.fsencode(Path(asked.device).expanduser().absolute())
    request = DeviceRequest(path, asked.destroy, asked.verify, asked.users, None, asked.dry_run)
    with session.progress() as progress:
        outcome = restore_device(repository, session.settings, history, found, request, progress)
    _report(session, asked, outcome)
    if outcome.damaged:
        return DamageError.exit_status
    return INCOMPLETE if outcome.not_restored else 0


def _to_standard_output(
    session: Session, repository: Repository, history: History, found: SnapshotSummary, asked: DeviceOptions
) -> int:
    from smsnapd.engine.image.raw import RawImage

    if asked.verify or asked.users or asked.dry_run:
        why = "--verify, --map-user and --dry-run need a device or file"
        raise UsageError("restore to standard output", why, "leave them out, or name one")
    if sys.stdout.isatty():
        raise UsageError("write the image to the terminal", "it is no text", "pipe it, or name a device")
    image = RawImage(repository, session.settings, history, found)
    with session.progress() as progress:
        image.write(output.data, progress)
    output.flush()
    if not session.options.quiet and not session.options.json:
        output.line(f"wrote the image of {found.id}, {size_text(image.size)}", aside=True)
    return 0


def _report(session: Session, asked: DeviceOptions, outcome: DeviceOutcome) -> None:
    if session.options.json:
        output.document({**_outcome_object(outcome), "requests": output.requests_object(session.requests)})
        return
    for issue in outcome.not_restored:
        print(f"smsnap: not restored: {path_text(issue.path)}: {issue.reason}", file=sys.stderr)
    if session.options.quiet:
        return
    for text in outcome.notes:
        print(f"smsnap: note: {text}", file=sys.stderr)
    did = "would restore" if asked.dry_run else "restored"
    text = f"{did} {outcome.snapshot.id} to {path_text(outcome.path)}, {_WAYS[outcome.way]}: "
    text += size_text(outcome.bytes)
    if not asked.dry_run:
        text += f" written, {size_text(outcome.fetched_bytes)} fetched"
    output.line(f"{text}, {size_text(outcome.verified)} read back" if outcome.verified else text)


def _outcome_object(outcome: DeviceOutcome) -> dict[str, object]:
    return {
        "snapshot": outcome.snapshot.id,
        "device": path_text(outcome.path),
        "way": outcome.way,
        "size": outcome.size,
        "bytes": outcome.bytes,
        "fetched_bytes": outcome.fetched_bytes,
        "verified": outcome.verified,
        "files": outcome.files,
        "not_restored": output.issue_objects(outcome.not_restored),
        "notes": list(outcome.notes),
    }
