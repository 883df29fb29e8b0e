"""Reading entries off a volume into tar: small ones whole, packed one behind the other, large ones by ranges.

Every file is looked at before and after its content is read. What moved in between is read again; what keeps
moving is stored as it was read last, and says so.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from mmap import mmap
from typing import Final, NamedTuple

from blake3 import blake3
from msgspec.structs import replace

from smsnapd.errors import VolumeError
from smsnapd.model import BLOCK, CHUNK_TARGET, Entry, Extent, Flag, Kind, join_path
from smsnapd.volume.attributes import Owners, read_xattrs
from smsnapd.volume.scan import VANISHED, entry_of
from smsnapd.volume.tarball.header import header
from smsnapd.volume.tarball.metadata import (
    BLOCK_OF_STAT,
    SIMPLE,
    alias_entry,
    is_as,
    other_entry,
    regular_entry,
)
from smsnapd.volume.tarball.sparse import data_between, read_segments
from smsnapd.volume.tree import Tree, open_at

READ: Final = 0
"""Mode of an item whose metadata and content are to be read."""
HEADER: Final = 1
"""Mode of an item whose entry is complete, xattrs, segments and content extents included: header only."""

THIS_PACK: Final = -1
"""The chunk number of extents that lie in a pack whose number is not known yet."""

ISSUE_CHANGED: Final = "changed while read"
ISSUE_VANISHED: Final = "vanished"
ISSUE_LARGE: Final = "large"

ReadBuffer = bytearray | mmap

_TRIES: Final = 3
_FORMAT: Final = 0o170000
_DIGEST_SIZE: Final = 16
_ZEROS: Final = bytes(BLOCK)
_SEGMENT: Final = struct.Struct("<QQ")
_REPLACED: Final = VANISHED | {errno.ENXIO, errno.EINVAL}
"""What system calls say of a name that is gone, or not of the kind that was expected: ENXIO is opening a
socket, EINVAL reading the target of what is no symbolic link."""
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)
_CHANGED: Final = int(Flag.CHANGED)
_SPARSE: Final = int(Flag.SPARSE)


class PackItem(NamedTuple):
    """One entry to be stored.

    `directory` is where it lies; `entry` is what the scan saw, or with mode `HEADER` the complete entry. An
    alias has `Flag.ALIAS` and its target set. `previous` is an entry whose content is used again if it is the
    same: what the last commit holds under the path, or what is thought to be a copy.
    """

    directory: bytes
    entry: Entry
    previous: Entry | None = None
    mode: int = READ


class Packed(NamedTuple):
    """What became of an item.

    `entry` is complete, or None if nothing could be stored.
    `issue` is "" or `changed while read` (it is stored all the same), `unreadable: <reason>` (stored only if
    it is a directory, which then lacks its xattrs), `vanished` (gone, or turned into what cannot be stored in
    this place), `large` (it has grown: read it with `inspect` and `read_range`).
    """

    entry: Entry | None
    issue: str


class RangeRead(NamedTuple):
    """What reading a range of a large file gave: bytes used in the buffer, and an issue as in `Packed`."""

    used: int
    issue: str


class _BufferFullError(Exception):
    """The item does not fit into what is left of the buffer."""


class _KindChangedError(Exception):
    """What has the name now is not of the kind that was expected."""


class PackReader:
    """Reads entries of one tree. Not for several threads.

    `Flag.UNSETTLED` of an item stays; an entry whose ctime is not the scanned one any more gets it.
    """

    def __init__(self, tree: Tree, digest_key: bytes, owners: Owners) -> None:
        """Read from `tree`; take names of users and groups from `owners`.

        `digest_key` are 32 bytes: an entry's digest is the BLAKE3 under it, 16 bytes, of its data and, if it
        is sparse, of where that lies.
        """
        self._tree = tree
        self._digest_key = digest_key
        self._owners = owners
        self._chunk = THIS_PACK

    def read_pack(
        self, items: Sequence[PackItem], buffer: ReadBuffer, chunk: int = THIS_PACK
    ) -> tuple[int, list[Packed]]:
        """Store items from the start of `buffer`, in their order: bytes used, and what became of each.

        New extents are those of the chunk with the number `chunk`.

        The list is shorter than `items` if the buffer was full before: give the rest to another call. What is
        wrong with one name is its issue; one is that it alone needs more than the whole buffer, which of
        16 MiB takes megabytes of attributes.
        """
        used = 0
        self._chunk = chunk
        results: list[Packed] = []
        with memoryview(buffer) as view:
            for item in items:
                try:
                    used, packed = self._store(item, view, used)
                except _BufferFullError:
                    if results:
                        break
                    # A user could make such a file, and nobody's backup shall end with it.
                    packed = Packed(None, f"unreadable: it needs more than {len(view)} bytes")
                results.append(packed)
        return used, results

    def inspect(self, path: bytes, scanned: Entry) -> Packed:
        """The entry of a large file as it is now, without extents: for `read_range`, and for its header.

        It is `vanished` if it is no regular file any more.
        """
        try:
            descriptor = self._tree.open_file(path)
            try:
                return Packed(regular_entry(scanned, descriptor, self._status(descriptor)), "")
            finally:
                os.close(descriptor)
        except _KindChangedError:
            return Packed(None, ISSUE_VANISHED)
        except OSError as error:
            return Packed(None, _issue(error))

    def read_range(self, path: bytes, entry: Entry, start: int, end: int, buffer: ReadBuffer) -> RangeRead:
        """Read the data between two offsets of a large file into `buffer`, joined and padded to `BLOCK`.

        `entry` is what `inspect` gave; `start` is a multiple of `BLOCK`. A range of holes alone uses nothing.
        If the file is not as `entry` says, before or after, the issue is `changed while read`, and the buffer
        holds what was there, cut or padded with zeros to what the entry asks for.
        """
        segments = data_between(entry, start, end)
        length = sum(segment.length for segment in segments)
        used = length + -length % BLOCK
        if used > len(buffer):
            raise VolumeError(f"read {os.fsdecode(path)}", f"a range needs more than {len(buffer)} bytes")
        try:
            descriptor = self._tree.open_file(path)
            try:
                same = is_as(entry, self._status(descriptor))
                with memoryview(buffer) as view:
                    read_segments(descriptor, segments, view)
                    view[length:used] = _ZEROS[: used - length]
                same = is_as(entry, self._status(descriptor)) and same
            finally:
                os.close(descriptor)
        except _KindChangedError:
            return RangeRead(0, ISSUE_VANISHED)
        except OSError as error:
            return RangeRead(0, _issue(error))
        return RangeRead(used, "" if same else ISSUE_CHANGED)

    def _store(self, item: PackItem, view: memoryview, offset: int) -> tuple[int, Packed]:
        """Store one item at `offset`: where the next one goes, and what became of it."""
        if item.mode == HEADER:
            return self._store_header(item.directory, item.entry, view, offset)
        kind = item.entry.kind
        try:
            for _ in range(_TRIES):
                try:
                    if item.entry.flags & _ALIAS:
                        return self._read_alias(item, view, offset)
                    if kind == _REGULAR:
                        return self._read_regular(item, view, offset)
                    return self._read_other(item, view, offset)
                except _KindChangedError:
                    kind = self._kind_now(item)
                except OSError as error:
                    if error.errno not in _REPLACED:
                        raise
                    # The directory that is kept open may be one that was renamed or replaced.
                    self._tree.release()
                    kind = self._kind_now(item)
        except OSError as error:
            return offset, Packed(None, _issue(error))
        return offset, Packed(None, ISSUE_VANISHED)

    def _kind_now(self, item: PackItem) -> int:
        """The kind of what has the name now; ENOENT if that cannot be stored in place of what was scanned."""
        kind = entry_of(b"", self._tree.stat(join_path(item.directory, item.entry.name))).kind
        if kind == Kind.TOMBSTONE or kind == _DIRECTORY != item.entry.kind:
            raise FileNotFoundError(errno.ENOENT, "it is a socket or a directory now")
        return kind

    def _read_regular(self, item: PackItem, view: memoryview, offset: int) -> tuple[int, Packed]:
        """Store a regular file, reading it again while it moves."""
        descriptor = open_at(self._tree.open_directory(item.directory), item.entry.name)
        try:
            if (stored := self._read_as_scanned(item, descriptor, view, offset)) is not None:
                return stored
            status = self._status(descriptor)
            for _ in range(_TRIES):
                entry = regular_entry(item.entry, descriptor, status)
                used, packed = self._store_content(item, entry, descriptor, view, offset)
                status = os.fstat(descriptor)
                if packed.entry is None or is_as(entry, status):
                    return used, packed
        finally:
            os.close(descriptor)
        return used, _changed(packed)

    def _read_as_scanned(
        self, item: PackItem, descriptor: int, view: memoryview, offset: int
    ) -> tuple[int, Packed] | None:
        """Store a small plain file that is what the scan saw: one look, behind the reading, tells.

        None if it is not, whatever it is: nothing is stored then, and what stands in the buffer is worthless.
        """
        entry = item.entry
        size = entry.size
        if size > SIMPLE or entry.flags & _SPARSE:
            return None
        try:
            if read_xattrs(descriptor):
                return None
            start = self._place_header(item.directory, entry, view, offset)
            end = start + size
            used = end + -size % BLOCK
            if used > len(view):
                raise _BufferFullError
            data = view[start:end]
            if size and os.preadv(descriptor, (data,), 0) != size:
                return None
            status = os.fstat(descriptor)
        except OSError:
            return None
        if (
            not is_as(entry, status)
            or status.st_mode & _FORMAT != stat.S_IFREG
            or status.st_dev != self._tree.device
            or status.st_blocks * BLOCK_OF_STAT < size
        ):
            return None
        digest = blake3(data, key=self._digest_key).digest(_DIGEST_SIZE)
        return self._placed(item, entry, digest, view, (offset, start, end, used))

    def _placed(
        self, item: PackItem, entry: Entry, digest: bytes, view: memoryview, places: tuple[int, int, int, int]
    ) -> tuple[int, Packed]:
        """A file whose header and data stand in the buffer: data that `previous` has are dropped again.

        `places` are where the header begins, the data begin and end, and the padding ends.
        """
        offset, start, end, used = places
        content: tuple[Extent, ...] = ()
        if item.previous is not None and (known := _known_content(item.previous, entry, digest)):
            content, used = known, start
        elif end > start:
            content = (Extent(self._chunk, start, used - start),)
            if used > end:
                view[end:used] = _ZEROS[: used - end]
        return used, Packed(_stored(entry, Extent(self._chunk, offset, start - offset), content, digest), "")

    def _read_other(self, item: PackItem, view: memoryview, offset: int) -> tuple[int, Packed]:
        """Store what has no content of its own."""
        directory, name = self._tree.open_directory(item.directory), item.entry.name or b"."
        for _ in range(_TRIES):
            entry, refusal = other_entry(item.entry, directory, name, self._tree.device)
            if entry.kind in (_REGULAR, Kind.TOMBSTONE) or entry.kind == _DIRECTORY != item.entry.kind:
                raise _KindChangedError
            used, packed = self._store_header(item.directory, entry, view, offset)
            if refusal is not None:
                return used, packed._replace(issue=_issue(refusal))
            if entry.kind == _DIRECTORY or is_as(
                entry, os.stat(name, dir_fd=directory, follow_symlinks=False)
            ):
                return used, packed
        return used, _changed(packed)

    def _read_alias(self, item: PackItem, view: memoryview, offset: int) -> tuple[int, Packed]:
        """Store a further name; if it is one of another inode by now, as it was scanned."""
        directory = self._tree.open_directory(item.directory)
        status = os.stat(item.entry.name, dir_fd=directory, follow_symlinks=False)
        entry = alias_entry(item.entry, status)
        if entry is not None:
            return self._store_header(item.directory, entry, view, offset)
        used, packed = self._store_header(item.directory, item.entry, view, offset)
        return used, _changed(packed)

    def _store_header(
        self, directory: bytes, entry: Entry, view: memoryview, offset: int
    ) -> tuple[int, Packed]:
        """Store the header of a complete entry."""
        end = self._place_header(directory, entry, view, offset)
        return end, Packed(replace(entry, header=Extent(self._chunk, offset, end - offset)), "")

    def _place_header(self, directory: bytes, entry: Entry, view: memoryview, offset: int) -> int:
        """Put the header of an entry at `offset`: where it ends."""
        owners = self._owners
        path = directory + b"/" + entry.name if directory else entry.name
        head = header(path, entry, owners.user(entry.uid), owners.group(entry.gid))
        end = offset + len(head)
        if end > len(view):
            raise _BufferFullError
        view[offset:end] = head
        return end

    def _store_content(
        self, item: PackItem, entry: Entry, descriptor: int, view: memoryview, offset: int
    ) -> tuple[int, Packed]:
        """Store header and data of an open file, or the header alone if `previous` has the same data."""
        segments, length = entry.segments, entry.size
        if entry.flags & _SPARSE:
            length = sum(segment.length for segment in segments)
        if length >= CHUNK_TARGET:
            return offset, Packed(None, ISSUE_LARGE)
        start = self._place_header(item.directory, entry, view, offset)
        end = start + length
        used = end + -length % BLOCK
        if used > len(view):
            raise _BufferFullError
        data = view[start:end]
        # Nearly every file is read whole by one call.
        if length and (segments or os.preadv(descriptor, (data,), 0) != length):
            read_segments(descriptor, segments or ((0, length),), data)
        hasher = blake3(data, key=self._digest_key)
        if segments:
            hasher.update(b"".join([_SEGMENT.pack(*segment) for segment in segments]))
        return self._placed(item, entry, hasher.digest(_DIGEST_SIZE), view, (offset, start, end, used))

    def _status(self, descriptor: int) -> os.stat_result:
        """The metadata of an open regular file of this volume; EXDEV if it is another's."""
        status = os.fstat(descriptor)
        mode, _, device, *_ = status
        if mode & _FORMAT != stat.S_IFREG:
            raise _KindChangedError
        if device != self._tree.device:
            raise OSError(errno.EXDEV, "it is on another file system")
        return status


def _known_content(previous: Entry, entry: Entry, digest: bytes) -> tuple[Extent, ...]:
    """The extents of the last commit, if they hold the same data; else none."""
    if (
        previous.digest != digest
        or previous.kind != _REGULAR
        or previous.size != entry.size
        or previous.segments != entry.segments
    ):
        return ()
    return previous.content


def _stored(entry: Entry, head: Extent, content: tuple[Extent, ...], digest: bytes) -> Entry:
    """The entry with where its bytes lie; `msgspec.structs.replace` takes twice as long."""
    return Entry(
        entry.name, entry.kind, entry.flags, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns,
        entry.ctime_ns, entry.inode, entry.links, entry.rdev, entry.target, entry.xattrs, entry.segments,
        head, content, digest,
    )  # fmt: skip


def _changed(packed: Packed) -> Packed:
    """The same, marked as changed while it was read."""
    if packed.entry is None:
        return packed
    return Packed(replace(packed.entry, flags=packed.entry.flags | _CHANGED), ISSUE_CHANGED)


def _issue(error: OSError) -> str:
    """The issue that a refused system call makes."""
    if error.errno in VANISHED:
        return ISSUE_VANISHED
    return f"unreadable: {error.strerror or error}"
