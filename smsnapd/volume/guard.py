"""A guardian beside this process, for as long as it keeps a file system from being written to.

Started before, it undoes that if this process is killed, hangs or takes too long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from smsnapd.errors import VolumeError
from smsnapd.volume import guardian
from smsnapd.volume.mounts import Mount, find_mount

_EXIT_LIMIT_S: Final = 15.0
_BEAT_S: Final = 0.5
_FOR_GUARDIAN: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_BY_HAND: Final = {True: "fsfreeze -u", False: "mount -o remount,rw"}


class Undoing(NamedTuple):
    """How a file system is made writable again: `guardian.THAW` or flags; and when, in seconds.

    After `silence_s` without a `Guard.beat`, and after `limit_s` whatever is going on.
    """

    how: str
    limit_s: float
    silence_s: float = float("inf")


class Guard:
    """The guardian, seen from the process that it watches. `is_over` if there is nothing to undo.

    `began_s` is when holding began, as of time.monotonic().
    """

    def __init__(self, process: subprocess.Popen[bytes], mount: Mount, how: str) -> None:
        self._process = process
        self._mount = mount
        self._how = how
        self._beaten_s = 0.0
        self.began_s = time.monotonic()
        self.is_over = False
        self._descriptor = -1
        if how == guardian.THAW:
            self._descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def beat(self) -> None:
        """Say that this process is at work; costs nothing. `VolumeError` if the guardian is gone."""
        now_s = time.monotonic()
        if now_s - self._beaten_s < _BEAT_S:
            return
        self._beaten_s = now_s
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"+")
        except BrokenPipeError as error:
            point = os.fsdecode(self._mount.mount_point)
            why = "the process that would undo it is gone: the time was up, or it was killed"
            raise VolumeError(f"hold {point}", why, "run it again") from error

    def undo(self) -> bool:
        """Make the file system writable, or have the guardian keep trying; `VolumeError` if neither can.

        Whether it was held until now, as far as that shows. Done once; again it does nothing.
        """
        if self.is_over:
            return True
        assert self._process.stdin is not None
        self.is_over = True
        point = os.fsdecode(self._mount.mount_point)
        try:
            guardian.undo(self._mount.mount_point, self._how, self._descriptor)
        except OSError as error:
            if self._how == guardian.THAW and error.errno == errno.EINVAL:
                return False
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._process.wait(_EXIT_LIMIT_S) == guardian.UNDONE_EARLY:
                    return True
            by_hand = f"run: {_BY_HAND[self._how == guardian.THAW]} {point}"
            raise VolumeError(
                f"make {point} writable again", error.strerror or str(error), by_hand
            ) from error
        return True

    def end(self) -> None:
        """Let the guardian go and wait for it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b".")
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def guarded(mount: Mount, undoing: Undoing, what: str) -> Iterator[Guard]:
    """Keep a guardian while the context lasts; then it is writable, or `VolumeError` says that it is not."""
    program = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())]
    # Not the rest: a passphrase may be there.
    environment = {name: os.environ[name] for name in _FOR_GUARDIAN if name in os.environ}
    process = subprocess.Popen(
        [*program, mount.mount_point, undoing.how, str(undoing.limit_s), str(undoing.silence_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=True,
        env=environment,
    )  # fmt: skip
    guard = Guard(process, mount, undoing.how)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise VolumeError(what, "the process that would undo it did not start", "use consistency=live")
        try:
            yield guard
        finally:
            guard.undo()
    finally:
        guard.end()


def is_root_file_system(mount: Mount) -> bool:
    """Whether the system itself lies there: that is never held."""
    return mount.mount_point == b"/" or mount.device == find_mount(b"/").device
