"""The roster: whom the root trusts (FORMAT.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from smsnapd.format import names
from smsnapd.format.members import Members
from smsnapd.format.record import decode_record, encode_record, public_id, public_key, record_body

RECIPIENT_SIZE: Final = 1184 + 32
"""Bytes of a recipient's public key."""


class RosterKey(NamedTuple):
    """A public key on the roster, of a recipient (1,216 bytes) or a writer (32), with its id (16 bytes)."""

    id: bytes
    public: bytes
    label: str


class Head(NamedTuple):
    """The hash of the last manifest of a volume that a revoked writer signed and that counts."""

    volume: str
    manifest_hash: bytes


class Revocation(NamedTuple):
    """A recipient or writer that is trusted no more; `heads` by volume.

    `replacements` are the manifests that stand for several and count, each by its own hash: what follows from
    what they stand for is no witness of what they say.
    """

    id: bytes
    heads: tuple[Head, ...] = ()
    replacements: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Roster:
    """Who is trusted. `previous` is the hash of the roster before, None for the first."""

    repository_id: bytes
    sequence: int
    previous: bytes | None
    recipients: tuple[RosterKey, ...]
    writers: tuple[RosterKey, ...]
    revoked: tuple[Revocation, ...] = ()

    def encode(self, root: Ed25519PrivateKey) -> bytes:
        """The record, signed by the root."""
        members = record_body(names.roster_name(self.sequence), self.repository_id) | {
            "sequence": self.sequence,
            "previous": self.previous.hex() if self.previous else None,
            "recipients": [_roster_key_members(key) for key in self.recipients],
            "writers": [_roster_key_members(key) for key in self.writers],
            "revoked": [_revocation_members(revocation) for revocation in self.revoked],
        }
        return encode_record("roster", members, root)

    @classmethod
    def decode(cls, data: bytes, sequence: int, repository_id: bytes, root: bytes) -> Roster:
        """The record, if signed by `root` (the root's public key); `previous` is not followed."""
        name = names.roster_name(sequence)
        members = decode_record(data, "roster", name, repository_id, public_key(root, f"read {name}"))
        if members.integer("sequence") != sequence:
            members.refuse("sequence", "that of the record's name")
        if members.is_null("previous") != (sequence == 1):
            members.refuse("previous", "null for the first roster and a hash for the others")
        return cls(
            repository_id=repository_id,
            sequence=sequence,
            previous=None if sequence == 1 else members.hex("previous", 32),
            recipients=_roster_keys(members, "recipients", RECIPIENT_SIZE),
            writers=_roster_keys(members, "writers", 32),
            revoked=tuple(_revocation(row) for row in members.objects("revoked")),
        )


def _roster_key_members(key: RosterKey) -> dict[str, object]:
    return {"id": key.id.hex(), "public": key.public.hex(), "label": key.label}


def _roster_keys(members: Members, name: str, size: int) -> tuple[RosterKey, ...]:
    keys = []
    for row in members.objects(name):
        key = RosterKey(row.hex("id", 16), row.hex("public", size), row.text("label"))
        if key.id != public_id(key.public):
            row.refuse("id", "that of the public key")
        keys.append(key)
    if len({key.id for key in keys}) != len(keys):
        members.refuse(name, "a list of different keys")
    return tuple(keys)


def _revocation_members(revocation: Revocation) -> dict[str, object]:
    heads = {head.volume: head.manifest_hash.hex() for head in revocation.heads}
    standing: dict[str, list[str]] = {}
    for volume, manifest_hash in sorted(revocation.replacements):
        standing.setdefault(volume, []).append(manifest_hash.hex())
    more = {"replacements": standing} if standing else {}
    return {"id": revocation.id.hex(), "heads": heads, **more}


def _revocation(row: Members) -> Revocation:
    heads = row.nested("heads")
    if not all(names.is_volume_name(volume) for volume in heads.names()):
        row.refuse("heads", "an object of volumes")
    fixed = tuple(Head(volume, heads.hex(volume, 32)) for volume in sorted(heads.names()))
    return Revocation(row.hex("id", 16), fixed, _replacements(row))


def _replacements(row: Members) -> tuple[Head, ...]:
    """Rosters of before there was this member have none."""
    if "replacements" not in row.names():
        return ()
    standing = row.nested("replacements")
    if not all(names.is_volume_name(volume) for volume in standing.names()):
        row.refuse("replacements", "an object of volumes")
    found = ((volume, item) for volume in standing.names() for item in standing.hexes(volume, 32))
    return tuple(sorted(Head(volume, item) for volume, item in found))
