"""Setting inotify watches on directories that are there, and knowing which could not have one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final

from smsnapd.model import join_path
from smsnapd.volume.mounts import mount_points_below
from smsnapd.volume.scan import VANISHED
from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.directories import Directories, Directory
from smsnapd.volume.watch.limits import raise_watch_limit, watch_limit

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RAISES: Final = 4
"""Raised so often without a watch to show for it, the limit is another one: that of a namespace, say."""
_MAX_POLLED: Final = 1000
"""Subtrees that are polled one by one; if there are more, everything is."""


class Walker:
    """Watches what lies below a root. Not for several threads.

    A directory is watched first and listed then: what comes into it is in the listing, in an event, or in
    both. Excluded directories, other file systems and mount points are left alone.
    """

    def __init__(
        self, root: bytes, admission: Admission, add: Callable[[bytes], int], *, may_raise_limit: bool
    ) -> None:
        """`add` watches an absolute path and gives its watch descriptor, or raises `OSError`.

        Raises `OSError` if the root cannot be watched.
        """
        self._root = root
        self._admission = admission
        self._add_path = add
        self._may_raise_limit = may_raise_limit
        self._device: Final = os.stat(root).st_dev
        self._mount_points: frozenset[bytes] = frozenset()
        self.polled: set[bytes] = set()
        """Directories without a watch though their parents have one: look there yourself."""
        self.unwatched = 0
        """Directories without a watch when last counted: the polled ones and all below them."""
        self.directories: Final = Directories(self.add(b""))

    def add(self, path: bytes) -> int:
        """Watch one directory; raises the limit if that is needed and allowed. Raises `OSError`."""
        absolute = os.path.join(self._root, path) if path else self._root
        for _ in range(_RAISES):
            try:
                return self._add_path(absolute)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._may_raise_limit:
                    raise
            self._may_raise_limit = raise_watch_limit()
        self._may_raise_limit = False
        return self._add_path(absolute)

    def walk_all(self) -> None:
        """Watch everything, as if nothing were known; what is not found again is detached."""
        self._mount_points = mount_points_below(os.path.realpath(self._root))
        self.polled, self.unwatched = set(), 0
        root = self.directories.root
        for name in list(root.children):
            self.directories.detach(root, name)
        for name in (self._list(b"") or ([], False))[0]:
            self.walk(root, name, name)

    def walk(self, parent: Directory, name: bytes, path: bytes) -> bool:
        """Watch this directory and all below; whether there is nothing in it."""
        is_empty = True
        stack: list[tuple[Directory | None, bytes, bytes]] = [(parent, name, path)]
        while stack:
            above, name, below = stack.pop()
            directory = None if above is None else self._watch(above, name, below)
            is_watched = directory is not None
            listed = self._list(below) if is_watched or above is None or below in self.polled else None
            if listed is None:
                self.unwatched += below in self.polled
                continue
            self.unwatched += not is_watched
            is_empty = is_empty and not any(listed)
            stack.extend(
                (directory, subdirectory, join_path(below, subdirectory)) for subdirectory in listed[0]
            )
        self._bound()
        return is_empty

    def is_left_out(self, path: bytes) -> bool:
        """Whether this directory is excluded by what it is, on another file system, or gone."""
        try:
            status = os.lstat(os.path.join(self._root, path))
        except OSError as error:
            return error.errno in VANISHED
        return status.st_dev != self._device or self._admission.is_left_out(status)

    def shortage(self) -> str:
        """A sentence on what could not be watched."""
        watched = len(self.directories)
        return (
            f"{self.unwatched} of {watched + self.unwatched} directories have no inotify watch "
            f"(fs.inotify.max_user_watches is {watch_limit()}) and are polled"
        )

    def _watch(self, parent: Directory, name: bytes, path: bytes) -> Directory | None:
        """Watch it and bind it to its name; None if that cannot be, and then it is polled if it is there."""
        try:
            watch = self.add(path)
        except OSError as error:
            # What may not be read is for the scan to report; its permissions' change is an event.
            if error.errno not in VANISHED and error.errno != errno.EACCES:
                self.polled.add(path)
            return None
        if watch == self.directories.root.watch:
            return None
        return self.directories.bind(parent, name, watch)

    def _list(self, path: bytes) -> tuple[list[bytes], bool] | None:
        """The directories in it to go into, and whether anything else is there; None if it is gone."""
        subdirectories, has_others = [], False
        try:
            descriptor = _open(os.path.join(self._root, path))
        except OSError:
            return None
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False) and self._is_wanted(path, name, entry):
                        subdirectories.append(name)
                    else:
                        has_others = True
        except OSError:
            # Gone while it was read: that is an event of its parent.
            return None
        finally:
            os.close(descriptor)
        return subdirectories, has_others

    def _is_wanted(self, directory: bytes, name: bytes, entry: os.DirEntry[str]) -> bool:
        status = None
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
        if status is None or status.st_dev != self._device or self._admission.is_left_out(status):
            return False
        if join_path(directory, name) in self._mount_points:
            return False
        return not self._admission.matches(directory, name, is_directory=True)

    def _bound(self) -> None:
        if len(self.polled) > _MAX_POLLED:
            self.polled = {b""}


def _open(path: bytes) -> int:
    """A directory for listing; access times stay as they are where that is allowed."""
    try:
        return os.open(path, _FLAGS | os.O_NOATIME)
    except PermissionError:
        return os.open(path, _FLAGS)
