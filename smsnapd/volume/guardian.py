"""The process that makes a file system writable again when its holder cannot: `held_read_only`'s other half.

Run as a program by path, with the standard library alone and nothing of this package, so that it starts in
milliseconds and depends on nothing that may be broken: `guardian.py <holder's pid> <mount point> <flags>
<seconds>`. It says `ready`, and then waits for a byte on its standard input (the holder has undone the
remount itself), the input's end or the holder's death (the holder is gone), or the time limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

UNDONE_EARLY = 3
"""Exit status: the time was up, or a stop was asked for, and the file system is writable again."""
FAILED = 4
"""Exit status: it could not be made writable again."""

MS_RDONLY = 0x1
MS_REMOUNT = 0x20
_ATTEMPTS = 100
_PAUSE_S = 0.1
_GRACE_AFTER_STOP_S = 10.0


def remount(mount_point: bytes, flags: int) -> None:
    """mount(2) with MS_REMOUNT and these flags. May be repeated. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, mount_point, None, ctypes.c_ulong(MS_REMOUNT | flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: list[bytes]) -> int:
    """Watch the holder; the exit status."""
    holder, mount_point, flags, limit_s = (
        int(arguments[0]), arguments[1], int(arguments[2]), float(arguments[3]),
    )  # fmt: skip
    stop = _stop_requests()
    os.write(1, b"ready\n")
    early = _wait(holder, stop, time.monotonic() + limit_s)
    if early is None:
        return 0
    for _ in range(_ATTEMPTS):
        try:
            remount(mount_point, flags)
        except OSError as error:
            problem = error
            time.sleep(_PAUSE_S)
        else:
            return UNDONE_EARLY
    os.write(2, b"smsnapd: cannot make %b writable again: %b\n" % (mount_point, str(problem).encode()))
    return FAILED


def _stop_requests() -> int:
    """A descriptor that can be read from when somebody asks this process to stop."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading


def _wait(holder: int, stop: int, deadline: float) -> str | None:
    """Wait until there is something to do: why, or None if the holder has done it."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(stop, select.POLLIN)
    holder_descriptor = -1
    with contextlib.suppress(OSError):
        # Kernels before 5.3 have none; the input's end tells there.
        holder_descriptor = os.pidfd_open(holder)
        poll.register(holder_descriptor, select.POLLIN)
    if os.getppid() != holder:
        return "the holder is gone"
    while (remaining := deadline - time.monotonic()) > 0:
        ready = {descriptor for descriptor, _ in poll.poll(remaining * 1000)}
        if 0 in ready:
            return None if os.read(0, 1) else "the holder is gone"
        if holder_descriptor in ready:
            return "the holder is gone"
        if stop in ready:
            # A whole service is being stopped: the holder is likely to finish by itself.
            poll.unregister(stop)
            deadline = min(deadline, time.monotonic() + _GRACE_AFTER_STOP_S)
    return "the time is up"


if __name__ == "__main__":
    sys.exit(main([os.fsencode(argument) for argument in sys.argv[1:]]))
