"""Reading files that anybody may have put there: whole, of a bounded size, regular, never a link."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final

FILE_BYTES: Final = 1024 * 1024
NAMES: Final = 200_000
"""Names of one directory that are looked at; more are not those of an environment."""
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class TimeUpError(Exception):
    """The time that a survey may take is over."""


class Deadline:
    """A moment of the monotonic clock after which nothing more is begun."""

    def __init__(self, seconds: float) -> None:
        self._ends_s = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then, 0 when it is over."""
        return max(0.0, self._ends_s - time.monotonic())

    def check(self) -> None:
        """TimeUpError if it is over."""
        if not self.left_s:
            raise TimeUpError


def read_file(path: bytes, limit: int = FILE_BYTES) -> bytes:
    """A file's bytes. OSError if it is not there, no regular file, a link, or larger than `limit`."""
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > limit:
            raise OSError(f"it has {status.st_size:,} bytes, more than are read of such a file")
        return _all_of(descriptor, limit)
    finally:
        os.close(descriptor)


def _all_of(descriptor: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) <= limit:
        piece = os.read(descriptor, limit + 1 - len(data))
        if not piece:
            return bytes(data)
        data += piece
    raise OSError(f"it has more than {limit:,} bytes")


def read_text(path: bytes, limit: int = FILE_BYTES) -> str:
    """As `read_file`, decoded; what is no UTF-8 becomes U+FFFD."""
    return read_file(path, limit).decode("utf-8", "replace")


def entries_of(directory: bytes, limit: int = NAMES) -> Iterator[os.DirEntry[bytes]]:
    """A directory's entries, in no order, at most `limit`; nothing if it cannot be listed."""
    try:
        with os.scandir(directory) as found:
            yield from islice(found, limit)
    except OSError:
        return


def is_directory(entry: os.DirEntry[bytes]) -> bool:
    """Whether it is a directory, and no link to one."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def directories_of(directory: bytes) -> list[bytes]:
    """The names of the directories in one, sorted; links to directories are none."""
    return sorted(entry.name for entry in entries_of(directory) if is_directory(entry))
