"""Everything that lies on a volume, with its metadata, in catalog order, and what had to be left out.

Contents, targets of symbolic links and extended attributes are not read here: `tarball.read` does that for
what turns out to have changed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pathspec import GitIgnoreSpec

from smsnapd.errors import UsageError
from smsnapd.model import FORMATS, Entry, Kind, Listing, join_path
from smsnapd.volume.sight import Sight, Sights
from smsnapd.volume.tree import Tree

OTHER_FILE_SYSTEM: Final = "other file system"
OTHER_DEVICE: Final = "it is on another device than its directory"
SOCKET: Final = "socket"
VANISHED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
"""What system calls say of a name that is gone, or whose directory is now something else."""

_KINDS: Final = {bits: int(kind) for kind, bits in FORMATS.items()}
_FORMAT: Final = 0o170000
_S_IFREG: Final = stat.S_IFREG
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_SYMLINK: Final = int(Kind.SYMLINK)
_DEVICES: Final = (int(Kind.CHARACTER), int(Kind.BLOCK))


@dataclass
class ScanReport:
    """What a scan could not list, and why; paths are bytes relative to the root.

    `skipped` are left out on purpose: sockets, and what lies on other file systems. `unreadable` are names
    and whole directories that the system refused, with its reason: what lies there is unknown, not gone.
    `vanished` were gone between the listing of their directory and the look at them: they are deletions.
    """

    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    vanished: list[bytes] = field(default_factory=list)

    def failed(self, path: bytes, error: OSError) -> None:
        """Note what the system call said of `path`."""
        if error.errno in VANISHED:
            self.vanished.append(path)
        elif error.errno == errno.EXDEV:
            self.skipped.append((path, OTHER_FILE_SYSTEM))
        else:
            self.unreadable.append((path, error.strerror or str(error)))


class Excludes:
    """What is never looked at: names by gitignore(5) patterns, directories by device and inode.

    `patterns` are the lines of a gitignore file at the volume's root. `directories` are `(st_dev, st_ino)` of
    directories that stay out under any name: the state directory, a repository on the volume. A directory
    that is left out is not entered, so nothing below it can be taken in again.
    Raises `UsageError` for a pattern that git would not understand.
    """

    def __init__(self, patterns: Sequence[str] = (), directories: Iterable[tuple[int, int]] = ()) -> None:
        """Compile the patterns, once."""
        try:
            self._spec = GitIgnoreSpec.from_lines(patterns)
        except ValueError as error:
            raise UsageError("use the exclude patterns", str(error), "see gitignore(5)") from error
        self.directories: Final = frozenset(directories)
        taking = [pattern for pattern in self._spec.patterns if pattern.include is not None]
        self._negated = any(not pattern.include for pattern in taking)
        self._may_match: Final = _any_of(
            [pattern.regex.pattern for pattern in taking if pattern.include and pattern.regex is not None]
        )
        self.has_patterns: Final = self._may_match is not None

    def matches(self, path: str) -> bool:
        """Whether a pattern leaves out `path`: relative, os.fsdecode'd, with a final `/` if a directory."""
        if self._may_match is None or not self._may_match(path):
            return False
        return not self._negated or self._spec.match_file(path)


def _any_of(expressions: list[str]) -> Callable[[str], object] | None:
    """One search for all the expressions; their named groups, which may not recur, become plain ones."""
    if not expressions:
        return None
    plain = (re.sub(r"\(\?P<\w+>", "(?:", expression) for expression in expressions)
    return re.compile("|".join(f"(?:{expression})" for expression in plain), re.DOTALL).search


