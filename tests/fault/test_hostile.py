"""Who can write to the bucket, with no key or with a writer's: refused or harmless, and never believed."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from smsnapd.engine.history import History
from smsnapd.engine.lookback.browse import open_file
from smsnapd.engine.lookback.showing import ShownHistory, point_name
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError, LockedError, SmsnapError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.catalog import encode_segment
from smsnapd.format.codec import Context, ObjectType, chunk_hash, seal, stored_hash
from smsnapd.format.keys import Identity, WriteKey, seal_write_key
from smsnapd.format.keyslot import make_keyslot
from smsnapd.format.manifest import ParentRef
from smsnapd.format.manifest_object import encode_manifest
from smsnapd.format.names import ManifestName
from smsnapd.format.record import Lease as LeaseRecord
from smsnapd.format.record import RepositoryRecord, record_hash
from smsnapd.format.roster import Head, Revocation, Roster, RosterKey
from smsnapd.model import ChunkRef, Entry, Extent, Flag, Kind, Listing, Xattr
from smsnapd.repository import Credentials, Repository
from smsnapd.repository import unlocking as access_module
from smsnapd.repository.manifests import Recorded
from smsnapd.store import StoreSettings, open_store
from smsnapd.volume.fuse import mounted
from tests.property.protected import PASSPHRASE, VOLUME, Protected

MIB = 1024 * 1024
LARGE = os.urandom(9 * MIB + 100)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Protected:
    """A full, in which a large file lies in chunks of its own, and an incremental."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "volume" / "d").mkdir(parents=True)
    (place / "volume" / "d" / "small").write_bytes(b"small\n" * 100)
    (place / "volume" / "large").write_bytes(LARGE)
    made = Protected.create(place / "volume", place / "state", StoreSettings((place / "repo").as_uri()))
    made.backup(workers=0)
    (place / "volume" / "d" / "later").write_bytes(b"later\n")
    made.backup(workers=0)
    return made


@pytest.fixture
def backed_up(pristine: Protected, tmp_path: Path) -> Protected:
    """A copy of it to be spoilt, without local state."""
    for name in ("repo", "volume"):
        shutil.copytree(pristine.root.parent / name, tmp_path / name)
    settings = StoreSettings((tmp_path / "repo").as_uri())
    return replace(pristine, root=tmp_path / "volume", state_dir=tmp_path / "state", settings=settings)


@pytest.fixture
def repository(backed_up: Protected) -> Iterator[Repository]:
    """It, opened by the identity."""
    with backed_up.repository() as opened:
        yield opened


def head_of(repository: Repository) -> Recorded:
    history = History.load(repository, VOLUME)
    return history.record(history.names[-1])


def commit_full(
    repository: Repository,
    write_key: WriteKey,
    change: Callable[[Entry], Entry] = lambda entry: entry,
    more: Callable[[list[Listing]], list[Listing]] = lambda listings: listings,
) -> ManifestName:
    """What a writer can do with its key: a full that names the chunks of the chain so far, as it likes."""
    history = History.load(repository, VOLUME)
    chain = [history.record(name) for name in history.names]
    tree, head = SnapshotTree(repository, chain), chain[-1]
    listings = [
        Listing(item.directory, [change(entry) for entry in item.entries]) for item in tree.listings()
    ]
    content = encode_segment(more(listings))
    name_hash = chunk_hash(write_key.volume(VOLUME).catalog_names, content)
    object_name = names.catalog_name(VOLUME, name_hash, write_key.writer_id)
    context = Context(repository.id, VOLUME, object_name)
    sealed = seal(ObjectType.CATALOG, write_key.catalog_key, write_key.writer_id, context, content)
    repository.store.put(object_name, sealed)
    row = ChunkRef(name_hash, write_key.writer_id, len(content), len(sealed), stored_hash(sealed))
    name = head.name._replace(sequence=head.name.sequence + 1, kind="full", snapshot=secrets.token_hex(8))
    manifest = replace(
        head.manifest,
        name=name,
        parent=ParentRef(head.name.snapshot, head.hash),
        chunks=tuple(tree.chunks),
        catalog=(row,),
    )
    repository.store.put(name.object_name(), encode_manifest(manifest, write_key))
    return name


