"""`smsnap drill`: a real restore of a sample, or of everything, timed and compared."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text
from smsnapd.errors import DamageError, TargetError, UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.restore.drill import DrillReport
    from smsnapd.telemetry.metrics import Family

DEFAULT_FILES = 200
EXAMPLES = """
smsnap drill                                  200 files taken at random
smsnap drill --all --scratch /mnt/large       everything
smsnap drill --json --metrics-file /var/lib/node_exporter/smsnap-drill.prom
smsnap drill --files 50 --snapshot analysis-nb@yesterday
"""
REPORT = """
{"ok": true or false, "scope": "sample" or "all", "snapshot": as `smsnap snapshots` has it,
 "age_s", "restore_s", "compare_s", "entries", "files", "bytes", "fetched_bytes",
 "compared_with_volume", "differences": [{"path", "differs": [word], "of": "catalog" or
 "volume"}], "not_restored": [{"path", "reason"}], "notes": [text], "requests": {"put", "get",
 "list", "head", "delete", "bytes_up", "bytes_down"}}
"age_s" is how old the recovery point was when the drill began: what would have been lost;
"restore_s" how long the restore took. Words as `smsnap diff` has them, and missing, extra
"""


@verb("drill", examples=EXAMPLES, report=REPORT)
@click.option("--files", type=click.IntRange(min=1), help=f"How many, at random.  [default: {DEFAULT_FILES}]")
@click.option("--all", "everything", is_flag=True, help="Everything instead of a sample.")
@click.option("--at", metavar="TIME", help="The last recovery point at or before TIME.")
@click.option("--snapshot", metavar="ID", help="An id, a prefix, or VOLUME@TIME.  [default: latest]")
@click.option(
    "--scratch", metavar="DIR", help="Where to restore to, and remove it again.  [default: /var/tmp]"
)
@click.option("--no-live", is_flag=True, help="Do not compare with the volume, though it is here.")
@click.option(
    "--metrics-file", metavar="FILE", help="Write the result there for Prometheus, if it fails too."
)
@repository_at
def drill(
    files: int | None,
    everything: bool,
    at: str | None,
    snapshot: str | None,
    scratch: str | None,
    no_live: bool,
    metrics_file: str | None,
) -> int:
    """Prove that a recovery point can be brought back: restore some of it, or all, and compare.

    Run it where the passphrase is, now and then, by hand or by a timer. What was restored is held against
    what was stored, contents and metadata; where the volume is on this machine also against its own files,
    if nobody has written to them since. The scratch directory is removed. Exit status 13 means that
    something did not come back as it was; it is named.
    """
    session = Session.current()
    if everything and files:
        raise UsageError("choose what to restore", "--all and --files are both given", "give one of them")
    if at and snapshot:
        raise UsageError("choose a recovery point", "--at and --snapshot are both given", "give one of them")
    signal.signal(signal.SIGTERM, _interrupt)  # the scratch directory must go
    report: DrillReport | None = None
    try:
        report = _drill(session, files, everything, at, snapshot, scratch, no_live)
    finally:
        if metrics_file:
            _write_metrics(Path(metrics_file), report)
    _report(session, report)
    return 0 if report.is_ok else DamageError.exit_status


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _drill(
    session: Session,
    files: int | None,
    everything: bool,
    at: str | None,
    snapshot: str | None,
    scratch: str | None,
    no_live: bool,
) -> DrillReport:
    from smsnapd.engine.restore.drill import DrillRequest, run_drill
    from smsnapd.engine.restore.worklist import spool_directory

    place = Path(scratch).expanduser().absolute() if scratch else spool_directory()
    with session.repository(contents=True) as repository:
        history, found = (
            session.find_at(repository, at) if at else session.find(repository, snapshot or "latest")
        )
        live = None if no_live or found.volume != session.own_volume else _live_root(session)
        request = DrillRequest(None if everything else files or DEFAULT_FILES, place, live)
        with session.progress() as progress:
            return run_drill(repository, session.settings, history, found, request, progress)


def _live_root(session: Session) -> bytes | None:
    root = session.config.volume.path
    return os.fsencode(root) if root is not None and root.is_dir() else None


def _report(session: Session, report: DrillReport) -> None:
    if session.options.json:
        output.document({**_object(report), "requests": output.requests_object(session.requests)})
        return
    for item in report.differences:
        output.line(f"differs: {path_text(item.path)}: {', '.join(item.differs)}, from the {item.of}")
    for issue in report.restored.not_restored:
        output.line(f"not restored: {path_text(issue.path)}: {issue.reason}")
    if session.options.quiet:
        return
    for text in report.restored.notes:
        output.warn(f"note: {text}")
    for text in _sentences(report):
        output.line(text)


def _sentences(report: DrillReport) -> list[str]:
    snapshot, done = report.snapshot, report.restored
    bad = len(report.differences) + len(done.not_restored)
    return [
        f"{snapshot.kind} {snapshot.id} of {snapshot.volume}, {local_text(snapshot.time_us)[:19]}:"
        f" {report.age_s:,.0f} s old when the drill began",
        f"restored {'all' if report.is_all else 'a sample'}: {done.files:,} files, {size_text(done.bytes)},"
        f" {size_text(done.fetched_bytes)} fetched, in {report.restore_s:.1f} s",
        f"compared {report.compared:,} entries in {report.compare_s:.1f} s,"
        f" {report.compared_with_volume:,} of them with the volume's own:"
        f" {f'{bad:,} did not come back as they were' if bad else 'all came back as they were'}",
    ]


def _object(report: DrillReport) -> dict[str, Any]:
    done = report.restored
    return {
        "ok": report.is_ok,
        "scope": "all" if report.is_all else "sample",
        "snapshot": output.snapshot_object(report.snapshot),
        "age_s": round(report.age_s, 3),
        "restore_s": round(report.restore_s, 3),
        "compare_s": round(report.compare_s, 3),
        "entries": report.compared,
        "files": done.files,
        "bytes": done.bytes,
        "fetched_bytes": done.fetched_bytes,
        "compared_with_volume": report.compared_with_volume,
        "differences": [
            {"path": path_text(item.path), "differs": list(item.differs), "of": item.of}
            for item in report.differences
        ],
        "not_restored": output.issue_objects(done.not_restored),
        "notes": list(done.notes),
    }


def _write_metrics(path: Path, report: DrillReport | None) -> None:
    """None is a drill that did not come to its end."""
    from smsnapd.telemetry.metrics import Exporter, write_whole

    try:
        write_whole(path, Exporter(lambda: _families(report)).text())
    except OSError as error:
        raise TargetError(f"write the metrics to {path}", error.strerror or str(error)) from error


def _families(report: DrillReport | None) -> list[Family]:
    from smsnapd.telemetry.metrics import Family, Sample

    ended: list[tuple[str, str, float]] = [
        (
            "success",
            "Whether the last drill brought back all as it was.",
            float(bool(report and report.is_ok)),
        ),
        ("timestamp_seconds", "When the last drill ended.", time.time()),
    ]
    if report is not None:
        done = report.restored
        ended += [
            ("recovery_point_age_seconds", "How old the recovery point was.", report.age_s),
            ("restore_seconds", "How long the restore took.", report.restore_s),
            ("compare_seconds", "How long the comparison took.", report.compare_s),
            ("all", "Whether everything was restored, and not a sample.", float(report.is_all)),
            ("files", "Files that were restored.", done.files),
            ("bytes", "Bytes of these files.", done.bytes),
            ("fetched_bytes", "Bytes that were fetched for them.", done.fetched_bytes),
            ("differences", "Paths that did not come back as they were.",
             len(report.differences) + len(done.not_restored)),
        ]  # fmt: skip
    return [Family("gauge", f"smsnap_drill_{name}", text, (Sample(value),)) for name, text, value in ended]
