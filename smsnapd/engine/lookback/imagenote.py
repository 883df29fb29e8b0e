"""What `mount` shows of a recovery point whose chain begins with a block image: what to do about it."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from smsnapd.format.names import ManifestName
from smsnapd.model import Xattr
from smsnapd.volume.fuse.tree import Attributes, Name

NOTE: Final = b"THIS-IS-A-BLOCK-IMAGE"
_TEXT: Final = """\
Recovery point {id} is a block image, or follows from one: its files lie in that image.

    smsnap ls {id}                               lists them
    smsnap cat {id} PATH                         shows one
    smsnap restore --snapshot {id} --target DIR  brings them back, or some of them
    smsnap restore --snapshot {id} --device DEV  writes the image to a device or a file
"""


class ImageNote:
    """A directory with one file that says it."""

    def __init__(self, point: ManifestName) -> None:
        self._mtime_ns = point.time_us * 1000
        self._text = _TEXT.format(id=point.snapshot).encode()

    def attributes(self, below: bytes) -> Attributes:
        """Of the directory, if `below` is empty, or the file."""
        if not below:
            return Attributes(stat.S_IFDIR | 0o555, mtime_ns=self._mtime_ns, links=2, inode=3)
        self._check(below)
        return Attributes(stat.S_IFREG | 0o444, len(self._text), mtime_ns=self._mtime_ns, inode=4)

    def names(self, below: bytes) -> list[Name]:
        """The one file."""
        return [Name(NOTE, stat.S_IFREG)]

    def read_link(self, below: bytes) -> bytes:
        """There are no links."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def xattrs(self, below: bytes) -> tuple[Xattr, ...]:
        """None."""
        return ()

    def open(self, below: bytes) -> ImageNote:
        """The file, which is this."""
        self._check(below)
        return self

    def read(self, offset: int, size: int) -> bytes:
        """As `volume.fuse.OpenFile`."""
        return self._text[offset : offset + size]

    def close(self) -> None:
        """Nothing is held open."""

    def _check(self, below: bytes) -> None:
        if below != NOTE:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
