"""The directories of a target, by descriptor: opened component by component, no symbolic link followed.

Everything below the root is addressed as (descriptor of its directory, name). So a path may be
longer than PATH_MAX, and a link planted anywhere in the target leads nowhere.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from smsnapd.errors import TargetError
from smsnapd.model import path_text
from smsnapd.volume.tarball.failure import RefusedError

_OPEN: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = 64
_KEPT_ON_THE_WAY: Final = 16
_NO_NAMES: Final = frozenset((b"", b".", b".."))
_NO_ACL: Final = frozenset((errno.ENODATA, errno.ENOTSUP))


class Folder(NamedTuple):
    """An open directory. `fd` is for `*at` calls only (O_PATH).

    `inherits_acl` says that what is made in it gets an ACL from its default ACL.
    """

    fd: int
    inherits_acl: bool


def proc_path(fd: int) -> bytes:
    """A path that leads to the very file behind `fd`, O_PATH descriptors and symlinks included (proc(5))."""
    return b"/proc/self/fd/%d" % fd


class Descent:
    """Opens directories below `root` and keeps the last ones open, so that neighbours cost nothing.

    `root` may be reached through symbolic links; below it none is followed. A `Folder` stays open at
    least until the second next call of `open`. Not safe to share among threads or processes.
    """

    def __init__(self, root: bytes) -> None:
        try:
            self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            what = f"open the target {path_text(root)}"
            raise TargetError(what, os.strerror(error.errno or 0), "give a directory") from error
        self._root = Folder(self.root_fd, _has_default_acl(self.root_fd))
        self._folders: dict[bytes, Folder] = {}
        self._last_path = b""
        self._last = self._root

    def locate(self, path: bytes) -> tuple[Folder, bytes]:
        """The open directory of `path` and its last component.

        Raises `RefusedError` for a path that is not plain and relative, `OSError` if its directory is
        not there or is none (ENOTDIR or ELOOP for a symbolic link).
        """
        directory, separator, name = path.rpartition(b"/")
        if name in _NO_NAMES or (separator and not directory) or b"\0" in path:
            raise RefusedError("its path is not a plain relative one")
        if directory == self._last_path:
            return self._last, name
        return self.open(directory), name

    def open(self, directory: bytes) -> Folder:
        """The directory at this path below the root; the root itself is `b""`. Raises as `locate`."""
        if not directory:
            folder = self._root
        elif directory in self._folders:
            folder = self._folders[directory] = self._folders.pop(directory)
        else:
            # A walk that fails may close what was last.
            self._last_path, self._last = b"", self._root
            folder = self._walk(directory)
        self._last_path, self._last = directory, folder
        return folder

    def forget(self, directory: bytes) -> None:
        """Close what is open of this directory and below it: it is about to go."""
        below = directory + b"/"
        for path in [p for p in self._folders if p == directory or p.startswith(below)]:
            os.close(self._folders.pop(path).fd)
        self._last_path, self._last = b"", self._root

    def close(self) -> None:
        """Close every descriptor. May be called more than once."""
        self.forget_all()
        if self.root_fd >= 0:
            os.close(self.root_fd)
            self.root_fd = -1

    def forget_all(self) -> None:
        """Close every descriptor but the root's."""
        for folder in self._folders.values():
            os.close(folder.fd)
        self._folders.clear()
        self._last_path, self._last = b"", self._root

    def _walk(self, directory: bytes) -> Folder:
        missing: list[bytes] = []
        known = directory
        while known and known not in self._folders:
            known, separator, name = known.rpartition(b"/")
            if name in _NO_NAMES or b"\0" in name or (separator and not known):
                raise RefusedError("its path is not a plain relative one")
            missing.append(name)
        folder = self._folders[known] if known else self._root
        return self._step_down(folder, known, missing)

    def _step_down(self, folder: Folder, path: bytes, missing: list[bytes]) -> Folder:
        """Open the names in `missing`, last one first; only the deepest of them stay open."""
        passing = -1
        while missing:
            name = missing.pop()
            path = path + b"/" + name if path else name
            try:
                fd = os.open(name, _OPEN, dir_fd=folder.fd)
            finally:
                if passing >= 0:
                    os.close(passing)
            if len(missing) < _KEPT_ON_THE_WAY:
                passing = -1
                folder = self._keep(path, fd)
            else:
                passing = fd
                folder = Folder(fd, False)
        return folder

    def _keep(self, path: bytes, fd: int) -> Folder:
        if len(self._folders) >= _KEPT:
            os.close(self._folders.pop(next(iter(self._folders))).fd)
        # Kept before it is asked about, so that it is closed in any case.
        self._folders[path] = Folder(fd, False)
        folder = self._folders[path] = Folder(fd, _has_default_acl(fd))
        return folder


def _has_default_acl(fd: int) -> bool:
    try:
        os.getxattr(proc_path(fd), b"system.posix_acl_default")
    except OSError as error:
        if error.errno in _NO_ACL:
            return False
        raise
    return True
