"""`smsnap find`: every version of the files whose names match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.entries import entry_object, long_text, tell_unread
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text, utc_text
from smsnapd.errors import UsageError
from smsnapd.model import path_bytes, path_text

if TYPE_CHECKING:
    from smsnapd.engine.lookback.versions import Version

EXAMPLES = """
smsnap find train.ipynb              wherever it lay
smsnap find '*.csv' --gone           those that are no more
smsnap find 'data/**/table-?.csv'    a pattern with / is a path from the root
smsnap find -i 'README*' --json
"""
REPORT = """
an array of {"path", "versions": [{"snapshot", "time", "gone": true or false,
 and unless gone "type", "mode": "0644", "uid", "gid", "size", "mtime", "mtime_ns",
 "links", "target"}]}, versions oldest first: what the path is from that recovery point on
"""


@verb("find", examples=EXAMPLES, report=REPORT)
@click.argument("pattern")
@click.option("-i", "--ignore-case", is_flag=True, help="Capital letters and small ones are the same.")
@click.option("--gone", is_flag=True, help="Only what is not in the newest recovery point.")
@repository_at
def find(pattern: str, ignore_case: bool, gone: bool) -> int:
    r"""Find files by name in all recovery points, with every version of them.

    PATTERN has `*`, `?` and `[…]`, which do not stand for `/`. Without a `/` it is held against names, with
    one against whole paths, where `**` is any number of directories. A version is shown with the first
    recovery point that has it; give that to `smsnap cat` or `restore --snapshot`. Of a directory a new
    time alone is no version. Exit status 1: nothing matches; 13: parts of the history
    cannot be read; 3: block images were left out.
    """
    from smsnapd.engine.lookback.pattern import pattern as compiled
    from smsnapd.engine.lookback.versions import read_versions
    from smsnapd.model import directory_key

    session = Session.current()
    if not pattern.strip("/"):
        raise UsageError("find by an empty pattern", "it names nothing", "smsnap find '*' lists everything")
    wanted = compiled(path_bytes(pattern), ignore_case=ignore_case)
    with session.repository(contents=False) as repository:
        history = session.history(repository)
        found, unread = read_versions(repository, history, wanted, session.judge(repository, history.volume))
    paths = sorted(found, key=lambda path: (directory_key(path.rpartition(b"/")[0]), path))
    chosen = [(path, found[path]) for path in paths if not gone or found[path][-1].entry is None]
    if session.options.json:
        output.array(_object(path, versions) for path, versions in chosen)
    else:
        for line in (line for path, versions in chosen for line in _lines(path, versions)):
            output.line(line)
    return tell_unread(unread, as_json=session.options.json) or (0 if chosen else 1)


def _object(path: bytes, versions: list[Version]) -> dict[str, Any]:
    return {"path": path_text(path), "versions": [_version(path, version) for version in versions]}


def _version(path: bytes, version: Version) -> dict[str, Any]:
    point, entry = version
    shape = {"snapshot": point.snapshot, "time": utc_text(point.time_us), "gone": entry is None}
    if entry is None:
        return shape
    described = entry_object(path, entry)
    del described["path"]
    return {**shape, **described}


def _lines(path: bytes, versions: list[Version]) -> Iterator[str]:
    for point, entry in versions:
        what = f"{'gone':>40} {path_text(path)}" if entry is None else long_text(path, entry)
        yield f"{point.snapshot}  {local_text(point.time_us)[:19]}  {what}"
