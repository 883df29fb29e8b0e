"""Who may write to the bucket and holds no key: whatever is put there is not believed, and is told.

Each attack works on a reader that leaves out one check, which is beside it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from smsnapd.engine.history import History
from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.keys import (
    DataKey,
    Identity,
    Recipient,
    WriteKey,
    open_write_key,
    seal_data_key,
    seal_write_key,
)
from smsnapd.format.manifest import ParentRef
from smsnapd.format.manifest_object import decode_manifest, encode_manifest
from smsnapd.format.names import DataKeyName, WriterName
from smsnapd.format.record import DataKeyRecord, RepositoryRecord, record_hash
from smsnapd.format.roster import Roster, RosterKey
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.keyring import Keyring
from smsnapd.store import StoreSettings, open_store
from tests.e2e.transcript import Notebook
from tests.fault.small import Objects, objects_of, store_of
from tests.property.protected import PASSPHRASE, VOLUME, Protected

THIEF = Identity.generate()


class Put(NamedTuple):
    """What was put, and whether a reader would take it who leaves a check out."""

    name: str
    data: bytes
    naive: Callable[[], bool]
    why: str


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Protected:
    place = tmp_path_factory.mktemp("no-keys")
    (place / "volume").mkdir()
    (place / "volume/file").write_bytes(b"content\n")
    made = Protected.create(place / "volume", place / "state", StoreSettings((place / "repo").as_uri()))
    made.backup(workers=0)
    return made


@pytest.fixture(scope="module")
def objects(protected: Protected) -> Objects:
    return objects_of(protected.settings)


def public(protected: Protected) -> tuple[Repository, WriteKey]:
    """What anybody can read of the repository is read here by the owner; and a write key of the thief's."""
    repository = Repository.open(open_store(protected.settings), Credentials(passphrase=PASSPHRASE))
    return repository, WriteKey.generate(repository.id)


def roster(repository: Repository, **more: tuple[RosterKey, ...]) -> Put:
    """The next one, signed by a root of the thief's own."""
    before = repository.rosters[-1]
    changed = {name: (*getattr(before.roster, name), *keys) for name, keys in more.items()}
    forged = replace(before.roster, sequence=2, previous=before.hash, **changed)
    data = forged.encode(THIEF.root_private)

    def believed() -> bool:  # whoever signed it
        return Roster.decode(data, 2, repository.id, THIEF.root_public) == forged

    return Put(names.roster_name(2), data, believed, "signature is wrong")


def a_recipient(protected: Protected) -> Put:
    repository, _ = public(protected)
    return roster(repository, recipients=(RosterKey(THIEF.recipient.id, THIEF.recipient.public, "x"),))


def a_grant(protected: Protected) -> Put:
    repository, key = public(protected)
    return roster(repository, writers=(RosterKey(key.writer_id, key.verify_key, "x"),))


def a_manifest(protected: Protected) -> Put:
    repository, key = public(protected)
    history = History.load(repository, VOLUME)
    head = history.record(history.names[-1])
    name = head.name._replace(sequence=2, kind="incremental", snapshot=secrets.token_hex(8))
    parent = ParentRef(head.name.snapshot, head.hash)
    data = encode_manifest(replace(head.manifest, name=name, parent=parent, catalog=(), chunks=()), key)

    def believed() -> bool:  # by the key of whoever is named in it
        found = decode_manifest(
            data, name, repository.id, lambda _: key.catalog_key, lambda _: key.verify_key
        )
        return found.parent == parent

    return Put(name.object_name(), data, believed, "has not granted it")


def a_write_key(protected: Protected) -> Put:
    repository, key = public(protected)
    name = WriterName(key.writer_id, None)
    data = seal_write_key(key, (THIEF.recipient, repository.identity.recipient), THIEF.root_private)  # type: ignore[union-attr]

    def believed() -> bool:  # because it opens
        return open_write_key(data, name, repository.id, repository.identity, THIEF.root_public) == key  # type: ignore[arg-type]

    return Put(names.writer_name(*name), data, believed, "signature is wrong")


def a_seal_of_the_write_key(protected: Protected) -> Put:
    """Of the writer that there is, as if it had been sealed again for the owner."""
    repository, _ = public(protected)
    name = WriterName(repository.writer_id, 1)
    key = WriteKey(repository.id, secrets.token_bytes(32))
    put = seal_write_key(key, (repository.identity.recipient,), THIEF.root_private, 1)  # type: ignore[union-attr]
    data = put.replace(key.writer_id.hex().encode(), name.writer_id.hex().encode())
    return Put(names.writer_name(*name), data, lambda: b'"sealed"' in data, "checksum is wrong")


def a_data_key(protected: Protected) -> Put:
    """In which everything from now on is to be sealed."""
    repository, key = public(protected)
    made = DataKey(secrets.token_bytes(16), secrets.token_bytes(32))
    name = DataKeyName(VOLUME, made.id, None)
    data = seal_data_key(made, VOLUME, (THIEF.recipient,), key)

    def believed() -> bool:
        return bool(DataKeyRecord.decode(data, name, repository.id, lambda _: key.verify_key).sealed)

    return Put(names.data_key_name(*name), data, believed, "has not granted it")


