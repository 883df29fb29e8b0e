"""`smsnap status`: what the daemon is doing, and how old the last recovery point is."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text
from smsnapd.errors import SmsnapError
from smsnapd.store.counting import Requests
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.daemon.status import ContentsStatus, RequestsStatus, Status

_WATCH_S = 1.0
EXAMPLES = """
smsnap status
smsnap status --watch            again and again, until interrupted
smsnap status --json | jq .age_s
"""
REPORT = """
{"state", "since", "volume", "path", "running": true or false, "last_recovery_point": {"id",
 "time", "kind"} or null, "age_s", "pending": {"directories", "subtrees", "since", "rescan"},
 "watcher": {"kind", "reason", "healthy"} or null, "gaps": [{"time", "reason"}],
 "next_runs": {"incremental", "rescan", "full", "check", "prune", "retry"},
 "last_error": {"what", "why", "hint", "time", "since", "failures"} or null,
 "configuration_error", "run", "last_run", "contents": {"read", "opened"},
 "telemetry_errors", "last_check", "repository": {"url", "objects", "stored_bytes", "counted"},
 "requests": {"month", "since", "put", "get", "list", "head", "delete", "bytes_up",
 "bytes_down"} or null, "pid", "version", "updated"}
"contents" says since when not all of them were read again from here, and opened; null: never
"state" is starting, idle, waiting (changes are pending), running, failing, stopping or stopped
with --watch one such document a line
"""


@verb("status", examples=EXAMPLES, report=REPORT)
@click.option("--watch", is_flag=True, help="Show it again every second, until interrupted.")
def status(watch: bool) -> int:
    """Show what the daemon is doing, and how old the last recovery point is.

    Exit status 0: a daemon is running and its last run went well. 1: none is running, which is said,
    with what it left behind; or its runs are failing.
    """
    session = Session.current()
    while True:
        found, is_running = _found()
        if watch and not session.options.json and sys.stdout.isatty():
            click.clear()
        _show(session, found, is_running, in_one_line=watch)
        if not watch:
            return 0 if is_running and found is not None and found.last_error is None else 1
        output.flush()
        time.sleep(_WATCH_S)


def _found() -> tuple[Status | None, bool]:
    """How the daemon stands, or stood when it was last heard of; and whether it is running."""
    from smsnapd.daemon.asking import ask_status
    from smsnapd.daemon.runtime import runtime_dir
    from smsnapd.daemon.status import read_status

    directory = runtime_dir(os.environ)
    found = ask_status(directory)
    if found is not None:
        return found, True
    try:
        left = read_status(directory)
    except (OSError, ValueError) as error:
        raise SmsnapError(f"read the status in {directory}", str(error), "ask as root") from error
    return (None if left is None else left.told_at(time.time())), False


def _show(session: Session, found: Status | None, is_running: bool, *, in_one_line: bool) -> None:
    if session.options.json:
        output.document(_object(found, is_running), in_one_line=in_one_line)
        return
    if not is_running:
        output.line("no daemon is running; start one: systemctl start smsnapd, or set it up: smsnap install")
    if found is not None:
        for line in _lines(found, is_running):
            output.line(line)


def _object(found: Status | None, is_running: bool) -> dict[str, Any]:
    if found is None:
        names = ("last_recovery_point", "age_s", "pending", "watcher", "next_runs", "last_error")
        return {"state": "stopped", "running": False, "volume": None, **dict.fromkeys(names)}
    shape: dict[str, Any] = json.loads(found.encode())
    return {**shape, "state": shape["state"] if is_running else "stopped", "running": is_running}


def _lines(found: Status, is_running: bool) -> list[str]:
    """The status for people."""
    point, error = found.last_recovery_point, found.last_error
    lines = [f"{found.volume}: {found.path} to {found.repository.url}"]
    if is_running:
        lines.append(f"state:     {found.state}, since {_local(found.since)}")
    if point is None:
        lines.append("last:      no recovery point is known yet")
    else:
        lines.append(
            f"last:      {point.kind} {point.id}, {_age(found.age_s or 0.0)} ago, {_local(point.time)}"
        )
    if is_running:
        lines.extend(_live_lines(found))
    if error is not None:
        lines.append(
            f"failing:   since {_local(error.since)}, {error.failures} times:"
            f" cannot {error.what}: {error.why}"
        )
        if error.hint:
            lines.append(f"           {error.hint}")
    if found.configuration_error:
        lines.append(f"not used:  the new configuration: {found.configuration_error}")
    lines.extend(f"trouble:   {text}" for text in found.telemetry_errors)
    if found.last_check is not None:
        verdict = f"{found.last_check.findings} damaged" if found.last_check.findings else "no damage found"
        lines.append(f"checked:   {_local(found.last_check.time)}, {verdict}")
    lines.append(f"contents:  {contents_text(found.contents)}")
    if found.requests is not None and (asked := output.requests_text(_requests(found.requests))):
        lines.append(f"asked:     {asked}, in {found.requests.month}")
    if found.repository.stored_bytes is not None:
        size = size_text(found.repository.stored_bytes)
        lines.append(f"stored:    {size} in {found.repository.objects:,} objects, all volumes together")
    return lines


def contents_text(contents: ContentsStatus) -> str:
    """Since when not all contents were read again here, and opened."""
    read = f"all read here since {_local(contents.read)}" if contents.read else "never all read here"
    if contents.opened is None:
        return f"{read}, never all opened here: smsnap check --read-data, with the passphrase"
    return f"{read}, opened since {_local(contents.opened)}"


def _requests(status: RequestsStatus) -> Requests:
    return Requests(**{name: getattr(status, name) for name in Requests.__struct_fields__})


def _live_lines(found: Status) -> list[str]:
    lines = []
    pending, run, watcher = found.pending, found.run, found.watcher
    if run is not None:
        lines.append(
            f"running:   {run.kind}, {run.phase or 'beginning'}: {run.files:,} files, {size_text(run.bytes)}"
        )
    count = pending.directories + pending.subtrees
    told = f"changes in {count:,} directories, since {_local(pending.since)}" if pending.since else "nothing"
    lines.append(f"pending:   {told}" + ("; a look at everything is due" if pending.rescan else ""))
    if watcher is not None:
        trouble = "" if watcher.healthy else ", not all of the volume"
        lines.append(f"watching:  {watcher.kind}{trouble}: {watcher.reason}")
    if found.gaps:
        lines.append(
            f"gaps:      {len(found.gaps)}, the last {_local(found.gaps[-1].time)}: {found.gaps[-1].reason}"
        )
    upcoming = ((name, getattr(found.next_runs, name)) for name in found.next_runs.__struct_fields__)
    told = ", ".join(f"{name} {_local(when)}" for name, when in upcoming if when)
    return [*lines, f"next:      {told or 'when something changes'}"]


def _local(text: str) -> str:
    from smsnapd.daemon.status import seconds

    return local_text(int(seconds(text) * 1e6)).partition(".")[0]


def _age(age_s: float) -> str:
    """An age for people: its two largest units."""
    pieces: list[str] = []
    rest = int(age_s)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or (unit == "s" and not pieces):
            pieces.append(f"{count} {unit}")
    return " ".join(pieces[:2])
