"""`smsnap prune`: apply the retention policy, and remove what no recovery point refers to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text, utc_text
from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.names import GarbageName
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.prune import Amount, PruneReport, VolumePruned

EXAMPLES = """
smsnap prune                    every volume of the repository
smsnap prune --volume nb        one volume
smsnap prune --dry-run          what would go, be listed, and be deleted now
"""
REPORT = """
{"dry_run": true or false, "volumes": [{"volume", "removed", "recovery_points",
 "sparse": {"objects", "bytes"}, "rewritten",
 "marked": true or false, "listed": {"objects", "bytes"},
 "deleted": {"objects", "bytes"},
 "waiting": {"objects", "bytes"}, "waiting_until": time or null,
 "kept_by_store", "locks_extended", "lock_error": as error,
 "uploads_abandoned", "may_delete": true or false,
 "findings": [{"object", "problem"}], "notes": [text],
 "error": null or {"error", "what", "why", "hint", "exit_status"}}]}
"removed" are recovery points that the policy let go, "recovery_points" those that stay;
"sparse" are chunks that are small or of little use, with bytes of none, "rewritten" those
that were written anew; "marked" is false if another writer has the volume's lease: its own
prune lists then.
With --dry-run "removed", "listed" and "deleted" are what would be.
"""


@verb("prune", examples=EXAMPLES, report=REPORT)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")
def prune(dry_run: bool) -> int:
    """Let recovery points go as [retention] says, and remove what none refers to any more.

    The newest recovery point stays, and those that have a tag (smsnap tag). Of the others that go the
    changes are folded into the next one that stays: it restores as before. What is not needed then is put
    on a signed list first; it is deleted by a prune after [retention] grace (72 hours), by the
    clock of the store, if nothing refers to it by then. Backups and restores may run meanwhile, and a
    prune that was interrupted is finished by the next.

    With [repository] object_lock it first extends the locks of what recovery points need, those of which half
    is over; what is locked still, and of no use any more, is counted and deleted by a later one.

    Who may not delete lists only; somebody who may runs it elsewhere (for S3: smsnap iam-policy pruner).
    Exit status 13 means damage: of a volume with a manifest that is damaged or missing nothing is removed.
    """
    from smsnapd.daemon.protection import retention_policy
    from smsnapd.engine.prune import PruneRequest, run_prune

    session = Session.current()
    request = PruneRequest(
        volume=session.named_volume or None,
        grace_s=session.config.retention.grace.total_seconds(),
        dry_run=dry_run,
        state_dir=session.state_dir,
        lock_s=session.settings.lock_s,
        policy=retention_policy(session.config),
    )
    with session.repository(contents=False) as repository, session.progress() as progress:
        report = run_prune(repository, request, progress)
    _report(session, report, dry_run)
    return exit_status(report)


def exit_status(report: PruneReport) -> int:
    """That of damage, if there is any; else of the first volume that could not be pruned; else 0."""
    told = (error for pruned in report.volumes for error in (pruned.error, pruned.lock_error))
    errors = [error for error in told if error is not None]
    if any(pruned.refused for pruned in report.volumes) or any(
        isinstance(error, DamageError) for error in errors
    ):
        return DamageError.exit_status
    return errors[0].exit_status if errors else 0


def _report(session: Session, report: PruneReport, dry_run: bool) -> None:
    if session.options.json:
        output.document({"dry_run": dry_run, "volumes": list(map(_volume_object, report.volumes))})
    for pruned in report.volumes:
        for error in filter(None, (pruned.error, pruned.lock_error)):
            output.complain(error, as_json=session.options.json)
        if not session.options.json:
            _tell(session, pruned, dry_run)
    if not (report.volumes or session.options.json or session.options.quiet):
        output.line("The repository holds no backup yet.")


def _tell(session: Session, pruned: VolumePruned, dry_run: bool) -> None:
    for name, problem in pruned.refused:
        effect = "; nothing is deleted by it" if GarbageName.parse(name) else ""
        output.line(f"damaged: {name}: {problem}{effect}")
    if session.options.quiet:
        return
    for text in pruned.notes:
        print(f"smsnap: note: {pruned.volume}: {text}", file=sys.stderr)
    if pruned.error is None:
        output.line(f"{pruned.volume}: {_sentence(pruned, dry_run)}")


def _sentence(pruned: VolumePruned, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    parts = [f"{_amount(pruned.deleted)} {would}deleted", f"{_amount(pruned.listed)} {would}listed"]
    if pruned.removed:
        parts.insert(0, f"{pruned.removed:,} recovery points {would}let go, {pruned.points:,} stay")
    if pruned.rewritten:
        parts.append(f"{pruned.rewritten:,} chunks written anew")
    elif pruned.sparse.objects:
        sparse = f"{pruned.sparse.objects:,} chunks with {size_text(pruned.sparse.bytes)} of no use in them"
        parts.append(f"{sparse} (the next full leaves them)")
    if pruned.waiting.objects:
        until = pruned.waiting_until_us
        when = f" until {local_text(until)}" if until is not None else ""
        parts.append(f"{_amount(pruned.waiting)} waiting{when}")
    if pruned.kept:
        parts.append(f"{pruned.kept:,} kept by the store")
    if pruned.locks:
        parts.append(f"{pruned.locks:,} locks {would}extended")
    if pruned.uploads:
        parts.append(f"{pruned.uploads:,} unfinished uploads abandoned")
    return "; ".join(parts)


def _amount(amount: Amount) -> str:
    return f"{amount.objects:,} objects ({size_text(amount.bytes)})"


def _volume_object(pruned: VolumePruned) -> dict[str, Any]:
    until = pruned.waiting_until_us
    return {
        "volume": pruned.volume,
        "removed": pruned.removed,
        "recovery_points": pruned.points,
        "sparse": pruned.sparse._asdict(),
        "rewritten": pruned.rewritten,
        "marked": pruned.marked,
        "listed": pruned.listed._asdict(),
        "deleted": pruned.deleted._asdict(),
        "waiting": pruned.waiting._asdict(),
        "waiting_until": None if until is None else utc_text(until),
        "kept_by_store": pruned.kept,
        "locks_extended": pruned.locks,
        "lock_error": _error_object(pruned.lock_error),
        "uploads_abandoned": pruned.uploads,
        "may_delete": pruned.may_delete,
        "findings": [{"object": name, "problem": problem} for name, problem in pruned.refused],
        "notes": list(pruned.notes),
        "error": _error_object(pruned.error),
    }


def _error_object(error: SmsnapError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "error": type(error).__name__,
        "what": error.what,
        "why": error.why,
        "hint": error.hint,
        "exit_status": error.exit_status,
    }
