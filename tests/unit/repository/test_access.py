"""Making and opening a repository: by what, and what is refused."""

from __future__ import annotations

import pytest

from smsnapd.errors import (
    DamageError,
    NoRepositoryError,
    SmsnapError,
    StoreError,
    UsageError,
    WrongKeyError,
)
from smsnapd.format import names
from smsnapd.repository import Created, Credentials, Repository
from smsnapd.store.base import Buffer
from smsnapd.store.memory import MemoryStore

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("test")


@pytest.fixture
def created(store: MemoryStore) -> Created:
    return Repository.create(store, PASSPHRASE)


def spoil(store: MemoryStore, prefix: str) -> str:
    """Flip a bit of the first object of this prefix."""
    name = next(store.list(prefix)).name
    data = store.get(name)
    store.delete(name)
    store.put(name, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    return name


def test_each_key_opens_it_to_what_it_is_for(store: MemoryStore, created: Created) -> None:
    key = created.repository.new_data_key("nb")
    for credentials in (Credentials(passphrase=PASSPHRASE), Credentials(recovery_key=created.recovery_key)):
        opened = Repository.open(store, credentials)
        assert opened.repository_id == created.repository.repository_id
        assert opened.data_key("nb", key.id).secret == key.secret
        assert opened.write_key.catalog_key == created.repository.write_key.catalog_key
        assert opened.volume_keys("nb") == created.repository.volume_keys("nb")
    daemon = Repository.open(store, Credentials(write_key_text=created.write_key_text))
    assert daemon.volume_keys("nb") == created.repository.volume_keys("nb")
    assert daemon.new_data_key("nb").id != key.id
    with pytest.raises(WrongKeyError, match="the write key alone does not open them"):
        daemon.data_key("nb", key.id)
    assert daemon.volumes() == ["nb"]


def test_no_secret_shows_in_what_is_printed(created: Created) -> None:
    credentials = Credentials(PASSPHRASE, created.recovery_key, created.write_key_text)
    shown = repr(created) + repr(credentials) + repr(created.repository)
    secrets = (PASSPHRASE, created.recovery_key, created.write_key_text)
    assert not any(secret in shown for secret in secrets)


def test_what_does_not_open_it(store: MemoryStore, created: Created) -> None:
    other = Repository.create(MemoryStore("other"), PASSPHRASE)
    wrong = (
        Credentials(passphrase=PASSPHRASE + "!"),
        Credentials(recovery_key=other.recovery_key),
        Credentials(write_key_text=other.write_key_text),
        Credentials(passphrase=PASSPHRASE, recipients=("00" * 16,)),
    )
    for credentials in wrong:
        with pytest.raises(WrongKeyError):
            Repository.open(store, credentials)
    with pytest.raises(UsageError):
        Repository.open(store, Credentials())
    recipients = tuple(item.id.hex() for item in created.repository.roster.recipients)
    Repository.open(store, Credentials(passphrase=PASSPHRASE, recipients=recipients))


def test_where_there_is_none(store: MemoryStore) -> None:
    with pytest.raises(NoRepositoryError, match="smsnap init"):
        Repository.open(store, Credentials(passphrase=PASSPHRASE))


def test_a_second_one_is_not_made(store: MemoryStore, created: Created) -> None:
    before = list(store.list(""))
    with pytest.raises(SmsnapError, match="there is one already"):
        Repository.create(store, "other")
    assert list(store.list("")) == before


@pytest.mark.parametrize("puts", range(4))
def test_one_that_was_not_made_to_the_end_is_made_anew(store: MemoryStore, puts: int) -> None:
    """The `repository` record comes last: until then there is none."""

    class Stopping(MemoryStore):
        left = puts

        def put(self, name: str, data: Buffer) -> None:
            if self.left == 0:
                raise StoreError(f"store {name}", "stopped")
            self.left -= 1
            store.put(name, data)

    with pytest.raises(StoreError, match="stopped"):
        Repository.create(Stopping("stopping"), "first")
    with pytest.raises(NoRepositoryError):
        Repository.open(store, Credentials(passphrase="first"))
    Repository.create(store, "second")
    assert len(list(store.list("keys/"))) == 3
    Repository.open(store, Credentials(passphrase="second"))


def test_backups_without_a_repository_record_are_damage(store: MemoryStore, created: Created) -> None:
    created.repository.new_data_key("nb")
    store.delete(names.REPOSITORY)
    with pytest.raises(DamageError, match="record is missing"):
        Repository.open(store, Credentials(passphrase=PASSPHRASE))
    with pytest.raises(DamageError, match="record is missing"):
        Repository.create(store, "other")
    assert len(list(store.list("keys/"))) == 3


@pytest.mark.parametrize("prefix", [names.REPOSITORY, "keys/roster/", "keys/slots/", "keys/writers/"])
@pytest.mark.parametrize("gone", [False, True])
def test_damage_of_the_keys_is_damage(store: MemoryStore, created: Created, prefix: str, gone: bool) -> None:
    key = created.repository.new_data_key("nb")
    name = spoil(store, prefix)
    if gone:
        store.delete(name)
    with pytest.raises(DamageError):
        Repository.open(store, Credentials(passphrase=PASSPHRASE)).write_key_of(created.repository.writer_id)
    if prefix != names.REPOSITORY and prefix != "keys/roster/":
        # Without keyslot or writer record the recovery key still gives the contents back.
        opened = Repository.open(store, Credentials(recovery_key=created.recovery_key))
        assert opened.data_key("nb", key.id).secret == key.secret


def test_a_data_key_that_is_missing_or_damaged(store: MemoryStore, created: Created) -> None:
    key = created.repository.new_data_key("nb")
    opened = Repository.open(store, Credentials(passphrase=PASSPHRASE))
    spoil(store, names.data_keys_prefix("nb"))
    with pytest.raises(DamageError):
        opened.data_key("nb", key.id)
    store.delete(names.data_key_name("nb", key.id))
    with pytest.raises(DamageError, match="missing"):
        opened.data_key("nb", key.id)
    with pytest.raises(DamageError, match="missing"):
        opened.data_key("other", key.id)
