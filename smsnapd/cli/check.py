"""`smsnap check`: look for damage."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import utc_text
from smsnapd.errors import DamageError, UsageError
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.check import CheckReport
    from smsnapd.engine.coverage import Coverage

EXAMPLES = """
smsnap check                         chains, and that every object is there
smsnap check --read-data             every object's bytes, and what is sealed in them
smsnap check --read-data 3/7         the third of seven parts, one a day
smsnap check --read-data next/7      of seven the one that was read longest ago from here
smsnap check --expect-head 3f9a1c…   that the newest snapshot is, or follows, this one
"""
REPORT = """
{"ok": true or false, "findings": [{"object", "problem"}], "fenced": [name],
 "snapshots", "objects", "bytes_read", "opened": true or false, "notes": [text],
 "contents": {volume: {"read", "opened"}},
 "requests": {"put", "get", "list", "head", "delete", "bytes_up", "bytes_down"}}
"opened" says whether contents were opened, for which the passphrase is needed; "contents" by
volume since when not all were read again from here, and opened; null is never
"""


@verb("check", examples=EXAMPLES, report=REPORT)
@click.option(
    "--read-data",
    metavar="[N/T]",
    is_flag=False,
    flag_value="1/1",
    help="Read contents too: all, or the Nth of T parts; `next/T` is the one read longest ago.",
)
@click.option("--expect-head", metavar="ID", help="A snapshot that the newest one must be, or follow.")
@repository_at
def check(read_data: str | None, expect_head: str | None) -> int:
    """Verify the chains, that every object is there, and with --read-data what is in them.

    Nothing is changed. A chain whose newest end was cut off is found against the local state, or
    with --expect-head; on a machine that has neither it is not. Exit status 13 means damage, and
    every finding is named.
    """
    from smsnapd.engine.check import CheckRequest, run_check

    session = Session.current()
    request = CheckRequest(
        volume=session.named_volume or None,
        read_data=data_part(read_data) if read_data else None,
        expect_head=expect_head,
        state_dir=None if session.options.repository_at else session.state_dir,  # it knows of later ones
    )
    with session.repository(contents=False) as repository, session.progress() as progress:
        report = run_check(repository, session.settings, request, progress)
    _report(session, report)
    return DamageError.exit_status if report.findings else 0


def data_part(text: str) -> tuple[int, int]:
    """N and T of `N/T`; 0 and T of `next/T`."""
    match = re.fullmatch(r"([0-9]{1,6}|next)/([0-9]{1,6})", text)
    number, parts = (match[1], int(match[2])) if match else ("", 0)
    if number == "next" and parts:
        return 0, parts
    if not number.isdecimal() or not 1 <= int(number) <= parts:
        raise UsageError(
            f"read part {text!r} of the data",
            "it is not N/T with N from 1 to T, nor next/T",
            "write for example 3/7",
        )
    return int(number), parts


def _contents_object(coverage: Coverage) -> dict[str, str | None]:
    times = {"read": coverage.read_s, "opened": coverage.opened_s}
    return {name: None if when is None else utc_text(int(when * 1e6)) for name, when in times.items()}


def _report(session: Session, report: CheckReport) -> None:
    if session.options.json:
        output.document(
            {
                "ok": not report.findings,
                "findings": [{"object": item.object, "problem": item.problem} for item in report.findings],
                "fenced": list(report.fenced),
                "snapshots": report.snapshots,
                "objects": report.objects,
                "bytes_read": report.bytes_read,
                "opened": report.opened,
                "notes": list(report.notes),
                "contents": {volume: _contents_object(item) for volume, item in report.coverage.items()},
                "requests": output.requests_object(session.requests),
            }
        )
        return
    if session.options.verbose:
        output.tell_requests(session.requests)
    for item in report.findings:
        output.line(f"damaged: {item.object}: {item.problem}")
    if session.options.quiet:
        return
    for text in (*(f"fenced: {name}" for name in report.fenced), *report.notes):
        print(f"smsnap: note: {text}", file=sys.stderr)
    verdict = f"{len(report.findings)} damaged" if report.findings else "no damage found"
    contents = "contents opened" if report.opened else "contents not opened"
    output.line(
        f"{verdict} in {report.snapshots:,} snapshots, {report.objects:,} objects;"
        f" {size_text(report.bytes_read)} read, {contents}"
    )
