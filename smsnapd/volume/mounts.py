"""Which mounted file system carries a path: device, type, options and UUID.

The truth is `/proc/self/mountinfo` (proc_pid_mountinfo(5)). A path's mount is looked up by the mount id of
an open descriptor and not by the longest prefix, so mounts hidden under later ones cannot mislead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.disk import sync_file_system
from smsnapd.errors import VolumeError

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_BY_UUID: Final = Path("/dev/disk/by-uuid")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_FS_IOC_GETFSUUID: Final = 0x80111500
"""`_IOR(0x15, 0, struct fsuuid2)`, linux/fs.h, since Linux 6.9: u8 length, 16 bytes of UUID."""
_OPTIONAL_FIELDS: Final = 6
"""Index of the first optional field of a mountinfo line; they end at a lone hyphen."""


class Mount(NamedTuple):
    """One mounted file system, as a process sees it.

    `device` is "major:minor"; `source` what was mounted (a device's path, or any word); `mount_point` an
    absolute path; `root` the path within the file system that is mounted there; `options` those of the
    mount, `super_options` those of the file system; `filesystem_uuid` is in lower case, "" if there is none.
    """

    device: str
    source: bytes
    mount_point: bytes
    root: bytes
    fs_type: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]
    filesystem_uuid: str


def find_mount(path: bytes) -> Mount:
    """The mount that carries `path`, symbolic links followed.

    Raises `VolumeError` if the path cannot be reached or its mount is not visible to this process.
    """
    what = f"find the file system of {os.fsdecode(path)}"
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeError(what, error.strerror or str(error), "is the path right, and mounted?") from error
    try:
        wanted = _mount_id(descriptor)
    finally:
        os.close(descriptor)
    for number, mount in _mounts():
        if number == wanted:
            return mount._replace(filesystem_uuid=_filesystem_uuid(mount))
    raise VolumeError(what, "its mount is not listed in /proc/self/mountinfo", "is it outside of a chroot?")


def bytes_in_use(path: bytes) -> int | None:
    """About how many bytes lie on the file system whose root `path` is; None if it is not one's root.

    Raises `VolumeError` as `find_mount` does.
    """
    mount = find_mount(path)
    if mount.root != b"/" or mount.mount_point != os.path.realpath(path):
        return None
    return used_bytes(path)


def used_bytes(path: bytes) -> int:
    """The bytes in use on the file system that carries `path`. Raises `OSError`."""
    room = os.statvfs(path)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def mount_points_below(path: bytes) -> frozenset[bytes]:
    """Paths, relative to the directory `path` (absolute, resolved), at which something is mounted."""
    prefix = path.rstrip(b"/") + b"/"
    points = (mount.mount_point for _, mount in _mounts())
    return frozenset(point[len(prefix) :] for point in points if point.startswith(prefix) and point != prefix)


def mounted_devices() -> dict[str, list[bytes]]:
    """The devices ("major:minor") of all mounts that this process can see, and where they are mounted."""
    found: dict[str, list[bytes]] = {}
    for _, mount in _mounts():
        found.setdefault(mount.device, []).append(mount.mount_point)
    return found


def device_path(device: str) -> str:
    """The path of a block device by its number, "major:minor"; VolumeError if the kernel does not name it."""
    what = f"find the device {device}"
    try:
        lines = Path(f"/sys/dev/block/{device}/uevent").read_text().splitlines()
    except OSError as error:
        raise VolumeError(what, error.strerror or str(error), "is /sys mounted?") from error
    for line in lines:
        if line.startswith("DEVNAME="):
            return f"/dev/{line.removeprefix('DEVNAME=')}"
    raise VolumeError(what, "the kernel does not name it")


def syncfs(descriptor: int) -> None:
    """Write everything dirty of the file system that carries `descriptor` to its device (syncfs(2)).

    May be repeated. Raises `VolumeError` if the device reports an error.
    """
    try:
        sync_file_system(descriptor)
    except OSError as error:
        what = "write the volume's cached data to its device"
        raise VolumeError(what, error.strerror or str(error), "look at the kernel's log") from error


def _mount_id(descriptor: int) -> int:
    """The mount id of an open file, of proc_pid_fdinfo(5)."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.partition(":")[2])
    return -1


def _mounts() -> Iterator[tuple[int, Mount]]:
    """All mounts of this process's namespace with their ids, UUIDs not looked up."""
    for line in _MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        hyphen = fields.index(b"-", _OPTIONAL_FIELDS)
        fs_type, source, super_options = fields[hyphen + 1 : hyphen + 4]
        yield (
            int(fields[0]),
            Mount(
                device=fields[2].decode(),
                source=_unescape(source),
                mount_point=_unescape(fields[4]),
                root=_unescape(fields[3]),
                fs_type=fs_type.decode(),
                options=tuple(os.fsdecode(fields[5]).split(",")),
                super_options=tuple(os.fsdecode(super_options).split(",")),
                filesystem_uuid="",
            ),
        )


def _unescape(field: bytes) -> bytes:
    """A mountinfo field with its octal escapes (space, tab, line feed, backslash) undone."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)


def _filesystem_uuid(mount: Mount) -> str:
    """The UUID that udev knows for the mount's device, else the one that the kernel tells, else ""."""
    major, _, minor = mount.device.partition(":")
    if major == "0":
        return ""
    device = os.makedev(int(major), int(minor))
    with contextlib.suppress(FileNotFoundError):
        for link in sorted(_BY_UUID.iterdir()):
            # A link may dangle while its device goes away.
            with contextlib.suppress(FileNotFoundError):
                if link.stat().st_rdev == device:
                    return link.name.lower()
    return _kernel_uuid(mount.mount_point)


def _kernel_uuid(mount_point: bytes) -> str:
    """What FS_IOC_GETFSUUID says of the file system, "" if kernel or file system do not know it."""
    answer = bytearray(17)
    try:
        descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOTDIR, errno.ENOENT):
            return ""
        raise VolumeError(
            f"read the UUID of {os.fsdecode(mount_point)}", error.strerror or str(error)
        ) from error
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, answer)
    except OSError:
        # ENOTTY and EOPNOTSUPP of older kernels and file systems without one: it is unknown, not wrong.
        return ""
    finally:
        os.close(descriptor)
    return str(uuid.UUID(bytes=bytes(answer[1:17]))) if answer[0] == 16 else ""
