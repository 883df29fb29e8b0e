"""Contents at hand made chunks: named here, sealed and put by threads, so many at a time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from smsnapd.errors import ObjectExistsError
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, Sealer, chunk_hash, open_sealed, stored_hash
from smsnapd.format.keys import DataKey
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository

UPLOADS_AT_ONCE: Final = 4


class ChunkWriter:
    """Stores chunks of one volume. For one thread; close it.

    A chunk gets its number before it has contents; two numbers may come to the same chunk: `settled` says
    which. What is in `known` is not stored again. Sealing and hashing let other threads run meanwhile.
    `before_each` is called before each chunk, which may be long after the one before.
    """

    def __init__(
        self,
        repository: Repository,
        volume: str,
        data_key: DataKey,
        known: Iterable[ChunkRef] = (),
        level: int = 1,
    ) -> None:
        self._repository = repository
        self._volume = volume
        self._data_key = data_key
        self._level = level
        self._names_key = repository.volume_keys(volume).chunk_names
        self._known = {ref.name_hash: ref for ref in known}
        self._numbers: dict[bytes, int] = {}
        self._settled: dict[int, int] = {}
        self._refs: dict[int, ChunkRef] = {}
        self._next = 0
        self.stored_bytes = 0
        self.fresh: list[ChunkRef] = []
        self.before_each: Callable[[], None] = lambda: None
        on_network = repository.store.url.startswith("s3:")
        count = UPLOADS_AT_ONCE if on_network else len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="seal")
        self._at_once = count
        self._sealers = threading.local()
        self._under_way: deque[tuple[int, Future[ChunkRef]]] = deque()

    def reserve(self) -> int:
        """A number for a chunk whose contents are to come."""
        self._next += 1
        return self._next

    def add(self, content: bytes) -> int:
        """The number of a chunk with these contents: whole blocks."""
        number = self.reserve()
        self.put(number, content)
        return number

    def put(self, number: int, content: bytes) -> None:
        """Give a number its contents; waits while as many are under way as may be."""
        self.before_each()
        name_hash = chunk_hash(self._names_key, content)
        first = self._numbers.setdefault(name_hash, number)
        self._settled[number] = first
        if first != number:
            return
        if name_hash in self._known:
            self._refs[number] = self._known[name_hash]
            return
        while len(self._under_way) >= self._at_once:
            self._settle_one()
        self._under_way.append((number, self._threads.submit(self._store, name_hash, content)))

    def finish(self) -> None:
        """Wait for every put."""
        while self._under_way:
            self._settle_one()

    def close(self) -> None:
        """Stop the threads. May be called more than once."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def settled(self, number: int) -> int:
        """The number that stands for all with the same contents."""
        return self._settled[number]

    def __getitem__(self, number: int) -> ChunkRef:
        """The chunk with a settled number, once all is finished."""
        return self._refs[number]

    def _settle_one(self) -> None:
        number, future = self._under_way.popleft()
        ref = self._refs[number] = future.result()
        self.stored_bytes += ref.stored_length
        self.fresh.append(ref)

    def _store(self, name_hash: bytes, content: bytes) -> ChunkRef:
        key = self._data_key
        name = names.chunk_name(self._volume, name_hash, key.id)
        context = Context(self._repository.id, self._volume, name)
        sealed, digest = self._sealer().seal(ObjectType.CHUNK, key.secret, key.id, context, content)
        try:
            self._repository.store.put(name, sealed)
        except ObjectExistsError:
            # A put whose answer was lost, and that was sealed anew: the same contents under another salt.
            stored = self._repository.store.get(name)
            open_sealed(stored, ObjectType.CHUNK, key.secret, context)
            return ChunkRef(name_hash, key.id, len(content), len(stored), stored_hash(stored))
        return ChunkRef(name_hash, key.id, len(content), len(sealed), digest)

    def _sealer(self) -> Sealer:
        sealer: Sealer | None = getattr(self._sealers, "sealer", None)
        if sealer is None:
            sealer = self._sealers.sealer = Sealer(self._level)
        return sealer