ATTACKS = [a_recipient, a_grant, a_manifest, a_write_key, a_seal_of_the_write_key, a_data_key]


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_not_believed_and_it_is_told(
    protected: Protected, objects: Objects, tmp_path: Path, attack: Callable[[Protected], Put]
) -> None:
    put = attack(protected)
    assert put.naive()
    notebook = Notebook(tmp_path)
    for name, data in {**objects, put.name: put.data}.items():
        (notebook.repo / name).parent.mkdir(parents=True, exist_ok=True)
        (notebook.repo / name).write_bytes(data)
    notebook.configure(more="")
    (notebook.place / "passphrase").write_text(PASSPHRASE)
    said = notebook.say("check", "--volume", VOLUME, "--json")
    assert said.status == 13
    told = said.text + said.err
    assert put.name in told and put.why in told
    moved = replace(protected, settings=StoreSettings(notebook.url), state_dir=tmp_path / "none")
    # With it or in spite of it: nobody but the owner opens, and what comes back is what was there.
    with pytest.raises(WrongKeyError):
        root = Identity.from_recovery_key(protected.recovery_key).root_public.hex()
        try:
            Repository.open(
                open_store(moved.settings), Credentials(recovery_key=THIEF.recovery_key(), root=root)
            )
        except DamageError as error:
            raise WrongKeyError(error.what, error.why) from error
    try:
        moved.restore(tmp_path / "back")
        assert (tmp_path / "back/file").read_bytes() == b"content\n"
    except DamageError as error:
        assert put.name in str(error)
    try:
        (protected.root / "file").touch()
        outcome = moved.backup(workers=0)
        assert outcome.snapshot is None or outcome.snapshot.sequence == 2
    except DamageError as error:
        assert put.name in str(error)


def test_another_root_in_the_place_of_the_right_one(protected: Protected, objects: Objects) -> None:
    """A whole repository of the thief's own, with the id of the right one, under its URL."""
    repository, key = public(protected)
    record = RepositoryRecord(repository.id, THIEF.root_public, 0).encode(THIEF.root_private)
    recipient = RosterKey(THIEF.recipient.id, THIEF.recipient.public, "x")
    writer = RosterKey(key.writer_id, key.verify_key, "x")
    first = Roster(repository.id, 1, None, (recipient,), (writer,)).encode(THIEF.root_private)
    theirs = store_of({**objects, names.REPOSITORY: b"", names.roster_name(1): b""})
    for name, data in ((names.REPOSITORY, record), (names.roster_name(1), first)):
        theirs.delete(name)
        theirs.put(name, data)
    assert RepositoryRecord.decode(record, None).root == THIEF.root_public  # a reader without a pin
    for credentials in (
        Credentials(write_key_text=protected.write_key_text),
        Credentials(passphrase=PASSPHRASE),
        Credentials(recovery_key=THIEF.recovery_key(), root=repository.root_public.hex()),
    ):
        with pytest.raises(WrongKeyError, match="belongs to another repository"):
            Repository.open(theirs, credentials)
    Repository.open(theirs, Credentials(recovery_key=THIEF.recovery_key())).close()  # it is theirs, whole


def test_a_writer_that_seals_for_a_stranger_is_told(protected: Protected, tmp_path: Path) -> None:
    """A compromised notebook adds a recipient of its own to the keys of what it stores."""
    moved = replace(protected, settings=StoreSettings((tmp_path / "repo").as_uri()), state_dir=tmp_path / "s")
    with closing(open_store(moved.settings)) as store:
        for name, data in objects_of(protected.settings).items():
            store.put(name, data)
        repository = Repository.open(store, Credentials(write_key_text=protected.write_key_text))
        made = DataKey(secrets.token_bytes(16), secrets.token_bytes(32))
        recipients = [*(Recipient(item.public) for item in repository.roster.recipients), THIEF.recipient]
        sealed = seal_data_key(made, VOLUME, recipients, repository.write_key)
        store.put(names.data_key_name(VOLUME, made.id), sealed)
    for write_key in (False, True):
        (finding,) = moved.check(write_key=write_key, read_data=None).findings
        assert finding.object == names.data_key_name(VOLUME, made.id)
        assert f"sealed for {THIEF.recipient.id.hex()}, whom the root has not named" in finding.problem
    with moved.repository() as repository:
        Keyring(repository).settle()
    assert moved.check(read_data=None).findings == ()  # sealed again for the owner alone


def test_keys_can_still_be_changed_beside_what_was_planted(protected: Protected, objects: Objects) -> None:
    """What nobody believes is left alone, and the owner's changes go on."""
    planted = [attack(protected) for attack in (a_write_key, a_seal_of_the_write_key, a_data_key)]
    store = store_of({**objects, **{put.name: put.data for put in planted}})
    owner = Repository.open(store, Credentials(passphrase=PASSPHRASE))
    escrow = Identity.generate()
    Keyring(owner).add_recipient(escrow.recipient, "escrow")
    Keyring(owner).remove_recipient(escrow.recipient.id)
    for put in planted:
        assert store.get(put.name) == put.data
    assert record_hash(store.get(names.roster_name(3))) == owner.rosters[-1].hash
