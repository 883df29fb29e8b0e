"""The device of a volume that others use, taken from under it: unmounted, or read-only where that is refused.

Until something is written to it, everything can be put back as it was; after that the copy that the program
runs from stands in for the volume, so that the same command can be given again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume.departure import Departed
from smsnapd.volume.holders import holders_of
from smsnapd.volume.imagetarget import HEAD
from smsnapd.volume.mounts import device_path
from smsnapd.volume.namespace import run_in

_SHOWN: Final = 5
_UNIT: Final = "smsnapd.service"


@dataclass(frozen=True)
class Taken:
    """A device to write to. `is_unmounted`: else the volume is mounted still, read-only, and no more use."""

    path: bytes
    is_unmounted: bool


@contextlib.contextmanager
def taken(found: Departed) -> Iterator[Taken]:
    """Take the device for as long as the context; VolumeError that names who uses the volume, if that fails.

    Where an exception ends the context: if the device still holds a file system, the volume is mounted again
    as it was; else the copy of the program stands in its place.
    """
    device = device_path(found.device)
    was_running = _daemon_stopped()
    try:
        with _unmounted(found, device) as is_unmounted:
            if is_unmounted:
                yield Taken(os.fsencode(device), True)
                return
            with _read_only(found), _looped(device) as loop:
                yield Taken(os.fsencode(loop), False)
    except BaseException:
        if was_running and _holds_something(device):  # else it would back up what stands in
            _systemctl("start", _UNIT)
        raise


@contextlib.contextmanager
def _unmounted(found: Departed, device: str) -> Iterator[bool]:
    """Whether the volume could be unmounted; for an exception it is mounted again, or its stand-in is."""
    gone: list[str] = []
    for point in found.points:
        if run_in(found.namespace, "umount", point).returncode:
            break
        gone.append(point)
    if len(gone) < len(found.points) or not _is_free(device):
        _mount_again(found, device, gone)
        gone = []
    try:
        yield bool(gone)
    except BaseException:
        if gone:
            if _holds_something(device):
                _mount_again(found, device, gone)
            else:
                run_in(found.namespace, "mount", "--bind", found.stage, found.point)
        raise


def _mount_again(found: Departed, device: str, points: list[str]) -> None:
    for point in reversed(points):
        options = ",".join(found.options)
        done = run_in(found.namespace, "mount", "-t", found.fs_type, "-o", options, device, point)
        _check(done, f"mount {device} on {point} again", f"run: mount {device} {point}")


def _is_free(device: str) -> bool:
    """Whether nobody has it mounted, in any namespace."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _holds_something(device: str) -> bool:
    with open(device, "rb") as file:
        head = file.read(HEAD)
    return head != bytes(len(head))


@contextlib.contextmanager
def _read_only(found: Departed) -> Iterator[None]:
    """The volume read-only; writable again for an exception before anything was written."""
    done = run_in(found.namespace, "mount", "-o", "remount,ro", found.point)
    if done.returncode:
        what = f"unmount {found.point}, or make it read-only"
        raise VolumeError(what, _in_use(found), "stop them, then try again")
    try:
        yield
    except BaseException:
        if "rw" in found.options and _holds_something(device_path(found.device)):
            run_in(found.namespace, "mount", "-o", "remount,rw", found.point)
        raise


def _in_use(found: Departed) -> str:
    major, _, minor = found.device.partition(":")
    users = [holder for holder in holders_of(os.makedev(int(major), int(minor))) if holder.writes]
    if not users:
        return "it is in use"
    shown = ", ".join(f"{user.name} (process {user.pid}, {user.path})" for user in users[:_SHOWN])
    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    return f"files on it are open for writing: {shown}{more}"


@contextlib.contextmanager
def _looped(device: str) -> Iterator[str]:
    """A loop device over a device that is mounted: its file system can be checked and mounted there, anew."""
    done = subprocess.run(["losetup", "-f", "--show", device], capture_output=True, check=False)
    _check(done, f"attach a loop device to {device}", "install util-linux")
    loop = os.fsdecode(done.stdout.strip())
    try:
        yield loop
    finally:
        done = subprocess.run(["losetup", "-d", loop], capture_output=True, check=False)
        _check(done, f"detach {loop}", "")
        with open(device, "rb") as file:
            os.fsync(file.fileno())


def _daemon_stopped() -> bool:
    """Stop the daemon, which runs from the volume; whether it was running."""
    if _systemctl("is-active", "--quiet", _UNIT):
        return False
    _systemctl("stop", _UNIT)
    return True


def _systemctl(*arguments: str) -> int:
    """The exit status; that of a service that is not there where there is no systemd."""
    try:
        return subprocess.run(["systemctl", *arguments], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 4


def _check(done: subprocess.CompletedProcess[bytes], what: str, hint: str) -> None:
    if done.returncode:
        told = " ".join((done.stdout + done.stderr).decode(errors="replace").split())
        raise VolumeError(what, told or f"status {done.returncode}", hint)
