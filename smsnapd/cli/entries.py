"""Entries as `ls`, `find` and their like show them, to people and to programs."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smsnapd.cli import output
from smsnapd.cli.times import local_text, utc_text
from smsnapd.errors import DamageError
from smsnapd.model import FORMATS, Entry, Kind, path_text

if TYPE_CHECKING:
    from smsnapd.engine.history import Damaged

INCOMPLETE = 3


def long_text(path: bytes, entry: Entry) -> str:
    """One line as `ls -l` has it: mode, names, owner, size, time, path."""
    mode = stat.filemode(FORMATS[Kind(entry.kind)] | entry.mode)
    when = local_text(entry.mtime_ns // 1000)[:16]
    size = f"{entry.rdev >> 32}, {entry.rdev & 0xFFFFFFFF}" if _is_device(entry) else str(entry.size)
    arrow = f" -> {path_text(entry.target)}" if entry.kind == Kind.SYMLINK else ""
    return f"{mode} {entry.links:>3} {entry.uid:>5} {entry.gid:>5} {size:>12} {when} {path_text(path)}{arrow}"


def _is_device(entry: Entry) -> bool:
    return entry.kind in (Kind.CHARACTER, Kind.BLOCK)


def entry_object(path: bytes, entry: Entry) -> dict[str, Any]:
    """An entry as programs see it."""
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


def tell_unread(unread: Sequence[Damaged], *, as_json: bool) -> int:
    """Say on standard error which recovery points were not searched, the first with why; the exit status.

    13 if that is damage, 3 if only images were left out, which nobody has mounted.
    """
    if unread:
        output.complain(unread[0].error, as_json=as_json)
    if len(unread) > 1:
        output.warn(f"{len(unread)} recovery points could not be searched; `smsnap check` names them")
    if any(isinstance(item.error, DamageError) for item in unread):
        return DamageError.exit_status
    return INCOMPLETE if unread else 0
