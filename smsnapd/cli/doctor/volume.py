"""The volume: whether it is mounted, what its changes are heard from, and room for the local state."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from smsnapd.cli.doctor.findings import BlockedError, Check, Judged, fail, ok, warn
from smsnapd.cli.doctor.patient import Patient, existing
from smsnapd.daemon import protection
from smsnapd.telemetry.sizes import size_text
from smsnapd.volume.mounts import find_mount

if TYPE_CHECKING:
    from smsnapd.daemon.status import WatcherStatus

_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "9p", "fuse.s3fs", "fuse.mountpoint-s3", "fuse.sshfs")
)
_COUNT_S: Final = 3.0
_MOST_WATCHES: Final = 2**22
_WARN_FREE: Final = 256 * 1024**2
_FAIL_FREE: Final = 32 * 1024**2


def mounted(patient: Patient) -> Iterator[Judged]:
    """That the volume is there, and is the notebook's own disk."""
    root = patient.root.examine()
    mount = find_mount(root)
    where = os.fsdecode(mount.mount_point)
    told = f"{os.fsdecode(root)}: {mount.fs_type} of {os.fsdecode(mount.source)}, mounted at {where}"
    if not os.path.isdir(root):
        yield fail(f"{os.fsdecode(root)} is no directory", "write the volume's path under [volume]")
    elif patient.notebook.use() is not None and where == "/":
        told = f"{os.fsdecode(root)} is on the root volume, which is reset at every start of the notebook"
        yield fail(told, 'write path = "/home/ec2-user/SageMaker" under [volume], and see that it is mounted')
    elif mount.fs_type in _NETWORK:
        mend = "they are found by [schedule] rescan: write a shorter one if that is too seldom"
        yield warn(f"{told}; changes that other machines make are not heard of", mend)
    else:
        yield ok(told + ("; read-only" if "ro" in mount.options else ""))


def image(patient: Patient) -> Iterator[Judged]:
    """That images of the volume can be made, if that is what is configured."""
    from smsnapd.engine.image.run import image_mount
    from smsnapd.volume.block.device import Device, device_of
    from smsnapd.volume.block.ext4 import read_geometry

    backup, root = patient.config.use().backup, patient.root.use()
    if backup.mode != "block":
        return
    consistency = backup.consistency or "freeze"
    path = device_of(image_mount(root, consistency))
    if os.geteuid() != 0:
        yield warn(f"{path}: only root can read it, and hold the volume", "see as root: sudo smsnap doctor")
        return
    with Device(path) as device:
        geometry, size = read_geometry(device), size_text(device.size)
    if geometry is not None:
        yield ok(f"images of {path}, {size}, of what ext4 has in use there; consistency {consistency}")
        return
    told = f"{path}, {size}, holds no ext4 that is known: all of it is read"
    more = "" if consistency == "live" else ", and again while the volume is held"
    yield warn(told + more, 'write mode = "tar" under [backup], or mind the time that it takes')


def watcher(patient: Patient) -> Iterator[Judged]:
    """What changes are heard from: the running daemon knows; else what it could be."""
    found = None
    with contextlib.suppress(BlockedError):
        status = patient.daemon.use()
        found = None if status is None else status.watcher
    if found is not None:
        yield _in_use(found)
        return
    wanted, root = patient.config.use().volume.watch, os.path.realpath(patient.root.use())
    if wanted == "poll":
        told = "everything is read again at intervals, as configured"
        yield warn(told, 'write watch = "auto" under [volume]')
    elif wanted == "inotify":
        yield _inotify(patient, root, "")
    else:
        yield _fanotify(patient, root, must=wanted == "fanotify")


def _in_use(found: WatcherStatus) -> Judged:
    told = f"the daemon hears from {found.kind}: {found.reason}"
    if found.healthy:
        return ok(told)
    return warn(f"{told}; not from all of the volume", "see the gaps: smsnap status")


def _fanotify(patient: Patient, root: bytes, *, must: bool) -> Judged:
    """Whether fanotify can be had; else, unless it `must`, what inotify can do."""
    from smsnapd.volume.watch.prospects import fanotify_refusal

    refusal, kernel = fanotify_refusal(root), f"kernel {os.uname().release}"
    if not refusal:
        return ok(f"fanotify: one mark for the whole file system ({kernel})")
    as_whom = "" if os.geteuid() == 0 else ", and not as root"
    told = f"fanotify: {refusal} ({kernel}{as_whom})"
    if must:
        return fail(told, 'write watch = "auto" under [volume]; see as root too: sudo smsnap doctor')
    return _inotify(patient, root, f"{told}; ")


def _inotify(patient: Patient, root: bytes, refusal: str) -> Judged:
    """Whether the user's watches suffice for the directories there are."""
    from smsnapd.volume.scan import Excludes
    from smsnapd.volume.watch.limits import MAX_USER_WATCHES, watch_limit
    from smsnapd.volume.watch.prospects import count_directories

    excludes = Excludes(protection.exclude_patterns(patient.config.use()))
    count, limit = count_directories(root, excludes, _COUNT_S), watch_limit()
    number = f"{'' if count.is_all else 'more than '}{count.directories:,} directories"
    told = f"{refusal}inotify: {number}, and {limit:,} watches for each user"
    if count.directories * 5 <= limit * 4:
        return ok(told)
    if os.access(MAX_USER_WATCHES, os.W_OK) and count.directories < _MOST_WATCHES:
        return ok(f"{told}, which the daemon raises")
    wanted = max(2 * limit, 1 << (2 * count.directories).bit_length())
    told = f"{told}: what has no watch is read again at intervals"
    return warn(told, f"sudo sysctl fs.inotify.max_user_watches={min(wanted, _MOST_WATCHES)}")


def state(patient: Patient) -> Iterator[Judged]:
    """That the local state can be written, has room, and is sound."""
    path = protection.state_dir(patient.config.use())
    place = existing(path)
    mend = 'write dir = "…" under [state]: a directory of the user that the daemon runs as'
    if not place.is_dir():
        yield fail(f"{path} cannot be made: {place} is no directory", mend)
        return
    if not os.access(place, os.W_OK | os.X_OK):
        yield fail(f"{path} cannot be written to by this user", mend)
        return
    free = shutil.disk_usage(place).free
    told = f"{path}, {size_text(free)} free"
    if free < _FAIL_FREE:
        yield fail(told, f"free space there: df -h {place}")
    elif free < _WARN_FREE:
        yield warn(told, f"free space there: df -h {place}")
    else:
        yield ok(told)
    for index in sorted(path.glob("*.db")):
        yield from _index(index)


def _index(path: Path) -> Iterator[Judged]:
    """Look at the head of an index, nothing locked and nothing written."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        mend = "nothing need be done: the next backup scans everything and makes it anew"
        yield warn(f"{path.name} cannot be used: {error}", mend)


CHECKS: Final = (
    Check("volume", "mounted", mounted),
    Check("volume", "image", image),
    Check("volume", "watcher", watcher),
    Check("volume", "state", state),
)
