"""Opening a repository: which keys there are, who may write, what this process holds."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from smsnapd.errors import DamageError, NoRepositoryError, ObjectMissingError, SmsnapError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.keys import (
    DataKey,
    Identity,
    Recipient,
    VolumeKeys,
    WriteKey,
    open_data_key,
    open_earlier_keys,
    open_write_key,
    seal_data_key,
    seal_write_key,
)
from smsnapd.format.keyslot import make_keyslot
from smsnapd.format.manifest import RosterRef
from smsnapd.format.record import RepositoryRecord, WriterKey, record_hash
from smsnapd.format.roster import Roster, RosterKey
from smsnapd.repository.rosters import RosterMemory, Seen, check_known, load_rosters
from smsnapd.repository.unlocking import Credentials, unlock
from smsnapd.store.base import Store

__all__ = ["Created", "Credentials", "Repository"]

FRESH_S: Final = 60.0
"""So long after the rosters were read a new data key is made for those whom they name."""

K = TypeVar("K")


@dataclass(frozen=True)
class Created:
    """A repository just made, and the secrets to be shown or kept once."""

    repository: Repository
    recovery_key: str = field(repr=False)
    write_key_text: str = field(repr=False)


class Repository:
    """An open repository. Holds the identity, or the write key alone; safe to use from several threads."""

    def __init__(
        self,
        store: Store,
        record: RepositoryRecord,
        rosters: tuple[Seen, ...],
        identity: Identity | None,
        write_key: WriteKey | None,
        *,
        memory: RosterMemory | None = None,
        slot: str = "",
    ) -> None:
        """`slot` is the keyslot that it was opened by, "" if it was none."""
        self.store = store
        self.id = record.repository_id
        self.may_lack_keyslots = record.may_lack_keyslots
        self.root_public = record.root
        self.rosters = rosters
        self.identity = identity
        self.slot = slot
        self._memory = memory
        self._refreshed_s = time.monotonic()
        self._learning = threading.RLock()
        self._write_keys: dict[bytes, WriteKey] = {}
        self._data_keys: dict[tuple[str, bytes], DataKey] = {}
        self._own_writer = b"" if write_key is None else write_key.writer_id
        if write_key is not None:
            self._write_keys[write_key.writer_id] = write_key

    def __repr__(self) -> str:
        return f"<Repository {self.repository_id} at {self.store.url}>"

    @property
    def roster(self) -> Roster:
        """The roster that holds."""
        return self.rosters[-1].roster

    def refresh(self) -> None:
        """Read the rosters anew: who is trusted may have changed. DamageError if what was known is gone."""
        rosters = load_rosters(self.store, self.id, self.root_public, self.rosters)
        check_known(rosters, self.rosters[-1].ref, "this process")
        if self._memory is not None:
            self._memory.hold(rosters)
        self.rosters, self._refreshed_s = rosters, time.monotonic()

    def check_seen(self, known: RosterRef | None, who: str) -> None:
        """DamageError unless the roster that `who` knew is here, or has come since this was opened."""
        if known is not None:
            if known.sequence > len(self.rosters):
                self.refresh()
            check_known(self.rosters, known, who)

    @property
    def repository_id(self) -> str:
        """The id in hex."""
        return self.id.hex()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    # --- made and opened

    @classmethod
    def create(
        cls,
        store: Store,
        passphrase: str | None,
        *,
        label: str = "",
        keep: Callable[[str], None] | None = None,
    ) -> Created:
        """Make a repository in an empty place: identity, keyslot, roster, one write key.

        Without a passphrase there is no keyslot: the recovery key alone opens it then, which `keep` gets
        before anything is stored.

        The `repository` record goes last: without it there is none, and what an interrupted
        attempt left is removed by the next.
        """
        _clear_unfinished(store)
        identity = Identity.generate()
        repository_id = secrets.token_bytes(16)
        write_key = WriteKey.generate(repository_id)
        if keep is not None:
            keep(identity.recovery_key())
        recipient = RosterKey(identity.recipient.id, identity.recipient.public, label or "owner")
        writer = RosterKey(write_key.writer_id, write_key.verify_key, label or "first writer")
        roster = Roster(repository_id, 1, None, (recipient,), (writer,))
        record = RepositoryRecord(
            repository_id, identity.root_public, time.time_ns() // 1000, passphrase is None
        )
        if passphrase is not None:
            slot = make_keyslot(identity, passphrase, repository_id, label or "passphrase")
            store.put(names.keyslot_name(slot.slot), slot.encode())
        signed = roster.encode(identity.root_private)
        store.put(names.roster_name(1), signed)
        sealed = seal_write_key(write_key, (identity.recipient,), identity.root_private)
        store.put(names.writer_name(write_key.writer_id), sealed)
        store.barrier()
        store.put(names.REPOSITORY, record.encode(identity.root_private))
        store.barrier()
        repository = cls(store, record, (Seen(roster, record_hash(signed)),), identity, write_key)
        return Created(repository, identity.recovery_key(), write_key.to_text(identity.root_public))

    @classmethod
    def open(cls, store: Store, credentials: Credentials) -> Repository:
        """Open with what `credentials` hold.

        NoRepositoryError, WrongKeyError, or DamageError if records are missing or not as written.
        """
        data = load_repository_record(store)
        repository_id = RepositoryRecord.decode(data, None).repository_id
        identity, write_key, root_public, slot = unlock(store, repository_id, credentials)
        record = RepositoryRecord.decode(data, root_public)
        rosters = load_rosters(store, repository_id, root_public)
        memory = None
        if credentials.remembered is not None:
            memory = RosterMemory(credentials.remembered, repository_id)
            memory.hold(rosters)
        _check_recipients(store, rosters[-1].roster, credentials.recipients, identity)
        return cls(store, record, rosters, identity, write_key, memory=memory, slot=slot)

    # --- keys

    @property
    def writer_id(self) -> bytes:
        """The id of the writer that this process is: of its write key, else the first one in force."""
        if self._own_writer:
            return self._own_writer
        revoked = {item.id for item in self.roster.revoked}
        return next((item.id for item in self.roster.writers if item.id not in revoked), b"")

    @property
    def write_key(self) -> WriteKey:
        """The write key that this process seals with; WrongKeyError if nobody would believe what it signs."""
        granted = any(item.id == self.writer_id for item in self.roster.writers)
        if not granted or any(item.id == self.writer_id for item in self.roster.revoked):
            raise WrongKeyError(
                f"write to the repository {self.store.url}",
                f"the write key at hand {'was revoked' if granted else 'was never granted'}",
                "export one that is in force: smsnap key export-write-key FILE",
            )
        return self.write_key_of(self.writer_id)

    def write_key_of(self, writer_id: bytes) -> WriteKey:
        """A writer's key; DamageError if there is no such writer.

        One's own, or one that it followed; with the identity any writer's.
        """
        key = self._write_keys.get(writer_id) or self._learned_write_key(writer_id)
        if key is None:
            raise WrongKeyError(
                f"read what writer {writer_id.hex()} wrote",
                "the write key at hand is another one",
                "use the passphrase or the recovery key",
            )
        return key

    def _learned_write_key(self, writer_id: bytes) -> WriteKey | None:
        """A key that is not at hand yet; of several threads that want it one fetches it."""
        with self._learning:
            if writer_id in self._write_keys:
                return self._write_keys[writer_id]
            self.verify_key_of(writer_id)
            if self.identity is None:
                self._learn_earlier_keys()
            else:
                self._write_keys[writer_id] = self._unseal_write_key(writer_id, self.identity)
            return self._write_keys.get(writer_id)

    def _learn_earlier_keys(self) -> None:
        """Open the keys that one's own followed."""
        for key in self.earlier_keys(self._write_keys[self.writer_id]):
            self._write_keys[key.writer_id] = key

    def earlier_keys(self, write_key: WriteKey) -> tuple[WriteKey, ...]:
        """The write keys that this one followed, as its record has them."""
        for object_name in self._forms(names.writer_name(write_key.writer_id)):
            name = names.parse_writer_name(object_name)
            if name is not None:
                data = get_required(self.store, object_name)
                return open_earlier_keys(data, name, write_key, self.root_public)
        return ()

    def check_writer_record(self, writer_id: bytes) -> None:
        """Read a writer's record anew, and with the identity open it; DamageError if it is not whole."""
        if self.identity is not None:
            self._unseal_write_key(writer_id, self.identity)
            return
        for object_name in self._forms(names.writer_name(writer_id)):
            name = names.parse_writer_name(object_name)
            if name is not None:
                WriterKey.decode(get_required(self.store, object_name), name, self.id, self.root_public)

    def _unseal_write_key(self, writer_id: bytes, identity: Identity) -> WriteKey:
        def opened(object_name: str) -> WriteKey:
            name = names.parse_writer_name(object_name)
            assert name is not None
            data = get_required(self.store, object_name)
            return open_write_key(data, name, self.id, identity, self.root_public)

        return self._first_open(names.writer_name(writer_id), opened)

    def _forms(self, name: str) -> list[str]:
        """The names of a key's records: the first one's, if it is there, and of those sealed again."""
        found = [info.name for info in self.store.list(name)]
        return [item for item in found if item == name or item.startswith(f"{name}-")] or [name]

    def _first_open(self, name: str, opened: Callable[[str], K]) -> K:
        """What `opened` makes of the first of a key's records that is sealed to the identity."""
        try:
            return opened(name)
        except (WrongKeyError, DamageError) as error:
            if isinstance(error, DamageError) and not isinstance(error.__cause__, ObjectMissingError):
                raise
            for form in reversed(self._forms(name)):
                if form != name:
                    with suppress(WrongKeyError):
                        return opened(form)
            raise

    def catalog_key_of(self, writer_id: bytes) -> bytes:
        """The key of a writer's manifests and catalogs."""
        return self.write_key_of(writer_id).catalog_key

    def verify_key_of(self, writer_id: bytes) -> bytes:
        """The public key of a writer that the root has granted; DamageError if there is no grant."""
        for writer in self.roster.writers:
            if writer.id == writer_id:
                return writer.public
        raise DamageError(
            f"trust writer {writer_id.hex()}", "the root has not granted it", "an object may be forged"
        )

    def volume_keys(self, volume: str, writer_id: bytes | None = None) -> VolumeKeys:
        """A writer's keys for one volume; by default this process's own."""
        return self.write_key_of(writer_id or self.writer_id).volume(volume)

    def new_data_key(self, volume: str) -> DataKey:
        """A data key, its object stored before anything is sealed with it.

        It is sealed to whoever is a recipient now. WrongKeyError if one's own key was revoked meanwhile.
        """
        if time.monotonic() - self._refreshed_s > FRESH_S:
            self.refresh()
        key = DataKey.generate(_random_into)
        recipients = [Recipient(item.public) for item in self.roster.recipients]
        self.store.put(
            names.data_key_name(volume, key.id), seal_data_key(key, volume, recipients, self.write_key)
        )
        return key

    def data_key(self, volume: str, key_id: bytes) -> DataKey:
        """The data key with this id, opened with the identity."""
        identity = self.identity
        if identity is None:
            raise WrongKeyError(
                "read file contents",
                "the write key alone does not open them",
                "use the passphrase or the recovery key",
            )

        def opened(object_name: str) -> DataKey:
            name = names.parse_data_key_name(object_name)
            assert name is not None
            data = get_required(self.store, object_name)
            return open_data_key(data, name, self.id, identity, self.verify_key_of)

        known = self._data_keys.get((volume, key_id))
        if known is None:
            known = self._first_open(names.data_key_name(volume, key_id), opened)
            self._data_keys[volume, key_id] = known
        return known

    # --- what there is

    def volumes(self) -> list[str]:
        """The names of the volumes that have anything stored."""
        below = (name for name in self.store.children("volumes/") if name.endswith("/"))
        found = (names.volume_of(f"{name}lease") for name in below)
        return sorted(volume for volume in found if volume is not None)

    def holds(self, volume: str) -> bool:
        """Whether the volume has anything stored; nothing is asked about others. False for no name."""
        prefix = names.volume_prefix(volume)
        return names.volume_of(f"{prefix}lease") == volume and bool(self.store.children(prefix))


