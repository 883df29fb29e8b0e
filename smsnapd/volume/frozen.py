"""Holding the volume's file system frozen for a moment: complete on its device, and every writer waits.

FIFREEZE (ioctl_fs(2)) writes back what is dirty, empties the journal and lets nobody write until the thaw. A
guardian thaws it if this process is killed, hangs or takes too long.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume import guardian
from smsnapd.volume.guard import Guard, Undoing, guarded, is_root_file_system
from smsnapd.volume.mounts import Mount

LIMIT_S: Final = 60.0
SILENCE_S: Final = 10.0
"""How long a freeze may last, and how long its holder may say nothing."""

_OTHERWISE: Final = 'set consistency = "read-only" or "live"'
_HINTS: Final = {
    errno.EBUSY: "somebody else has frozen it: wait, or run fsfreeze -u",
    errno.EPERM: f"run as root, or {_OTHERWISE}",
    errno.EOPNOTSUPP: f"this file system cannot be frozen: {_OTHERWISE}",
    errno.ENOTTY: f"this file system cannot be frozen: {_OTHERWISE}",
}


@contextlib.contextmanager
def held_frozen(mount: Mount, *, limit_s: float = LIMIT_S, silence_s: float = SILENCE_S) -> Iterator[Guard]:
    """Freeze a mounted file system while the context lasts.

    The guard's `beat` is to be called at least every `silence_s` seconds; after those, and after `limit_s`,
    it is thawed whatever is going on. Whoever writes to the volume inside, even a line to a log, waits for
    the thaw. Raises `VolumeError`: it is the root file system, it cannot be frozen, this process may not; and
    at the context's end, if it did not stay frozen until then. Needs CAP_SYS_ADMIN.
    """
    what = f"freeze {os.fsdecode(mount.mount_point)}"
    check_may_freeze(mount)
    with guarded(mount, Undoing(guardian.THAW, limit_s, silence_s), what) as guard, _no_bytecode():
        _freeze(mount, guard, what)
        yield guard
        if not guard.undo():
            why = f"it was thawed before the end: the limit is {limit_s:g} seconds"
            hint = 'run it when less is written to the volume, or set consistency = "live"'
            raise VolumeError(f"keep {os.fsdecode(mount.mount_point)} frozen", why, hint)


def _freeze(mount: Mount, guard: Guard, what: str) -> None:
    descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        guard.beat()
        guard.began_s = time.monotonic()
        fcntl.ioctl(descriptor, guardian.FIFREEZE, 0)
        guard.beat()
    except OSError as error:
        guard.is_over = True  # whose freeze it may be is not ours to thaw
        raise VolumeError(what, error.strerror or str(error), _HINTS.get(error.errno or 0, "")) from error
    finally:
        os.close(descriptor)


def check_may_freeze(mount: Mount) -> None:
    """`VolumeError` for the root file system: with that nothing would go on, not even a thaw."""
    if is_root_file_system(mount):
        point = os.fsdecode(mount.mount_point)
        raise VolumeError(f"freeze {point}", "it is the root file system", 'set consistency = "live"')


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Let no import write its byte code: this program may lie on the volume, and would wait for itself."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
