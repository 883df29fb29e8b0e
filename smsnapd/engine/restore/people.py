"""Between what a restore found and what people say: users by name, and notes in sentences."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterable

from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import UsageError
from smsnapd.model import path_text
from smsnapd.volume.tarball.apply import Notes


def sentences(notes: Notes) -> Iterable[str]:
    """What could not be kept, for people."""
    if notes.owners_not_set:
        yield (
            f"{notes.owners_not_set} entries belong to you and not to their owners, for instance "
            f"{path_text(notes.owner_example)}: run the restore as root to keep owners"
        )
    if notes.xattrs_not_set:
        yield (
            f"{notes.xattrs_not_set} extended attributes could not be set, for instance on "
            f"{path_text(notes.xattr_example)}"
        )
    if notes.modes_reduced:
        yield (
            f"{notes.modes_reduced} entries lack their set-user or set-group bit, for instance "
            f"{path_text(notes.mode_example)}"
        )


def user_ids(pairs: Iterable[tuple[str, str]], tree: SnapshotTree) -> tuple[tuple[int, int], ...]:
    """`--map-user` pairs as numbers: OLD as the snapshot's machine named it, NEW as this one does."""
    users, _ = tree.owners()
    old_ids = {name: uid for uid, name in users.items()}
    return tuple((_user_id(old, old_ids.get), _user_id(new, _local_user)) for old, new in pairs)


def _local_user(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _user_id(text: str, by_name: Callable[[str], int | None]) -> int:
    if text.isdecimal():
        return int(text)
    found = by_name(text)
    if found is None:
        raise UsageError(f"map the user {text}", "nobody has this name", "give the number")
    return found
