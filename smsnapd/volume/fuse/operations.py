"""A `ReadOnlyTree` in the words of libfuse's high-level interface, as mfusepy hands them on.

Paths come and go as text (UTF-8 with surrogate escapes), errors as `OSError`; nothing else may get out of a
method, for there is nobody to catch it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from smsnapd.errors import SmsnapError
from smsnapd.model import path_text
from smsnapd.volume.fuse.tree import Attributes, Name, OpenFile, ReadOnlyTree

_T = TypeVar("_T")
_log: Final = logging.getLogger(__name__)
_BLOCK_SIZE: Final = 512
_PREFERRED_SIZE: Final = 128 * 1024
_NAME_MAX: Final = 255
_UNKNOWN_INODE: Final = 0xFFFFFFFF
"""As libfuse itself says it: who lists a directory takes a name with inode 0 for a deleted one."""


class Operations:
    """What mfusepy calls. It looks methods up by name; those that are missing answer ENOSYS."""

    use_ns = True

    def __init__(self, tree: ReadOnlyTree, ready: Callable[[], None]) -> None:
        self._tree = tree
        self._ready = ready
        self.was_mounted = False
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._files: dict[int, OpenFile] = {}

    def init(self, _: str) -> None:
        """The mount is there."""
        self.was_mounted = True
        self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """stat(2)."""
        return _stat(_guarded(self._tree.attributes, path))

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        """Names, types, and an offset of 0: all of them are given at once."""
        found = _guarded(lambda raw: list(self._tree.names(raw)), path)
        for name, mode, inode in (Name(b".", stat.S_IFDIR), Name(b"..", stat.S_IFDIR), *found):
            yield _text(name), {"st_mode": mode, "st_ino": inode or _UNKNOWN_INODE}, 0

    def readlink(self, path: str) -> str:
        """readlink(2)."""
        return _text(_guarded(self._tree.read_link, path))

    def open(self, path: str, flags: int) -> int:
        """A number for an open file; EROFS for one that wants to write."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        file = _guarded(self._tree.open, path)
        with self._lock:
            number = next(self._numbers)
            self._files[number] = file
        return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """pread(2)."""
        file = self._files[fh]
        return bytes(_guarded(lambda _: file.read(offset, size), path))

    def release(self, path: str, fh: int) -> int:
        """The last descriptor of an open file is closed."""
        with self._lock:
            file = self._files.pop(fh)
        _guarded(lambda _: file.close(), path)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """getxattr(2)."""
        wanted = _bytes(name)
        for attribute in _guarded(self._tree.xattrs, path):
            if attribute.name == wanted:
                return attribute.value
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        return [_text(attribute.name) for attribute in _guarded(self._tree.xattrs, path)]

    def statfs(self, path: str) -> dict[str, int]:
        """A file system without any room."""
        return {"f_bsize": _PREFERRED_SIZE, "f_frsize": _BLOCK_SIZE, "f_namemax": _NAME_MAX}


def _stat(found: Attributes) -> dict[str, Any]:
    data_bytes = found.size if found.data_bytes is None else found.data_bytes
    return {
        "st_mode": found.mode,
        "st_size": found.size,
        "st_uid": found.uid,
        "st_gid": found.gid,
        "st_ino": found.inode,
        "st_nlink": found.links,
        "st_rdev": found.rdev,
        "st_blocks": -(-data_bytes // _BLOCK_SIZE),
        "st_blksize": _PREFERRED_SIZE,
        "st_atime": found.mtime_ns,
        "st_mtime": found.mtime_ns,
        "st_ctime": found.ctime_ns,
    }


def _guarded(ask: Callable[[bytes], _T], path: str) -> _T:
    """What `ask` says of a path; whatever goes wrong in it is told, and an I/O error for who asked."""
    raw = _bytes(path).strip(b"/")
    try:
        return ask(raw)
    except OSError:
        raise
    except SmsnapError as error:
        _log.error("%s: %s", path_text(raw), error)
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
    except Exception as error:
        _log.exception("%s: unforeseen", path_text(raw))
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
