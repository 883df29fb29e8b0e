"""Giving complete things their names in the target: under which rules, and what makes way for them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from smsnapd.model import path_text
from smsnapd.volume.tarball.descent import Descent, Folder
from smsnapd.volume.tarball.failure import RefusedError, reason_of
from smsnapd.volume.tarball.mapping import IdMapping
from smsnapd.volume.tarball.marker import MARKER, PARTIAL
from smsnapd.volume.tarball.ownership import Ownership
from smsnapd.volume.tarball.removal import Removal

Overwrite = Literal["never", "if-changed", "always", "resume", "fresh"]

_NO_LINKS: Final = frozenset((errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS))


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply.

    `overwrite` says what happens to names that are there: `never` keeps them, `always` replaces them,
    `if-changed` and `resume` replace those whose metadata differ; `fresh` knows that there are none
    (`marker.begin_restore` says which). `users` are pairs of old and new ids for owners, groups and ACLs.
    `privileged`: the process is root, and may set any owner.
    """

    overwrite: Overwrite = "never"
    users: tuple[tuple[int, int], ...] = ()
    privileged: bool = False


class Placement:
    """What the parts of a `Target` share: its directories, its rules and its temporary name."""

    def __init__(self, root: bytes, options: ApplyOptions) -> None:
        self.descent = Descent(root)
        self.ownership = Ownership(IdMapping(options.users), privileged=options.privileged)
        self.never = options.overwrite == "never"
        self.trusts_nothing = options.overwrite in ("fresh", "always")
        self.replaces = options.overwrite in ("if-changed", "always", "resume")
        self.umask = _umask()
        self.temporary = PARTIAL + secrets.token_hex(6).encode()
        """The name of whatever this process makes; free again as soon as that has its own."""

    def locate(self, path: bytes) -> tuple[Folder, bytes]:
        """As `Descent.locate`; refuses the name of the restore's own mark."""
        if path == MARKER:
            raise RefusedError("the restore itself needs this name")
        return self.descent.locate(path)

    def publish(self, folder: Folder, temporary: bytes, name: bytes, path: bytes) -> None:
        """Rename what is complete from `temporary` to `name`, by the rules for what is there already.

        `path` is that of `name`. Raises `OSError` or `RefusedError`; the temporary name is there still, then.
        """
        if self.never:
            self._publish_new(folder.fd, temporary, name)
            return
        try:
            os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except IsADirectoryError:
            if not self.replaces:
                raise
            self.clear(folder, name, path)
            os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)

    def give_up(self, folder: Folder, temporary: bytes, problem: Exception, path: bytes) -> str:
        """Remove what could not be completed; returns the reason, or raises, as `reason_of`."""
        with contextlib.suppress(OSError):  # what matters is the problem before
            os.unlink(temporary, dir_fd=folder.fd)
        return reason_of(problem, path)

    def clear(self, folder: Folder, name: bytes, path: bytes) -> None:
        """Remove the directory `name`, which is in the way, with all that is in it."""
        directory = path.rpartition(b"/")[0]
        self.descent.forget(path)
        removal = Removal(folder.fd, directory)
        removal.tree(name)
        for kept, reason in removal.removed.kept[:1]:
            raise RefusedError(f"{path_text(kept)} is in its way and cannot be removed: {reason}")

    def _publish_new(self, fd: int, temporary: bytes, name: bytes) -> None:
        """Rename without ever replacing: rename(2) would, link(2) does not."""
        try:
            link(fd, temporary, fd, name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._rename_new(fd, temporary, name)
        else:
            os.unlink(temporary, dir_fd=fd)

    def _rename_new(self, fd: int, temporary: bytes, name: bytes) -> None:
        """The next best for file systems without hard links."""
        try:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def link(source_fd: int, source: bytes, folder_fd: int, name: bytes) -> None:
    """Make a hard link (linkat(2)), of a symbolic link too."""
    os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=folder_fd, follow_symlinks=False)


def _umask() -> int:
    """The umask of this process (proc_pid_status(5)); umask(2) could only tell by changing it."""
    with open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777
