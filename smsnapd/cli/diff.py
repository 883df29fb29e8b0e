"""`smsnap diff`: what differs between two recovery points, or one and the volume as it is now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text
from smsnapd.errors import UsageError
from smsnapd.model import Kind, path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.engine.lookback.diff import Change
    from smsnapd.engine.lookback.live import LiveVolume
    from smsnapd.engine.trees.placed import Placed
    from smsnapd.repository import Repository

INCOMPLETE = 3
EXAMPLES = """
smsnap diff latest                     what changed on the volume since then
smsnap diff @yesterday latest
smsnap diff 3f9a 77c2 --json | jq .summary
"""
REPORT = """
{"before", "after": as `smsnap snapshots` has them, "after" null for the volume as it is,
 "changes": [{"path", "change": "added", "removed" or "changed", "type", "bytes_before",
 "bytes_after", "differs": [word], "unsure": true or false}],
 "summary": {"added", "removed", "changed", "bytes_added", "bytes_removed", "bytes_before",
 "bytes_after", "unsure"}, "unreadable": [{"path", "reason"}]}
the words are type, mode, owner, mtime, target, device, xattrs, content, holes, links (it
has other names than it had). "bytes_added" and "bytes_removed" are those of files that came
and went, "bytes_before" and "bytes_after" of those that changed. "unsure": the file was
stored anew with the same size, and its contents cannot be compared without the passphrase;
it is told as "content"
"""
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


@dataclass
class _Sum:
    """What the changes come to."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SIGNS, 0))
    sizes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("bytes_added", "bytes_removed", "bytes_before", "bytes_after"), 0
        )
    )
    unsure: set[bytes] = field(default_factory=set)

    def add(self, change: Change) -> None:
        """Count one."""
        self.counts[change.kind] += 1
        came, went = {
            "added": ("bytes_added", "bytes_removed"),
            "removed": ("bytes_added", "bytes_removed"),
            "changed": ("bytes_after", "bytes_before"),
        }[change.kind]
        self.sizes[came] += change.bytes_after
        self.sizes[went] += change.bytes_before

    def members(self) -> dict[str, Any]:
        """As programs see it."""
        return {**self.counts, **self.sizes, "unsure": len(self.unsure)}


@verb("diff", examples=EXAMPLES, report=REPORT)
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", default="")
@repository_at
def diff(before: str, after: str) -> int:
    """Show what was added, removed and changed from recovery point A to B, or to the volume as it is now.

    A and B are ids, unique prefixes of them, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's volume.
    Everything that a restore brings back is compared. Of the volume only what somebody has written to since
    A is read. Exit status 3 means that something on it could not be looked at; it is named.
    """
    session = Session.current()
    with session.repository(contents=False) as repository, ExitStack() as stack:
        history, one = session.find(repository, before)
        two = None
        if after:
            history, two = session.find(repository, after)  # this listing is the newer one
        if two is not None and two.volume != one.volume:
            raise UsageError(f"compare {before} and {after}", "they are of two volumes", "name two of one")
        live = None if two is not None else session.live_volume()
        if live is not None:
            stack.callback(live.close)
        total = _Sum()
        changes = _changes(session, repository, history, one, two, live, total)
        _report(session, one, two, changes, total, live)
    return INCOMPLETE if live is not None and live.report.unreadable else 0


def _changes(
    session: Session,
    repository: Repository,
    history: History,
    before: SnapshotSummary,
    after: SnapshotSummary | None,
    live: LiveVolume | None,
    total: _Sum,
) -> Iterator[Change]:
    from smsnapd.engine.lookback.diff import diff as compared
    from smsnapd.engine.lookback.diff import pairs
    from smsnapd.engine.trees.placed import placed_tree
    from smsnapd.engine.trees.reading import Contents
    from smsnapd.engine.trees.tree import SnapshotTree

    contents = None if repository.identity is None else Contents(repository, history.volume)

    def have_same_bytes(path: bytes, one: Placed, other: Placed) -> bool:
        if contents is None:
            total.unsure.add(path)
            return False
        if other.content is None and live is not None:
            return live.have_same_bytes(contents, path, one)
        return contents.have_same_bytes(one, other)

    tree = SnapshotTree(repository, history.chain(before.id))
    stored = placed_tree(tree)
    if live is not None:
        merged = live.pairs(stored, {issue.path for issue in tree.newest.completeness.skipped})
    else:
        assert after is not None
        merged = pairs(stored, placed_tree(SnapshotTree(repository, history.chain(after.id))))
    for change in compared(merged, have_same_bytes):
        total.add(change)
        yield change


def _report(
    session: Session,
    before: SnapshotSummary,
    after: SnapshotSummary | None,
    changes: Iterable[Change],
    total: _Sum,
    live: LiveVolume | None,
) -> None:
    if session.options.json:
        output.document_around(
            {
                "before": output.snapshot_object(before),
                "after": None if after is None else output.snapshot_object(after),
            },
            "changes",
            (_object(change, total) for change in changes),
            lambda: {"summary": total.members(), "unreadable": _unreadable(live)},
        )
        return
    for change in changes:
        output.line(_text(change, change.path in total.unsure))
    for row in _unreadable(live):
        output.warn(f"could not look at {row['path']}: {row['reason']}")
    if not session.options.quiet:
        where = "the volume" if after is None else f"{after.id}, {local_text(after.time_us)[:19]}"
        output.warn(f"from {before.id}, {local_text(before.time_us)[:19]}, to {where}: {_sum_text(total)}")
        if total.unsure:
            output.warn(f"{len(total.unsure):,} with ? may have the same contents: the passphrase opens them")


def _unreadable(live: LiveVolume | None) -> list[dict[str, str]]:
    found = live.report.unreadable if live is not None else []
    return [{"path": path_text(path), "reason": reason} for path, reason in found]


def _object(change: Change, total: _Sum) -> dict[str, Any]:
    there = change.after or change.before
    assert there is not None
    return {
        "path": path_text(change.path),
        "change": change.kind,
        "type": Kind(there.entry.kind).name.lower(),
        "bytes_before": change.bytes_before,
        "bytes_after": change.bytes_after,
        "differs": list(change.differs),
        "unsure": change.path in total.unsure,
    }


def _text(change: Change, unsure: bool) -> str:
    words = ", ".join(change.differs) + ("?" if unsure else "")
    sizes = " → ".join(dict.fromkeys(map(size_text, _sizes(change))))
    detail = "  ".join(filter(None, (sizes, words)))
    return f"{_SIGNS[change.kind]} {path_text(change.path)}" + (f"  {detail}" if detail else "")


def _sizes(change: Change) -> list[int]:
    states = [placed for placed in (change.before, change.after) if placed is not None]
    regular = any(placed.entry.kind == Kind.REGULAR for placed in states)
    before = [change.bytes_before] if change.before is not None else []
    return [*before, *([change.bytes_after] if change.after is not None else [])] if regular else []


def _sum_text(total: _Sum) -> str:
    counts, sizes = total.counts, total.sizes
    return (
        f"{counts['added']:,} added ({size_text(sizes['bytes_added'])}),"
        f" {counts['removed']:,} removed ({size_text(sizes['bytes_removed'])}),"
        f" {counts['changed']:,} changed ({size_text(sizes['bytes_before'])}"
        f" → {size_text(sizes['bytes_after'])})"
    )
