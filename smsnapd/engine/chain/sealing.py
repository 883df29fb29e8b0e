"""Contents become chunks on one core: named, sealed, put, with a bounded number of puts under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from smsnapd.disk import aligned_memory
from smsnapd.engine.chain.width import Width
from smsnapd.errors import ObjectExistsError
from smsnapd.format import names
from smsnapd.format.codec import Buffer, Context, ObjectType, Sealer, chunk_hash, open_sealed, stored_hash
from smsnapd.format.keys import DataKey
from smsnapd.model import ChunkRef
from smsnapd.store.base import Store, StoreSettings

UPLOADS_AT_ONCE: Final = 4


class Piece(msgspec.Struct, array_like=True):
    """A chunk made by a job: its name hash and content length.

    `ref` is None if it is known already; `sealed` is set if it was not put, but handed back to be attached.
    """

    name_hash: bytes
    length: int
    ref: ChunkRef | None = None
    sealed: bytes = b""


@dataclass(frozen=True, kw_only=True)
class SealingTask:
    """What sealing needs; travels over a private pipe, never through a file or an argument.

    `threads` are for one large content, where nobody else is at work.
    """

    repository_id: bytes
    volume: str
    chunk_names_key: bytes = field(repr=False)
    data_key: DataKey
    known: frozenset[bytes]
    level: int
    settings: StoreSettings
    attach_limit: int = 0
    store: Store | None = None
    threads: int = 1

    @property
    def secret(self) -> Buffer:
        """What a pool hands to its processes apart: pickled, it would stay in this one's memory."""
        return self.data_key.secret

    def take_secret(self, secret: bytes) -> None:
        """In the process: the secret that came apart."""
        object.__setattr__(self, "data_key", DataKey(self.data_key.id, bytearray(secret)))

    def __getstate__(self) -> dict[str, object]:
        """Another process opens a store of its own, and gets the data key's secret apart."""
        return {**self.__dict__, "store": None, "data_key": DataKey.unusable(self.data_key.id)}


class ChunkPutter:
    """Seals and stores chunks. Chunks up to `attach_limit` sealed bytes in all are handed back instead."""

    def __init__(self, task: SealingTask, store: Store) -> None:
        self._task = task
        self._store = store
        self._known = set(task.known)
        self._attachable = task.attach_limit
        self._durable: list[ChunkRef] = []
        at_once = _puts_at_once(task)
        self._uploads = _Uploads(self._durable, at_once) if at_once else None
        # The sealer's memory is one put's, until it is needed for the next chunk; several need their own.
        self._copies = at_once > 1
        self._sealer = Sealer(task.level, _pages, self.drain if at_once == 1 else None)

    def drain(self) -> None:
        """Wait for the puts under way."""
        if self._uploads is not None:
            self._uploads.drain()

    def close(self) -> None:
        """Stop. May be called more than once."""
        if self._uploads is not None:
            self._uploads.close()

    def keep(self, content: memoryview) -> Piece:
        """Store `content` as a chunk, unless it is known; it may be overwritten afterwards."""
        used = len(content)
        name_hash = chunk_hash(self._task.chunk_names_key, content, self._task.threads)
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
            data = bytes(sealed) if self._copies else sealed
            self._uploads.put(partial(self._put_now, name, data, ref))
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

    def take_durable(self) -> list[ChunkRef]:
        """The chunks whose puts have returned since this was asked last."""
        durable = self._durable.copy()
        self._durable.clear()
        return durable


def _pages(size: int) -> memoryview:
    """Memory that goes to a disk without a copy."""
    return memoryview(aligned_memory(size))


def _puts_at_once(task: SealingTask) -> int:
    """How many puts are under way while the next chunk is made; 0 if that waits for each."""
    if task.settings.url.startswith("s3:"):
        return UPLOADS_AT_ONCE
    # With a store of the caller's this is no process of its own: a thread more would cost a daemon memory.
    return 1 if task.settings.url.startswith("file:") and task.store is None else 0


class _Uploads:
    """Puts under way on some threads; the next one waits when all are busy. What is done goes to `done`."""

    def __init__(self, done: list[ChunkRef], most: int) -> None:
        self._done = done
        self._width = Width(most)
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="upload")
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
