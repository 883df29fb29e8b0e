"""Manifests: which count, and that one is there only if all that it names is; contents out of them."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest

from smsnapd.errors import DamageError, LockedError
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, chunk_hash, seal, stored_hash
from smsnapd.format.manifest import Completeness, Manifest, Owners, Source, Statistics
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.contents import MANIFESTS_HELD, ChunkOpener, Fetcher
from smsnapd.repository.lease import Lease
from smsnapd.repository.manifests import commit_manifest, list_manifests, load_manifest
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore


class Noting(MemoryStore):
    """Notes what is asked of it, in order; something may happen right before a manifest is put."""

    def __init__(self) -> None:
        super().__init__("test")
        self.calls: list[str] = []
        self.before: Callable[[], object] | None = None

    def get(self, name: str) -> bytes:
        self.calls.append(f"get {name}")
        return super().get(name)

    def put(self, name: str, data: Buffer) -> None:
        if self.before and "/manifests/" in name:
            self.before()
        self.calls.append(f"put {name}")
        super().put(name, data)

    def barrier(self) -> None:
        self.calls.append("barrier")


@pytest.fixture
def store() -> Noting:
    return Noting()


@pytest.fixture
def repository(store: Noting) -> Repository:
    return Repository.create(store, "a passphrase").repository


def name_of(sequence: int, generation: int, snapshot: int = 0, time_us: int = 10**15) -> ManifestName:
    return ManifestName("nb", sequence, generation, time_us, "full", f"{snapshot:016x}")


def manifest_of(repository: Repository, name: ManifestName, chunks: tuple[ChunkRef, ...] = ()) -> Manifest:
    return Manifest(
        repository_id=repository.id,
        name=name,
        finished_us=10**15,
        parent=None,
        program="test",
        host="test",
        source=Source("/v", ""),
        consistency="live",
        completeness=Completeness("scan", True),
        statistics=Statistics(0, 0, 0, 0, 0, 0),
        owners=Owners(),
        chunks=chunks,
        catalog=(),
    )


def take(repository: Repository) -> Lease:
    return Lease.take(repository.store, repository.id, "nb", dead=lambda holder: True)


def test_of_two_with_one_sequence_the_higher_generation_counts(store: Noting, repository: Repository) -> None:
    counting = [name_of(1, 3, 1), name_of(2, 9, 2), name_of(3, 4, 3, time_us=1)]
    fenced = [name_of(1, 2, 4), name_of(2, 8, 5), name_of(2, 1, 6), name_of(3, 3, 7)]
    for name in (*fenced, *counting):
        store.put(name.object_name(), b"x")
    store.put(names.manifests_prefix("nb") + "notes", b"x")
    store.put(names.manifests_prefix("nbx") + name_of(1, 99).object_name().rpartition("/")[2], b"x")
    listed = list_manifests(repository, "nb")
    assert list(listed.counting) == counting
    assert sorted(listed.fenced) == sorted(fenced)
    assert list_manifests(repository, "nothing").counting == ()


def test_a_manifest_comes_last_and_the_lease_behind_it(store: Noting, repository: Repository) -> None:
    lease = take(repository)
    name = name_of(1, lease.generation)
    store.calls.clear()
    committed = commit_manifest(repository, lease, manifest_of(repository, name), b"")
    assert store.calls == ["barrier", f"put {name.object_name()}", "barrier", f"get {names.lease_name('nb')}"]
    assert load_manifest(repository, name) == committed


def test_a_writer_that_was_overtaken_reports_no_success(store: Noting, repository: Repository) -> None:
    lease = take(repository)
    overtaken: list[Lease] = []
    store.before = lambda: overtaken.append(take(repository))
    name = name_of(1, lease.generation)
    with pytest.raises(LockedError):
        commit_manifest(repository, lease, manifest_of(repository, name), b"")
    store.before = None
    after = name_of(1, overtaken[0].generation, 2)
    commit_manifest(repository, overtaken[0], manifest_of(repository, after), b"")
    listed = list_manifests(repository, "nb")
    assert (listed.counting, listed.fenced) == ((after,), (name,))


def test_one_that_was_overtaken_before_puts_nothing(store: Noting, repository: Repository) -> None:
    """If it is time to renew the lease."""
    now = 50.0
    lease = Lease.take(store, repository.id, "nb", clock=StoreClock(store.now, steady=lambda: now))
    take(repository)
    now += 1000
    with pytest.raises(LockedError):
        commit_manifest(repository, lease, manifest_of(repository, name_of(1, 1)), b"")
    assert list_manifests(repository, "nb").counting == ()


def test_a_missing_or_swapped_one_is_damage(store: Noting, repository: Repository) -> None:
    lease = take(repository)
    one, two = name_of(1, lease.generation, 1), name_of(1, lease.generation, 2)
    for name in (one, two):
        commit_manifest(repository, lease, manifest_of(repository, name), b"")
    data = store.get(one.object_name())
    store.delete(two.object_name())
    with pytest.raises(DamageError, match="missing"):
        load_manifest(repository, two)
    store.put(two.object_name(), data)
    with pytest.raises(DamageError):
        load_manifest(repository, two)
    load_manifest(repository, one)


# --- contents


def chunk(
    repository: Repository, key_id: bytes, secret: bytes, content: bytes
) -> tuple[ChunkRef, str, bytes]:
    name_hash = chunk_hash(repository.volume_keys("nb").chunk_names, content)
    name = names.chunk_name("nb", name_hash, key_id)
    sealed = seal(ObjectType.CHUNK, secret, key_id, Context(repository.id, "nb", name), content)
    return ChunkRef(name_hash, key_id, len(content), len(sealed), stored_hash(sealed)), name, sealed


def attached(repository: Repository, count: int) -> tuple[list[ChunkRef], list[bytes], bytes]:
    """Manifests with two chunks each: the chunks' places and contents, and the data key."""
    key = repository.new_data_key("nb")
    lease = take(repository)
    refs: list[ChunkRef] = []
    contents: list[bytes] = []
    for number in range(count):
        name = name_of(1, lease.generation, number)
        rows, data = [], b""
        for content in (os.urandom(512), os.urandom(5120)):
            ref, _, sealed = chunk(repository, key.id, key.secret, content)
            rows.append(msgspec.structs.replace(ref, manifest=name.object_name(), offset=len(data)))
            data += sealed
            contents.append(content)
        commit_manifest(repository, lease, manifest_of(repository, name, tuple(rows)), data)
        refs += rows
    return refs, contents, key.id


