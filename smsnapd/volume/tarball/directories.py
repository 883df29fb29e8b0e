"""Directories of the target: made early and open to their owner, given their metadata at the end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set
from typing import Final

from smsnapd.model import Entry, join_path
from smsnapd.volume.tarball.descent import Folder
from smsnapd.volume.tarball.failure import PROBLEMS, RefusedError, abort_if_hopeless, reason_of
from smsnapd.volume.tarball.marker import LOST_AND_FOUND, MARKER, PARTIAL
from smsnapd.volume.tarball.ownership import UNFINISHED, disinherit
from smsnapd.volume.tarball.placement import Placement
from smsnapd.volume.tarball.removal import MOUNTED, Removal, Removed, make_accessible, mount_of

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """Makes, finishes and empties directories at a placement. Methods return as those of `Target` do."""

    def __init__(self, place: Placement) -> None:
        self._place = place
        self._unmarked: set[bytes] = set()

    def make(self, path: bytes) -> str:
        """As `Target.make_directory`."""
        if not path:
            return ""
        try:
            folder, name = self._place.locate(path)
            try:
                os.mkdir(name, 0o700, dir_fd=folder.fd)
            except FileExistsError:
                if self._take(folder, name):
                    return ""
                os.mkdir(name, 0o700, dir_fd=folder.fd)
            if folder.inherits_acl or self._place.never or self._place.umask & 0o700:
                self._prepare_new(folder, name, path)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return ""

    def _take(self, folder: Folder, name: bytes) -> bool:
        """Whether what is there is a directory to use; what else it is makes way."""
        found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            if found.st_mode & 0o700 != 0o700 and not self._place.never:
                make_accessible(folder.fd, name)
            return True
        if not self._place.replaces:
            raise RefusedError("something that is no directory is there and is kept")
        os.unlink(name, dir_fd=folder.fd)
        return False

    def _prepare_new(self, folder: Folder, name: bytes, path: bytes) -> None:
        """Take away what it inherited; let a later run know that it is ours to finish."""
        make_accessible(folder.fd, name)
        fd = os.open(name, _OPEN, dir_fd=folder.fd)
        try:
            if folder.inherits_acl:
                disinherit(fd, 0o700)
            if self._place.never:
                os.setxattr(fd, UNFINISHED, b"")
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            self._unmarked.add(path)
        finally:
            os.close(fd)

    def finish(self, path: bytes, entry: Entry) -> str:
        """As `Target.finish_directory`."""
        try:
            fd = self._open(path)
            try:
                if not self._place.never or path in self._unmarked or _is_marked(fd):
                    self._place.ownership.apply(fd, path, entry, new=False)
            finally:
                os.close(fd)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return ""

    def _open(self, path: bytes) -> int:
        if not path:
            return os.open(b".", _OPEN, dir_fd=self._place.descent.root_fd)
        folder, name = self._place.locate(path)
        return os.open(name, _OPEN, dir_fd=folder.fd)

    def remove_extra(self, directory: bytes, keep: Set[bytes], *, dry_run: bool) -> Removed:
        """As `Target.remove_extra`."""
        if not directory:
            keep = keep | {MARKER, LOST_AND_FOUND}
        descent = self._place.descent
        try:
            fd = descent.open(directory).fd
            if mount_of(fd) != mount_of(descent.root_fd):
                return Removed(kept=[(directory, MOUNTED)])
            removal = Removal(fd, directory, dry_run=dry_run)
            removal.all_but(keep)
        except PROBLEMS as problem:
            return Removed(kept=[(directory, reason_of(problem, directory))])
        if removal.removed.paths and not dry_run:
            descent.forget_all()
        return removal.removed

    def clean_partials(self, directory: bytes) -> int:
        """As `Target.clean_partials`."""
        removed = 0
        try:
            fd = self._open(directory)
        except PROBLEMS as problem:
            reason_of(problem, directory)
            return 0
        try:
            with os.scandir(fd) as items:
                for item in items:
                    name = os.fsencode(item.name)
                    if name.startswith(PARTIAL) and not item.is_dir(follow_symlinks=False):
                        removed += _unlink(fd, name, join_path(directory, name))
        finally:
            os.close(fd)
        return removed


def _unlink(fd: int, name: bytes, path: bytes) -> bool:
    try:
        os.unlink(name, dir_fd=fd)
    except OSError as error:
        abort_if_hopeless(error, path)
        return False
    return True


def _is_marked(fd: int) -> bool:
    try:
        os.getxattr(fd, UNFINISHED)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
    return True
