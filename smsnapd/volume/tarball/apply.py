"""Applying entries to the target of a restore: faithfully, and never outside it.

    with Target(root, ApplyOptions(overwrite="fresh")) as target:
        target.make_directory(b"work")
        target.write_small(b"work/notes.txt", entry, content)
        target.finish_directory(b"work", directory)

What is new gets a temporary name in its directory, content and metadata, and then its final name:
no half-written file is ever seen under that. Several processes may each have a `Target` on the same
directory and work on different entries.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Set
from types import TracebackType
from typing import Final

from smsnapd.disk import Buffer, sync_file_system, write_at
from smsnapd.errors import TargetError
from smsnapd.model import Entry, Flag, Kind, data_bytes
from smsnapd.volume.tarball.descent import Folder, proc_path
from smsnapd.volume.tarball.directories import Directories
from smsnapd.volume.tarball.failure import PROBLEMS, RefusedError, reason_of
from smsnapd.volume.tarball.large import LargeFile, create_partial, open_partial, partial_name
from smsnapd.volume.tarball.marker import check_marked
from smsnapd.volume.tarball.nodes import DEVICES, TYPES, Nodes, device_of
from smsnapd.volume.tarball.ownership import Notes, disinherit
from smsnapd.volume.tarball.placement import ApplyOptions, Overwrite, Placement
from smsnapd.volume.tarball.removal import Removed
from smsnapd.volume.tarball.writeback import EarlyWriteback

__all__ = ["ApplyOptions", "LargeFile", "Notes", "Overwrite", "Removed", "Target"]

_SPARSE: Final = int(Flag.SPARSE)
_ALIAS: Final = int(Flag.ALIAS)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """A directory that entries are applied to; only the root itself may be reached through links.

    Methods that return `str` return "" if all is well, else the reason why this entry is not restored.
    All raise `TargetError` if nothing more can be restored (full, read-only, broken), and may be repeated.
    Paths are relative to the root.
    """

    def __init__(self, root: bytes, options: ApplyOptions) -> None:
        self._root = root
        self._place = Placement(root, options)
        self._directories = Directories(self._place)
        self._nodes = Nodes(self._place)
        self._ownership = self._place.ownership
        self._creation_modes: dict[int, int] = {}

    @property
    def notes(self) -> Notes:
        """What could not be kept of owners, attributes and modes; can be sent to another process."""
        return self._ownership.notes

    @property
    def wants_all(self) -> bool:
        """Whether `wanted` is true of everything."""
        return self._place.trusts_nothing

    def wanted(self, path: bytes, entry: Entry) -> bool:
        """Whether the entry must be applied, by what is at `path` now and by the overwrite mode.

        True for every directory: `make_directory` and `finish_directory` know themselves what is theirs. True
        also where applying will fail: that call says why. Of an alias only the inode is compared, with
        that of `entry.target`.
        """
        if self._place.trusts_nothing or entry.kind == Kind.DIRECTORY:
            return True
        try:
            folder, name = self._place.locate(path)
            found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            return not (self._place.never or self._agrees(folder, name, found, entry))
        except PROBLEMS:
            return True

    def write_small(self, path: bytes, entry: Entry, data: Buffer) -> str:
        """Write a whole file; of a sparse one `data` are its segments, joined."""
        place = self._place
        try:
            folder, name = place.locate(path)
            mode = -1 if folder.inherits_acl or entry.xattrs else self._creation_mode(entry.mode)
            fd = os.open(place.temporary, _CREATE, 0o600 if mode < 0 else mode, dir_fd=folder.fd)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        try:
            try:
                if folder.inherits_acl:
                    disinherit(fd, 0o600)
                _write_content(fd, entry, data)
                self._ownership.apply(fd, path, entry, as_created=mode >= 0)
            finally:
                os.close(fd)
            place.publish(folder, place.temporary, name, path)
        except PROBLEMS as problem:
            return place.give_up(folder, place.temporary, problem, path)
        return ""

    def begin_large(self, path: bytes, entry: Entry) -> LargeFile | str:
        """Create the partial file of a large one, all hole; an older one of its name is removed.

        Once for each file, before any `open_large`. Returns the reason where it cannot be.
        """
        try:
            folder, _ = self._place.locate(path)
            fd = create_partial(folder.fd, partial_name(path), entry.size)
            if folder.inherits_acl:
                disinherit(fd, 0o600)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return LargeFile(fd, path)

    def open_large(self, path: bytes, entry: Entry) -> LargeFile | str:
        """Open the partial file that any process has begun and none has finished, to write ranges."""
        try:
            folder, _ = self._place.locate(path)
            return LargeFile(open_partial(folder.fd, partial_name(path), entry.size), path)
        except PROBLEMS as problem:
            return reason_of(problem, path)

    def finish_large(self, path: bytes, entry: Entry) -> str:
        """Give the large file its metadata and its name, when all its ranges are written and closed."""
        partial = partial_name(path)
        try:
            folder, name = self._place.locate(path)
        except PROBLEMS as problem:
            return reason_of(problem, path)
        try:
            fd = open_partial(folder.fd, partial, entry.size)
            try:
                self._ownership.apply(fd, path, entry)
            finally:
                os.close(fd)
            self._place.publish(folder, partial, name, path)
        except PROBLEMS as problem:
            return self._place.give_up(folder, partial, problem, path)
        return ""

    def abandon_large(self, path: bytes) -> str:
        """Remove the partial file of a large one whose content is not to be had."""
        try:
            folder, _ = self._place.locate(path)
            os.unlink(partial_name(path), dir_fd=folder.fd)
        except FileNotFoundError:
            return ""
        except PROBLEMS as problem:
            return reason_of(problem, path)
        return ""

    def make_symlink(self, path: bytes, entry: Entry) -> str:
        """Make a symbolic link to `entry.target`, which may point anywhere: nobody follows it here."""
        return self._nodes.make_symlink(path, entry)

    def make_special(self, path: bytes, entry: Entry) -> str:
        """Make a FIFO or a device. Devices are root's alone."""
        return self._nodes.make_special(path, entry)

    def make_link(self, first_path: bytes, path: bytes, entry: Entry) -> str:
        """Make `path` a further name of what is at `first_path`, which must be there."""
        return self._nodes.make_link(first_path, path, entry)

    def remap(self, path: bytes, entry: Entry) -> str:
        """Give what is at `path`, and is the entry already, the owners that the user mapping says."""
        return self._nodes.remap(path, entry)

    def make_directory(self, path: bytes) -> str:
        """Make a directory, or take the one that is there; its owner may do everything in it for now.

        Its parent must be there. What stands in its place is replaced if the overwrite mode allows it.
        """
        return self._directories.make(path)

    def has_directory(self, path: bytes) -> bool:
        """Whether there is a directory already."""
        try:
            self._place.descent.open(path)
        except PROBLEMS:
            return False
        return True

    def finish_directory(self, path: bytes, entry: Entry) -> str:
        """Give a directory its metadata, after everything in it; deepest first.

        With `never`, a directory that was there before stays as it is.
        """
        return self._directories.finish(path, entry)

    def remove_extra(self, directory: bytes, keep: Set[bytes], *, dry_run: bool = False) -> Removed:
        """Remove everything in `directory` whose name is not in `keep`, with all that is below it.

        At the root, lost+found and the mark of this restore stay. Nothing on another mount than the root's is
        removed. Call it before `finish_directory`. With `dry_run` nothing is removed: the result says what
        would be.
        """
        return self._directories.remove_extra(directory, keep, dry_run=dry_run)

    def clean_partials(self, directory: bytes) -> int:
        """Remove what an interrupted restore has left in `directory`; returns how many files.

        For resuming, before any process writes there. What cannot be removed is in nobody's way.
        """
        return self._directories.clean_partials(directory)

    def check_marked(self) -> None:
        """Raise `TargetError` unless this is the directory that `marker.begin_restore` has marked."""
        check_marked(self._place.descent.root_fd, self._root)

    def sync(self) -> None:
        """Return when everything applied so far, by any process, is durable (syncfs(2))."""
        try:
            sync_file_system(self._place.descent.root_fd)
        except OSError as error:
            reason = reason_of(error, b"")
            hint = "look at the kernel's log (dmesg)"
            raise TargetError("write the target to its disk", reason, hint) from error

    def early_writeback(self) -> EarlyWriteback:
        """In a `with` statement: what is applied goes to the disk as it comes; `sync` has less to do."""
        return EarlyWriteback(self._place.descent.root_fd)

    def close(self) -> None:
        """Close all descriptors. May be called more than once."""
        self._place.descent.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Target({self._root!r})"

    def _agrees(self, folder: Folder, name: bytes, found: os.stat_result, entry: Entry) -> bool:
        """Whether what is there is the entry, as far as its metadata tell."""
        if entry.flags & _ALIAS:
            return self._is_link(found, entry.target)
        if stat.S_IFMT(found.st_mode) != TYPES.get(entry.kind) or not self._ownership.agrees(found, entry):
            return False
        if entry.kind == Kind.SYMLINK:
            same = os.readlink(name, dir_fd=folder.fd) == entry.target
        else:
            same = found.st_mtime_ns == entry.mtime_ns
        if entry.kind == Kind.REGULAR:
            same = same and found.st_size == entry.size
        elif entry.kind in DEVICES:
            same = same and found.st_rdev == device_of(entry)
        return same and self._ownership.attributes_agree(proc_path(folder.fd) + b"/" + name, entry)

    def _is_link(self, found: os.stat_result, first_path: bytes) -> bool:
        folder, name = self._place.locate(first_path)
        first = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        return (first.st_dev, first.st_ino) == (found.st_dev, found.st_ino)

    def _creation_mode(self, mode: int) -> int:
        """The mode to create a file with so that it needs no chmod(2) later; -1 if it needs one.

        Only where nobody gets a right that he will not have in the end: while the file is still ours, its
        group may do no more than everybody may.
        """
        known = self._creation_modes.get(mode)
        if known is None:
            harmless = not mode & (0o7000 | self._place.umask) and not (mode >> 3) & 7 & ~mode
            known = self._creation_modes[mode] = mode if harmless else -1
        return known


def _write_content(fd: int, entry: Entry, data: Buffer) -> None:
    expected = data_bytes(entry)
    if len(data) != expected:
        raise RefusedError(f"its content has {len(data)} bytes, and should have {expected}")
    if not entry.flags & _SPARSE:
        if expected:
            write_at(fd, data, 0)
        return
    content = memoryview(data)
    position = 0
    for offset, length in entry.segments:
        write_at(fd, content[position : position + length], offset)
        position += length
    os.ftruncate(fd, entry.size)
