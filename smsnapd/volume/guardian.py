"""The process that lets a file system be written to again when its holder cannot: `guard`'s other half.

Run as a program by path, with the standard library alone and nothing of this package, so that it starts in
milliseconds and depends on nothing that may be broken: `guardian.py <holder's pid> <mount point> <how it is
undone> <seconds> <seconds of silence>`, where it is undone by `thaw` or by the flags of a remount. It says
`ready`, and then reads its standard input: `+` says that the holder is at work, `.` that it has undone
it itself. It undoes it at the input's end or the holder's death (the holder is gone), when nothing was
said for too long (the holder hangs), and when the time is up.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import sys
import time

UNDONE_EARLY = 3
"""Exit status: the file system can be written to again, and its holder has not done it."""
FAILED = 4
"""Exit status: it could not be made so."""

THAW = "thaw"
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
"""`_IOWR('X', 119, int)` and 120, linux/fs.h."""
_ATTEMPTS = 100
_PAUSE_S = 0.1
_GRACE_AFTER_STOP_S = 10.0


def remount(mount_point: bytes, flags: int) -> None:
    """mount(2) with MS_REMOUNT and these flags. May be repeated. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, mount_point, None, ctypes.c_ulong(MS_REMOUNT | flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def undo(mount_point: bytes, how: str, descriptor: int) -> None:
    """Make the file system writable. Raises `OSError`; of a thaw EINVAL if it is not frozen."""
    if how == THAW:
        fcntl.ioctl(descriptor, FITHAW, 0)
    else:
        remount(mount_point, int(how))


class _Holder:
    """The process that holds the file system, as far as it can be heard and seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._stop = _stop_requests()
        self._poll.register(self._stop, select.POLLIN)
        self._descriptor = -1
        with contextlib.suppress(OSError):
            # Kernels before 5.3 have none; the input's end tells there.
            self._descriptor = os.pidfd_open(pid)
            self._poll.register(self._descriptor, select.POLLIN)
        self.is_done = False
        self.is_gone = os.getppid() != pid

    def listen(self, limit_s: float, silence_s: float) -> None:
        """Until it is done or gone, or the time is up, or it said nothing for too long."""
        deadline = time.monotonic() + limit_s
        while not self.is_done and not self.is_gone:
            remaining = min(deadline - time.monotonic(), silence_s)
            if remaining <= 0:
                return
            ready = self.hear(remaining)
            if not ready:
                return
            if self._stop in ready:
                # A whole service is being stopped: the holder is likely to finish by itself.
                deadline = min(deadline, time.monotonic() + _GRACE_AFTER_STOP_S)

    def hear(self, wait_s: float) -> set[int]:
        """Take in what it says or what becomes of it within some time; what made itself heard."""
        ready = {descriptor for descriptor, _ in self._poll.poll(wait_s * 1000)}
        if 0 in ready:
            said = os.read(0, 4096)
            self.is_done = b"." in said
            self.is_gone = not said
        elif self._descriptor in ready:
            self.is_gone = True
        if self._stop in ready:
            self._poll.unregister(self._stop)
        return ready


def main(arguments: list[bytes]) -> int:
    """Watch the holder; the exit status."""
    mount_point, how = arguments[1], arguments[2].decode()
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if how == THAW else -1
    holder = _Holder(int(arguments[0]))
    os.write(1, b"ready\n")
    holder.listen(float(arguments[3]), float(arguments[4]))
    attempts = 0
    while not holder.is_done:
        try:
            undo(mount_point, how, descriptor)
            return UNDONE_EARLY
        except OSError as error:
            attempts += 1
            is_not_frozen = how == THAW and error.errno == errno.EINVAL
            if is_not_frozen and holder.is_gone:
                return UNDONE_EARLY
            # A holder that lives may be about to freeze it: the call can take long.
            if attempts >= _ATTEMPTS and not is_not_frozen:
                os.write(
                    2, b"smsnapd: cannot make %b writable again: %b\n" % (mount_point, str(error).encode())
                )
                return FAILED
        if holder.is_gone:
            time.sleep(_PAUSE_S)
        else:
            holder.hear(_PAUSE_S)
    return 0


def _stop_requests() -> int:
    """A descriptor that can be read from when somebody asks this process to stop."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading


if __name__ == "__main__":
    sys.exit(main([os.fsencode(argument) for argument in sys.argv[1:]]))
