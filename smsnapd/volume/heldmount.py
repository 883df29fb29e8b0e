"""A file system mounted where nobody else sees it: in a mount namespace that lives as long as one process.

A child process takes a namespace of its own (mount_namespaces(7)), mounts there, and waits. Others reach it
through /proc/<pid>/root. When the child ends, however it does, the kernel undoes what it mounted; it ends
when this process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Protocol

from smsnapd.errors import SmsnapError, VolumeError
from smsnapd.model import path_text
from smsnapd.volume.e2fsprogs import scratch
from smsnapd.volume.mounts import device_path, mounted_devices
from smsnapd.volume.namespace import detach, separate

_SAFE: Final = "nosuid,nodev,noexec"
_EXIT_LIMIT_S: Final = 30.0
_PROGRAMS: Final = ("/usr", "/usr/local", "/bin", "/sbin", "/lib", "/etc", "/var", "/run", "/opt")


class MountSource(Protocol):
    """Gives what is to be mounted, in the process that mounts it; must pickle."""

    @property
    def needed(self) -> tuple[bytes, ...]:
        """Paths that must be there in that process, beside what every program needs."""

    def provide(self, directory: bytes) -> AbstractContextManager[bytes]:
        """The path of a device or image, for as long as the context; `directory` is empty, and its own."""


@dataclass(frozen=True)
class PathSource:
    """A device, or a file, that is there."""

    path: bytes

    @property
    def needed(self) -> tuple[bytes, ...]:
        """The path itself."""
        return (self.path,)

    @contextlib.contextmanager
    def provide(self, directory: bytes) -> Iterator[bytes]:
        """The path itself."""
        yield self.path


@dataclass(frozen=True)
class HeldMount:
    """Where the file system is reached: its root, and its device (a loop device if it is in a file)."""

    root: bytes
    device: bytes


@contextlib.contextmanager
def held_mount(source: MountSource, options: str) -> Iterator[HeldMount]:
    """Mount an ext4, nosuid, nodev and noexec and with `options`, while the context lasts.

    Its root is for this process and its children. Needs CAP_SYS_ADMIN; VolumeError if it cannot be mounted.
    At the context's end everything that was written is on the device.
    """
    if os.geteuid() != 0:
        raise VolumeError("mount the image", "only root may mount", "run this with sudo")
    forks = threading.active_count() == 1
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=True)
    with tempfile.TemporaryDirectory(prefix="smsnap-mount-", dir=scratch()) as directory:
        arguments = (source, options, os.fsencode(directory), theirs, ours if forks else None)
        process = context.Process(target=_hold, args=arguments, name="smsnapd-mount")
        process.start()
        theirs.close()
        try:
            point = _answer(ours)
            root = b"/proc/%d/root%b" % (process.pid or 0, point)
            yield HeldMount(root, _device_of(root))
            ours.send(b"unmount")
            _answer(ours)
        finally:
            ours.close()
            process.join(_EXIT_LIMIT_S)
            if process.is_alive():
                process.kill()
                process.join()


def _answer(connection: Connection) -> bytes:
    try:
        answer = connection.recv()
    except EOFError as error:
        raise VolumeError("mount the image", "the process that holds it has ended") from error
    if isinstance(answer, BaseException):
        raise answer
    return bytes(answer)


def _device_of(root: bytes) -> bytes:
    number = os.stat(root).st_dev
    return os.fsencode(device_path(f"{os.major(number)}:{os.minor(number)}"))


def _hold(
    source: MountSource, options: str, directory: bytes, connection: Connection, inherited: Connection | None
) -> None:
    """The life of the process that holds the mount: until the other end of the pipe says so, or is gone."""
    if inherited is not None:
        inherited.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who holds the other end decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ExitStack() as stack:
            point = _mount(stack, source, options, directory)
            connection.send(point)
            asked = _wait(connection)
            stack.close()
        if asked:
            connection.send(b"unmounted")
        else:
            os.rmdir(directory)  # who made it is gone
    except (SmsnapError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            connection.send(error)


def _wait(connection: Connection) -> bool:
    """Whether the other end has asked for the end; it may also just be gone."""
    try:
        connection.recv()
    except (EOFError, OSError):
        return False
    return True


def _mount(stack: ExitStack, source: MountSource, options: str, directory: bytes) -> bytes:
    separate(hears=True)
    _let_go((directory, *source.needed))
    what, point = (os.path.join(directory, name) for name in (b"image", b"files"))
    os.mkdir(what, 0o700)
    os.mkdir(point, 0o700)
    stack.callback(os.rmdir, what)
    stack.callback(os.rmdir, point)
    path = stack.enter_context(source.provide(what))
    loop = "" if Path(os.fsdecode(path)).is_block_device() else ",loop"
    wanted = f"{_SAFE},{options}{loop}"
    _run("mount", b"-n", b"-t", b"ext4", b"-o", wanted.encode(), path, point)
    # Nothing of a read-only one is lost if somebody still has a file of it open.
    lazily = (b"-l",) if "ro" in options.split(",") else ()
    stack.callback(_run, "umount", b"-n", *lazily, point)
    return point


def _let_go(needed: tuple[bytes, ...]) -> None:
    """Detach, here, the file systems of all devices that this process does not need.

    Else whoever unmounts one of them meanwhile would find its device in use still.
    """
    own = ("/", sys.prefix, sys.base_prefix, __file__, str(Path.home()), *_PROGRAMS)
    kept = set()
    for path in (*map(os.fsencode, own), *needed):
        with contextlib.suppress(OSError):
            number = os.stat(path).st_dev
            kept.add(f"{os.major(number)}:{os.minor(number)}")
    for device, points in mounted_devices().items():
        if device.startswith("0:") or device in kept:
            continue
        for point in points:
            # Another one may have lain on it, and have gone with it.
            with contextlib.suppress(VolumeError):
                detach(point)


def _run(name: str, *arguments: bytes) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    done = subprocess.run(
        [name, *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False, env=environment
    )
    if done.returncode:
        told = " ".join((done.stdout + done.stderr).decode(errors="replace").split())
        hint = "look at the kernel's log (dmesg)"
        raise VolumeError(f"{name} {path_text(arguments[-1])}", told or f"status {done.returncode}", hint)
