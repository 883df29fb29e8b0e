"""An image read at any offset: chunks are fetched as they are touched, a few kept, the next ones foreseen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from smsnapd.engine.image.runs import RunIndex
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.model import ChunkRef
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.store import open_store
from smsnapd.store.base import Store, StoreSettings

CACHE_BYTES: Final = 128 * 1024 * 1024
AHEAD: Final = 2
"""Runs that are fetched before anybody asks, where one is read behind the other."""

_THREADS: Final = 4


@dataclass(frozen=True)
class ChunkSource:
    """All that is needed to open chunks of one volume, in any process; it travels over private pipes only."""

    repository_id: bytes
    volume: str
    data_keys: dict[bytes, bytes] = field(repr=False)
    names_keys: tuple[bytes, ...] = field(repr=False)
    settings: StoreSettings
    store: Store | None = None

    @classmethod
    def of(cls, tree: SnapshotTree, settings: StoreSettings, chunks: set[int]) -> ChunkSource:
        """What the chunks with these numbers need."""
        repository = tree.repository
        return cls(
            repository.id, tree.volume, tree.data_keys(chunks), tree.names_keys(), settings, repository.store
        )

    def open_store(self) -> Store:
        """The store of this process; another one opens a store of its own."""
        return self.store or open_store(self.settings)

    def opener(self, store: Store) -> ChunkOpener:
        """Opens chunks; not for several threads."""
        fetcher = Fetcher(store, self.volume)
        return ChunkOpener(fetcher, self.repository_id, self.volume, self.data_keys, self.names_keys)

    def __getstate__(self) -> dict[str, object]:
        """Another process opens a store of its own."""
        return {**self.__dict__, "store": None}


class ImageReader:
    """Reads an image at random; several threads may. `refs` are the rows that the runs' chunks number."""

    def __init__(self, size: int, index: RunIndex, refs: dict[int, ChunkRef], source: ChunkSource) -> None:
        self.size = size
        self._index = index
        self._refs = refs
        self._source = source
        self._store = source.open_store()
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="image")
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._held_bytes = 0
        self._latest = -1

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end. Raises what fetching and opening chunks raises."""
        size = max(0, min(size, self.size - offset))
        data = bytearray(size)
        number = self._index.from_offset(offset)
        while number < len(self._index) and (run := self._index[number]).offset < offset + size:
            self._foresee(number)
            begin, end = max(run.offset, offset), min(run.end, offset + size)
            start = run.start + begin - run.offset
            content = self._chunk(run.chunk).result()
            data[begin - offset : end - offset] = memoryview(content)[start : start + end - begin]
            number += 1
        return bytes(data)

    def close(self) -> None:
        """Let go of everything."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._source.store is None:
            self._store.close()

    def _foresee(self, number: int) -> None:
        """Fetch what comes next if this run comes behind the latest."""
        behind = number == self._latest + 1
        self._latest = number
        for ahead in range(number + 1, min(number + 1 + AHEAD, len(self._index))) if behind else ():
            self._chunk(self._index[ahead].chunk)

    def _chunk(self, number: int) -> Future[bytes]:
        """A chunk's content, under way or there; the ones not used for longest go."""
        with self._lock:
            future = self._held.get(number)
            if future is not None and not _has_failed(future):
                self._held.move_to_end(number)
                return future
            if future is None:
                self._held_bytes += self._refs[number].length
            self._held[number] = future = self._threads.submit(self._open, number)
            while self._held_bytes > CACHE_BYTES and len(self._held) > _THREADS:
                oldest, _ = self._held.popitem(last=False)
                self._held_bytes -= self._refs[oldest].length
            return future

    def _open(self, number: int) -> bytes:
        opener: ChunkOpener | None = getattr(self._local, "opener", None)
        if opener is None:
            opener = self._local.opener = self._source.opener(self._store)
        return opener.open(self._refs[number])


def _has_failed(future: Future[bytes]) -> bool:
    """Whether it is worth another try: a network may be back, and damage is told again."""
    return future.done() and (future.cancelled() or future.exception() is not None)