def scan(tree: Tree, excluded: Excludes, report: ScanReport, below: bytes = b"") -> Iterator[Listing]:
    """All entries of the directory `below` and deeper, in catalog order, one listing for each directory.

    Only the scan of the root begins with an entry for the directory itself. Directories with nothing to
    list give no listing. Entries have all that lstat tells; of a symbolic link the size is its
    target's and `target` is empty still. A mount point is an empty directory here, and reported as skipped.
    What cannot be listed goes to `report`; no `OSError` is raised. Nothing is listed if `below` is excluded
    or not on this file system. Memory is bounded by the widest directories along one branch. The tree may
    be used for other things while the iterator rests.
    """
    tree.forget()
    if not _is_admitted(tree, excluded, report, below):
        return
    scanner = Scanner(tree, excluded)
    pending = [below]
    while pending:
        directory = pending.pop()
        entries, subdirectories = scanner.listed(directory, report)
        pending.extend(reversed(subdirectories))
        if entries:
            yield Listing(directory, entries)


def list_directory(tree: Tree, excluded: Excludes, report: ScanReport, directory: bytes) -> Listing:
    """One directory as `scan` lists it, without what lies deeper; it is not asked whether it is excluded.

    The tree is not told to forget before: that is for whoever lists several.
    """
    return Listing(directory, Scanner(tree, excluded).listed(directory, report)[0])


def entry_of(name: bytes, status: os.stat_result, flags: int = 0) -> Entry:
    """The entry of one name by its lstat; a kind that cannot be stored is `Kind.TOMBSTONE`."""
    mode = status.st_mode
    kind = _KINDS.get(mode & _FORMAT, 0)
    device = status.st_rdev if kind in _DEVICES else 0
    return Entry(
        name,
        kind,
        flags,
        mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_size if kind in (_REGULAR, _SYMLINK) else 0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_nlink,
        os.major(device) << 32 | os.minor(device),
    )


class Scanner:
    """Lists the directories of a tree, one by one. Nobody asks here whether one is excluded itself."""

    def __init__(self, tree: Tree, excluded: Excludes) -> None:
        """The tree is not told to forget: that is for whoever lists several."""
        self._tree = tree
        self._excluded = excluded
        self._sights = Sights(tree.device)

    def listed(self, directory: bytes, report: ScanReport) -> tuple[list[Entry], list[bytes]]:
        """The entries of a directory and the paths of those to go into, both sorted by name."""
        try:
            descriptor, names = self._open(directory)
        except OSError as error:
            report.failed(directory, error)
            return ([] if directory else [entry_of(b"", self._tree.stat(b""))]), []
        sight = self._sight(directory, descriptor, names)
        if sight is not None:
            return sight.entries(), below(directory, sight)
        entries: list[Entry] = []
        if not directory:
            entries.append(entry_of(names.pop(0), os.fstat(descriptor)))
        return entries, _look(
            _Look(self._tree, self._excluded, report, directory), names, descriptor, entries
        )

    def sight(self, directory: bytes) -> Sight | None:
        """All that `listed` would tell, as a sight; None if there is more to it, or nothing in it."""
        try:
            return self._sight(directory, *self._open(directory))
        except OSError:
            return None

    def _open(self, directory: bytes) -> tuple[int, list[bytes]]:
        """Its descriptor, and the names in it, sorted; that of the root itself is among them."""
        descriptor = self._tree.open_directory(directory)
        # One conversion for all names: NUL is in none of them.
        names = os.fsencode("\0".join(os.listdir(descriptor))).split(b"\0")
        if not directory:
            return descriptor, sorted({b"", *names})
        names.sort()
        return descriptor, names if names != [b""] else []

    def _sight(self, directory: bytes, descriptor: int, names: list[bytes]) -> Sight | None:
        if not names or self._tree.is_mounted_in(directory):
            return None
        sight = self._sights.take(descriptor, names)
        if sight is None:
            return None
        if self._excluded.has_patterns:
            kept = self._kept(directory, sight)
            if len(kept) < len(names):
                sight = self._sights.take(descriptor, kept) if kept else None
        never = self._excluded.directories
        if sight is None or (
            never and any((self._tree.device, inode) in never for _, inode in sight.directories)
        ):
            return None
        return sight

    def _kept(self, directory: bytes, sight: Sight) -> list[bytes]:
        """The names that no pattern leaves out."""
        entered = {name for name, _ in sight.directories}
        paths = (os.fsdecode(join_path(directory, name)) + "/" * (name in entered) for name in sight.names)
        matches = self._excluded.matches
        return [name for name, path in zip(sight.names, paths, strict=True) if not (name and matches(path))]


