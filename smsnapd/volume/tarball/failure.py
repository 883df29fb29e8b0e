"""What an `OSError` at the target means: the end of the restore, or a reason why one entry is missing."""

from __future__ import annotations

import errno
import os
from typing import Final

from smsnapd.errors import TargetError
from smsnapd.model import path_text

_AGAIN: Final = "then run the same command again: it goes on where it stopped"

_ABORTING: Final = {
    errno.ENOSPC: f"make room on the target's file system, {_AGAIN}",
    errno.EDQUOT: f"raise the quota or make room, {_AGAIN}",
    errno.EROFS: f"mount the target writable, {_AGAIN}",
    errno.EIO: "look at the kernel's log (dmesg) for what is wrong with the target's device",
    errno.ENODEV: "look whether the target is still mounted",
    errno.EMFILE: f"raise the limit of open files (ulimit -n), {_AGAIN}",
    errno.ENFILE: f"raise fs.file-max, {_AGAIN}",
    errno.ENOMEM: f"free some memory, {_AGAIN}",
}
"""Failures that every further entry would meet too, and what to do about them."""

_REASONS: Final = {
    errno.ENOENT: "its directory is not there",
    errno.ENOTDIR: "part of its path is not a directory",
    errno.ELOOP: "part of its path is a symbolic link",
    errno.EEXIST: "something of its name is there and is kept",
    errno.EISDIR: "a directory of its name is there and is kept",
    errno.ENOTEMPTY: "a directory of its name is there and is kept",
    errno.ENAMETOOLONG: "the target's file system does not take a name of this length",
}

PROBLEMS: Final = (OSError, OverflowError, ValueError)
"""What the calls of `os` raise for one entry; the last two for numbers and strings no kernel takes."""


class RefusedError(ValueError):
    """An entry that is not applied by a rule of ours; its text is the reason, for people."""


def reason_of(problem: Exception, path: bytes) -> str:
    """Why the entry at `path` is not restored, in plain words.

    Raises `TargetError` if no further entry could be restored either (full, read-only, broken).
    """
    if not isinstance(problem, OSError) or problem.errno is None:
        return str(problem)
    abort_if_hopeless(problem, path)
    return _REASONS.get(problem.errno) or os.strerror(problem.errno)


def abort_if_hopeless(problem: OSError, path: bytes) -> None:
    """Raise `TargetError` if `problem` is one that every further entry would meet."""
    hint = _ABORTING.get(problem.errno or 0)
    if hint is not None:
        raise TargetError(f"restore {path_text(path)}", os.strerror(problem.errno or 0), hint) from problem