def put_roster(repository: Repository, heads: tuple[Head, ...]) -> WriteKey:
    """What the owner does: revoke the writer, up to some heads, and grant another."""
    assert repository.identity is not None
    root = repository.identity.root_private
    other = WriteKey.generate(repository.id)
    before = repository.store.get(names.roster_name(1))
    roster = Roster(
        repository.id,
        2,
        record_hash(before),
        repository.roster.recipients,
        (*repository.roster.writers, RosterKey(other.writer_id, other.verify_key, "other")),
        (Revocation(repository.writer_id, heads),),
    )
    sealed = seal_write_key(other, (repository.identity.recipient,), root)
    repository.store.put(names.writer_name(other.writer_id), sealed)
    repository.store.put(names.roster_name(2), roster.encode(root))
    return other


def contents(protected: Protected, snapshot: str, path: bytes) -> bytes:
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        tree = SnapshotTree(repository, history.chain(history.find(snapshot).id))
        return b"".join(open_file(tree, path))


# --- with a writer's key: catalogs that say what is not so


@pytest.mark.parametrize("victim", [b"small", b"large"])
@pytest.mark.parametrize("part", ["header", "content"])
def test_an_extent_beyond_its_chunk_is_damage_and_nothing_is_written(
    backed_up: Protected, repository: Repository, tmp_path: Path, victim: bytes, part: str
) -> None:
    beyond = {ref.length for ref in head_of(repository).manifest.chunks} | {16 * MIB}

    def change(entry: Entry) -> Entry:
        if entry.name != victim:
            return entry
        first, *rest = (entry.header, *entry.content) if part == "header" else entry.content
        assert first is not None
        moved = (Extent(first.chunk, max(beyond), first.length), *rest)
        if part == "header":
            return msgspec.structs.replace(entry, header=moved[0])
        return msgspec.structs.replace(entry, content=moved)

    forged = commit_full(repository, repository.write_key, change)
    with pytest.raises(DamageError, match="beyond the end of its chunk"):
        backed_up.restore(tmp_path / "target")
    assert not (tmp_path / "target").exists()
    with pytest.raises(DamageError, match="beyond the end of its chunk"):
        contents(backed_up, "latest", b"d/" + victim if victim == b"small" else victim)
    with pytest.raises(DamageError, match="beyond the end of its chunk"):
        backed_up.extract(tmp_path / "extracted", "latest")
    found = backed_up.check(read_data=None).findings
    assert [finding.object for finding in found] == [forged.object_name()]


def test_a_writer_may_cut_files_as_it_likes(
    backed_up: Protected, repository: Repository, tmp_path: Path
) -> None:
    def change(entry: Entry) -> Entry:
        pieces: list[Extent] = []
        for chunk, offset, length in entry.content:
            middle = length // 1024 * 512
            pieces += [Extent(chunk, offset, middle), Extent(chunk, offset + middle, length - middle)]
        return msgspec.structs.replace(entry, content=tuple(piece for piece in pieces if piece.length))

    commit_full(repository, repository.write_key, change)
    assert contents(backed_up, "latest", b"large") == LARGE
    backed_up.restore(tmp_path / "target")
    assert (tmp_path / "target/large").read_bytes() == LARGE
    assert (tmp_path / "target/d/small").read_bytes() == b"small\n" * 100
    assert backed_up.check().findings == ()


