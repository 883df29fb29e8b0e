"""Records: small signed or checked texts (FORMAT.md, section 3), and the bodies of all but the roster."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from smsnapd.errors import DamageError, SmsnapError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.members import UPGRADE, Members, canonical_json, parse_canonical_json, parse_hex

RECORD_LIMIT: Final = 1024 * 1024
"""Bytes of the largest record."""

SEALED_KEY_SIZE: Final = 1168
"""Bytes of a 32-byte key sealed to a recipient."""

EARLIER_KEY_SIZE: Final = 48
"""Bytes of a write key that is sealed to the one that followed it."""

MEMORY_KIB_LIMIT: Final = 2_097_152
ITERATIONS_LIMIT: Final = 64
LANES_LIMIT: Final = 64

KMS: Final = "aws-kms"
"""How a keyslot names its kind that is no passphrase's."""
KMS_LIMIT: Final = 6144
"""Bytes of the longest ciphertext that KMS takes back (Decrypt, CiphertextBlob)."""

_SIGNATURE_DOMAIN: Final = b"smsnapd v1 record\0"

RecordType = Literal["repository", "keyslot", "roster", "writer", "datakey", "lease"]

_TYPES: Final = frozenset(get_args(RecordType))
_SIGNED: Final = frozenset({"repository", "roster", "writer", "datakey"})


def encode_record(record: RecordType, members: dict[str, object], sign: Ed25519PrivateKey | None) -> bytes:
    """The bytes of a record. `members` includes `object` and `repository`; `sign` is for signed types.

    Raises `SmsnapError` if no reader would take it: too large, or a text that is not Unicode.
    """
    if (sign is not None) != (record in _SIGNED):
        raise ValueError(f"a record of type {record} and its signature do not go together")
    what = f"write the {record} record"
    text = canonical_json(members)
    try:
        parse_canonical_json(text, what)
    except DamageError as error:
        raise SmsnapError(what, "a text in it is not valid Unicode") from error
    data = f"smsnapd {record} 1\n".encode() + text + b"\n"
    if sign is not None:
        data += f"ed25519 {sign.sign(_SIGNATURE_DOMAIN + data).hex()}\n".encode()
    data += f"blake3 {blake3(data).hexdigest()}\n".encode()
    if len(data) > RECORD_LIMIT:
        raise SmsnapError(what, f"it would be larger than {RECORD_LIMIT} bytes")
    return data


def decode_record(
    data: bytes,
    record: RecordType,
    object_name: str,
    repository_id: bytes | None,
    verify: Ed25519PublicKey | None,
) -> Members:
    """The members of a record; `DamageError` if its bytes deviate from FORMAT.md, section 3, in anything.

    Its own name must be `object_name`, its repository `repository_id` (None: any). The signature of a
    signed type is checked if `verify` is given; without, its author is unknown.
    """
    what = f"read {object_name}"
    lines = _lines(data, record, what)
    members = parse_canonical_json(lines[1][:-1], what)
    if record in _SIGNED:
        _check_signature(lines, verify, what)
    if members.text("object") != object_name:
        members.refuse("object", "the name that the record lies under")
    if repository_id not in (None, members.hex("repository", 16)):
        members.refuse("repository", "the repository that it lies in")
    return members


def _lines(data: bytes, record: RecordType, what: str) -> list[bytes]:
    """The lines with their line feeds, when size, checksum, type and version are right."""
    if len(data) > RECORD_LIMIT:
        raise DamageError(what, f"it is larger than {RECORD_LIMIT} bytes")
    lines = data.split(b"\n")
    if lines.pop() != b"" or not lines:
        raise DamageError(what, "its last line is cut off")
    lines = [line + b"\n" for line in lines]
    if lines[-1] != f"blake3 {blake3(b''.join(lines[:-1])).hexdigest()}\n".encode():
        raise DamageError(what, "its checksum is wrong")
    if lines[0] != f"smsnapd {record} 1\n".encode():
        _refuse_first_line(lines[0], record, what)
    if len(lines) != (4 if record in _SIGNED else 3):
        raise DamageError(what, f"it has {len(lines)} lines")
    return lines


