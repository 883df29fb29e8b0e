"""The verb: runs all checks and reports what they found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from smsnapd.cli import output
from smsnapd.cli.doctor import (
    account,
    configuration,
    environment,
    images,
    machine,
    repository,
    service,
    volume,
)
from smsnapd.cli.doctor.findings import Check, Finding, Verdict, examine
from smsnapd.cli.doctor.patient import Patient
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session

CHECKS: Final[tuple[Check[Patient], ...]] = (
    *machine.CHECKS,
    *configuration.CHECKS,
    *account.CHECKS,
    *repository.CHECKS,
    *volume.CHECKS,
    *environment.CHECKS,
    *images.CHECKS,
    *service.CHECKS,
)
_SIGNS: Final[dict[Verdict, str]] = {"ok": "✓", "warn": "!", "fail": "✗", "skipped": "·"}
_WORDS: Final[dict[Verdict, str]] = {"ok": "ok", "warn": "warn", "fail": "FAIL", "skipped": "skip"}
_SUBJECT_WIDTH: Final = max(len(check.subject) for check in CHECKS)
_CHECK_WIDTH: Final = max(len(check.name) for check in CHECKS)

EXAMPLES = """
sudo smsnap doctor                   as the daemon would see it
smsnap doctor -q                     only what is to be mended
smsnap doctor --json | jq '.checks[] | select(.verdict == "fail")'
"""
REPORT = """
{"ok": true or false, "checks": [{"subject", "check", "verdict", "told", "mend"}]}
"verdict" is ok, warn, fail or skipped; "ok" is whether nothing failed
"""


@verb("doctor", examples=EXAMPLES, report=REPORT)
def doctor() -> int:
    """Say what is wrong with this machine's set-up, and how to mend it.

    Platform, configuration, credentials, the repository and what may be done there, clock, volume,
    and the service are each looked at; nothing is changed. Exit status 0: nothing failed, though
    there may be warnings. 1: something failed.
    """
    session = Session.current()
    patient = Patient(session)
    findings = examine(patient, CHECKS)
    try:
        if session.options.json:
            found = list(findings)
            output.document({"ok": not _failed(found), "checks": [asdict(finding) for finding in found]})
        else:
            found = _tell(findings, quiet=session.options.quiet)
    finally:
        patient.close()
    return 1 if _failed(found) else 0


def _tell(findings: Iterable[Finding], *, quiet: bool) -> list[Finding]:
    """Show findings as they come; returns them."""
    marks, found = _marks(sys.stdout.encoding), []
    for finding in findings:
        found.append(finding)
        if not quiet or finding.verdict in ("warn", "fail"):
            for line in lines(finding, marks):
                output.line(line)
            output.flush()
    if not quiet:
        output.line(_summary(found))
    return found


def lines(finding: Finding, marks: dict[Verdict, str]) -> list[str]:
    """A finding for people: what was found, and below how to mend it."""
    width = max(map(len, marks.values()))
    name = f"{finding.subject:<{_SUBJECT_WIDTH}} {finding.check:<{_CHECK_WIDTH}}"
    head = f"{marks[finding.verdict]:<{width}} {name}  "
    told = [head + finding.told]
    return [*told, " " * len(head) + finding.mend] if finding.mend else told


def _marks(encoding: str | None) -> dict[Verdict, str]:
    """Signs where the terminal can show them, else words."""
    try:
        "".join(_SIGNS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _WORDS
    return _SIGNS


def _summary(found: list[Finding]) -> str:
    warned, failed = (sum(one.verdict == verdict for one in found) for verdict in ("warn", "fail"))
    if not warned and not failed:
        return "all is well" + ("" if os.geteuid() == 0 else "; the daemon runs as root: see with sudo too")
    return f"{failed} to be mended, {warned} warning{'' if warned == 1 else 's'}"


def _failed(found: Iterable[Finding]) -> bool:
    return any(finding.verdict == "fail" for finding in found)
