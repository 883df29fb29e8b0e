"""Objects as files below a directory: a mounted disk, a NAS, a test.

A put writes a file in `tmp/`, links it to its name and unlinks the first: `link(2)` creates a name
atomically and never replaces one. All paths are relative to one descriptor of the root, so a root that
is unmounted or swapped under a running process is not written to by its old name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from smsnapd.disk import sync_file_system
from smsnapd.errors import (
    ConflictError,
    DeniedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    UsageError,
)
from smsnapd.model import path_text
from smsnapd.store.base import Buffer, ObjectInfo, check_size
from smsnapd.store.file_body import read_all, write_all
from smsnapd.store.leftovers import remove_leftovers
from smsnapd.store.names import TEMPORARY, check_name, check_prefix, is_name
from smsnapd.store.pacing import Pacer

_BULK: Final = "chunks"
_LOCK: Final = f"{TEMPORARY}/lock"
_LEFTOVER_AGE_S: Final = 24 * 3600
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_TRANSIENT: Final = frozenset(
    {
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
    }
)
_HINTS: Final = {
    errno.ENOSPC: "the disk is full: free space there, or prune",
    errno.EDQUOT: "the disk quota is used up: free space there, or prune",
    errno.EROFS: "the file system is read-only: remount it read-write, and look into the kernel log for why",
    errno.EACCES: "give the user that smsnapd runs as read and write access to the directory",
    errno.EPERM: "the directory must be writable, on a file system with hard links (ext4, xfs, btrfs, NFS)",
    errno.ENOTSUP: "use a directory on a file system with hard links (ext4, xfs, btrfs, NFS)",
    errno.EIO: "the disk reports errors: look into the kernel log, and run check when it is sound",
    errno.ESTALE: "the network file system went away: mount it again and restart",
    errno.ENOENT: "the directory was removed or unmounted: bring it back and restart",
    errno.ENOTDIR: "a file or a symbolic link stands where a directory must be: remove it",
    errno.ELOOP: "a symbolic link stands where none may be: see who made it, and remove it",
    errno.EXDEV: "the whole repository must lie on one file system",
}


def open_directory(rest: str, pacer: Pacer | None = None, reading: Pacer | None = None) -> DirectoryStore:
    """The store of `file://` + `rest`: an absolute path, percent-encoded as in RFC 8089.

    Raises `UsageError` if it is another. `pacer` limits what is put, `reading` what is read.
    """
    path = unquote_to_bytes(rest.removeprefix("localhost"))
    if not path.startswith(b"/") or b"\0" in path or not path.strip(b"/"):
        raise UsageError(
            "open a file:// URL", "its path is not absolute", "give file:///directory, with three slashes"
        )
    return DirectoryStore(b"/" + path.strip(b"/"), pacer=pacer, reading=reading)


class DirectoryStore:
    """A `Store` below the directory `root` (absolute).

    The first put makes `root` if only its last component is missing: a missing parent is more often a
    disk that is not mounted than a wish. Reading makes nothing; a missing root has no objects. Files
    have mode 0600, directories 0700. Versions are hashes of the content. `clock` gives seconds since
    the epoch; it decides which leftovers in `tmp/` are old enough to remove.

    Bulk objects (with a component `chunks`) are not synced one by one, `barrier` does it for all. Others
    are few, and synced before they get their names: after a power cut a manifest's name must not
    stand over bytes that never reached the disk.
    """

    def __init__(
        self,
        root: bytes,
        clock: Callable[[], float] = time.time,
        pacer: Pacer | None = None,
        reading: Pacer | None = None,
    ) -> None:
        self.url = f"file://{quote_from_bytes(root)}"
        self._path = root
        self._clock = clock
        self._pacer = pacer
        self._reading = reading
        self._lock = threading.Lock()
        self._root = -1
        self._writable = False

    def __repr__(self) -> str:
        return f"DirectoryStore({self._path!r})"

    def get(self, name: str) -> bytes:
        """The whole object."""
        check_name("read", name)
        what = f"read {name} in {self.url}"
        with _translating(what):
            content = self._read(name)
        if content is None:
            raise ObjectMissingError(what, "there is no such object")
        return content

    def put(self, name: str, data: Buffer) -> None:
        """Create the object by link(2), or find it there with the same bytes."""
        check_name("store", name)
        view = memoryview(data).cast("B")
        with _translating(f"store {name} in {self.url}"):
            root = self._open_for_writing()
            temporary = _write_temporary(root, view, self._pacer, sync=_BULK not in name.split("/"))
            try:
                _with_parents(root, name, lambda: os.link(temporary, name, src_dir_fd=root, dst_dir_fd=root))
            except FileExistsError as error:
                self._accept_same(name, view, error)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=root)

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        """The whole object and its version."""
        content = self.get(name)
        return content, _version(content)

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        """Put `data` if the object is at `version` still; durable when it returns.

        Held together by flock(2), so every writer must be a `DirectoryStore`.
        """
        check_name("replace", name)
        what = f"replace {name} in {self.url}"
        view = memoryview(data).cast("B")
        with _translating(what):
            root = self._open_for_writing()
            with _locked(root):
                current = self._read(name)
                if (None if current is None else _version(current)) != version:
                    raise ConflictError(what, "somebody else changed it")
                _rename_into_place(root, name, view, self._pacer)
        return _version(view)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with `prefix`, sorted; one directory in memory at a time."""
        check_prefix(prefix)
        with _translating(f"list {prefix!r} in {self.url}"):
            root = self._open()
            if root >= 0:
                yield from _walk(root, prefix[: prefix.rfind("/") + 1], prefix)

    def children(self, prefix: str) -> tuple[str, ...]:
        """What is one level below `prefix`; directories that are empty all the way down are nothing."""
        check_prefix(prefix)
        with _translating(f"list {prefix!r} in {self.url}"):
            root = self._open()
            found = _children(root, prefix, prefix) if root >= 0 else []
            return tuple(name for name, _ in found if not name.endswith("/") or _has_any(root, name))

    def delete(self, name: str) -> None:
        """Remove the object, if there is one. Directories stay."""
        check_name("delete", name)
        with _translating(f"delete {name} in {self.url}"):
            root = self._open()
            if root >= 0:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    os.unlink(name, dir_fd=root)

    def locked_until(self, name: str) -> float:
        """Nothing keeps whoever may write to a directory from removing what is in it."""
        return 0.0

    def lock(self, name: str, until_s: float) -> None:
        """Refuse."""
        what = f"lock {name} in {self.url}"
        raise StoreError(what, "a directory has no locks", "leave out object_lock, or use S3")

    def try_delete(self, below: str = "") -> None:
        """See whether this user may change the directories that objects are in."""
        with _translating(f"delete objects in {self.url}"):
            root = self._open()
            if root >= 0:
                _check_changeable(root)

    def abandon_uploads(self, below: str, before_s: float) -> int:
        """Remove what crashed puts left in `tmp/`; whose they were to be does not show."""
        with _translating(f"remove what puts left in {self.url}"):
            root = self._open()
            return remove_leftovers(root, before_s) if root >= 0 else 0

    def now(self) -> float:
        """The clock of the file system: of a network one the server's. Without a repository, this machine's.

        The time that a new file bears; it lies in `tmp/` for that moment.
        """
        with _translating(f"learn the time of {self.url}"):
            root = self._open()
            if root < 0:
                return self._clock()
            try:
                temporary = _write_temporary(root, memoryview(b"\0"), None, sync=False)
            except FileNotFoundError:  # there is no `tmp/`: nothing was ever stored
                return self._clock()
            try:
                return os.stat(temporary, dir_fd=root, follow_symlinks=False).st_mtime
            finally:
                os.unlink(temporary, dir_fd=root)

    def barrier(self) -> None:
        """One syncfs(2) of the file system that the root is on.

        An error is permanent: the kernel forgets what it could not write, so a second barrier would succeed.
        """
        with _translating(f"make the objects in {self.url} durable"):
            root = self._open()
            if root >= 0:
                sync_file_system(root)

    def close(self) -> None:
        """Let go of the root. The next call opens it again."""
        with self._lock:
            if self._root >= 0:
                os.close(self._root)
            self._root, self._writable = -1, False
        for pacer in filter(None, (self._pacer, self._reading)):
            pacer.close()

    def _open(self) -> int:
        """The root's descriptor, -1 if there is no root.

        It stays open: syncfs reports only those write errors that came after its descriptor was opened.
        """
        with self._lock:
            if self._root < 0:
                with contextlib.suppress(FileNotFoundError):
                    self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._root

    def _open_for_writing(self) -> int:
        """The root's descriptor; makes the root and its `tmp/`, and clears that once."""
        if not self._writable:
            if self._open() < 0:
                self._make_root()
            root = self._open()
            with contextlib.suppress(FileExistsError):
                os.mkdir(TEMPORARY, 0o700, dir_fd=root)
            remove_leftovers(root, self._clock() - _LEFTOVER_AGE_S)
            self._writable = True
        return self._root

    def _make_root(self) -> None:
        try:
            os.mkdir(self._path, 0o700)
        except FileExistsError as error:  # somebody was quicker, unless it cannot be opened all the same
            if os.path.islink(self._path) and not os.path.exists(self._path):
                leads_to = path_text(os.readlink(self._path))
                raise StoreError(
                    f"make the directory of {self.url}",
                    f"a symbolic link is there, to {leads_to}, which does not exist",
                    "mount the disk that it leads to, or make that directory",
                ) from error
        except FileNotFoundError as error:
            raise StoreError(
                f"make the directory of {self.url}",
                "the directory above it does not exist",
                "mount the disk that it is on, or make the directory",
            ) from error

    def _read(self, name: str) -> bytes | None:
        """The content of the file, None if there is none."""
        root = self._open()
        if root < 0:
            return None
        try:
            # O_NONBLOCK: somebody else's FIFO must not hold us.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=root)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, "rb", buffering=0) as file:
            check_size(status.st_size, f"read {name} in {self.url}")
            return read_all(file, self._reading)

    def _accept_same(self, name: str, data: memoryview, error: FileExistsError) -> None:
        current = self._read(name)
        if current is None or data != current:
            why = "it exists and has other bytes"
            raise ObjectExistsError(f"store {name} in {self.url}", why) from error


