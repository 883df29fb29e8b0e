"""`smsnap ls` and `smsnap cat`: look into a snapshot without restoring it."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.paths import volume_path
from smsnapd.cli.session import Session
from smsnapd.cli.times import local_text, utc_text
from smsnapd.model import Entry, Kind, path_text

_FORMATS = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
LS_EXAMPLES = """
smsnap ls latest
smsnap ls -l 3f9a experiments
smsnap ls -R "@yesterday 14:00" notebooks
"""
LS_REPORT = """
an array of {"path", "type", "mode": "0644", "uid", "gid", "size", "mtime",
 "mtime_ns", "links", "target"}; target is null but for symbolic links
"""
CAT_EXAMPLES = """
smsnap cat latest notebooks/train.ipynb
smsnap cat "@2h ago" data/table.csv > table-before.csv
"""


@verb("ls", examples=LS_EXAMPLES, report=LS_REPORT)
@click.argument("snapshot")
@click.argument("path", default="")
@click.option("-l", "long", is_flag=True, help="Mode, owner, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="What lies below, too.")
@repository_at
def ls(snapshot: str, path: str, long: bool, recursive: bool) -> int:
    r"""List what a snapshot holds: a directory's entries, or one path.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. PATH is relative to the volume's root. Bytes that are not UTF-8 are shown as \xNN, and
    may be given so.
    """
    from smsnapd.engine.browse import list_entries

    session = Session.current()
    wanted = volume_path(path, session.config.volume.path)
    with session.repository(contents=False) as repository:
        history, found = session.find(repository, snapshot)
        entries = list_entries(repository, history, found, wanted, recursive)
        if session.options.json:
            output.array(_entry_object(path, entry) for path, entry in entries)
        else:
            _print(entries, long)
    return 0


def _print(entries: Iterable[tuple[bytes, Entry]], long: bool) -> None:
    for path, entry in entries:
        output.line(_long_line(path, entry) if long else path_text(path))


def _long_line(path: bytes, entry: Entry) -> str:
    mode = stat.filemode(_FORMATS[Kind(entry.kind)] | entry.mode)
    when = local_text(entry.mtime_ns // 1000)[:16]
    size = f"{entry.rdev >> 32}, {entry.rdev & 0xFFFFFFFF}" if _is_device(entry) else str(entry.size)
    arrow = f" -> {path_text(entry.target)}" if entry.kind == Kind.SYMLINK else ""
    return f"{mode} {entry.links:>3} {entry.uid:>5} {entry.gid:>5} {size:>12} {when} {path_text(path)}{arrow}"


def _is_device(entry: Entry) -> bool:
    return entry.kind in (Kind.CHARACTER, Kind.BLOCK)


def _entry_object(path: bytes, entry: Entry) -> dict[str, Any]:
    return {
        "path": path_text(path),
        "type": Kind(entry.kind).name.lower(),
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": utc_text(entry.mtime_ns // 1000),
        "mtime_ns": entry.mtime_ns,
        "links": entry.links,
        "target": path_text(entry.target) if entry.kind == Kind.SYMLINK else None,
    }


@verb("cat", examples=CAT_EXAMPLES)
@click.argument("snapshot")
@click.argument("path")
@repository_at
def cat(snapshot: str, path: str) -> int:
    """Write a file of a snapshot to standard output.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. PATH is relative to the volume's root.
    """
    from smsnapd.engine.browse import open_file

    session = Session.current()
    wanted = volume_path(path, session.config.volume.path)
    with session.repository(contents=True) as repository:
        history, found = session.find(repository, snapshot)
        for piece in open_file(repository, history, found, wanted):
            output.data(piece)
        output.flush()
    return 0
