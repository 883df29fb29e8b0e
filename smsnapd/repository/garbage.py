"""Garbage lists: listed by name, loaded and verified, put; and what a writer must not use again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from smsnapd.errors import DamageError, ObjectMissingError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.codec import parse_header
from smsnapd.format.garbage import GarbageList, decode_garbage, encode_garbage
from smsnapd.format.keys import WriteKey
from smsnapd.format.names import GarbageName
from smsnapd.repository.access import Repository


@dataclass(frozen=True)
class LoadedGarbage:
    """A garbage list as it lies in the repository, verified.

    `is_revoked`: its writer is trusted no more, so nothing may be deleted by it.
    """

    garbage: GarbageList
    is_revoked: bool


def garbage_names(repository: Repository, volume: str) -> list[GarbageName]:
    """The names of a volume's garbage lists, in order of time; none is opened."""
    listed = repository.store.list(names.garbage_prefix(volume))
    return [name for name in (GarbageName.parse(info.name) for info in listed) if name is not None]


def load_garbage(repository: Repository, name: GarbageName) -> LoadedGarbage | None:
    """Get, open and verify one list; None if it is gone, since another `prune` has done what it said.

    DamageError if it is forged or damaged, WrongKeyError if the key at hand does not open it.
    """
    try:
        data = repository.store.get(name.object_name())
    except ObjectMissingError:
        return None
    garbage = decode_garbage(data, name, repository.id, repository.catalog_key_of, repository.verify_key_of)
    revoked = {item.id for item in repository.roster.revoked}
    return LoadedGarbage(garbage, parse_header(data).key_id in revoked)


def new_garbage_name(volume: str, time_s: float) -> GarbageName:
    """The name of a list that is made now; `time_s` is what the store's clock says."""
    return GarbageName(volume, int(time_s * 1e6), secrets.token_hex(8))


def put_garbage(repository: Repository, garbage: GarbageList, signer: WriteKey) -> None:
    """Put a list; it is durable when this returns."""
    repository.store.put(garbage.name.object_name(), encode_garbage(garbage, signer))
    repository.store.barrier()


def signer_for(repository: Repository, head_writer: bytes | None) -> WriteKey:
    """The key to sign a volume's lists with: if it is at hand that of the writer of its newest manifest.

    For a list is sealed too, and that writer, with its own key alone, must be able to see what is on it.
    """
    own = repository.writer_id
    revoked = {item.id for item in repository.roster.revoked}
    if head_writer in (None, own) or head_writer in revoked or repository.identity is None:
        return repository.write_key
    return repository.write_key_of(head_writer)


class GarbageBelow:
    """What lists name below a prefix: a writer must not use it, unless a manifest refers to it.

    One listing, and a GET for each list; it is as of then. `is_all` is False if a list could not be read:
    it is damaged, and then nobody deletes by it, or of another writer.
    """

    def __init__(self, repository: Repository, volume: str, prefix: str) -> None:
        self.is_all = True
        self._named: set[str] = set()
        for name in garbage_names(repository, volume):
            try:
                loaded = load_garbage(repository, name)
            except (DamageError, WrongKeyError):
                self.is_all = False
                continue
            if loaded is not None:
                self._named.update(item for item in loaded.garbage.objects if item.startswith(prefix))

    def __contains__(self, name: object) -> bool:
        return name in self._named
