"""Changing who opens a repository and who writes to it: recipients, writers, keyslots.

A new roster is what makes a change: all that is sealed for it is put before it, and what nobody needs any
more is deleted behind it. So a change that was cut off either has not happened or has; the next one puts in
order what it left. Only the root's identity may.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from smsnapd.errors import (
    DamageError,
    DeniedError,
    KeptError,
    ObjectExistsError,
    SmsnapError,
    UsageError,
    WrongKeyError,
)
from smsnapd.format import names
from smsnapd.format.keys import Identity, Recipient, WriteKey, seal_data_key, seal_write_key
from smsnapd.format.keyslot import (
    DEFAULT_COST,
    Argon2Cost,
    is_weaker,
    make_keyslot,
    make_kms_slot,
    open_keyslot,
)
from smsnapd.format.manifest_object import manifest_hash
from smsnapd.format.record import DataKeyRecord, Keyslot, KmsSlot, SealedKey, WriterKey
from smsnapd.format.roster import Head, Revocation, Roster, RosterKey
from smsnapd.repository.access import Repository
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.lease import Lease
from smsnapd.repository.manifests import list_manifests
from smsnapd.repository.unlocking import keyslots

_CHANGED: Final = "somebody else has changed them meanwhile"
_AGAIN: Final = "look at them with `smsnap key list`, and run it again"
Wrap = Callable[[str, bytes, dict[str, str]], bytes]
"""Encrypts with a KMS key: its ARN, the plaintext and its encryption context."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rotated:
    """Write keys that were made in place of others: by the id of the old writer."""

    keys: Mapping[bytes, WriteKey] = field(repr=False)


class _Form(NamedTuple):
    """One record of a sealed key: its object's name, and for whom it is sealed."""

    object_name: str
    recipients: frozenset[bytes]