def _write_temporary(root: int, data: memoryview, pacer: Pacer | None, *, sync: bool) -> str:
    """Write `data` to a new file in `tmp/` and return its name; nothing is left if that fails."""
    name = f"{TEMPORARY}/{os.urandom(12).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=root)
    try:
        try:
            write_all(descriptor, data, pacer)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(name, dir_fd=root)
        raise
    return name


def _rename_into_place(root: int, name: str, data: memoryview, pacer: Pacer | None) -> None:
    """Put `data` under `name`, atomically and durably, over what is there."""
    temporary = _write_temporary(root, data, pacer, sync=True)
    try:
        _with_parents(root, name, lambda: os.rename(temporary, name, src_dir_fd=root, dst_dir_fd=root))
    except BaseException:
        os.unlink(temporary, dir_fd=root)
        raise
    parent = os.open(name.rpartition("/")[0] or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _with_parents(root: int, name: str, act: Callable[[], None]) -> None:
    """Do `act`, which makes `name`; if directories are missing, make them and do it again."""
    try:
        act()
    except FileNotFoundError:
        for position, character in enumerate(name):
            if character == "/":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name[:position], 0o700, dir_fd=root)
        act()


def _walk(root: int, directory: str, prefix: str) -> Iterator[ObjectInfo]:
    """Objects below `directory` (ends with "/", or is "") whose names begin with `prefix`."""
    for name, size in _children(root, directory, prefix):
        if name.endswith("/"):
            yield from _walk(root, name, prefix)
        else:
            yield ObjectInfo(name, size)