def monsters(listings: list[Listing]) -> list[Listing]:
    """Names, sizes, times and numbers at the ends of what the format allows, in the root."""
    top = [entry for listing in listings if not listing.directory for entry in listing.entries]
    header = next(entry.header for entry in top if entry.header)
    far = {"mtime_ns": -(1 << 63), "ctime_ns": (1 << 63) - 1, "uid": (1 << 32) - 2, "inode": (1 << 64) - 1}
    more = [
        Entry(b"hole", int(Kind.REGULAR), int(Flag.SPARSE), size=1 << 62, header=header, **far),
        Entry(b"long-" + b"n" * 4000, int(Kind.REGULAR), header=header),
        Entry(b"\n\xff", int(Kind.FIFO), links=1 << 62, header=header),
        Entry(b"pointer", int(Kind.SYMLINK), size=9000, target=b"t" * 9000, header=header),
        Entry(b"set", int(Kind.REGULAR), mode=0o7777, header=header),
        Entry(b"device", int(Kind.CHARACTER), rdev=(1 << 64) - 1, header=header),
        Entry(b"xattr", int(Kind.REGULAR), xattrs=(Xattr(b"user.x", b"v" * 70_000),), header=header),
    ]
    entries = sorted([*top, *more], key=lambda entry: entry.name)
    return [Listing(b"", entries), *(listing for listing in listings if listing.directory)]


def test_a_mount_bears_whatever_a_catalog_says(
    backed_up: Protected, repository: Repository, tmp_path: Path
) -> None:
    forged = commit_full(repository, repository.write_key, more=monsters)
    place = tmp_path / "mounted"
    place.mkdir()
    opened = Credentials(recovery_key=backed_up.recovery_key)

    def show() -> ShownHistory:
        store = open_store(backed_up.settings)
        return ShownHistory(Repository.open(store, opened), VOLUME, Path("/var/tmp"))

    with mounted(show, bytes(place)):
        shown = bytes(place / os.fsdecode(point_name(forged)))
        found = set(os.listdir(shown))
        assert {b"hole", b"\n\xff", b"pointer", b"set", b"device", b"xattr", b"large", b"d"} <= found
        for name in found:
            with contextlib.suppress(OSError):  # EIO or ENAMETOOLONG, and the next one is there still
                os.lstat(shown + b"/" + name)
                os.listxattr(shown + b"/" + name, follow_symlinks=False)
        with open(shown + b"/hole", "rb") as file:
            assert os.pread(file.fileno(), 5000, 1 << 61) == bytes(5000)
        with open(shown + b"/large", "rb") as file:
            assert file.read() == LARGE


# --- with the key of a writer that was revoked


