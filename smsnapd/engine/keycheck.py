"""Whether every key of a repository is what the root has named, for those whom it has named, and whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.record import DataKeyRecord, SealedKey, WriterKey, decode_keyslot
from smsnapd.repository import Repository
from smsnapd.repository.rosters import rosters_in_order

_CUT_OFF = "it is left of a change that was cut off; the next `smsnap key` command takes it away"


class KeyFault(NamedTuple):
    """What is wrong with an object that holds a key; `is_note` if nobody need do anything about it now."""

    object: str
    problem: str
    is_note: bool = False


class KeyCheck:
    """Looks at the objects that hold keys, one by one; damage is a fault and never an exception."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._recipients = {item.id for item in repository.roster.recipients}
        self._ever = {item.id for seen in repository.rosters for item in seen.roster.recipients}
        self._granted = {item.id for item in repository.roster.writers}

    def rosters(self) -> Iterable[KeyFault]:
        """The rosters, read anew."""
        repository = self._repository
        try:
            for _ in rosters_in_order(repository.store, repository.id, repository.root_public):
                pass  # reading them is the check
        except DamageError as error:
            yield _fault("keys/roster/", error)

    def writers(self) -> Iterable[KeyFault]:
        """That the key of every writer is there, and opens."""
        for writer_id in sorted(self._granted):
            name = names.writer_name(writer_id)
            try:
                self._repository.check_writer_record(writer_id)
            except (DamageError, WrongKeyError) as error:
                yield _fault(name, error)

    def object(self, object_name: str) -> Iterable[KeyFault]:
        """One object below `keys/`."""
        slot, writer = names.parse_keyslot_name(object_name), names.parse_writer_name(object_name)
        try:
            if slot is not None:
                decode_keyslot(self._repository.store.get(object_name), slot, self._repository.id)
            elif writer is not None:
                yield from self._writer(object_name, writer)
            elif names.parse_roster_name(object_name) is None:
                yield KeyFault(object_name, "it has no name that keys have; it is ignored", is_note=True)
        except DamageError as error:
            yield _fault(object_name, error)

    def _writer(self, object_name: str, name: names.WriterName) -> Iterable[KeyFault]:
        repository = self._repository
        data = repository.store.get(object_name)
        record = WriterKey.decode(data, name, repository.id, repository.root_public)
        if name.writer_id not in self._granted or (name.roster or 0) > len(repository.rosters):
            yield KeyFault(object_name, _CUT_OFF, is_note=True)  # signed by the root
        else:
            yield from self._strangers(object_name, record.sealed)

    def data_key(self, object_name: str, name: names.DataKeyName) -> Iterable[KeyFault]:
        """One data key's record."""
        repository = self._repository
        try:
            if repository.identity is not None and name.roster is None:
                repository.data_key(name.volume, name.key_id)
            data = repository.store.get(object_name)
            record = DataKeyRecord.decode(data, name, repository.id, repository.verify_key_of)
        except (DamageError, WrongKeyError) as error:
            yield _fault(object_name, error)
            return
        if (name.roster or 0) > len(repository.rosters):
            yield KeyFault(object_name, _CUT_OFF, is_note=True)
        yield from self._strangers(object_name, record.sealed)

    def _strangers(self, object_name: str, sealed: Iterable[SealedKey]) -> Iterable[KeyFault]:
        """Whom a key is sealed for without the root ever having named them."""
        for key in sealed:
            if key.recipient not in self._ever:
                who = key.recipient.hex()
                yield KeyFault(object_name, f"it is sealed for {who}, whom the root has not named")


def _fault(name: str, error: DamageError | WrongKeyError) -> KeyFault:
    # What is damaged may be another object than the one that was looked at.
    return KeyFault(name, error.why if name in error.what else f"{error.what}: {error.why}")
