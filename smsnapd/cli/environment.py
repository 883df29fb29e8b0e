"""`smsnap environment`: what is needed to make the environments of a volume again, and making them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import msgspec

from smsnapd.cli import output
from smsnapd.cli.environment_recreate import recreate
from smsnapd.cli.environment_text import report_lines
from smsnapd.cli.options import repository_at, shared_options, verb
from smsnapd.cli.session import Session
from smsnapd.daemon import protection
from smsnapd.errors import SmsnapError

if TYPE_CHECKING:
    from smsnapd.engine.environment.report import Report

CAPTURE_S = 600.0

REPORT = """
{"report": 1, "captured": time, "root", "host", "system",
 "venvs": [{"path", "python", "packages": [{"name", "version", "source", "editable"}],
   "system_site_packages", "indexes": [URL]}],
 "condas": [{"path", "packages": [{"name", "version", "build", "url", "md5"}],
   "requested": [spec], "channels": [URL], "pip": [as packages of venvs]}],
 "kernels": [{"path", "name", "display_name", "language", "argv", "variables"}],
 "extensions": [{"path", "name", "kind", "version", "enabled"}],
 "repositories": [{"path", "remotes": [{"name", "url"}], "branch", "commit", "unpushed",
   "branches": [{"name", "commit", "upstream", "unpushed", "subjects"}], "stashes",
   "uncommitted": {"changed", "untracked", "paths"}, "bare", "problem"}],
 "data": [{"path", "size", "copy", "certainty"}], "left_out": [{"path", "files", "bytes"}],
 "notes": [text]}; a member that is empty or false is left out
"""
SHOW_EXAMPLES = """
smsnap environment show                 as of the newest full
smsnap environment show "@2h ago" --json
"""
CAPTURE_EXAMPLES = """
smsnap environment capture              what is there now
smsnap environment capture --json > environment.json
"""


@click.group("environment")
@shared_options
def environment() -> None:
    """Say what is needed to make a volume's environments again; make them."""


@verb("show", examples=SHOW_EXAMPLES, report=REPORT)
@click.argument("snapshot", default="latest")
@repository_at
def show(snapshot: str) -> int:
    """Show the report that came with the last full at or before SNAPSHOT.

    It names virtual and conda environments with every package, kernels, extensions, git repositories with
    what is not pushed or not committed, and large files. Only who can read file contents can read it.
    """
    from smsnapd.engine.environment.keeping import newest_report

    session = Session.current()
    with session.repository(contents=True) as repository:
        history, found = session.find(repository, snapshot)
        report, _ = newest_report(repository, history, found)
    _tell(session, report)
    return 0


@verb("capture", examples=CAPTURE_EXAMPLES, report=REPORT)
def capture() -> int:
    """Make the report of the volume as it is now, without a backup.

    Every full does the same. Nothing of what lies on the volume is run but git, which is kept from running
    anything itself.
    """
    session = Session.current()
    _tell(session, captured(session))
    return 0


def captured(session: Session) -> Report:
    """The report of the configured volume as it is now."""
    from smsnapd.engine.environment.copies import with_copies
    from smsnapd.engine.environment.report import decode_report
    from smsnapd.engine.environment.surveyor import SurveyError, SurveyTask, survey

    root = os.fsencode(protection.volume_root(session.config))
    task = SurveyTask(root, CAPTURE_S, tuple(_left_out(session)))
    try:
        with session.progress() as progress:
            progress.phase("look")
            answer = survey(task, progress.advance)
    except SurveyError as error:
        raise SmsnapError(f"look at the environments of {os.fsdecode(root)}", str(error)) from error
    report = decode_report(answer.report, "use the report")
    places = protection.data_places(session.config)
    return with_copies(report, root, places, lambda: None) if places else report


def _left_out(session: Session) -> list[tuple[int, int]]:
    """The local state: it is nobody's environment."""
    if not session.state_dir.is_dir():
        return []
    status = session.state_dir.stat()
    return [(status.st_dev, status.st_ino)]


def _tell(session: Session, report: Report) -> None:
    if session.options.json:
        output.document(msgspec.to_builtins(report))
        return
    for line in report_lines(report):
        output.line(line)


environment.add_command(show)
environment.add_command(capture)
environment.add_command(recreate)
