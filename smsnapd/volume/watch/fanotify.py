"""A fanotify group on one file system, and the paths of the directories that its events name by handle.

fanotify(7), fanotify_init(2), fanotify_mark(2), open_by_handle_at(2). One mark watches the whole file system,
whatever is mounted from it where: no watch for each directory and no walk at the start. It takes Linux 5.9
(`FAN_REPORT_DFID_NAME`), CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH and a file system that can open by handle.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final, cast

from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.hints import EVERYTHING, Found

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
Q_OVERFLOW: Final = 0x4000
ONDIR: Final = 0x40000000

_ENTRY: Final = CREATE | DELETE | MOVED_FROM | MOVED_TO
"""Events that change a directory, and with it its own times."""
_MASK: Final = MODIFY | ATTRIB | CLOSE_WRITE | _ENTRY | ONDIR
"""Nothing that reading does: the daemon must not wake itself up."""

_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_UNLIMITED_QUEUE: Final = 0x10
_FAN_REPORT_DFID_NAME: Final = 0xC00
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_FILESYSTEM: Final = 0x100
_AT_FDCWD: Final = -100
_BUFFER_BYTES: Final = 65536
_VERSION: Final = 3

_EVENT: Final = Struct("=IBBHQii")
"""`fanotify_event_metadata`: length, version, reserved, its own length, mask, descriptor, pid."""
_RECORD: Final = Struct("=BBHqI")
"""`fanotify_event_info_fid` as far as the handle's length: type, padding, length, fsid, handle_bytes."""
_HANDLE_AT: Final = _EVENT.size + 12
_INFO_DFID_NAME: Final = 2
_INFO_DFID: Final = 3
_HANDLE_ROOM: Final = 128

_TRANSIENT: Final = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE})
"""Of ENOMEM: seen now and then while directories were renamed, with memory enough."""
_PAUSES_S: Final = (0.0, 0.001, 0.01, 0.1)

_libc: Final = ctypes.CDLL(None, use_errno=True)


class FanotifyGroup:
    """An open group with a mark on the file system of a directory. For one thread."""

    def __init__(self, root: bytes, *, unlimited_queue: bool) -> None:
        """Raises `OSError`, with the call that failed, where any of this is not to be had.

        The queue is unlimited or holds as many events as `fs.fanotify.max_queued_events` says at this moment.
        """
        flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_DFID_NAME
        self.descriptor = _checked(
            "fanotify_init",
            _function("fanotify_init", ctypes.c_uint, ctypes.c_uint)(
                flags | (_FAN_UNLIMITED_QUEUE if unlimited_queue else 0), os.O_RDONLY | os.O_CLOEXEC
            ),
        )
        mark = _function(
            "fanotify_mark", ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p
        )
        try:
            _checked(
                "fanotify_mark",
                mark(self.descriptor, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, _MASK, _AT_FDCWD, root),
            )
        except OSError:
            self.close()
            raise

    def read(self) -> bytes:
        """Some events, whole ones; b"" if there are none now."""
        try:
            return os.read(self.descriptor, _BUFFER_BYTES)
        except BlockingIOError:
            return b""

    def is_marked(self) -> bool:
        """Whether the mark is there still: it ends, without an event, when the file system is unmounted."""
        with open(f"/proc/self/fdinfo/{self.descriptor}", "rb") as info:
            return b"fanotify sdev:" in info.read()

    def close(self) -> None:
        """End the group. May be called more than once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _UnknownPathError(OSError):
    """A directory has no path that the kernel can tell now; `ancestor` is one above it that has."""

    def __init__(self, ancestor: bytes) -> None:
        super().__init__(ancestor)
        self.ancestor = ancestor


class HandlePaths:
    """Where the directories are that events name by handle, below one root.

    Nothing of the volume stays open between batches of events, so that it can be unmounted. For one thread.
    """

    def __init__(self, root: bytes, admission: Admission, *, limit: int = 16384) -> None:
        """`root` is absolute; `limit` bounds how many paths are remembered."""
        self._root = root
        self._admission = admission
        self._limit = limit
        self._known: dict[bytes, bytes | None] = {}
        self.instead: set[bytes] = set()
        """Subtrees to look at in place of directories whose paths could not be found."""
        self._anchor = -1
        self._prefix = b""
        self._open = _function("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Around the events that are handled in one go."""
        try:
            yield
        finally:
            self._release()

    def forget(self) -> None:
        """A directory was renamed: every path may be another one now."""
        self._known.clear()
        self._admission.forget()
        self._release()

    def find(self, handle: bytes) -> bytes | None:
        """The path of the directory now, relative to the root; None if nobody asked about it.

        That is so if it lies outside of the root, is excluded, or was deleted (its parent's event tells).
        `handle` is a `struct file_handle`. Raises `OSError` if the root is gone.
        """
        try:
            return self._known[handle]
        except KeyError:
            pass
        try:
            path = self._look(handle)
        except _UnknownPathError as error:
            if self._admission.admits(error.ancestor):
                self.instead.add(error.ancestor)
            return None
        if path is not None and not self._admission.admits(path):
            path = None
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[handle] = path
        return path

    def check(self) -> None:
        """See whether handles can be opened here; raises `OSError` if not."""
        handle = ctypes.create_string_buffer(_HANDLE_ROOM.to_bytes(4, "little"), 8 + _HANDLE_ROOM)
        encode = _function(
            "name_to_handle_at",
            ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_int,
        )  # fmt: skip
        mount_id = ctypes.c_int()
        _checked("name_to_handle_at", encode(_AT_FDCWD, self._root, handle, ctypes.byref(mount_id), 0))
        with self.batch():
            if self._look(handle.raw) != b"":
                raise OSError(errno.EOPNOTSUPP, "open_by_handle_at does not find the directory again")

    def _look(self, handle: bytes) -> bytes | None:
        if self._anchor < 0:
            self._anchor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._prefix = _path_of(self._anchor).rstrip(b"/") + b"/"
        descriptor = self._open_handle(handle)
        if descriptor < 0:
            return None
        try:
            return self._relative(_path_of(descriptor), descriptor)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise _UnknownPathError(self._nearest(descriptor)) from error
        finally:
            os.close(descriptor)

    def _open_handle(self, handle: bytes) -> int:
        """A descriptor of the directory, -1 if it is deleted."""
        for pause_s in _PAUSES_S:
            descriptor = self._open(self._anchor, handle, os.O_PATH | os.O_CLOEXEC)
            if descriptor >= 0:
                return descriptor
            number = ctypes.get_errno()
            if number in (errno.ESTALE, errno.ENOENT):
                return -1
            if number not in _TRANSIENT:
                raise OSError(number, f"open_by_handle_at: {os.strerror(number)}")
            time.sleep(pause_s)
        raise _UnknownPathError(EVERYTHING)

    def _nearest(self, descriptor: int) -> bytes:
        """The path of the lowest ancestor that has one, relative to the root."""
        climbing = os.dup(descriptor)
        try:
            while True:
                above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=climbing)
                os.close(climbing)
                climbing = above
                with contextlib.suppress(OSError):  # ENAMETOOLONG still
                    return self._relative(_path_of(climbing), climbing) or b""
        finally:
            os.close(climbing)

    def _relative(self, path: bytes, descriptor: int) -> bytes | None:
        if path.endswith(b" (deleted)") and os.fstat(descriptor).st_nlink == 0:
            return None
        if path + b"/" == self._prefix or path == self._prefix:
            return b""
        return path[len(self._prefix) :] if path.startswith(self._prefix) else None

    def _release(self) -> None:
        if self._anchor >= 0:
            os.close(self._anchor)
            self._anchor = -1