def below(directory: bytes, sight: Sight) -> list[bytes]:
    """The paths of the directories in a directory, which was seen like this."""
    return [join_path(directory, name) for name, _ in sight.directories]


class _Look(NamedTuple):
    """What the innermost loop asks of a name that is no plain file."""

    tree: Tree
    excluded: Excludes
    report: ScanReport
    directory: bytes

    def is_matched(self, name: bytes, status: os.stat_result) -> bool:
        """Whether a pattern leaves the name out."""
        path = os.fsdecode(join_path(self.directory, name))
        return self.excluded.matches(path + "/" if stat.S_ISDIR(status.st_mode) else path)

    def is_left_out(self, status: os.stat_result) -> bool:
        """Whether this is one of the directories that always stay out."""
        return (status.st_dev, status.st_ino) in self.excluded.directories

    def is_foreign(self, path: bytes, status: os.stat_result) -> bool:
        """Whether something else is mounted there, which is skipped, or the file is of another device."""
        strange = status.st_dev != self.tree.device
        if self.tree.is_mount_point(path) or (strange and stat.S_ISDIR(status.st_mode)):
            self.report.skipped.append((path, OTHER_FILE_SYSTEM))
            return True
        if strange:
            # An overlay whose layers lie on several file systems: inode numbers tell nothing there.
            self.report.unreadable.append((path, OTHER_DEVICE))
        return strange


def _look(look: _Look, names: list[bytes], descriptor: int, entries: list[Entry]) -> list[bytes]:
    """Append the entries of these names; returns the paths of the directories to go into."""
    subdirectories: list[bytes] = []
    append, lstat, device = entries.append, os.stat, look.tree.device
    has_patterns = look.excluded.has_patterns
    for name in names:
        try:
            status = lstat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError as error:
            look.report.failed(join_path(look.directory, name), error)
            continue
        mode, inode, on_device, links, uid, gid, size, _, _, _ = status
        if has_patterns and look.is_matched(name, status):
            continue
        if mode & _FORMAT == _S_IFREG and on_device == device:
            append(
                Entry(
                    name, _REGULAR, 0, mode & 0o7777, uid, gid, size,
                    status.st_mtime_ns, status.st_ctime_ns, inode, links,
                )
            )  # fmt: skip
        elif (entry := _other(look, name, status, subdirectories)) is not None:
            append(entry)
    return subdirectories


def _other(look: _Look, name: bytes, status: os.stat_result, subdirectories: list[bytes]) -> Entry | None:
    """The entry of what is no plain file of this volume, None if it is not listed."""
    path = join_path(look.directory, name)
    entry = entry_of(name, status)
    if entry.kind == Kind.TOMBSTONE:
        look.report.skipped.append((path, SOCKET))
        return None
    if entry.kind != _DIRECTORY:
        return None if look.is_foreign(path, status) else entry
    if look.is_left_out(status):
        return None
    if not look.is_foreign(path, status):
        subdirectories.append(path)
    return entry


def _is_admitted(tree: Tree, excluded: Excludes, report: ScanReport, below: bytes) -> bool:
    """Whether a scan from the root would come to the directory `below`."""
    parts = below.split(b"/") if below else []
    for depth in range(1, len(parts) + 1):
        directory, name = b"/".join(parts[: depth - 1]), parts[depth - 1]
        path = join_path(directory, name)
        look = _Look(tree, excluded, report, directory)
        try:
            status = tree.stat(path)
        except OSError as error:
            report.failed(path, error)
            return False
        out = look.is_left_out(status) or look.is_matched(name, status)
        if out or look.is_foreign(path, status):
            return False
    return True