def _refuse_first_line(line: bytes, record: RecordType, what: str) -> None:
    words = line.split()
    if len(words) == 3 and words[0] == b"smsnapd" and words[2] != b"1":
        raise DamageError(what, "it is of another version of the format", UPGRADE)
    raise DamageError(what, f"it is no record of type {record}")


def _check_signature(lines: list[bytes], verify: Ed25519PublicKey | None, what: str) -> None:
    prefix, _, digits = lines[2].rstrip(b"\n").decode("ascii", "replace").partition(" ")
    signature = parse_hex(digits, 64)
    if prefix != "ed25519" or signature is None:
        raise DamageError(what, "its signature has the wrong form")
    if verify is None:
        return
    try:
        verify.verify(signature, _SIGNATURE_DOMAIN + lines[0] + lines[1])
    except InvalidSignature as error:
        raise DamageError(what, "its signature is wrong") from error


def public_key(raw: bytes, what: str) -> Ed25519PublicKey:
    """The Ed25519 public key of 32 bytes, `DamageError` if they are none."""
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise DamageError(what, "the public key of its signer is invalid") from error


def public_id(public: bytes) -> bytes:
    """The id (16 bytes) of a recipient or writer with this public key."""
    return blake3(public).digest(16)


def record_hash(data: bytes) -> bytes:
    """The hash (32 bytes) of a whole record, as the next roster names it."""
    return blake3(data).digest()


def record_body(object_name: str, repository_id: bytes) -> dict[str, object]:
    """The members that every record has."""
    return {"object": object_name, "repository": repository_id.hex()}


@dataclass(frozen=True)
class RepositoryRecord:
    """What a repository is: its id (16 bytes), the root's public key (32 bytes), when it was made.

    `may_lack_keyslots` if it was made without a passphrase, to be opened by the identity alone.
    """

    repository_id: bytes
    root: bytes
    created_us: int
    may_lack_keyslots: bool = False

    def encode(self, root: Ed25519PrivateKey) -> bytes:
        """The record, signed by the root."""
        members = record_body(names.REPOSITORY, self.repository_id)
        members |= {"root": self.root.hex(), "created": names.format_time_us(self.created_us)}
        if self.may_lack_keyslots:
            members["may_lack_keyslots"] = True
        return encode_record("repository", members, root)

    @classmethod
    def decode(cls, data: bytes, root: bytes | None) -> RepositoryRecord:
        """The record, if signed by the root that it names.

        `root` is the root's public key as pinned or derived: `WrongKeyError` if the record names
        another. With None, for before the keyslot is open, the record proves nothing.
        """
        what = f"read {names.REPOSITORY}"
        members = decode_record(data, "repository", names.REPOSITORY, None, None)
        named = members.hex("root", 32)
        if root not in (None, named):
            raise WrongKeyError(what, "the key belongs to another repository", "use this repository's key")
        decode_record(data, "repository", names.REPOSITORY, None, public_key(named, what))
        lacks = "may_lack_keyslots" in members.names() and members.truth("may_lack_keyslots")
        return cls(members.hex("repository", 16), named, members.time_us("created"), lacks)


@dataclass(frozen=True)
class KmsSlot:
    """The identity, wrapped by a KMS key (its ARN) in the context of a repository and a volume."""

    repository_id: bytes
    slot: str
    label: str
    kms_key: str
    volume: str
    sealed: bytes = field(default=b"", repr=False)

    @property
    def context(self) -> dict[str, str]:
        """The encryption context that KMS binds the identity to, and writes to its log."""
        return {"smsnapd:repository": self.repository_id.hex(), "smsnapd:volume": self.volume}

    def encode(self) -> bytes:
        """The record."""
        members = record_body(names.keyslot_name(self.slot), self.repository_id) | {
            "kdf": KMS,
            "kms_key": self.kms_key,
            "volume": self.volume,
            "label": self.label,
            "sealed": self.sealed.hex(),
        }
        return encode_record("keyslot", members, None)


