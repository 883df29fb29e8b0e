"""The pace of puts: what all processes that share a limit send together stays at or below it.

They share one number, the moment until which the line is taken by what was let go so far (a leaky bucket
kept as a time: ITU-T I.371, the virtual scheduling algorithm). Who wants to send moves it on by what its
bytes take at the limit, and waits for that moment: first come, first served, a piece at a time, so that a
lease is not kept waiting behind an upload. Bytes of objects are counted, not those of the protocols below.

>>> pacer = Pacer(1_000_000)
>>> [len(piece) for piece in pacer.pieces(bytes(100_000))]
[62500, 37500]
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.store.base import Buffer, StoreSettings

_LARGEST_PIECE: Final = 64 * 1024
_SMALLEST_PIECE: Final = 1024
_PIECES_PER_S: Final = 16
"""Servers give up a connection that is silent for long (S3 after 20 s): at this rhythm none is, however many
take turns."""

_CREDIT_NS: Final = 50_000_000
"""What a silent line saves up, so that a sleep which lasted too long is made up for."""

_HORIZON_NS: Final = 60 * 10**9
"""Longer than any queue. A number beyond it was written before a reboot, or by nobody: the line is free."""

_NUMBER: Final = struct.Struct("<q")
_SHARED_MEMORY: Final = "/dev/shm"
_LOCK_TRIES: Final = 200
_LOCK_PAUSE_S: Final = 0.005
_log = logging.getLogger(__name__)


class SharedFile(NamedTuple):
    """The file with the number. It is trusted if it is root's, one's own, or that of the user id `owner`."""

    path: str
    owner: int = -1


def shared_file(directory: Path) -> SharedFile:
    """The file of those who keep their state in `directory`: the daemon, and command lines beside it.

    In memory and not in that directory, which may lie on the volume: that can be read-only or frozen while
    puts go on, and a file that is open for writing would keep it from becoming so. After a reboot it is gone.
    """
    place = os.path.realpath(directory)
    digest = hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
    try:
        owner = os.stat(place).st_uid
    except OSError:  # not yet made: it will be one's own
        owner = os.geteuid()
    return SharedFile(f"{_SHARED_MEMORY}/smsnapd-{owner}-{digest}", owner)


def pacer_for(settings: StoreSettings) -> Pacer | None:
    """What paces the puts of a store; None if they are not limited."""
    if not settings.upload_bytes_s:
        return None
    shared = SharedFile(settings.pace_file, settings.pace_owner) if settings.pace_file else None
    return Pacer(settings.upload_bytes_s, shared)


def download_pacer_for(settings: StoreSettings) -> Pacer | None:
    """What paces the gets of a store, which have a line of their own; None if they are not limited."""
    if not settings.download_bytes_s:
        return None
    path = f"{settings.pace_file}-down"
    return Pacer(
        settings.download_bytes_s, SharedFile(path, settings.pace_owner) if settings.pace_file else None
    )


class Pacer:
    """Lets `bytes_s` bytes a second go, counting what others with the same `shared` file let go.

    Without a file, and where the file cannot be used, this process counts alone. For several threads.
    `now_ns` must be one clock for all processes (time.monotonic_ns is, on Linux).
    """

    def __init__(
        self,
        bytes_s: int,
        shared: SharedFile | None = None,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.piece = max(_SMALLEST_PIECE, min(_LARGEST_PIECE, bytes_s // _PIECES_PER_S))
        """Bytes that go out at once, at most."""
        self._bytes_s = bytes_s
        self._now_ns = now_ns
        self._sleep = sleep
        self._lock = threading.Lock()
        self._shared = None if shared is None else _SharedNumber(shared, sleep)
        self._taken_ns = 0
        self._has_complained = False

    def pieces(self, data: Buffer) -> Iterator[memoryview]:
        """`data` in pieces, without copying; each comes when it may go out."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self.piece):
            piece = view[start : start + self.piece]
            self.wait(len(piece))
            yield piece

    def close(self) -> None:
        """Close the file. The next piece opens it again."""
        with self._lock:
            if self._shared is not None:
                self._shared.close()

    def wait(self, size: int) -> None:
        """Return when `size` bytes, `piece` at most, may go."""
        with self._lock:
            self._taken_ns = taken_ns = self._book(size * 10**9 // self._bytes_s)
        left_ns = taken_ns - self._now_ns()
        if left_ns > 0:
            self._sleep(left_ns / 1e9)

    def _book(self, cost_ns: int) -> int:
        """Take the line for `cost_ns` more; until when it is taken then."""

        def moved_on(taken_ns: int) -> int:
            now_ns = self._now_ns()
            free_ns = taken_ns if taken_ns <= now_ns + _HORIZON_NS else 0
            return max(free_ns, now_ns - _CREDIT_NS) + cost_ns

        if self._shared is not None:
            try:
                return self._shared.change(moved_on)
            except OSError as error:
                # To store too fast is better than not to store.
                self._complain(error)
        return moved_on(self._taken_ns)

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            _log.warning("the upload limit holds for each process by itself: %s", error)
        self._has_complained = True


class _SharedNumber:
    """A number in a file, changed under flock(2): the kernel lets go of the lock of whoever dies.

    Of one who is stopped it does not, and nobody waits long for that: two changes at once lose one of them,
    which is a little too much sent.
    """

    def __init__(self, file: SharedFile, sleep: Callable[[float], None]) -> None:
        self._file = file
        self._sleep = sleep
        self._descriptor = -1
        self._pid = 0
        self._lock_tries = _LOCK_TRIES

    def change(self, change: Callable[[int], int]) -> int:
        """Replace the number (0 if there is none) by `change` of it; returns that. May raise `OSError`."""
        descriptor = self._opened()
        is_locked = self._locked(descriptor)
        try:
            content = os.pread(descriptor, _NUMBER.size, 0)
            number = change(_NUMBER.unpack(content)[0] if len(content) == _NUMBER.size else 0)
            os.pwrite(descriptor, _NUMBER.pack(number), 0)
        finally:
            if is_locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        return number

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        """The descriptor: of this process's own opening, which is what flock tells apart, and not of a file
        that was deleted (systemd does that to a user's files in shared memory when the user logs out)."""
        if self._descriptor < 0 or self._pid != os.getpid() or not os.fstat(self._descriptor).st_nlink:
            self.close()
            self._descriptor, self._pid = _open_trusted(self._file), os.getpid()
        return self._descriptor

    def _locked(self, descriptor: int) -> bool:
        """Whether the lock could be had; after it could not, it is asked for but once a time."""
        for _ in range(self._lock_tries):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._lock_tries > 1:
                    self._sleep(_LOCK_PAUSE_S)
            else:
                self._lock_tries = _LOCK_TRIES
                return True
        self._lock_tries = 1
        return False


def _open_trusted(file: SharedFile) -> int:
    """Open the file, and make it if need be; `PermissionError` if it is somebody else's.

    It is not opened with O_CREAT if it is there: the kernel may forbid that for another user's file in a
    directory like this, to root as well (fs.protected_regular).
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file.path, flags)
    except FileNotFoundError:
        try:
            return _made(file, flags)
        except FileExistsError:
            descriptor = os.open(file.path, flags)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid(), file.owner):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it is another user's, or no file", file.path)
    return descriptor


def _made(file: SharedFile, flags: int) -> int:
    descriptor = os.open(file.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    if os.geteuid() == 0 and file.owner > 0:
        os.fchown(descriptor, file.owner, -1)
    return descriptor
