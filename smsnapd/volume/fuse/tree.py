"""What a read-only file system must be able to tell, for `serve` to show it under a directory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from smsnapd.model import Xattr


class Attributes(NamedTuple):
    """What stat(2) tells of one name. `mode` has the file's type in it; `rdev` is as `os.makedev` has it."""

    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    links: int = 1
    rdev: int = 0
    data_bytes: int | None = None
    """Bytes that are no hole; None means all of `size`."""


class Name(NamedTuple):
    """A name in a directory; of its `mode` the type is enough, and its `inode` may stay unknown (0)."""

    name: bytes
    mode: int
    inode: int = 0


class OpenFile(Protocol):
    """A regular file that somebody has opened."""

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """`size` bytes from `offset` on; fewer only at the file's end. Several threads may read at once."""

    def close(self) -> None:
        """Let go of it; called once."""


class ReadOnlyTree(Protocol):
    """A tree of names. Paths are bytes, relative to its root (`b""`), `/` between components.

    Every method may be called by several threads at once. `OSError` goes to who asked as it is (ENOENT, and
    for `read_link` of what is no link EINVAL); `SmsnapError` is logged, and seen as EIO.
    """

    def attributes(self, path: bytes) -> Attributes:
        """Of the name itself, be it a symbolic link."""

    def names(self, path: bytes) -> Iterable[Name]:
        """What lies in a directory; `.` and `..` left out."""

    def read_link(self, path: bytes) -> bytes:
        """The target of a symbolic link."""

    def open(self, path: bytes) -> OpenFile:
        """A regular file, for reading."""

    def xattrs(self, path: bytes) -> Sequence[Xattr]:
        """Extended attributes, names as getxattr(2) has them."""
