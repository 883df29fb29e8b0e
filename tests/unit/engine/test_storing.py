"""The worker of a backup: what it says to be durable is in the store, byte for byte."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from smsnapd.engine.backup import storing
from smsnapd.engine.backup.storing import PackJob, RangeJob, StoreResult, StoreTask, StoreWorker
from smsnapd.errors import DamageError, StoreError
from smsnapd.format import names
from smsnapd.format.codec import stored_hash
from smsnapd.format.keys import DataKey
from smsnapd.model import Entry
from smsnapd.store import StoreSettings
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore
from smsnapd.volume.attributes import Owners
from smsnapd.volume.scan import entry_of
from smsnapd.volume.tarball.read import PackItem, PackReader
from smsnapd.volume.tree import Tree

MIB = 1024 * 1024
KEY = DataKey(os.urandom(16), bytearray(os.urandom(32)))


class Counting(MemoryStore):
    """Counts puts; may refuse them."""

    def __init__(self) -> None:
        super().__init__("test")
        self.puts = 0
        self.broken = False

    def put(self, name: str, data: Buffer) -> None:
        self.puts += 1
        if self.broken:
            raise StoreError(f"store {name}", "the test broke it")
        super().put(name, data)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def make(tmp_path: Path, store: Counting, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoreWorker]:
    """Of a `file:` store as in a process of its own, which opens it."""
    monkeypatch.setattr(storing, "open_store", lambda _: store)

    def made(url: str, attach_limit: int = 0, known: frozenset[bytes] = frozenset()) -> StoreWorker:
        task = StoreTask(
            root=os.fsencode(tmp_path),
            repository_id=bytes(16),
            volume="nb",
            chunk_names_key=bytes(32),
            digest_key=bytes(32),
            data_key=KEY,
            known=known,
            level=1,
            settings=StoreSettings(url),
            attach_limit=attach_limit,
            store=None if url.startswith("file:") else store,
        )
        return task.open()

    return made


def scanned(place: Path) -> Entry:
    return entry_of(os.fsencode(place.name), place.lstat())


def range_job(root: Path, name: str, *cuts: tuple[int, int]) -> RangeJob:
    with Tree(os.fsencode(root)) as tree:
        entry = PackReader(tree, bytes(32), Owners()).inspect(os.fsencode(name), scanned(root / name)).entry
    assert entry is not None
    return RangeJob(os.fsencode(name), entry, list(cuts))


def sent(result: StoreResult) -> StoreResult:
    """As it arrives from another process: what comes later does not show in it."""
    return msgspec.convert(msgspec.to_builtins(result), StoreResult)


def check_durable(store: Counting, results: list[StoreResult], count: int) -> None:
    refs = [ref for result in results for ref in result.durable]
    assert len(refs) == count
    for ref in refs:
        data = store.get(names.chunk_name("nb", ref.name_hash, ref.key_id))
        assert (ref.stored_length, ref.stored_hash) == (len(data), stored_hash(data))


@pytest.mark.parametrize("url", ["memory://test", "file:///there", "s3://bucket"])
def test_two_workers_that_make_the_same_chunks_agree_on_one(
    tmp_path: Path, store: Counting, make: Callable[..., StoreWorker], url: str
) -> None:
    """A manifest that named the other's bytes could not be restored."""
    (tmp_path / "large").write_bytes(b"".join(number.to_bytes(4, "big") * (MIB // 4) for number in range(40)))
    jobs = [
        range_job(tmp_path, "large", *[(start * MIB, (start + 8) * MIB) for start in starts])
        for starts in ((0, 8), (16, 24, 32))
    ]
    workers = [make(url), make(url)]
    results = [sent(worker.handle(job)) for job in jobs for worker in workers]
    results += [sent(worker.finish()) for worker in workers]
    for worker in workers:
        worker.close()
    assert store.puts == 10
    check_durable(store, results, 10)


@pytest.mark.parametrize("url", ["memory://test", "file:///there", "s3://bucket"])
def test_a_chunk_is_put_once_by_one_worker(
    tmp_path: Path, store: Counting, make: Callable[..., StoreWorker], url: str
) -> None:
    (tmp_path / "large").write_bytes(bytes(24 * MIB - 1) + b"x")
    worker = make(url)
    job = range_job(tmp_path, "large", *[(start, start + 8 * MIB) for start in (0, 8 * MIB, 16 * MIB)])
    results = [sent(worker.handle(job)), sent(worker.handle(job)), sent(worker.finish())]
    worker.close()
    assert store.puts == 2
    check_durable(store, results, 2)
    pieces = [piece for piece in results[0].pieces if piece]
    assert [piece.ref is not None for piece in pieces] == [True, False, True]
    again = make(url, known=frozenset(piece.name_hash for piece in pieces))
    assert [piece and piece.ref for piece in again.handle(job).pieces] == [None, None, None]
    assert again.finish().durable == []
    again.close()
    assert store.puts == 2


@pytest.mark.parametrize("url", ["file:///there", "s3://bucket"])
def test_a_put_that_fails_ends_the_work(
    tmp_path: Path, store: Counting, make: Callable[..., StoreWorker], url: str
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(8 * MIB))
    store.broken = True
    worker = make(url)
    worker.handle(range_job(tmp_path, "large", (0, 8 * MIB)))
    with pytest.raises(StoreError, match="broke"):
        worker.finish()
    worker.close()


@pytest.mark.parametrize("url", ["file:///there", "s3://bucket"])
def test_a_slow_put_has_its_own_bytes_while_the_next_chunks_are_made(
    tmp_path: Path,
    store: Counting,
    make: Callable[..., StoreWorker],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(32 * MIB))
    quick = store.put

    def slow(name: str, data: Buffer) -> None:
        time.sleep(0.3)
        quick(name, data)

    monkeypatch.setattr(store, "put", slow)
    worker = make(url)
    job = range_job(tmp_path, "large", *[(start * MIB, (start + 8) * MIB) for start in (0, 8, 16, 24)])
    results = [sent(worker.handle(job)), sent(worker.finish())]
    worker.close()
    check_durable(store, results, 4)


def test_what_lies_under_a_chunks_name_and_is_none_is_not_adopted(
    tmp_path: Path, store: Counting, make: Callable[..., StoreWorker]
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    job = PackJob([PackItem(b"", scanned(tmp_path / "file"))])
    worker = make("memory://test")
    (piece,) = worker.handle(job).pieces
    worker.close()
    assert piece and piece.ref
    name = names.chunk_name("nb", piece.name_hash, KEY.id)
    store.delete(name)
    store.put(name, b"garbage" * 1000)
    worker = make("memory://test")
    with pytest.raises(DamageError):
        worker.handle(job)
    worker.close()


def test_small_chunks_are_handed_back_as_far_as_they_may_be_attached(
    tmp_path: Path, store: Counting, make: Callable[..., StoreWorker]
) -> None:
    jobs = []
    for number in range(3):
        (tmp_path / f"file-{number}").write_bytes(b"%d" % number)
        jobs.append(PackJob([PackItem(b"", scanned(tmp_path / f"file-{number}"))]))
    worker = make("memory://test", attach_limit=2 * 4096)
    pieces = [worker.handle(job).pieces[0] for job in jobs]
    worker.close()
    assert [len(piece.sealed) if piece else -1 for piece in pieces] == [4096, 4096, 0]
    assert store.puts == 1
