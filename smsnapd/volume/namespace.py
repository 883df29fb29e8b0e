"""Mounts of one's own, and those that one left: mount_namespaces(7) through the few calls that are needed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.model import path_text

_CLONE_NEWNS: Final = 0x00020000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000
_MS_SLAVE: Final = 0x80000
_MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def separate(*, hears: bool) -> None:
    """Give this process mounts of its own, which nobody else sees. For a process without threads, or one that
    needs it for the calling thread alone. `hears`: what is unmounted outside goes here, too.

    Needs CAP_SYS_ADMIN; VolumeError without.
    """
    flags = _MS_REC | (_MS_SLAVE if hears else _MS_PRIVATE)
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, ctypes.c_ulong(flags), None):
        raise _refused("take a mount namespace")


def bind(directory: bytes, point: bytes) -> None:
    """Show `directory` at `point` too. VolumeError if that is refused."""
    if _libc.mount(directory, point, None, ctypes.c_ulong(_MS_BIND), None):
        raise _refused(f"mount {path_text(directory)} on {path_text(point)}")


def detach(point: bytes) -> None:
    """Take away what is mounted at `point` and below it, in this namespace, though it be in use."""
    if _libc.umount2(point, _MNT_DETACH):
        raise _refused(f"detach {path_text(point)}")


def current_namespace() -> int:
    """A descriptor of the mounts that this process sees, which a program that it becomes inherits."""
    descriptor = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    return descriptor


def run_in(namespace: int, *command: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a program where `current_namespace` was called; VolumeError if nsenter(1) is not there."""
    entered = ["nsenter", f"--mount=/proc/self/fd/{namespace}", "--", *command]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        return subprocess.run(
            entered,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
            env=environment,
            pass_fds=(namespace,),
            cwd="/",
        )
    except FileNotFoundError as error:
        raise VolumeError("run nsenter", "it is not installed", "install util-linux") from error


def _refused(what: str) -> VolumeError:
    number = ctypes.get_errno()
    return VolumeError(what, os.strerror(number), "run this as root")
