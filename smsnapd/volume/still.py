"""Holding the volume's file system read-only for a while, and making it writable again whatever happens.

A guardian process, started before the remount, undoes it if this process is killed, hangs or takes too long.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume import guardian
from smsnapd.volume.guard import Undoing, guarded, is_root_file_system
from smsnapd.volume.mounts import Mount, find_mount

_FLAGS: Final = {
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "sync": 0x10,
    "mand": 0x40,
    "nosymfollow": 0x100,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x200000,
    "lazytime": 0x2000000,
}
"""Options as mountinfo shows them, and their flags of mount(2): a remount drops those it is not given."""
_STRICTATIME: Final = 0x1000000
"""What holds when neither noatime nor relatime is shown."""
_HINTS: Final = {
    errno.EBUSY: "files on it are open for writing: stop what writes, or use consistency=live",
    errno.EPERM: "run as root, or use consistency=live",
    errno.EACCES: "run as root, or use consistency=live",
}


@contextlib.contextmanager
def held_read_only(path: bytes, limit_s: float = 900.0) -> Iterator[Mount]:
    """Remount the file system that carries `path` read-only while the context lasts; gives its mount.

    That is the mount whose root `path` is, or else the one that `path` lies on. Nothing is done if it is
    read-only already. After `limit_s` seconds it is made writable whatever is going on. Raises `VolumeError`:
    it is the root file system, files on it are open for writing, this process may not; and, at the
    context's end, if the file system did not stay read-only until then. Needs CAP_SYS_ADMIN.
    """
    mount = find_mount(path)
    if "ro" in mount.super_options:
        yield mount
        return
    what = f"make {os.fsdecode(mount.mount_point)} read-only"
    if is_root_file_system(mount):
        raise VolumeError(what, "it is the root file system", "use consistency=live, or a volume of its own")
    flags = _preserved_flags(mount)
    with guarded(mount, Undoing(str(flags), limit_s), what):
        try:
            guardian.remount(mount.mount_point, flags | guardian.MS_RDONLY)
        except OSError as error:
            raise VolumeError(what, error.strerror or str(error), _HINTS.get(error.errno or 0, "")) from error
        yield mount
        if "ro" not in find_mount(mount.mount_point).super_options:
            why = f"it became writable before the end: the limit is {limit_s:g} seconds"
            raise VolumeError(f"keep {os.fsdecode(mount.mount_point)} read-only", why, "use consistency=live")


def _preserved_flags(mount: Mount) -> int:
    """The flags of mount(2) that a remount has to repeat."""
    options = set(mount.options) | set(mount.super_options)
    flags = sum(flag for option, flag in _FLAGS.items() if option in options)
    return flags if options & {"noatime", "relatime"} else flags | _STRICTATIME