@dataclass(frozen=True)
class Keyslot:
    """The identity, wrapped by a passphrase. `slot` is 16 hex digits.

    `associated` is the canonical JSON of all members but `sealed`, those of later versions too.
    """

    repository_id: bytes
    slot: str
    label: str
    salt: bytes
    memory_kib: int
    iterations: int
    lanes: int
    nonce: bytes
    associated: bytes = field(default=b"", repr=False)
    sealed: bytes = field(default=b"", repr=False)

    def members(self) -> dict[str, object]:
        """All members but `sealed`."""
        return record_body(names.keyslot_name(self.slot), self.repository_id) | {
            "kdf": "argon2id",
            "salt": self.salt.hex(),
            "memory_kib": self.memory_kib,
            "iterations": self.iterations,
            "lanes": self.lanes,
            "nonce": self.nonce.hex(),
            "label": self.label,
        }

    def encode(self) -> bytes:
        """The record."""
        return encode_record("keyslot", self.members() | {"sealed": self.sealed.hex()}, None)

    @classmethod
    def decode(cls, data: bytes, slot: str, repository_id: bytes) -> Keyslot:
        """The record; `DamageError` for costs beyond the limits, before anybody pays them."""
        members = decode_record(data, "keyslot", names.keyslot_name(slot), repository_id, None)
        if members.text("kdf") != "argon2id":
            members.refuse("kdf", "a function that this version knows")
        lanes = members.integer("lanes", 1, LANES_LIMIT)
        return cls(
            repository_id=repository_id,
            slot=slot,
            label=members.text("label"),
            salt=members.hex("salt", 16),
            memory_kib=members.integer("memory_kib", 8 * lanes, MEMORY_KIB_LIMIT),
            iterations=members.integer("iterations", 1, ITERATIONS_LIMIT),
            lanes=lanes,
            nonce=members.hex("nonce", 12),
            associated=members.canonical_without("sealed"),
            sealed=members.hex("sealed", 48),
        )


def decode_keyslot(data: bytes, slot: str, repository_id: bytes) -> Keyslot | KmsSlot:
    """A keyslot of either kind; `DamageError` as `Keyslot.decode`."""
    members = decode_record(data, "keyslot", names.keyslot_name(slot), repository_id, None)
    if members.text("kdf") != KMS:
        return Keyslot.decode(data, slot, repository_id)
    sealed = members.text("sealed")
    size = len(sealed) // 2
    volume = members.text("volume")
    if not 1 <= size <= KMS_LIMIT:
        members.refuse("sealed", f"of 1 to {KMS_LIMIT} bytes")
    if not names.is_volume_name(volume):
        members.refuse("volume", "the name of a volume")
    return KmsSlot(
        repository_id=repository_id,
        slot=slot,
        label=members.text("label"),
        kms_key=members.text("kms_key"),
        volume=volume,
        sealed=members.hex("sealed", size),
    )


class SealedKey(NamedTuple):
    """A key sealed to the recipient of this id (16 bytes): 1,168 bytes.

    An earlier write key, sealed to a later one, has the earlier one's id, and 48 bytes.
    """

    recipient: bytes
    sealed: bytes


@dataclass(frozen=True)
class WriterKey:
    """A write key, sealed to the recipients; `roster` is in its name if it was sealed again.

    `before` are the write keys that it followed, by writer's id, each sealed to this one.
    """

    repository_id: bytes
    writer_id: bytes
    sealed: tuple[SealedKey, ...]
    roster: int | None = None
    before: tuple[SealedKey, ...] = ()

    def object_name(self) -> str:
        """The full name of the record."""
        return names.writer_name(self.writer_id, self.roster)

    def encode(self, root: Ed25519PrivateKey) -> bytes:
        """The record, signed by the root."""
        members = record_body(self.object_name(), self.repository_id)
        members |= {"writer": self.writer_id.hex(), "sealed": _sealed_members(self.sealed)}
        if self.before:
            members["before"] = _sealed_members(self.before)
        return encode_record("writer", members, root)

    @classmethod
    def decode(cls, data: bytes, name: names.WriterName, repository_id: bytes, root: bytes) -> WriterKey:
        """The record, if signed by `root` (the root's public key)."""
        object_name = names.writer_name(*name)
        root_key = public_key(root, f"read {object_name}")
        members = decode_record(data, "writer", object_name, repository_id, root_key)
        if members.hex("writer", 16) != name.writer_id:
            members.refuse("writer", "that of the record's name")
        before = _sealed(members, "before", EARLIER_KEY_SIZE) if "before" in members.names() else ()
        return cls(repository_id, name.writer_id, _sealed(members), name.roster, before)


