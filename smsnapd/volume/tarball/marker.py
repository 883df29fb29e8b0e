"""The mark on a target that a restore is under way there, so that the same restore can go on later."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

import msgspec

from smsnapd.errors import TargetError
from smsnapd.model import path_text

MARKER: Final = b".smsnap-restore"
"""The file at the target's root that holds a `Mark`, as JSON."""

PARTIAL: Final = b".smsnap-partial-"
"""Names of what is not complete yet begin so, in every directory."""

STAGING: Final = b".smsnap-undelete-"
"""Directories in which lost files are made ready begin so."""

LOST_AND_FOUND: Final = b"lost+found"

_LIMIT: Final = 65_536
_TEMPORARY: Final = PARTIAL + b"marker"
_OPEN_ROOT: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HINTS: Final = {
    errno.EACCES: "choose a target that you may write to, or run this as root",
    errno.EPERM: "choose a target that you may write to, or run this as root",
    errno.EROFS: "mount the target writable",
    errno.ENOTDIR: "give a directory, or a path that does not exist yet",
    errno.ENOSPC: "make room on the target's file system",
    errno.EDQUOT: "raise the quota or make room",
}


class Mark(msgspec.Struct, frozen=True):
    """Which restore this is: the snapshot, a digest of what was selected, and how it overwrites."""

    snapshot: str
    selection: str
    overwrite: str
    format: int = 1


def begin_restore(root: bytes, snapshot: str, selection: str = "", overwrite: str = "") -> str:
    """Prepare `root` as a target and mark it; returns the value for `ApplyOptions.overwrite`.

    A missing directory is made (0700), with its parents. `selection` is any text that differs between
    restores of different parts. `overwrite` is what the person asked for, or "" if nothing. Returns
    "fresh" if the target is empty but for lost+found, "resume" if this restore was begun there in an
    empty target, else `overwrite`. Raises `TargetError` if the target is not empty and nothing was asked
    for, if another restore was begun there, or if it cannot be used. May be repeated.
    """
    try:
        root_fd = _open_root(root)
    except OSError as error:
        raise _unusable(root, error) from error
    try:
        return _begin(root_fd, root, Mark(snapshot, selection, overwrite))
    except OSError as error:
        raise _unusable(root, error) from error
    finally:
        os.close(root_fd)


def foresee_restore(root: bytes, snapshot: str, selection: str = "", overwrite: str = "") -> str:
    """What `begin_restore` would return or raise. Makes and marks nothing; a missing directory is "fresh"."""
    try:
        root_fd = os.open(root, _OPEN_ROOT)
    except FileNotFoundError:
        return "fresh"
    except OSError as error:
        raise _unusable(root, error) from error
    try:
        return _decide(root_fd, root, Mark(snapshot, selection, overwrite))[0]
    except OSError as error:
        raise _unusable(root, error) from error
    finally:
        os.close(root_fd)


def finish_restore(root: bytes) -> None:
    """Remove the mark: everything is there and durable. May be repeated. Raises `TargetError`."""
    try:
        root_fd = os.open(root, _OPEN_ROOT)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARKER, dir_fd=root_fd)
            os.fsync(root_fd)
        finally:
            os.close(root_fd)
    except OSError as error:
        raise _unusable(root, error) from error


def check_marked(root_fd: int, root: bytes) -> None:
    """Raise `TargetError` unless the directory that is open is the one that `begin_restore` has marked.

    Who may write to what it lies in can put another directory, or a link, in its place meanwhile.
    """
    try:
        ours = os.stat(MARKER, dir_fd=root_fd, follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:
        ours = False
    if not ours:
        why = "somebody has put another directory in its place"
        raise TargetError(f"restore to {path_text(root)}", why, "choose a target that nobody else can move")


def _open_root(root: bytes) -> int:
    with contextlib.suppress(FileExistsError):
        os.makedirs(root, 0o700)
    return os.open(root, _OPEN_ROOT)


def _begin(root_fd: int, root: bytes, asked: Mark) -> str:
    overwrite, begun = _decide(root_fd, root, asked)
    if not begun:
        _write(root_fd, Mark(asked.snapshot, asked.selection, overwrite))
    return overwrite


def _decide(root_fd: int, root: bytes, asked: Mark) -> tuple[str, bool]:
    """How to restore there, and whether this restore was begun before."""
    names = {os.fsencode(name) for name in os.listdir(root_fd)}
    if MARKER in names:
        return _resume(_read(root_fd, root), root, asked), True
    if all(name == LOST_AND_FOUND or name.startswith(PARTIAL) for name in names):
        return "fresh", False
    if asked.overwrite:
        return asked.overwrite, False
    raise TargetError(
        f"restore to {path_text(root)}",
        "it is not empty",
        "give an empty or new directory, or say what may happen to files that are there: "
        "--overwrite never, if-changed or always",
    )


def _resume(found: Mark, root: bytes, asked: Mark) -> str:
    """How to go on with the restore that was begun, which is this one."""
    what = f"restore to {path_text(root)}"
    give_up = f"or remove {path_text(MARKER)} there to give that one up"
    if found.snapshot != asked.snapshot:
        raise TargetError(
            what,
            f"a restore of snapshot {found.snapshot} was begun there and not finished",
            f"finish it with --snapshot {found.snapshot}, {give_up}",
        )
    if found.selection != asked.selection:
        raise TargetError(
            what,
            "a restore of other paths was begun there and not finished",
            f"give the same paths, {give_up}",
        )
    if found.overwrite == "fresh":
        # All that is there came from this restore, or later than its beginning.
        return "always" if asked.overwrite == "always" else "resume"
    if asked.overwrite not in ("", found.overwrite):
        raise TargetError(
            what,
            f"this restore was begun there with --overwrite {found.overwrite} and not finished",
            f"give the same again, {give_up}",
        )
    return found.overwrite


def _read(root_fd: int, root: bytes) -> Mark:
    fd = os.open(MARKER, _READ, dir_fd=root_fd)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise TargetError(
                f"go on with the restore to {path_text(root)}",
                f"its mark {path_text(MARKER)} was made by another user",
                "go on as that user, or remove it and say with --overwrite what may happen to files there",
            )
        return msgspec.json.decode(os.read(fd, _LIMIT), type=Mark)
    except msgspec.MsgspecError as error:
        raise TargetError(
            f"go on with the restore to {path_text(root)}",
            f"its mark {path_text(MARKER)} cannot be understood: {error}",
            "remove it, and say with --overwrite what may happen to files that are there",
        ) from error
    finally:
        os.close(fd)


def _write(root_fd: int, mark: Mark) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_TEMPORARY, dir_fd=root_fd)
    fd = os.open(_TEMPORARY, _CREATE, 0o600, dir_fd=root_fd)
    try:
        os.write(fd, msgspec.json.encode(mark))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(_TEMPORARY, MARKER, src_dir_fd=root_fd, dst_dir_fd=root_fd)
    os.fsync(root_fd)


def _unusable(root: bytes, error: OSError) -> TargetError:
    hint = _HINTS.get(error.errno or 0, "choose another target")
    return TargetError(f"restore to {path_text(root)}", os.strerror(error.errno or 0), hint)
