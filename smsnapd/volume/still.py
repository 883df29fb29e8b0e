"""Holding the volume's file system read-only for a while, and making it writable again whatever happens.

A guardian process, started before the remount, undoes it if this process is killed, hangs or takes too long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume import guardian
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
_EXIT_LIMIT_S: Final = 15.0
_FOR_GUARDIAN: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


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
    if mount.mount_point == b"/" or mount.device == find_mount(b"/").device:
        raise VolumeError(what, "it is the root file system", "use consistency=live, or a volume of its own")
    flags = _preserved_flags(mount)
    with _guarded(mount, flags, limit_s, what):
        try:
            guardian.remount(mount.mount_point, flags | guardian.MS_RDONLY)
        except OSError as error:
            raise VolumeError(what, error.strerror or str(error), _HINTS.get(error.errno or 0, "")) from error
        yield mount
        if "ro" not in find_mount(mount.mount_point).super_options:
            why = f"it became writable before the end: the limit is {limit_s:g} seconds"
            raise VolumeError(f"keep {os.fsdecode(mount.mount_point)} read-only", why, "use consistency=live")


@contextlib.contextmanager
def _guarded(mount: Mount, flags: int, limit_s: float, what: str) -> Iterator[None]:
    """Keep a guardian while the context lasts; then the mount is writable, or `VolumeError` says not."""
    arguments = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())]
    # Not the rest: a passphrase may be there.
    environment = {name: os.environ[name] for name in _FOR_GUARDIAN if name in os.environ}
    process = subprocess.Popen(
        [*arguments, mount.mount_point, str(flags), str(limit_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=True,
        env=environment,
    )  # fmt: skip
    try:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise VolumeError(what, "the process that would undo it did not start", "use consistency=live")
        try:
            yield
        finally:
            _make_writable(process, mount, flags)
    finally:
        _end(process)


def _make_writable(process: subprocess.Popen[bytes], mount: Mount, flags: int) -> None:
    """Undo the remount, or have the guardian keep trying; `VolumeError` if neither can."""
    assert process.stdin is not None
    try:
        guardian.remount(mount.mount_point, flags)
    except OSError as error:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(_EXIT_LIMIT_S) == guardian.UNDONE_EARLY:
                return
        point = os.fsdecode(mount.mount_point)
        raise VolumeError(
            f"make {point} writable again", error.strerror or str(error), f"run: mount -o remount,rw {point}"
        ) from error
    # The guardian may be gone already, having done the same when the time was up.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b".")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the guardian go and wait for it."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(_EXIT_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _preserved_flags(mount: Mount) -> int:
    """The flags of mount(2) that a remount has to repeat."""
    options = set(mount.options) | set(mount.super_options)
    flags = sum(flag for option, flag in _FLAGS.items() if option in options)
    return flags if options & {"noatime", "relatime"} else flags | _STRICTATIME
