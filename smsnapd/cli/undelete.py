"""`smsnap undelete`: what was lost lately, and back beside the original."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.entries import INCOMPLETE, tell_unread
from smsnapd.cli.options import verb
from smsnapd.cli.paths import volume_path
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text, utc_text
from smsnapd.daemon import protection
from smsnapd.errors import DamageError, SmsnapError, UsageError
from smsnapd.model import Kind, path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import Damaged, History
    from smsnapd.engine.lookback.lost import Lost
    from smsnapd.engine.lookback.undelete import Undeleted, Wish
    from smsnapd.format.names import ManifestName
    from smsnapd.repository import Repository
EXAMPLES = """
smsnap undelete                              what was lost in the last day
smsnap undelete --since "1 week ago"
smsnap undelete notebooks/train.ipynb        back to its place, or beside what is there
smsnap undelete --at "2h ago" data           as it was then
"""
REPORT = """
without PATH {"since": {"snapshot", "time"}, "lost": [{"path", "type", "entries", "bytes",
 "last": {"snapshot", "time"}, "gone": {"snapshot", "time"} or null}]}, the latest loss first:
"last" has it still, "gone" no more; null if it went after the newest recovery point
with PATH {"restored": [{"path", "as", "snapshot", "time"}], "not_restored": [{"path",
 "reason"}], "notes": [text]}, and with --dry-run without "as"
"""


@verb("undelete", examples=EXAMPLES, report=REPORT)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--since", metavar="TIME", help="How far to look back.  [default: 1 day ago; for PATH: all]")
@click.option("--at", metavar="TIME", help="Bring back what the last recovery point at or before TIME has.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be brought back.")
def undelete(paths: tuple[str, ...], since: str | None, at: str | None, dry_run: bool) -> int:
    """Show what the volume has lost lately; with PATH, bring it back.

    What is gone comes back to its own place. Where there is something, the newest version that differs from
    it comes back beside it, as NAME.restored-TIME; nothing is ever overwritten. Of a directory that is there,
    what is missing in it comes back. Exit status 1: nothing of that name was lost.
    """
    session = Session.current()
    if at and not paths:
        raise UsageError("undelete as of a time", "no PATH is given", "name what to bring back")
    if at and since:
        raise UsageError("choose a version", "--at and --since are both given", "give one of them")
    if not paths:
        return _show(session, since or "1 day ago")
    with session.repository(contents=True) as repository:
        history = session.history(repository)
        wishes, unread = _wishes(session, repository, history, paths, since, at)
        back = None if dry_run else _bring_back(session, repository, history, wishes)
    _report(session, wishes, back)
    return _status(session, unread, back)


def _point(session: Session, history: History, text: str | None) -> ManifestName | None:
    """The recovery point at or before a time, the first if all are later; None if no time is given."""
    if text is None or not history.names:
        return None
    moment = session.moment(text)
    return next((name for name in reversed(history.names) if name.time_us <= moment), history.names[0])


# --- what was lost


def _show(session: Session, since: str) -> int:
    from smsnapd.engine.lookback.lost import lost_since

    with session.repository(contents=False) as repository, closing(session.live_volume()) as live:
        history = session.history(repository)
        start = _point(session, history, since)
        assert start is not None  # a volume that is there has a recovery point
        lost, unread = lost_since(repository, history, start, live)
    if session.options.json:
        output.document({"since": _point_object(start), "lost": [_lost_object(item) for item in lost]})
    else:
        for item in lost:
            output.line(_lost_line(item))
        if not session.options.quiet:
            total = sum(item.entries for item in lost)
            output.warn(
                f"{total:,} lost since {local_text(start.time_us)[:19]}; bring back: smsnap undelete PATH"
            )
    return _status(session, unread, None)


def _point_object(point: ManifestName) -> dict[str, Any]:
    return {"snapshot": point.snapshot, "time": utc_text(point.time_us)}


def _lost_object(item: Lost) -> dict[str, Any]:
    return {
        "path": path_text(item.path),
        "type": Kind(item.entry.kind).name.lower(),
        "entries": item.entries,
        "bytes": item.bytes,
        "last": _point_object(item.point),
        "gone": None if item.gone is None else _point_object(item.gone),
    }


def _lost_line(item: Lost) -> str:
    when = "since the newest   " if item.gone is None else local_text(item.gone.time_us)[:19]
    count = f"  ({item.entries:,} entries)" if item.entries > 1 else ""
    return f"{when}  {size_text(item.bytes):>9}  {path_text(item.path)}{count}"


# --- bringing it back


def _wishes(
    session: Session,
    repository: Repository,
    history: History,
    paths: tuple[str, ...],
    since: str | None,
    at: str | None,
) -> tuple[list[Wish], list[Damaged]]:
    from smsnapd.engine.lookback.lost import wanted_back
    from smsnapd.engine.lookback.undelete import Wish
    from smsnapd.engine.trees.reading import Contents

    wanted = [volume_path(path, session.config.volume.path) for path in paths]
    if b"" in wanted:
        raise UsageError("undelete the whole volume", "it is too much at once", "restore it: smsnap restore")
    if at:
        found = history.at(session.moment(at))
        point = next(name for name in history.names if name.snapshot == found.id)
        return [Wish(path, point) for path in wanted], []
    contents = Contents(repository, history.volume)
    wishes: list[Wish] = []
    unread: list[Damaged] = []
    with closing(session.live_volume()) as live:
        for path in wanted:
            lost, unread = wanted_back(
                repository, history, live, contents, path, _point(session, history, since)
            )
            if not lost and not unread:
                hint = "`smsnap find` searches all recovery points by name"
                raise SmsnapError(
                    f"undelete {path_text(path)}", "nothing of this name was lost or changed", hint
                )
            wishes += [Wish(item.path, item.point) for item in lost]
    return wishes, unread


def _bring_back(session: Session, repository: Repository, history: History, wishes: list[Wish]) -> Undeleted:
    from smsnapd.engine.lookback.undelete import bring_back

    root = os.fsencode(protection.volume_root(session.config))
    with session.progress() as progress:
        return bring_back(repository, session.settings, history, root, session.state_dir, wishes, progress)


def _report(session: Session, wishes: list[Wish], back: Undeleted | None) -> None:
    places = {item.wish: item.place for item in back.back} if back else {}
    done = [wish for wish in wishes if back is None or wish in places]
    if session.options.json:
        output.document(
            {
                "restored": [_wish_object(wish, places.get(wish)) for wish in done],
                "not_restored": output.issue_objects(back.not_restored if back else ()),
                "notes": list(back.notes) if back else [],
            }
        )
        return
    for wish in done:
        place = places.get(wish, wish.path)
        name = "" if place == wish.path else f" as {path_text(place)}"
        did = "would bring back" if back is None else "brought back"
        output.line(f"{did} {path_text(wish.path)} of {local_text(wish.point.time_us)[:19]}{name}")
    for issue in back.not_restored if back else ():
        output.warn(f"not restored: {path_text(issue.path)}: {issue.reason}")
    for text in back.notes if back and not session.options.quiet else ():
        output.warn(f"note: {text}")


def _wish_object(wish: Wish, place: bytes | None) -> dict[str, Any]:
    shape = {"path": path_text(wish.path), **_point_object(wish.point)}
    return shape if place is None else {**shape, "as": path_text(place)}


def _status(session: Session, unread: list[Damaged], back: Undeleted | None) -> int:
    status = tell_unread(unread, as_json=session.options.json)
    if back and back.damaged:
        return DamageError.exit_status
    return status or (INCOMPLETE if back and back.not_restored else 0)