def opener(repository: Repository, store: MemoryStore, key_id: bytes) -> ChunkOpener:
    keys = {key_id: repository.data_key("nb", key_id).secret}
    names_keys = (bytes(32), repository.volume_keys("nb").chunk_names)
    return ChunkOpener(Fetcher(store, "nb"), repository.id, "nb", keys, names_keys)


def test_attached_chunks_come_out_of_their_manifests(store: Noting, repository: Repository) -> None:
    refs, contents, key_id = attached(repository, MANIFESTS_HELD + 1)
    opens = opener(repository, store, key_id)
    store.calls.clear()
    assert [opens.open(ref) for ref in refs] == contents
    assert len(store.calls) == MANIFESTS_HELD + 1
    assert opens.open(refs[-1]) == contents[-1]
    assert opens.open(refs[0]) == contents[0]
    assert len(store.calls) == MANIFESTS_HELD + 2


def test_one_whose_manifest_is_gone_is_an_object_of_its_own(store: Noting, repository: Repository) -> None:
    refs, contents, key_id = attached(repository, 1)
    data = store.get(refs[0].manifest)
    store.delete(refs[0].manifest)
    with pytest.raises(DamageError, match="missing"):
        opener(repository, store, key_id).open(refs[0])
    whole = len(data) - sum(ref.stored_length for ref in refs)
    for ref in refs:
        start = whole + ref.offset
        store.put(names.chunk_name("nb", ref.name_hash, key_id), data[start : start + ref.stored_length])
    assert [opener(repository, store, key_id).open(ref) for ref in refs] == contents


def test_a_chunk_is_believed_only_if_everything_fits(store: Noting, repository: Repository) -> None:
    key = repository.new_data_key("nb")
    ref, name, sealed = chunk(repository, key.id, key.secret, os.urandom(1024))
    store.put(name, sealed)
    good = opener(repository, store, key.id)
    assert len(good.open(ref)) == 1024
    other, other_name, other_sealed = chunk(repository, key.id, key.secret, os.urandom(1024))
    store.put(other_name, other_sealed)
    wrong = (
        ChunkRef(ref.name_hash, key.id, 512, ref.stored_length, ref.stored_hash),
        ChunkRef(ref.name_hash, key.id, 1024, ref.stored_length - 1, ref.stored_hash),
        ChunkRef(ref.name_hash, key.id, 1024, ref.stored_length, other.stored_hash),
        ChunkRef(bytes(32), key.id, 1024, ref.stored_length, ref.stored_hash),
        ChunkRef(ref.name_hash, bytes(16), 1024, ref.stored_length, ref.stored_hash),
    )
    for row in wrong:
        with pytest.raises(DamageError):
            good.open(row)
    stranger = ChunkOpener(Fetcher(store, "nb"), repository.id, "nb", {key.id: key.secret}, (bytes(32),))
    with pytest.raises(DamageError, match="the hash in its name"):
        stranger.open(ref)
    store.delete(name)
    store.put(name, other_sealed)
    with pytest.raises(DamageError):
        good.open(ref)
    with pytest.raises(DamageError):
        good.open(ChunkRef(ref.name_hash, key.id, 1024, other.stored_length, other.stored_hash))
