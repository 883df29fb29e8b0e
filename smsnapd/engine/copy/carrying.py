"""Chunks from one repository to another: opened, named and sealed anew, each once, whatever names it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Final, NamedTuple

from smsnapd.engine.chain.chunkwriter import ChunkWriter
from smsnapd.engine.trees.tree import chunk_names_keys
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, chunk_hash, seal, stored_hash
from smsnapd.format.keys import DataKey
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.state.journal import Journal

JOURNAL_BYTES: Final = 64 * 1024 * 1024
"""Stored bytes after which the journal learns what is durable."""

_FETCHES: Final = 4


class Source(NamedTuple):
    """A chunk of the source as what has become of it is looked up: its name."""

    name_hash: bytes
    key_id: bytes


def source_of(ref: ChunkRef) -> Source:
    """How a chunk of the source is looked up."""
    return Source(ref.name_hash, ref.key_id)


class Reader:
    """Opens chunks of the source, several at once where they are objects of their own."""

    def __init__(self, repository: Repository, volume: str) -> None:
        self._repository = repository
        self._volume = volume
        self._fetcher = Fetcher(repository.store, volume)
        self._keys: dict[bytes, bytes] = {}
        self._threads = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def close(self) -> None:
        """Stop the threads. May be called more than once."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def fetched_bytes(self) -> int:
        """Bytes that were fetched so far."""
        return self._fetcher.fetched_bytes

    @cached_property
    def _names_keys(self) -> tuple[bytes, ...]:
        return chunk_names_keys(self._repository, self._volume)

    def open(self, ref: ChunkRef) -> bytes:
        """One chunk's content, every check passed. DamageError."""
        if ref.key_id not in self._keys:
            self._keys[ref.key_id] = bytes(self._repository.data_key(self._volume, ref.key_id).secret)
        opener = ChunkOpener(self._fetcher, self._repository.id, self._volume, self._keys, self._names_keys)
        return opener.open(ref)

    def open_all(self, refs: Iterable[ChunkRef]) -> Iterator[tuple[ChunkRef, bytes]]:
        """Chunks that are objects of their own and their contents, in order, the next ones on their way."""
        ahead: deque[tuple[ChunkRef, Future[bytes]]] = deque()
        for ref in refs:
            if len(ahead) >= _FETCHES:
                first, content = ahead.popleft()
                yield first, content.result()
            ahead.append((ref, self._threads.submit(self.open, ref)))
        for ref, content in ahead:
            yield ref, content.result()


class Carrier:
    """Knows what chunks of the source have become, and makes it so of others. Close it.

    `known` are the pairs that are committed. What is stored and not committed yet goes into the journal, as
    pairs of the source's and the other chunk, and is not carried again after a run was cut off.
    """

    def __init__(
        self,
        reader: Reader,
        repository: Repository,
        volume: str,
        data_key: DataKey,
        known: dict[Source, ChunkRef],
        journal: Journal,
        renew: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._repository = repository
        self._volume = volume
        self._data_key = data_key
        self._known = known
        self._journal = journal
        self._renew = renew
        self._writer = ChunkWriter(repository, volume, data_key, known.values())
        self._names_key = repository.volume_keys(volume).chunk_names
        self._by_hash = {ref.name_hash: ref for ref in known.values()}
        self._unjournaled: list[tuple[ChunkRef, int]] = []
        self._since_journal = 0

    def close(self) -> None:
        """Stop the threads. May be called more than once."""
        self._writer.close()

    @property
    def stored_bytes(self) -> int:
        """Sealed bytes of chunks that were put so far."""
        return self._writer.stored_bytes

    @property
    def fresh(self) -> list[ChunkRef]:
        """The chunks that were put by this run."""
        return self._writer.fresh

    def known(self, ref: ChunkRef) -> ChunkRef | None:
        """What a chunk of the source has become, None if it has not been carried."""
        return self._known.get(source_of(ref))

    def learn(self, ref: ChunkRef, became: ChunkRef) -> None:
        """What a chunk has become by a commit."""
        self._known[source_of(ref)] = became
        self._by_hash[became.name_hash] = became

    def carry(self, refs: Iterable[ChunkRef]) -> Iterator[int]:
        """Carry chunks that are not known; yields the bytes of each, so that it can be told."""
        wanted = {source_of(ref): ref for ref in refs if source_of(ref) not in self._known}
        attached = [ref for ref in wanted.values() if ref.manifest]
        own = [ref for ref in wanted.values() if not ref.manifest]
        for ref in attached:
            yield self._take(ref, self._reader.open(ref))
        for ref, content in self._reader.open_all(own):
            yield self._take(ref, content)
        self._settle()

    def _take(self, ref: ChunkRef, content: bytes) -> int:
        self._renew()
        self._unjournaled.append((ref, self._writer.add(content)))
        self._since_journal += ref.stored_length
        if self._since_journal >= JOURNAL_BYTES:
            self._settle()
        return ref.stored_length

    def _settle(self) -> None:
        """Wait for the puts, and write down what is durable now."""
        if not self._unjournaled:
            return
        self._writer.finish()
        pairs: list[ChunkRef] = []
        for ref, number in self._unjournaled:
            became = self._writer[self._writer.settled(number)]
            self.learn(ref, became)
            pairs += (ref, became)
        self._repository.store.barrier()
        self._journal.add(pairs)
        self._unjournaled, self._since_journal = [], 0

    def sealed(self, ref: ChunkRef) -> tuple[ChunkRef, bytes]:
        """A small chunk sealed to be attached; without bytes if its contents are there already."""
        content = self._reader.open(ref)
        name_hash, key = chunk_hash(self._names_key, content), self._data_key
        if name_hash in self._by_hash:
            return self._by_hash[name_hash], b""
        name = names.chunk_name(self._volume, name_hash, key.id)
        context = Context(self._repository.id, self._volume, name)
        data = seal(ObjectType.CHUNK, key.secret, key.id, context, content)
        return ChunkRef(name_hash, key.id, len(content), len(data), stored_hash(data)), data


def journaled(journal: Journal, usable: Callable[[list[ChunkRef]], list[ChunkRef]]) -> dict[Source, ChunkRef]:
    """The pairs of a journal whose chunks may be used: `usable` says which of them."""
    refs = journal.read()
    pairs = dict(zip(refs[::2], refs[1::2], strict=False))
    good = {ref.name_hash for ref in usable(list(pairs.values()))}
    return {source_of(ref): became for ref, became in pairs.items() if became.name_hash in good}


def pairs_of(source: tuple[ChunkRef, ...], there: tuple[ChunkRef, ...]) -> dict[Source, ChunkRef]:
    """What the chunks of a manifest became in its copy, if the tables have the same rows."""
    if [ref.length for ref in source] != [ref.length for ref in there]:
        return {}
    return {source_of(ref): became for ref, became in zip(source, there, strict=True)}