class Keyring:
    """The keys of an open repository, to be changed. WrongKeyError unless the root's identity opened it.

    Every method may be repeated after it was cut off. SmsnapError if somebody else changes them meanwhile.
    """

    def __init__(self, repository: Repository) -> None:
        identity = repository.identity
        if identity is None or identity.root_public != repository.root_public:
            raise WrongKeyError(
                f"change the keys of {repository.store.url}",
                "only who made the repository may: it takes that identity",
                "open it with its passphrase or recovery key",
            )
        self._repository = repository
        self._store = repository.store
        self._identity: Identity = identity

    # --- what a person asks for

    def add_recipient(self, recipient: Recipient, label: str) -> None:
        """From now on this recipient opens everything, what was stored before too."""
        roster = self._repository.roster
        if all(item.id != recipient.id for item in roster.recipients):
            added = RosterKey(recipient.id, recipient.public, label)
            self._change(replace(roster, recipients=(*roster.recipients, added)))
        else:
            self.settle()

    def remove_recipient(self, recipient_id: bytes) -> Rotated:
        """From now on nothing is sealed for this recipient; all write keys are made anew, as it had them.

        What is stored already is sealed again for those who stay, and the old seals are deleted.
        """
        roster = self._repository.roster
        if recipient_id == self._identity.recipient.id:
            hint = "make another repository to be rid of it"
            raise UsageError(f"remove the recipient {recipient_id.hex()}", "the root hangs on it", hint)
        kept = tuple(item for item in roster.recipients if item.id != recipient_id)
        if len(kept) == len(roster.recipients):
            self.settle()
            return Rotated({})
        return self._rotate(self._writers_in_force(), kept)

    def rotate_writers(
        self, writer_ids: Sequence[bytes] | None = None, last_good: Mapping[str, bytes] | None = None
    ) -> Rotated:
        """New write keys in the place of these, by default all in force; the old ones count no more.

        What they have signed so far counts, up to the newest recovery point of each volume, or the one
        whose manifest's hash `last_good` gives for it.
        """
        chosen = self._writers_in_force() if writer_ids is None else list(writer_ids)
        return self._rotate(chosen, self._repository.roster.recipients, last_good or {})

    def revoke_writer(self, writer_id: bytes) -> None:
        """This writer counts no more, and nobody takes its place."""
        self._rotate([writer_id], self._repository.roster.recipients, anew=False)

    # --- keyslots: each is one object, there or not

    def add_passphrase(self, passphrase: str, label: str, cost: Argon2Cost = DEFAULT_COST) -> str:
        """A new keyslot of this passphrase; its id. A slot that it opens at this cost or more is as good."""
        for slot in keyslots(self._store, self._repository.id)[0]:
            if isinstance(slot, Keyslot) and not is_weaker(slot, cost):
                with suppress(WrongKeyError):
                    if open_keyslot(slot, passphrase) == self._identity:
                        return slot.slot
        made = make_keyslot(self._identity, passphrase, self._repository.id, label, cost)
        return self._put_slot(made)

    def add_kms(self, kms_key: str, volume: str, label: str, encrypt: Wrap) -> str:
        """A new keyslot that this KMS key (its ARN) opens, in the context of a volume; its id."""
        names.check_volume_name(volume)
        bare = KmsSlot(self._repository.id, secrets.token_hex(8), label, kms_key, volume)
        return self._put_slot(make_kms_slot(self._identity, bare, encrypt))

    def _put_slot(self, slot: Keyslot | KmsSlot) -> str:
        self._store.put(names.keyslot_name(slot.slot), slot.encode())
        self._store.barrier()
        return slot.slot

    def remove_slot(self, slot: str) -> None:
        """Delete a keyslot. UsageError for the last one, unless the repository was made to have none."""
        left = [name for info in self._store.list(names.KEYSLOTS_PREFIX) if (name := info.name)]
        if left == [names.keyslot_name(slot)] and not self._repository.may_lack_keyslots:
            why = "it is the last one: only the recovery key would open the repository"
            raise UsageError(f"remove the keyslot {slot}", why, "add another first: smsnap key add")
        self._store.delete(names.keyslot_name(slot))
        self._store.barrier()

    def replace_slot(self, slot: str, passphrase: str, cost: Argon2Cost = DEFAULT_COST) -> str:
        """A keyslot of a new passphrase in the place of one, which goes last; the new one's id."""
        label = next((s.label for s in keyslots(self._store, self._repository.id)[0] if s.slot == slot), "")
        made = self.add_passphrase(passphrase, label, cost)
        if made != slot:
            self.remove_slot(slot)
        return made

    def settle(self) -> None:
        """Put in order what a change that was cut off has left, and what was sealed while it was made."""
        self._repository.refresh()
        sequence = self._repository.roster.sequence
        for forms in self._every_key():
            for form in forms:
                if self._never_held(form.object_name, sequence):
                    self._check_newest(sequence)
                    self._store.delete(form.object_name)
        self._seal_for(self._repository.roster.recipients, sequence)
        self._drop_old_seals()

    def _check_newest(self, sequence: int) -> None:
        """SmsnapError if a roster came meanwhile: what was put for it may be all that there is of a key."""
        found = (names.parse_roster_name(info.name) for info in self._store.list(names.ROSTERS_PREFIX))
        if any(number is not None and number > sequence for number in found):
            raise SmsnapError("change the keys", _CHANGED, _AGAIN)

    def _never_held(self, object_name: str, sequence: int) -> bool:
        """Whether it was put for a roster that never came: a later one's seal, or the key of a new writer."""
        writer = names.parse_writer_name(object_name)
        granted = {item.id for item in self._repository.roster.writers}
        if writer is not None and writer.writer_id not in granted:
            return True
        name = writer or names.parse_data_key_name(object_name)
        return name is not None and (name.roster or 0) > sequence

    # --- how it is done

    def _writers_in_force(self) -> list[bytes]:
        roster = self._repository.roster
        revoked = {item.id for item in roster.revoked}
        return [item.id for item in roster.writers if item.id not in revoked]

    def _rotate(
        self,
        writer_ids: Sequence[bytes],
        recipients: tuple[RosterKey, ...],
        last_good: Mapping[str, bytes] | None = None,
        *,
        anew: bool = True,
    ) -> Rotated:
        """Revoke these writers, with a new key in the place of each if `anew`."""
        roster = self._repository.roster
        labels = {item.id: item.label for item in roster.writers}
        if unknown := [id_ for id_ in writer_ids if id_ not in self._writers_in_force()]:
            raise UsageError(f"rotate the write key {unknown[0].hex()}", "no such writer is in force")
        made = {id_: WriteKey.generate(self._repository.id) for id_ in writer_ids} if anew else {}
        granted = tuple(RosterKey(key.writer_id, key.verify_key, labels[id_]) for id_, key in made.items())
        wanted = replace(roster, recipients=recipients, writers=(*roster.writers, *granted))
        self._change(wanted, made, writer_ids, last_good or {})
        return Rotated(made)

    def _change(
        self,
        wanted: Roster,
        made: Mapping[bytes, WriteKey] | None = None,
        revoke: Sequence[bytes] = (),
        last_good: Mapping[str, bytes] | None = None,
    ) -> None:
        """Seal everything for the recipients of `wanted`, make it the roster, then delete what it bars."""
        self.settle()
        before = self._repository.rosters[-1]
        if before.roster.sequence != wanted.sequence:
            raise SmsnapError("change the keys", _CHANGED, _AGAIN)
        sequence = before.roster.sequence + 1
        self._seal_for(wanted.recipients, sequence)
        for old_id, key in (made or {}).items():
            self._put_write_key(key, wanted.recipients, [self._repository.write_key_of(old_id)])
        with ExitStack() as leases:
            heads = self._fix_heads(leases, last_good or {}) if revoke else ()
            standing = self._fix_replacements() if revoke else ()
            revoked = (*wanted.revoked, *(Revocation(id_, heads, standing) for id_ in revoke))
            roster = replace(wanted, sequence=sequence, previous=before.hash, revoked=revoked)
            self._store.barrier()
            self._put_roster(roster)
            self._store.barrier()
        self.settle()

    def _put_roster(self, roster: Roster) -> None:
        try:
            self._store.put(names.roster_name(roster.sequence), roster.encode(self._identity.root_private))
        except ObjectExistsError as error:
            raise SmsnapError("change the keys", _CHANGED, _AGAIN) from error

    def _put_write_key(
        self, key: WriteKey, recipients: Iterable[RosterKey], followed: Iterable[WriteKey]
    ) -> None:
        """A write key's record, with all that came before it."""
        before = {old.writer_id: old for old in followed}
        for old in list(before.values()):
            before |= {item.writer_id: item for item in self._repository.earlier_keys(old)}
        sealed = seal_write_key(key, _public(recipients), self._identity.root_private, before=before.values())
        self._store.put(names.writer_name(key.writer_id), sealed)

    def _fix_heads(self, leases: ExitStack, last_good: Mapping[str, bytes]) -> tuple[Head, ...]:
        """Of each volume the manifest up to which a writer counts. Takes the leases, so nobody commits then.

        Whoever had one finds out at its next commit, which fails, and then that it was revoked.
        """
        heads = []
        for volume in self._repository.volumes():
            lease = Lease.take(
                self._store, self._repository.id, volume, take_over=True, clock=StoreClock(self._store.now)
            )
            leases.callback(lease.release)
            listed = list_manifests(self._repository, volume, heed_parents=True)
            lease.rise_above(max((name.generation for name in listed.counting), default=0))
            fixed = last_good.get(volume)
            if fixed is None and listed.counting:
                fixed = manifest_hash(self._store.get(listed.counting[-1].object_name()))
            if fixed is not None:
                heads.append(Head(volume, fixed))
        return tuple(heads)

    def _fix_replacements(self) -> tuple[Head, ...]:
        """Of each volume the manifests that stand for others now, whoever signed them.

        No lease keeps a prune from making more; those count for as long as their own signer is trusted.
        """
        return tuple(
            Head(volume, manifest_hash(self._store.get(name.object_name())))
            for volume in self._repository.volumes()
            for name in list_manifests(self._repository, volume).counting
            if name.first
        )

    # --- seals

    def _seal_for(self, recipients: Sequence[RosterKey], sequence: int) -> None:
        """See that each key has a record that is sealed for just these recipients."""
        wanted = frozenset(item.id for item in recipients)
        for forms in self._every_key():
            if all(form.recipients != wanted for form in forms):
                self._seal_again(forms[0].object_name, recipients, sequence)

    def _seal_again(self, object_name: str, recipients: Sequence[RosterKey], sequence: int) -> None:
        repository = self._repository
        writer = names.parse_writer_name(object_name)
        if writer is not None:
            write_key = repository.write_key_of(writer.writer_id)
            before, root = repository.earlier_keys(write_key), self._identity.root_private
            sealed = seal_write_key(write_key, _public(recipients), root, sequence, before)
            self._store.put(names.writer_name(writer.writer_id, sequence), sealed)
            return
        name = names.parse_data_key_name(object_name)
        assert name is not None
        record = DataKeyRecord.decode(
            self._store.get(object_name), name, repository.id, repository.verify_key_of
        )
        signer, key = repository.write_key_of(record.writer_id), repository.data_key(name.volume, name.key_id)
        sealed = seal_data_key(key, name.volume, _public(recipients), signer, sequence)
        self._store.put(names.data_key_name(name.volume, name.key_id, sequence), sealed)

    def _drop_old_seals(self) -> None:
        """Delete what is sealed for somebody who is no recipient any more; there is another of each."""
        wanted = frozenset(item.id for item in self._repository.roster.recipients)
        self._store.barrier()
        for forms in self._every_key():
            if any(form.recipients == wanted for form in forms):
                for form in forms:
                    if form.recipients - wanted:
                        self._drop(form.object_name)

    def _drop(self, object_name: str) -> None:
        """Delete an old seal; where the store keeps it, that is told, and the next change tries again."""
        try:
            self._store.delete(object_name)
        except (KeptError, DeniedError) as error:
            log.warning("%s stays, and is still sealed for who was removed: %s", object_name, error.why)

    def _every_key(self) -> Iterator[list[_Form]]:
        """The records of each write key and each data key that can be trusted; others are left alone."""
        prefixes = [names.WRITERS_PREFIX, *map(names.data_keys_prefix, self._repository.volumes())]
        for prefix in prefixes:
            by_key: dict[bytes, list[_Form]] = {}
            for info in self._store.list(prefix):
                try:
                    found = self._form(info.name)
                except DamageError as error:
                    log.warning("%s is left as it is: %s", info.name, error.why)
                    continue
                if found is not None:
                    by_key.setdefault(found[0], []).append(found[1])
            yield from by_key.values()

    def _form(self, object_name: str) -> tuple[bytes, _Form] | None:
        """The id of the key that a record is of, and the record; None for an object of another name."""
        repository = self._repository
        writer = names.parse_writer_name(object_name)
        key = names.parse_data_key_name(object_name)
        if writer is not None:
            data = self._store.get(object_name)
            opened = WriterKey.decode(data, writer, repository.id, repository.root_public)
            return writer.writer_id, _Form(object_name, _ids(opened.sealed))
        if key is not None:
            data = self._store.get(object_name)
            record = DataKeyRecord.decode(data, key, repository.id, repository.verify_key_of)
            return key.key_id, _Form(object_name, _ids(record.sealed))
        return None


def _ids(sealed: Iterable[SealedKey]) -> frozenset[bytes]:
    return frozenset(key.recipient for key in sealed)


def _public(recipients: Iterable[RosterKey]) -> list[Recipient]:
    return [Recipient(item.public) for item in recipients]