def _random_into(buffer: bytearray) -> None:
    """Fill a buffer from the kernel, without a copy anywhere else (random(4))."""
    descriptor = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.readv(descriptor, [buffer]) != len(buffer):
            raise SmsnapError("make a data key", "the kernel gave too few random bytes")
    finally:
        os.close(descriptor)


def load_repository_record(store: Store) -> bytes:
    """The bytes of the `repository` record; NoRepositoryError if there is no repository."""
    try:
        return store.get(names.REPOSITORY)
    except ObjectMissingError:
        pass
    if any(True for _ in store.list("volumes/")):
        raise DamageError(
            f"open the repository {store.url}",
            "its `repository` record is missing, though there are backups in it",
        )
    raise NoRepositoryError(
        f"open the repository {store.url}",
        "there is none",
        "check the URL, or make one with `smsnap init`",
    )


def _check_recipients(
    store: Store, roster: Roster, pinned: tuple[str, ...], identity: Identity | None
) -> None:
    found = sorted(item.id.hex() for item in roster.recipients)
    if pinned and sorted(pinned) != found:
        raise WrongKeyError(
            f"trust the recipients of {store.url}",
            f"they are {', '.join(found)} and not the configured ones",
            "if you changed them, change [encryption] recipients too",
        )
    if identity is not None and identity.recipient.id.hex() not in found:
        raise WrongKeyError(
            f"open the repository {store.url}", "this identity is no recipient of it, or none any more"
        )


def _clear_unfinished(store: Store) -> None:
    """Make sure that there is no repository; remove the keys of an `init` that never came to its end."""
    if any(info.name == names.REPOSITORY for info in store.list(names.REPOSITORY)):
        raise SmsnapError(
            f"make a repository at {store.url}", "there is one already", "use it, or choose another URL"
        )
    if any(True for _ in store.list("volumes/")):
        raise DamageError(
            f"make a repository at {store.url}",
            "there are backups here whose `repository` record is missing",
            "choose another URL",
        )
    for info in list(store.list("keys/")):
        store.delete(info.name)


def get_required(store: Store, name: str) -> bytes:
    """An object that must exist."""
    try:
        return store.get(name)
    except ObjectMissingError as error:
        raise DamageError(f"read {name}", "the object is missing") from error
