"""Where `export --format files` goes: objects below a prefix, or a directory; the sidecar lies beside it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smsnapd.cli.destination import Write, new_file
from smsnapd.cli.exchange import S3, Place, place_at
from smsnapd.cli.session import Session
from smsnapd.engine.plainfiles import Sink, datasync_metadata
from smsnapd.errors import TargetError, UsageError
from smsnapd.store.s3_objects import PART_MIN, part_size
from smsnapd.volume.archive.sidecar import SUFFIX

if TYPE_CHECKING:
    from smsnapd.model import Entry

UPLOADS_AT_ONCE = 8
SMALL_BYTES = 4 * 1024 * 1024


@contextmanager
def files_sink(session: Session, text: str, *, overwrite: bool) -> Iterator[Sink]:
    """The sink that --output names. UsageError if there is something that may not be overwritten."""
    if text == "-" or ("://" in text and not text.startswith(S3)):
        raise UsageError("export as files", "they need a place", "give --output DIR or s3://bucket/prefix/")
    if not text.startswith(S3):
        yield _Directory(Path(text), overwrite)
        return
    with place_at(session, text) as place:
        sink = _Prefix(place, overwrite)
        try:
            yield sink
        finally:
            sink.close()


class _Prefix:
    """Objects below a prefix, small ones several at once."""

    def __init__(self, place: Place, overwrite: bool) -> None:
        self._objects = place.objects
        self._prefix = place.key.rstrip("/")
        self._overwrite = overwrite
        what = f"export to {self._objects.url(place.key)}"
        if not self._prefix:
            raise UsageError(what, "it names no prefix", "give s3://bucket/prefix/")
        if not overwrite and next(iter(self._objects.below(f"{self._prefix}/")), None) is not None:
            raise UsageError(what, "there are objects, and nothing is overwritten", "name another prefix")
        self._threads = ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="upload")
        self._under_way: deque[Future[None]] = deque()

    def file(self, key: str, entry: Entry, pieces: Iterable[memoryview]) -> None:
        name, metadata = f"{self._prefix}/{key}", datasync_metadata(entry)
        if entry.size > SMALL_BYTES:
            with self._objects.upload(
                name, metadata, part_size(entry.size), overwrite=self._overwrite
            ) as upload:
                for piece in pieces:
                    upload.write(piece)
                upload.commit()
            return
        while len(self._under_way) >= UPLOADS_AT_ONCE:
            self._under_way.popleft().result()
        data = b"".join(pieces)
        self._under_way.append(
            self._threads.submit(self._objects.put, name, data, metadata, overwrite=self._overwrite)
        )

    def finish(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()

    def sidecar(self, write_into: Callable[[Write], None]) -> None:
        name = f"{self._prefix}{SUFFIX}"
        with self._objects.upload(name, {}, PART_MIN, overwrite=self._overwrite) as upload:
            write_into(upload.write)
            upload.commit()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class _Directory:
    """Files below a directory, with mode and time, and their owners if we may."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path = path.absolute()
        self._overwrite = overwrite
        what = f"export to {path}"
        try:
            self._path.mkdir(exist_ok=True)
            if not overwrite and any(self._path.iterdir()):
                raise UsageError(
                    what, "it is not empty, and nothing is overwritten", "name another directory"
                )
        except OSError as error:
            raise TargetError(what, error.strerror or str(error)) from error

    def file(self, key: str, entry: Entry, pieces: Iterable[memoryview]) -> None:
        place = self._path / key
        what = f"write {place}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with new_file(place, overwrite=self._overwrite, durable=False) as write:
                for piece in pieces:
                    write(piece)
            if os.geteuid() == 0:
                os.chown(place, entry.uid, entry.gid)
            place.chmod(entry.mode)
            os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns))
        except (OSError, ValueError) as error:
            raise TargetError(what, str(error)) from error

    def finish(self) -> None:
        os.sync()

    def sidecar(self, write_into: Callable[[Write], None]) -> None:
        with new_file(self._path.with_name(self._path.name + SUFFIX), overwrite=self._overwrite) as write:
            write_into(write)
