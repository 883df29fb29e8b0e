"""The kernel's limit on inotify watches, and raising it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

MAX_USER_WATCHES: Final = Path("/proc/sys/fs/inotify/max_user_watches")
_CEILING: Final = 2**22
"""A watch costs about 1 KiB of kernel memory, so there is an end to raising."""

log = logging.getLogger(__name__)


def watch_limit() -> int:
    """How many inotify watches a user may have, 0 if that is not to be read."""
    try:
        return int(MAX_USER_WATCHES.read_text())
    except (OSError, ValueError):
        return 0


def raise_watch_limit() -> bool:
    """Double the limit, for the whole machine until its next start; whether that was allowed.

    May be repeated until it says no: the system forbids it, or the limit is as high as is sensible.
    """
    now = watch_limit()
    wanted = min(max(now * 2, 8192), _CEILING)
    if wanted <= now:
        return False
    try:
        MAX_USER_WATCHES.write_text(f"{wanted}\n")
    except OSError as error:
        log.info("cannot raise fs.inotify.max_user_watches above %d: %s", now, error.strerror)
        return False
    log.info("raised fs.inotify.max_user_watches from %d to %d", now, wanted)
    return True
