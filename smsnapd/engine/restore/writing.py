"""The work of a restore on one core: fetch a chunk, open it, write what lies in it to the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import msgspec

from smsnapd.engine.heap import KEPT_FOR_OPENING
from smsnapd.engine.image.listing import lies_in_image, read_pieces
from smsnapd.errors import DamageError
from smsnapd.model import ChunkRef, Entry, Extent, Kind, Segment, data_bytes
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.store import open_store
from smsnapd.store.base import Store, StoreSettings
from smsnapd.volume.tarball.apply import ApplyOptions, Notes, Target
from smsnapd.volume.tree import Tree

_REGULAR: Final = int(Kind.REGULAR)


class Item(msgspec.Struct, array_like=True, gc=False):
    """An entry to be written, and its path."""

    path: bytes
    entry: Entry


unpack: Final = msgspec.msgpack.Decoder(list[Item]).decode
"""The items of a job. They travel as they lie in the worklist: only the process that needs them decodes."""

pack: Final = msgspec.msgpack.Encoder().encode
"""What `unpack` takes."""


class DirectoriesJob(msgspec.Struct, tag="directories", array_like=True):
    """Directories to make, none in another; `clean` them of what an interrupted restore has left."""

    items: msgspec.Raw
    clean: bool = False


class FilesJob(msgspec.Struct, tag="files", array_like=True):
    """Entries whose content lies in one chunk; without `ref`, entries that have none."""

    items: msgspec.Raw
    ref: ChunkRef | None = None


class LinksJob(msgspec.Struct, tag="links", array_like=True):
    """Further names of files that are there."""

    items: msgspec.Raw


class FinishJob(msgspec.Struct, tag="finish", array_like=True):
    """Directories that get their metadata, none in another; what lies in them is finished."""

    items: msgspec.Raw


class Write(msgspec.Struct, array_like=True):
    """A chunk of a large file and the pieces of the file that it holds, in order."""

    ref: ChunkRef
    extent: Extent
    pieces: list[Segment]


class LargeJob(msgspec.Struct, tag="large", array_like=True):
    """Some chunks of a large file that was begun."""

    item: Item
    writes: list[Write]


class ImageFileJob(msgspec.Struct, tag="image", array_like=True):
    """A large file that was begun, and whose content lies in the image."""

    item: Item


Job = DirectoriesJob | FilesJob | LargeJob | ImageFileJob | LinksJob | FinishJob


class Failure(msgspec.Struct, array_like=True):
    """An entry that was not restored; `damaged` if that is the repository's fault."""

    path: bytes
    reason: str
    damaged: bool = False


class WriteResult(msgspec.Struct, tag="done", array_like=True):
    """What a job did; `skipped` entries were there already."""

    files: int = 0
    bytes: int = 0
    fetched_bytes: int = 0
    skipped: int = 0
    failures: list[Failure] = []


class LastResult(msgspec.Struct, tag="last", array_like=True):
    """What a worker noted until its end."""

    notes: Notes


@dataclass(frozen=True)
class WriteTask:
    """All that a worker needs; travels over a private pipe."""

    target: bytes
    options: ApplyOptions
    repository_id: bytes
    volume: str
    data_keys: dict[bytes, bytes] = field(repr=False)
    names_keys: tuple[bytes, ...] = field(repr=False)
    settings: StoreSettings
    store: Store | None = None
    image_root: bytes | None = None
    kept_bytes: ClassVar[int] = KEPT_FOR_OPENING

    @property
    def job_type(self) -> Any:
        """For the pool."""
        return Job

    @property
    def result_type(self) -> Any:
        """For the pool."""
        return WriteResult | LastResult

    def open(self) -> WriteWorker:
        """Open the target and the store in this process."""
        return WriteWorker(self, self.store or open_store(self.settings))

    def __getstate__(self) -> dict[str, object]:
        """Another process opens a store of its own."""
        return {**self.__dict__, "store": None}


