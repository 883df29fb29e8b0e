"""What differs between two states of one path: the one judgement of `diff`, `find` and `undelete`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smsnapd.engine.trees.placed import Placed, same_places
from smsnapd.model import Entry, Flag, Kind

_REGULAR: Final = int(Kind.REGULAR)
_SYMLINK: Final = int(Kind.SYMLINK)
_NOT_SURE: Final = int(Flag.UNSETTLED | Flag.CHANGED)
_SPARSE: Final = int(Flag.SPARSE)

TYPE: Final = "type"
CONTENT: Final = "content"

Judge = Callable[[Placed, Placed], bool]
"""Whether two files of one size, whose places and times do not tell, have the same bytes."""


def differences(before: Placed, after: Placed, have_same_bytes: Judge) -> tuple[str, ...]:
    """Which of type, mode, owner, mtime, target, device, xattrs, content and holes differ.

    Neither may be an alias (`placed.Names`). What became another kind differs by its type alone. A time that
    no restore brings back, ctime, is no difference, nor is the number of names anywhere.
    """
    one, two = before.entry, after.entry
    if one.kind != two.kind:
        return (TYPE,)
    pairs = (
        ("mode", one.mode if one.kind != _SYMLINK else 0, two.mode if one.kind != _SYMLINK else 0),
        ("owner", (one.uid, one.gid), (two.uid, two.gid)),
        ("mtime", one.mtime_ns, two.mtime_ns),
        ("target", one.target, two.target),
        ("device", one.rdev, two.rdev),
        ("xattrs", one.xattrs, two.xattrs),
    )
    found = [name for name, first, second in pairs if first != second]
    if one.kind == _REGULAR:
        found += _of_content(before, after, have_same_bytes)
    return tuple(found)


def _of_content(before: Placed, after: Placed, have_same_bytes: Judge) -> list[str]:
    one, two = before.entry, after.entry
    if one.size != two.size:
        return [CONTENT]
    is_moved = _segments(one) != _segments(two)
    if is_untouched(one, two) or (not is_moved and same_places(before, after)):
        return []
    if not have_same_bytes(before, after):
        return [CONTENT]
    return ["holes"] if is_moved else []


def is_untouched(one: Entry, two: Entry) -> bool:
    """Whether nobody has written to the inode between the two, though it may have been stored anew."""
    return (
        one.ctime_ns == two.ctime_ns
        and one.inode == two.inode
        and one.mtime_ns == two.mtime_ns
        and one.size == two.size
        and not one.flags & _NOT_SURE
    )


def _segments(entry: Entry) -> object:
    return entry.segments if entry.flags & _SPARSE else None
