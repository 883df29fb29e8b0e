"""Where a copy of plain files lies: below a prefix of a bucket, or in a directory."""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from smsnapd.engine.intake.synced import SyncedFile
from smsnapd.errors import VolumeError
from smsnapd.model import Kind, path_text
from smsnapd.volume.archive.members import Member
from smsnapd.volume.archive.stream import ByteSource, FileSource
from smsnapd.volume.attributes import Owners, read_xattrs
from smsnapd.volume.scan import entry_of

if TYPE_CHECKING:
    from smsnapd.store.s3_objects import PlainObject, PlainObjects

FIRST_BYTES: Final = 1024 * 1024
"""What is asked for of every object ahead of its turn, with its metadata."""

_AHEAD: Final = 8


class _Begun:
    """A source whose first bytes are at hand; `rest` is opened when it comes to them."""

    def __init__(self, first: bytes, objects: PlainObjects, item: PlainObject) -> None:
        self._first = io.BytesIO(first)
        self._start = len(first)
        self._objects = objects
        self._item = item
        self._rest: ByteSource | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        piece = self._first.read(size)
        if piece or self._start >= self._item.size:
            return piece
        if self._rest is None:
            self._rest = self._objects.open(self._item, self._start)
        return self._rest.read(size)

    def close(self) -> None:
        """Stop reading."""
        if self._rest is not None:
            self._rest.close()


def files_in_bucket(objects: PlainObjects, prefix: str) -> Generator[SyncedFile, None, None]:
    """The objects below a prefix, which ends with `/`, the next ones already asked for."""
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="download") as threads:
        ahead: deque[tuple[PlainObject, Future[tuple[bytes, dict[str, str]]]]] = deque()
        try:
            for item in objects.below(prefix):
                if len(item.key) == len(prefix):
                    continue  # the folder itself
                if len(ahead) >= _AHEAD:
                    yield _synced(objects, prefix, *ahead.popleft())
                ahead.append((item, threads.submit(objects.get, item, 0, FIRST_BYTES)))
            while ahead:
                yield _synced(objects, prefix, *ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()


def _synced(
    objects: PlainObjects, prefix: str, item: PlainObject, begun: Future[tuple[bytes, dict[str, str]]]
) -> SyncedFile:
    first, metadata = begun.result()
    return SyncedFile(
        key=item.key.removeprefix(prefix),
        size=item.size,
        modified_ns=int(item.modified_s * 1_000_000_000),
        metadata=metadata,
        open=partial(_Begun, first, objects, item),
    )


def files_in_directory(root: bytes) -> Generator[SyncedFile, None, None]:
    """What lies below a directory, each directory before what is in it. VolumeError if it cannot be read."""
    owners = Owners()
    try:
        yield _local(root, b"", owners)
        for directory, names, files in os.walk(root, onerror=_raise):
            names.sort()
            for name in sorted((*names, *files)):
                path = os.path.join(directory, name)
                yield _local(path, os.path.relpath(path, root), owners)
    except OSError as error:
        raise VolumeError(f"import {path_text(root)}", error.strerror or str(error)) from error


def _raise(error: OSError) -> None:
    raise error


def _local(path: bytes, below: bytes, owners: Owners) -> SyncedFile:
    status = os.lstat(path)
    entry = entry_of(b"", status, 0)
    slash = "/" if stat.S_ISDIR(status.st_mode) else ""
    link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
    member = Member(
        path=below,
        kind=Kind(entry.kind),
        is_link=False,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        user=owners.user(entry.uid),
        group=owners.group(entry.gid),
        mtime_ns=entry.mtime_ns,
        size=entry.size if entry.kind == Kind.REGULAR else 0,
        target=link,
        rdev=entry.rdev,
        xattrs=read_xattrs(path) if entry.kind != Kind.SYMLINK else (),
        segments=None,
    )
    return SyncedFile(
        key=below.decode("utf-8", "surrogateescape") + slash,
        size=member.size,
        modified_ns=entry.mtime_ns,
        metadata={"file-mtime": f"{entry.mtime_ns}ns"},
        open=partial(_open, path),
        found=member,
    )


def _open(path: bytes) -> ByteSource:
    what = f"read {path_text(path)}"
    try:
        return FileSource(io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)), what)
    except OSError as error:
        raise VolumeError(what, error.strerror or str(error)) from error