class WriteWorker:
    """Writes entries to the target; holds one opened chunk at a time."""

    def __init__(self, task: WriteTask, store: Store) -> None:
        self._task = task
        self._store = store
        self._fetcher = Fetcher(store, task.volume)
        self._opener = ChunkOpener(
            self._fetcher, task.repository_id, task.volume, task.data_keys, task.names_keys
        )
        self._target = Target(task.target, task.options)
        self._target.check_marked()
        self._image = None if task.image_root is None else Tree(task.image_root)

    def handle(self, job: Job) -> WriteResult:
        """Do one job."""
        before = self._fetcher.fetched_bytes
        result = WriteResult(failures=[])
        if isinstance(job, FilesJob):
            self._files(job, result)
        elif isinstance(job, LargeJob):
            self._large(job, result)
        elif isinstance(job, ImageFileJob):
            self._image_file(job.item, result)
        elif isinstance(job, LinksJob):
            self._links(unpack(job.items), result)
        elif isinstance(job, DirectoriesJob):
            self._directories(unpack(job.items), result, clean=job.clean)
        else:
            self._finish(unpack(job.items), result)
        result.fetched_bytes = self._fetcher.fetched_bytes - before
        return result

    def finish(self) -> LastResult:
        """The notes of all jobs."""
        return LastResult(self._target.notes)

    def close(self) -> None:
        """Close the target; the store too, if it was opened here."""
        self._target.close()
        if self._image is not None:
            self._image.close()
        if self._task.store is None:
            self._store.close()

    def _files(self, job: FilesJob, result: WriteResult) -> None:
        wanted = self._wanted(unpack(job.items), result)
        if not wanted:
            return
        content = memoryview(b"")
        if job.ref is not None:
            try:
                content = memoryview(self._opener.open(job.ref))
            except DamageError as error:
                result.failures += [Failure(item.path, str(error), damaged=True) for item in wanted]
                return
        for item in wanted:
            try:
                reason = self._write(item, content)
            except DamageError as error:
                result.failures.append(Failure(item.path, str(error), damaged=True))
                continue
            if reason:
                result.failures.append(Failure(item.path, reason))
            elif item.entry.kind == _REGULAR:
                result.files += 1
                result.bytes += item.entry.size

    def _wanted(self, items: list[Item], result: WriteResult) -> list[Item]:
        """Those that are not there yet; the others are counted."""
        if self._target.wants_all:
            return items
        wanted = [item for item in items if self._target.wanted(item.path, item.entry)]
        result.skipped += len(items) - len(wanted)
        return wanted

    def _directories(self, items: list[Item], result: WriteResult, *, clean: bool) -> None:
        for item in items:
            reason = self._target.make_directory(item.path)
            if reason:
                result.failures.append(Failure(item.path, reason))
            elif clean:
                self._target.clean_partials(item.path)

    def _links(self, items: list[Item], result: WriteResult) -> None:
        for item in self._wanted(items, result):
            reason = self._target.make_link(item.entry.target, item.path, item.entry)
            if reason:
                result.failures.append(Failure(item.path, reason))
            elif item.entry.kind == _REGULAR:
                result.files += 1

    def _finish(self, items: list[Item], result: WriteResult) -> None:
        for path, entry in ((item.path, item.entry) for item in items):
            # The mark at the root is still to be removed.
            reason = self._target.finish_directory(path, entry if path else _writable(entry))
            if reason:
                result.failures.append(Failure(path, reason))

    def _write(self, item: Item, content: memoryview) -> str:
        path, entry = item.path, item.entry
        if entry.kind == _REGULAR:
            data = memoryview(b"")
            if entry.content:
                _, offset, length = entry.content[0]
                data = content[offset : offset + min(length, data_bytes(entry))]
            elif lies_in_image(entry):
                data = memoryview(b"".join(piece for _, piece in self._image_pieces(item)))
            return self._target.write_small(path, entry, data)
        if entry.kind == Kind.SYMLINK:
            return self._target.make_symlink(path, entry)
        return self._target.make_special(path, entry)

    def _large(self, job: LargeJob, result: WriteResult) -> None:
        path, entry = job.item.path, job.item.entry
        opened = self._target.open_large(path, entry)
        if isinstance(opened, str):
            result.failures.append(Failure(path, opened))
            return
        with opened as file:
            for write in job.writes:
                try:
                    content = memoryview(self._opener.open(write.ref))
                except DamageError as error:
                    result.failures.append(Failure(path, str(error), damaged=True))
                    return
                position = write.extent.offset
                for offset, length in write.pieces:
                    file.write_range(offset, content[position : position + length])
                    position += length
                    result.bytes += length

    def _image_file(self, item: Item, result: WriteResult) -> None:
        opened = self._target.open_large(item.path, item.entry)
        if isinstance(opened, str):
            result.failures.append(Failure(item.path, opened))
            return
        with opened as file:
            try:
                for offset, piece in self._image_pieces(item):
                    file.write_range(offset, piece)
                    result.bytes += len(piece)
            except DamageError as error:
                result.failures.append(Failure(item.path, str(error), damaged=True))

    def _image_pieces(self, item: Item) -> Iterator[tuple[int, bytes]]:
        assert self._image is not None
        return read_pieces(self._image, item.path, item.entry)


def _writable(directory: Entry) -> Entry:
    return msgspec.structs.replace(directory, mode=directory.mode | 0o700)
