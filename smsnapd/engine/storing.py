"""The work of a backup on one core: read a pack or a range of a large file, name it, seal it, store it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec

from smsnapd.engine.width import Width
from smsnapd.errors import ObjectExistsError
from smsnapd.format import names
from smsnapd.format.codec import (
    CONTENT_LIMITS,
    Context,
    ObjectType,
    Sealer,
    chunk_hash,
    open_sealed,
    stored_hash,
)
from smsnapd.format.keys import DataKey
from smsnapd.model import ChunkRef, Entry, Flag
from smsnapd.store import open_store
from smsnapd.store.base import Store, StoreSettings
from smsnapd.volume.attributes import Owners
from smsnapd.volume.tarball.read import ISSUE_CHANGED, Packed, PackItem, PackReader, read_buffer
from smsnapd.volume.tree import Tree

BUFFER_BYTES: Final = CONTENT_LIMITS[ObjectType.CHUNK]
UPLOADS_AT_ONCE: Final = 4


class PackJob(msgspec.Struct, tag="pack", array_like=True):
    """Entries to be stored together as one chunk."""

    items: list[PackItem]


class RangeJob(msgspec.Struct, tag="range", array_like=True):
    """Cuts of a large file, each to be a chunk: logical offsets [start, end) of each."""

    path: bytes
    entry: Entry
    cuts: list[tuple[int, int]]


class Piece(msgspec.Struct, array_like=True):
    """A chunk made by a job: its name hash and content length.

    `ref` is None if it is known already; `sealed` is set if it was not put, but handed back to be attached.
    """

    name_hash: bytes
    length: int
    ref: ChunkRef | None = None
    sealed: bytes = b""


class StoreResult(msgspec.Struct, array_like=True):
    """What came of a job.

    `packed` has a row for each item of a pack, and `counts` says how many rows went into each of `pieces` (a
    pack that outgrew the buffer becomes several chunks; one without bytes is None). Of a range `pieces` has a
    chunk for each cut, unless there is an `issue`, as of `RangeRead`, that made an end before: the file is
    read again then. `durable` are the chunks whose puts have returned since the last result.
    """

    packed: list[Packed] = []
    pieces: list[Piece | None] = []
    counts: list[int] = []
    issue: str = ""
    durable: list[ChunkRef] = []


@dataclass(frozen=True)
class StoreTask:
    """All that a worker needs; travels over a private pipe, never through a file or an argument."""

    root: bytes
    repository_id: bytes
    volume: str
    chunk_names_key: bytes = field(repr=False)
    digest_key: bytes = field(repr=False)
    data_key: DataKey
    known: frozenset[bytes]
    level: int
    settings: StoreSettings
    attach_limit: int = 0
    store: Store | None = None

    @property
    def job_type(self) -> Any:
        """For the pool."""
        return PackJob | RangeJob

    @property
    def result_type(self) -> Any:
        """For the pool."""
        return StoreResult

    def open(self) -> StoreWorker:
        """Open the volume and the store in this process."""
        return StoreWorker(self, self.store or open_store(self.settings))

    def __getstate__(self) -> dict[str, object]:
        """Another process opens a store of its own."""
        return {**self.__dict__, "store": None}


class StoreWorker:
    """Reads, seals and stores; one chunk buffer, a bounded number of puts under way."""

    def __init__(self, task: StoreTask, store: Store) -> None:
        self._task = task
        self._store = store
        self._tree = Tree(task.root)
        self._reader = PackReader(self._tree, task.digest_key, Owners())
        self._buffer = read_buffer(BUFFER_BYTES)
        self._sealer = Sealer(task.level)
        self._known = set(task.known)
        self._attachable = task.attach_limit
        self._durable: list[ChunkRef] = []
        self._uploads: _Uploads | None = None
        if task.settings.url.startswith("s3:"):
            self._uploads = _Uploads(self._durable)

    def handle(self, job: PackJob | RangeJob) -> StoreResult:
        """Do one job."""
        result = self._pack(job) if isinstance(job, PackJob) else self._ranges(job)
        result.durable = self._take_durable()
        return result

    def finish(self) -> StoreResult:
        """Wait for the puts under way."""
        if self._uploads is not None:
            self._uploads.drain()
        return StoreResult(durable=self._take_durable())

    def close(self) -> None:
        """Close the volume; the store too, if it was opened here."""
        self._tree.close()
        if self._uploads is not None:
            self._uploads.close()
        if self._task.store is None:
            self._store.close()

    def _pack(self, job: PackJob) -> StoreResult:
        result = StoreResult(packed=[], pieces=[], counts=[])
        rest = job.items
        while rest:
            used, packed = self._reader.read_pack(rest, self._buffer)
            result.packed += packed
            result.counts.append(len(packed))
            result.pieces.append(self._keep(used) if used else None)
            rest = rest[len(packed) :]
        return result

    def _ranges(self, job: RangeJob) -> StoreResult:
        result = StoreResult(pieces=[])
        for start, end in job.cuts:
            used, issue = self._reader.read_range(job.path, job.entry, start, end, self._buffer)
            result.issue = result.issue or issue
            if issue and not (issue == ISSUE_CHANGED and job.entry.flags & Flag.CHANGED):
                break
            result.pieces.append(self._keep(used))
        return result

    def _keep(self, used: int) -> Piece:
        """Store the first `used` bytes of the buffer as a chunk, unless it is known."""
        content = memoryview(self._buffer)[:used]
        name_hash = chunk_hash(self._task.chunk_names_key, content)
        if name_hash in self._known:
            return Piece(name_hash, used)
        self._known.add(name_hash)
        name = names.chunk_name(self._task.volume, name_hash, self._task.data_key.id)
        sealed, digest = self._sealer.seal(
            ObjectType.CHUNK, self._task.data_key.secret, self._task.data_key.id, self._context(name), content
        )
        ref = ChunkRef(name_hash, self._task.data_key.id, used, len(sealed), digest)
        if len(sealed) <= self._attachable:
            self._attachable -= len(sealed)
            return Piece(name_hash, used, ref, bytes(sealed))
        return Piece(name_hash, used, self._put(name, sealed, ref))

    def _context(self, name: str) -> Context:
        return Context(self._task.repository_id, self._task.volume, name)

    def _put(self, name: str, sealed: memoryview, ref: ChunkRef) -> ChunkRef:
        if self._uploads is not None:
            # The buffer is needed for the next chunk meanwhile.
            self._uploads.put(partial(self._put_now, name, bytes(sealed), ref))
            return ref
        ref = self._put_now(name, sealed, ref)
        self._durable.append(ref)
        return ref

    def _put_now(self, name: str, sealed: bytes | memoryview, ref: ChunkRef) -> ChunkRef:
        try:
            self._store.put(name, sealed)
        except ObjectExistsError:
            # Another worker of this run made the same content; the salts differ, so do the bytes.
            return self._adopt(name, ref)
        return ref

    def _adopt(self, name: str, ref: ChunkRef) -> ChunkRef:
        stored = self._store.get(name)
        open_sealed(stored, ObjectType.CHUNK, self._task.data_key.secret, self._context(name))
        return ChunkRef(ref.name_hash, ref.key_id, ref.length, len(stored), stored_hash(stored))

    def _take_durable(self) -> list[ChunkRef]:
        durable = self._durable.copy()
        self._durable.clear()
        return durable


class _Uploads:
    """Puts under way on some threads; the next one waits when all are busy. What is done goes to `done`."""

    def __init__(self, done: list[ChunkRef]) -> None:
        self._done = done
        self._width = Width(UPLOADS_AT_ONCE)
        self._threads = ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="upload")
        self._under_way: deque[Future[ChunkRef]] = deque()

    def put(self, work: Callable[[], ChunkRef]) -> None:
        while len(self._under_way) >= self._width.now:
            self._settle_one()
        self._under_way.append(self._threads.submit(self._width.timed, work))

    def drain(self) -> None:
        while self._under_way:
            self._settle_one()

    def _settle_one(self) -> None:
        self._done.append(self._under_way.popleft().result())

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