def _has_any(root: int, directory: str) -> bool:
    return next(_walk(root, directory, directory), None) is not None


def _children(root: int, directory: str, prefix: str) -> list[tuple[str, int]]:
    """Names and sizes in one directory; directories end with "/", which is where they sort."""
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory.rstrip("/") or ".", flags, dir_fd=root)
    except OSError as error:
        if error.errno in (*_ABSENT, errno.ELOOP):
            return []
        raise
    found = []
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = directory + entry.name
                if not is_name(name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if f"{name}/".startswith(prefix):  # `directory` is as deep as the prefix goes
                        found.append((name + "/", 0))
                elif name.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((name, entry.stat(follow_symlinks=False).st_size))
    finally:
        os.close(descriptor)
    found.sort()
    return found


def _check_changeable(root: int) -> None:
    """Raise `OSError` unless entries may be removed from `root` and the directories just below it."""
    below = [name for name, _ in _children(root, "", "") if name.endswith("/")]
    if not all(os.access(name, os.W_OK | os.X_OK, dir_fd=root) for name in (".", *below)):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def _locked(root: int) -> Iterator[None]:
    """Hold the lock of all replacements; a descriptor of its own keeps threads apart too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(_LOCK, flags, 0o600, dir_fd=root)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translating(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number else str(error)
        if number in (errno.EACCES, errno.EPERM):
            raise DeniedError(what, why, _HINTS[number]) from error
        raise StoreError(what, why, _HINTS.get(number, ""), transient=number in _TRANSIENT) from error


def _version(content: Buffer) -> str:
    return hashlib.sha256(content).hexdigest()