@dataclass(frozen=True)
class DataKeyRecord:
    """A data key, sealed to the recipients by a writer; `roster` is in its name if it was sealed again."""

    repository_id: bytes
    volume: str
    key_id: bytes
    writer_id: bytes
    sealed: tuple[SealedKey, ...]
    roster: int | None = None

    def object_name(self) -> str:
        """The full name of the record."""
        return names.data_key_name(self.volume, self.key_id, self.roster)

    def encode(self, sign: Ed25519PrivateKey) -> bytes:
        """The record, signed by the writer."""
        members = record_body(self.object_name(), self.repository_id) | {
            "key": self.key_id.hex(),
            "volume": self.volume,
            "writer": self.writer_id.hex(),
            "sealed": _sealed_members(self.sealed),
        }
        return encode_record("datakey", members, sign)

    @classmethod
    def decode(
        cls,
        data: bytes,
        name: names.DataKeyName,
        repository_id: bytes,
        verify_key_for_writer: Callable[[bytes], bytes],
    ) -> DataKeyRecord:
        """The record, if signed by its writer, whose public key (32 bytes) is asked for by id."""
        object_name = names.data_key_name(*name)
        members = decode_record(data, "datakey", object_name, repository_id, None)
        if members.hex("key", 16) != name.key_id or members.text("volume") != name.volume:
            members.refuse("key", "that of the record's name, nor is the volume")
        writer_id = members.hex("writer", 16)
        verify = public_key(verify_key_for_writer(writer_id), f"read {object_name}")
        decode_record(data, "datakey", object_name, repository_id, verify)
        return cls(repository_id, name.volume, name.key_id, writer_id, _sealed(members), name.roster)


def _sealed_members(keys: Collection[SealedKey]) -> dict[str, str]:
    return {key.recipient.hex(): key.sealed.hex() for key in keys}


def _sealed(members: Members, name: str = "sealed", size: int = SEALED_KEY_SIZE) -> tuple[SealedKey, ...]:
    by_id = members.nested(name)
    keys = []
    for digits in sorted(by_id.names()):
        id_ = parse_hex(digits, 16)
        if id_ is None:
            members.refuse(name, "an object of ids")
        keys.append(SealedKey(id_, by_id.hex(digits, size)))
    return tuple(keys)


@dataclass(frozen=True)
class Lease:
    """Who may write to a volume; `holder` is empty when it is released."""

    repository_id: bytes
    volume: str
    generation: int
    holder: str
    expires_us: int

    def encode(self) -> bytes:
        """The record."""
        members = record_body(names.lease_name(self.volume), self.repository_id) | {
            "volume": self.volume,
            "generation": self.generation,
            "holder": self.holder,
            "expires": names.format_time_us(self.expires_us),
        }
        return encode_record("lease", members, None)

    @classmethod
    def decode(cls, data: bytes, volume: str, repository_id: bytes) -> Lease:
        """The record of this volume."""
        members = decode_record(data, "lease", names.lease_name(volume), repository_id, None)
        if members.text("volume") != volume:
            members.refuse("volume", "that of the record's name")
        return cls(
            repository_id=repository_id,
            volume=volume,
            generation=members.integer("generation", 1, names.NUMBER_MAX),
            holder=members.text("holder"),
            expires_us=members.time_us("expires"),
        )
