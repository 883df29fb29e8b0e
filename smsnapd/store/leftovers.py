"""What puts of a directory store left behind that died: temporary files, removed when they are old."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Final

from smsnapd.store.names import TEMPORARY

_is_leftover: Final = re.compile(r"[0-9a-f]{24}").fullmatch


def remove_leftovers(root: int, before_s: float) -> int:
    """Remove what crashed puts left in `tmp/`, if it is older than `before_s`; returns how many.

    Others may be able to write to the root: where they make `tmp` lead, and of names that no put makes,
    nothing is removed.
    """
    removed = 0
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(TEMPORARY, flags, dir_fd=root)
    except FileNotFoundError:  # nothing was ever stored
        return 0
    try:
        with os.scandir(descriptor) as entries:
            for entry in filter(lambda entry: _is_leftover(entry.name), entries):
                # Another process may clear the same leftovers at this moment.
                with contextlib.suppress(FileNotFoundError):
                    old = entry.stat(follow_symlinks=False).st_mtime < before_s
                    if old and entry.is_file(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=descriptor)
                        removed += 1
    finally:
        os.close(descriptor)
    return removed