class Translator:
    """Turns events into hints. For one thread."""

    def __init__(self, paths: HandlePaths, admission: Admission) -> None:
        self._paths = paths
        self._admission = admission

    def translate(self, buffer: bytes, found: Found) -> None:
        """Add to `found` what these events say. Raises `OSError` if the root is gone."""
        find, directories = self._paths.find, found.directories
        unpack_event, unpack_record, handle_at = _EVENT.unpack_from, _RECORD.unpack_from, _HANDLE_AT
        has_patterns = self._admission.has_patterns
        position, end = 0, len(buffer)
        while position < end:
            length, version, _, header, mask, _, _ = unpack_event(buffer, position)
            if version != _VERSION:
                raise OSError(errno.EPROTO, f"fanotify speaks version {version}")
            if length <= header:
                self._lose(mask, found)
                position += length
                continue
            kind, _, _, _, handle_bytes = unpack_record(buffer, position + header)
            start = position + handle_at
            stop = start + 8 + handle_bytes
            handle = buffer[start:stop]
            position += length
            if mask & ONDIR or has_patterns or kind != _INFO_DFID_NAME:
                name = buffer[stop:position].rstrip(b"\0") if kind == _INFO_DFID_NAME else b"."
                self._translate_name(mask, kind, handle, name, found)
            elif (directory := find(handle)) is not None:
                directories.add(directory)
                found.events += 1

    def _lose(self, mask: int, found: Found) -> None:
        """An event that says of no directory where it happened: look everywhere."""
        found.subtrees.add(EVERYTHING)
        found.events += 1
        if mask & Q_OVERFLOW:
            found.gaps.append("the queue of fanotify overflowed, events were lost")
            self._paths.forget()

    def _translate_name(self, mask: int, kind: int, handle: bytes, name: bytes, found: Found) -> None:
        if kind not in (_INFO_DFID_NAME, _INFO_DFID):
            self._lose(mask, found)
            return
        on_directory = bool(mask & ONDIR)
        if on_directory and mask & (MOVED_FROM | MOVED_TO):
            self._paths.forget()
        directory = self._paths.find(handle)
        if directory is None:
            return
        if name == b".":
            # The directory itself: what changed stands in the listing of its parent.
            directory = directory.rpartition(b"/")[0]
        elif self._admission.matches(directory, name, is_directory=on_directory):
            if not mask & _ENTRY:
                return
        elif on_directory and mask & (CREATE | MOVED_TO):
            path = directory + b"/" + name if directory else name
            (found.subtrees if mask & MOVED_TO else found.directories).add(path)
        found.directories.add(directory)
        found.events += 1


def _function(name: str, *arguments: Any) -> Callable[..., int]:
    """A function of libc that returns an int; raises `OSError` where libc is too old to have it."""
    try:
        function = getattr(_libc, name)
    except AttributeError as error:
        raise OSError(errno.ENOSYS, f"{name} is not in this libc") from error
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return cast("Callable[..., int]", function)


def _checked(call: str, answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return answer


def _path_of(descriptor: int) -> bytes:
    """The absolute path of an open directory, as this process sees it."""
    return os.readlink(b"/proc/self/fd/%d" % descriptor)
