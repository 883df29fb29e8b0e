"""Opening a repository: which keys there are, who may write, what this process holds."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from smsnapd.errors import (
    DamageError,
    NoRepositoryError,
    ObjectMissingError,
    SmsnapError,
    UsageError,
    WrongKeyError,
)
from smsnapd.format import names
from smsnapd.format.keys import (
    DataKey,
    Identity,
    Recipient,
    VolumeKeys,
    WriteKey,
    open_data_key,
    open_write_key,
    parse_write_key,
    seal_data_key,
    seal_write_key,
)
from smsnapd.format.keyslot import make_keyslot, open_keyslot
from smsnapd.format.names import DataKeyName, WriterName
from smsnapd.format.record import Keyslot, RepositoryRecord, WriterKey, record_hash
from smsnapd.format.roster import Roster, RosterKey
from smsnapd.store.base import Store


@dataclass(frozen=True)
class Credentials:
    """What opens a repository: one of a passphrase, a recovery key or a write key file's text.

    `recipients` are ids that the roster's must equal, if given: a pin for the careful.
    """

    passphrase: str | None = field(default=None, repr=False)
    recovery_key: str | None = field(default=None, repr=False)
    write_key_text: str | None = field(default=None, repr=False)
    recipients: tuple[str, ...] = ()


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
        roster: Roster,
        identity: Identity | None,
        write_key: WriteKey | None,
    ) -> None:
        self.store = store
        self.id = record.repository_id
        self.root_public = record.root
        self.roster = roster
        self.identity = identity
        self._write_keys: dict[bytes, WriteKey] = {}
        self._data_keys: dict[tuple[str, bytes], DataKey] = {}
        if write_key is not None:
            self._write_keys[write_key.writer_id] = write_key
        self.writer_id = write_key.writer_id if write_key else self._first_writer()

    def __repr__(self) -> str:
        return f"<Repository {self.repository_id} at {self.store.url}>"

    @property
    def repository_id(self) -> str:
        """The id in hex."""
        return self.id.hex()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    # --- made and opened

    @classmethod
    def create(cls, store: Store, passphrase: str, *, label: str = "") -> Created:
        """Make a repository in an empty place: identity, keyslot, roster, one write key.

        The `repository` record goes last: without it there is none, and what an interrupted
        attempt left is removed by the next.
        """
        _clear_unfinished(store)
        identity = Identity.generate()
        repository_id = secrets.token_bytes(16)
        write_key = WriteKey.generate(repository_id)
        recipient = RosterKey(identity.recipient.id, identity.recipient.public, label or "owner")
        writer = RosterKey(write_key.writer_id, write_key.verify_key, label or "first writer")
        roster = Roster(repository_id, 1, None, (recipient,), (writer,))
        record = RepositoryRecord(repository_id, identity.root_public, time.time_ns() // 1000)
        slot = make_keyslot(identity, passphrase, repository_id, label or "passphrase")
        store.put(names.keyslot_name(slot.slot), slot.encode())
        store.put(names.roster_name(1), roster.encode(identity.root_private))
        sealed = seal_write_key(write_key, (identity.recipient,), identity.root_private)
        store.put(names.writer_name(write_key.writer_id), sealed)
        store.barrier()
        store.put(names.REPOSITORY, record.encode(identity.root_private))
        store.barrier()
        repository = cls(store, record, roster, identity, write_key)
        return Created(repository, identity.recovery_key(), write_key.to_text(identity.root_public))

    @classmethod
    def open(cls, store: Store, credentials: Credentials) -> Repository:
        """Open with what `credentials` hold.

        NoRepositoryError, WrongKeyError, or DamageError if records are missing or not as written.
        """
        data = load_repository_record(store)
        repository_id = RepositoryRecord.decode(data, None).repository_id
        identity, write_key = None, None
        if credentials.write_key_text is not None:
            write_key, root_public = parse_write_key(credentials.write_key_text)
            if write_key.repository_id != repository_id:
                raise WrongKeyError(
                    f"open the repository {store.url}",
                    "the write key belongs to another repository",
                    "check the URL and [encryption] write_key_file",
                )
        else:
            identity = _open_identity(store, repository_id, credentials)
            root_public = identity.root_public
        record = RepositoryRecord.decode(data, root_public)
        roster = load_roster(store, repository_id, root_public)
        _check_recipients(store, roster, credentials.recipients)
        return cls(store, record, roster, identity, write_key)

    # --- keys

    def _first_writer(self) -> bytes:
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
        """A writer's key: one's own, or with the identity any writer's; DamageError if there is none such."""
        key = self._write_keys.get(writer_id)
        if key is None:
            self.verify_key_of(writer_id)
            if self.identity is None:
                raise WrongKeyError(
                    f"read what writer {writer_id.hex()} wrote",
                    "the write key at hand is another one",
                    "use the passphrase or the recovery key",
                )
            key = self._write_keys[writer_id] = self._unseal_write_key(writer_id, self.identity)
        return key

    def check_writer_record(self, writer_id: bytes) -> None:
        """Read a writer's record anew, and with the identity open it; DamageError if it is not whole."""
        if self.identity is not None:
            self._unseal_write_key(writer_id, self.identity)
            return
        name = WriterName(writer_id, None)
        WriterKey.decode(get_required(self.store, names.writer_name(*name)), name, self.id, self.root_public)

    def _unseal_write_key(self, writer_id: bytes, identity: Identity) -> WriteKey:
        name = WriterName(writer_id, None)
        return open_write_key(get_required(self.store, names.writer_name(*name)), name, self.id, identity)

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
        """A data key, its object stored before anything is sealed with it."""
        key = DataKey.generate()
        recipients = [Recipient(item.public) for item in self.roster.recipients]
        self.store.put(
            names.data_key_name(volume, key.id), seal_data_key(key, volume, recipients, self.write_key)
        )
        return key

    def data_key(self, volume: str, key_id: bytes) -> DataKey:
        """The data key with this id, opened with the identity."""
        if self.identity is None:
            raise WrongKeyError(
                "read file contents",
                "the write key alone does not open them",
                "use the passphrase or the recovery key",
            )
        known = self._data_keys.get((volume, key_id))
        if known is None:
            name = DataKeyName(volume, key_id, None)
            data = get_required(self.store, names.data_key_name(*name))
            known = open_data_key(data, name, self.id, self.identity, self.verify_key_of)
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