def test_what_a_revoked_writer_signs_later_is_refused_and_what_it_signed_before_stays(
    backed_up: Protected, repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stolen, head = repository.write_key, head_of(repository)
    put_roster(repository, (Head(VOLUME, head.hash),))
    backed_up.restore(tmp_path / "before")
    assert (tmp_path / "before/large").read_bytes() == LARGE
    assert backed_up.check().findings == ()
    forged = commit_full(repository, stolen)
    with caplog.at_level(logging.WARNING):
        backed_up.restore(tmp_path / "target")
    assert "1 manifests of a revoked writer do not count" in caplog.text
    assert (tmp_path / "target/d/later").exists()
    assert [item.sequence for item in backed_up.snapshots()] == [1, 2]
    findings = backed_up.check(read_data=None).findings
    assert [finding.object for finding in findings] == [forged.object_name()]
    assert "was revoked" in findings[0].problem
    (backed_up.root / "new").write_bytes(b"new")
    outcome = backed_up.backup(workers=0, write_key=False)
    assert outcome.snapshot is not None and outcome.snapshot.sequence == 3
    assert backed_up.snapshots()[-1].id == outcome.snapshot.id
    backed_up.restore(tmp_path / "first", head.name.snapshot)
    assert (tmp_path / "first/d/later").exists()


def test_a_revoked_writer_can_write_no_more_and_the_next_one_goes_on(
    backed_up: Protected, repository: Repository, tmp_path: Path
) -> None:
    put_roster(repository, (Head(VOLUME, head_of(repository).hash),))
    (backed_up.root / "new").write_bytes(b"new\n")
    before = [info.name for info in repository.store.list("volumes/") if "/manifests/" in info.name]
    with pytest.raises(WrongKeyError, match="was revoked"):
        backed_up.backup(workers=0)
    assert before == [info.name for info in repository.store.list("volumes/") if "/manifests/" in info.name]
    outcome = backed_up.backup(workers=0, write_key=False)
    assert outcome.snapshot is not None and outcome.snapshot.sequence == 3
    backed_up.restore(tmp_path / "target")
    assert (tmp_path / "target/new").read_bytes() == b"new\n"
    assert backed_up.check().findings == ()


def test_a_stolen_key_takes_no_place_in_the_middle_whatever_generation_it_makes_up(
    backed_up: Protected, repository: Repository, tmp_path: Path
) -> None:
    """The same generation as the right one has, the highest there is; at the end, and before it."""
    stolen, head = repository.write_key, head_of(repository)
    put_roster(repository, (Head(VOLUME, head.hash),))
    right = []
    for number in range(3):
        (backed_up.root / "new").write_bytes(b"%d" % number)
        outcome = backed_up.backup(workers=0, write_key=False)
        assert outcome.snapshot is not None
        right.append(outcome.snapshot.id)
    with backed_up.repository() as opened:
        honest = History.load(opened, VOLUME).names[2:]
    for name in honest:
        for generation in (name.generation, names.NUMBER_MAX):
            forged = name._replace(generation=generation, snapshot=f"f{secrets.token_hex(8)[1:]}")
            made = replace(head.manifest, name=forged, parent=ParentRef(head.name.snapshot, head.hash))
            object_name = forged.object_name()
            repository.store.put(object_name, encode_manifest(replace(made, catalog=(), chunks=()), stolen))
    assert [item.id for item in backed_up.snapshots()][2:] == right
    backed_up.restore(tmp_path / "target")
    assert (tmp_path / "target/new").read_bytes() == b"2"
    (backed_up.root / "new").write_bytes(b"later")
    outcome = backed_up.backup(workers=0, write_key=False)
    assert outcome.snapshot is not None and outcome.snapshot.sequence == 6
    assert [item.id for item in backed_up.snapshots()][2:] == [*right, outcome.snapshot.id]


def test_where_no_head_was_fixed_nothing_of_a_revoked_writer_counts(
    backed_up: Protected, repository: Repository, tmp_path: Path
) -> None:
    put_roster(repository, (Head("another", head_of(repository).hash),))
    assert backed_up.snapshots() == ()
    with pytest.raises(DamageError, match="was revoked"):
        backed_up.restore(tmp_path / "target")


# --- with no key


def test_another_root_is_not_obeyed_whatever_opens_the_repository(
    backed_up: Protected, repository: Repository
) -> None:
    """The `repository` record and the roster of somebody who would like to be a recipient."""
    forger = Identity.generate()
    key = RosterKey(forger.recipient.id, forger.recipient.public, "forger")
    roster = replace(repository.roster, recipients=(key, *repository.roster.recipients))
    record = RepositoryRecord(repository.id, forger.root_public, 0)
    forged = {
        names.roster_name(1): roster.encode(forger.root_private),
        names.REPOSITORY: record.encode(forger.root_private),
    }
    for name, data in forged.items():
        repository.store.delete(name)
        repository.store.put(name, data)
        for credentials in (
            Credentials(passphrase=PASSPHRASE),
            Credentials(recovery_key=backed_up.recovery_key),
            Credentials(write_key_text=backed_up.write_key_text),
        ):
            with pytest.raises(SmsnapError, match=r"signature is wrong|belongs to another repository"):
                Repository.open(open_store(backed_up.settings), credentials)


def test_a_manifest_of_a_writer_that_nobody_granted_is_damage_for_a_daemon_too(
    backed_up: Protected, repository: Repository
) -> None:
    head = head_of(repository)
    forger = WriteKey.generate(repository.id)
    forged = replace(
        head.manifest,
        name=head.name._replace(sequence=head.name.sequence + 1, snapshot=secrets.token_hex(8)),
        parent=ParentRef(head.name.snapshot, head.hash),
        catalog=(),
        chunks=(),
    )
    name = forged.name.object_name()
    repository.store.put(name, encode_manifest(forged, forger))
    for write_key in (False, True):
        found = backed_up.check(write_key=write_key, read_data=None).findings
        assert [finding.object for finding in found] == [name]
        assert "has not granted it" in found[0].problem
        with pytest.raises(DamageError, match="has not granted it"):
            backed_up.backup(workers=0, write_key=write_key)


def test_a_known_id_under_another_sequence_is_no_recovery_point(
    backed_up: Protected, repository: Repository
) -> None:
    head = head_of(repository)
    data = repository.store.get(head.name.object_name())
    replayed = head.name._replace(sequence=head.name.sequence + 1)
    repository.store.put(replayed.object_name(), data)
    assert [item.sequence for item in backed_up.snapshots()] == [1, 2]
    with backed_up.repository() as opened:
        history = History.load(opened, VOLUME)
        assert [item.sequence for item in history.snapshots] == [1, 2]
        assert [item.name for item in history.damaged] == [replayed]
    assert [item.object for item in backed_up.check(read_data=None).findings] == [replayed.object_name()]


def test_keyslots_of_others_are_in_nobodys_way(
    backed_up: Protected, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_keyslot(Identity.generate(), "another", repository.id, "bomb")
    bomb = replace(slot, slot="0" * 16, memory_kib=2_097_152, iterations=64)
    repository.store.put(names.keyslot_name(bomb.slot), bomb.encode())
    repository.store.put(names.keyslot_name("1" * 16), b"garbage")
    tried: list[str] = []
    opened = access_module.open_keyslot
    monkeypatch.setattr(
        access_module, "open_keyslot", lambda slot, text: tried.append(slot.slot) or opened(slot, text)
    )
    Repository.open(open_store(backed_up.settings), Credentials(passphrase=PASSPHRASE)).close()
    assert len(tried) == 1 and bomb.slot not in tried
    repository.store.delete(names.keyslot_name(bomb.slot))
    with pytest.raises(WrongKeyError, match="the passphrase is wrong, or its keyslot damaged"):
        Repository.open(open_store(backed_up.settings), Credentials(passphrase="wrong"))
    repository.store.delete(names.keyslot_name(tried[0]))
    with pytest.raises(DamageError, match="keys/slots/1111"):
        Repository.open(open_store(backed_up.settings), Credentials(passphrase=PASSPHRASE))


def test_objects_of_other_names_among_the_rosters_are_ignored(
    backed_up: Protected, repository: Repository
) -> None:
    for name in ("0000000000", "0000000001.old", "zzz"):
        repository.store.put(f"{names.ROSTERS_PREFIX}{name}", b"garbage")
    assert backed_up.check(read_data=None).findings == ()
    repository.store.put(names.roster_name(3), b"garbage")
    with pytest.raises(DamageError, match="0000000002 is missing"):
        backed_up.snapshots()


def put_lease(repository: Repository, generation: int, holder: str) -> None:
    _, version = repository.store.get_versioned(names.lease_name(VOLUME))
    record = LeaseRecord(repository.id, VOLUME, generation, holder, names.TIME_MAX_US)
    repository.store.replace(names.lease_name(VOLUME), record.encode(), version)


def test_a_lease_of_the_highest_generation_stops_nobody(backed_up: Protected, repository: Repository) -> None:
    put_lease(repository, names.NUMBER_MAX, "")
    (backed_up.root / "new").write_bytes(b"new\n")
    outcome = backed_up.backup(workers=0)
    assert outcome.snapshot is not None
    assert head_of(repository).name.generation < names.NUMBER_MAX
    assert backed_up.check(read_data=None).findings == ()


def test_a_lease_that_is_held_for_ever_is_told_and_not_waited_for(
    backed_up: Protected, repository: Repository
) -> None:
    put_lease(repository, 7, "somewhere x y 1 2 3")
    with pytest.raises(LockedError, match="somewhere"):
        backed_up.backup(workers=0)


def test_an_object_too_large_to_be_one_is_damage(backed_up: Protected, repository: Repository) -> None:
    name = head_of(repository).name.object_name()
    path = backed_up.root.parent / "repo" / name
    with path.open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(SmsnapError, match="more than any object of a repository") as caught:
        backed_up.restore(backed_up.root.parent / "target")
    assert caught.value.exit_status == 13
    assert name in [finding.object for finding in backed_up.check(read_data=None).findings]
