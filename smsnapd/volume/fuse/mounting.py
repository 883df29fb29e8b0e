"""Mounting a `ReadOnlyTree`: by this process until it is unmounted, or by a child for as long as a context.

A mount ends with the process that serves it, however that dies: fusermount3 stands by (`auto_unmount`). It
is always read-only, nosuid, nodev and noexec.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume.fuse.operations import Operations
from smsnapd.volume.fuse.tree import ReadOnlyTree

_DEVICE: Final = Path("/dev/fuse")
_READY: Final = b"ready"
_EXIT_LIMIT_S: Final = 20.0
_THREADS: Final = 10
_ENDED_BY_SIGNAL: Final = 8
"""What fuse_main(3) returns when the loop was left otherwise than by unmounting."""


@dataclass(frozen=True)
class FuseOptions:
    """How to mount. `source` is what mount(8) lists. `everyone`: other users may look too (for others than
    root /etc/fuse.conf must say `user_allow_other`). `permissions`: the kernel holds everybody to owners and
    modes. `cache_s`: for how long the kernel may believe what it was told.
    """

    source: str = "smsnap"
    everyone: bool = False
    permissions: bool = True
    cache_s: float = 1.0


def check_available() -> None:
    """VolumeError that says what to install, if there is no FUSE here."""
    _binding()
    if shutil.which("fusermount3") is None:
        raise _missing("the program fusermount3 is not there", "install fuse3 (dnf or apt-get install fuse3)")
    if not _DEVICE.exists():
        raise _missing(f"there is no {_DEVICE}", "run: modprobe fuse; a container needs --device /dev/fuse")
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise _missing(f"{_DEVICE}: {error.strerror}", "run as root, or as a user who may open it") from error


def serve(
    tree: ReadOnlyTree,
    mount_point: bytes,
    options: FuseOptions | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Show `tree` under the directory `mount_point` until it is unmounted or SIGINT, SIGTERM or SIGHUP comes.

    `ready` is called, in another thread, when the mount is there. VolumeError if there is no FUSE here, or
    it could not be mounted; libfuse has said why on standard error.
    """
    check_available()
    operations = Operations(tree, ready)
    try:
        _binding().FUSE(
            operations,
            os.fsdecode(mount_point),
            foreground=True,
            **_mount_options(options or FuseOptions()),
        )
    except RuntimeError as error:
        if operations.was_mounted and error.args == (_ENDED_BY_SIGNAL,):
            return
        why = f"libfuse gave up (status {error})"
        hint = "is the directory empty and yours, and nothing mounted there?"
        raise VolumeError(f"mount on {os.fsdecode(mount_point)}", why, hint) from error


@contextlib.contextmanager
def mounted(
    open_tree: Callable[[], ReadOnlyTree], mount_point: bytes, options: FuseOptions | None = None
) -> Iterator[None]:
    """Show a tree under `mount_point` while the context lasts, served by a child process.

    `open_tree` is called there. If this process has threads it must pickle; it travels over a pipe. The mount
    goes when the context ends, and if this process dies. Raises as `serve`.
    """
    check_available()
    forks = threading.active_count() == 1
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=True)
    process = context.Process(
        target=_child,
        args=(open_tree, mount_point, options or FuseOptions(), theirs, ours if forks else None),
        name="smsnapd-fuse",
        daemon=True,
    )
    process.start()
    theirs.close()
    try:
        _await_ready(ours, mount_point)
        yield
    finally:
        ours.close()
        process.join(_EXIT_LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _await_ready(connection: Connection, mount_point: bytes) -> None:
    """Wait for the child to have mounted; its error otherwise."""
    what = f"mount on {os.fsdecode(mount_point)}"
    try:
        answer = connection.recv()
    except EOFError as error:
        raise VolumeError(what, "the process that would serve it has ended", "look above for why") from error
    if isinstance(answer, BaseException):
        raise answer


def _child(
    open_tree: Callable[[], ReadOnlyTree],
    mount_point: bytes,
    options: FuseOptions,
    connection: Connection,
    inherited: Connection | None,
) -> None:
    """The life of a serving process: ends when it is unmounted, or when the parent is gone."""
    if inherited is not None:
        inherited.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # libfuse takes those that nobody has
    answer = threading.Lock()

    def ready() -> None:
        with answer:
            connection.send(_READY)
        threading.Thread(target=_end_with_parent, args=(connection,), name="parent", daemon=True).start()

    try:
        serve(open_tree(), mount_point, options, ready)
    except Exception as error:
        with answer, contextlib.suppress(BrokenPipeError):
            connection.send(error)


def _end_with_parent(connection: Connection) -> None:
    """Have libfuse unmount once the parent's end of the pipe is closed."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _mount_options(options: FuseOptions) -> dict[str, object]:
    return {
        "fsname": options.source,
        "subtype": "smsnap",
        "ro": True,
        "nosuid": True,
        "nodev": True,
        "noexec": True,
        "auto_unmount": True,
        "allow_other": options.everyone,
        "default_permissions": options.permissions,
        "attr_timeout": options.cache_s,
        "entry_timeout": options.cache_s,
        "use_ino": True,
        "max_idle_threads": _THREADS,  # without, libfuse 3.14 complains of its own default on standard error
    }


def _binding() -> ModuleType:
    """mfusepy, loaded when it is needed; VolumeError that says what to install."""
    # Where libfuse 2 is installed beside 3, as it often is, it would take that.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import mfusepy
    except ImportError as error:
        raise _missing("Python's mfusepy is not there", "run: pip install 'smsnapd[mount]'") from error
    except OSError as error:
        why, hint = "libfuse is not there", "install fuse3 (dnf or apt-get install fuse3)"
        raise _missing(why, hint) from error
    if mfusepy.fuse_version_major < 3:
        raise _missing("libfuse is older than 3", "install fuse3 (dnf or apt-get install fuse3)")
    binding: ModuleType = mfusepy
    return binding


def _missing(why: str, hint: str) -> VolumeError:
    return VolumeError("mount with FUSE", why, hint)