def load_roster(store: Store, repository_id: bytes, root_public: bytes) -> Roster:
    """The roster that holds: the newest of an unbroken row, each signed by the root."""
    rosters = list(rosters_in_order(store, repository_id, root_public))
    if not rosters:
        raise DamageError("open the repository", "its roster of recipients and writers is missing")
    return rosters[-1]


def rosters_in_order(store: Store, repository_id: bytes, root_public: bytes) -> Iterator[Roster]:
    """Every roster, oldest first; DamageError at a gap or a broken link."""
    previous = None
    found = (names.parse_roster_name(info.name) for info in store.list(names.ROSTERS_PREFIX))
    for number, sequence in enumerate(filter(None, found), start=1):
        name = names.roster_name(number)
        if sequence != number:
            raise DamageError("open the repository", f"the object {name} is missing")
        data = store.get(name)
        roster = Roster.decode(data, number, repository_id, root_public)
        if roster.previous != previous:
            raise DamageError(f"read {name}", "it does not follow the roster before it")
        previous = record_hash(data)
        yield roster


def _open_identity(store: Store, repository_id: bytes, credentials: Credentials) -> Identity:
    if credentials.recovery_key is not None:
        return Identity.from_recovery_key(credentials.recovery_key)
    if credentials.passphrase is None:
        raise UsageError("open the repository", "no passphrase and no key was given")
    slots, error = _keyslots(store, repository_id)
    if not slots:
        raise error or DamageError(
            "open the repository", "every keyslot is missing", "open it with the recovery key instead"
        )
    for slot in slots:
        try:
            return open_keyslot(slot, credentials.passphrase)
        except WrongKeyError as wrong:
            error = error or wrong
    raise WrongKeyError(
        f"open the repository {store.url}",
        "the passphrase is wrong" + (", or its keyslot damaged" if isinstance(error, DamageError) else ""),
        "try again, or open it with the recovery key",
    ) from error


def _keyslots(store: Store, repository_id: bytes) -> tuple[list[Keyslot], SmsnapError | None]:
    """The keyslots that are whole, and what is wrong with one that is not.

    Keyslots are unsigned, anybody may have put them there. So those that cost least come first: none that
    is there to waste time and memory is tried before one that opens.
    """
    slots: list[Keyslot] = []
    damage: SmsnapError | None = None
    found = (names.parse_keyslot_name(info.name) for info in store.list(names.KEYSLOTS_PREFIX))
    for name in filter(None, found):
        try:
            slots.append(Keyslot.decode(store.get(names.keyslot_name(name)), name, repository_id))
        except DamageError as error:
            damage = error
    return sorted(slots, key=lambda slot: slot.memory_kib * slot.iterations), damage


def _check_recipients(store: Store, roster: Roster, pinned: tuple[str, ...]) -> None:
    found = sorted(item.id.hex() for item in roster.recipients)
    if pinned and sorted(pinned) != found:
        raise WrongKeyError(
            f"trust the recipients of {store.url}",
            f"they are {', '.join(found)} and not the configured ones",
            "if you changed them, change [encryption] recipients too",
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
