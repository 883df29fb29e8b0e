"""Keys: identity, recipients, write key, data keys; how they are derived, sealed and written down.

FORMAT.md, section 4. No `repr` of these shows a secret.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.codec import Buffer, derive
from smsnapd.format.record import DataKeyRecord, SealedKey, WriterKey, public_id
from smsnapd.format.roster import RECIPIENT_SIZE

Random = Callable[[int], bytes]
"""Gives so many random bytes; handed in by tests."""

SECRET_SIZE: Final = 32

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_PUBLIC_SIZE: Final = 1184
_IDENTITY_PREFIX: Final = "SMSNAP-IDENTITY-1-"
_WRITE_KEY_PREFIX: Final = "SMSNAP-WRITE-KEY-1-"
_RECIPIENT_PREFIX: Final = "SMSNAP-RECIPIENT-1-"
_CHECKSUM_SIZE: Final = 4
_NONCE: Final = bytes(12)  # a key of its own for each earlier key, which seals only that


def _check_secret(secret: Buffer) -> None:
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"a secret has {SECRET_SIZE} bytes, not {len(secret)}")


@dataclass(frozen=True)
class Recipient:
    """The public half of an identity, to which keys are sealed; 1,216 bytes."""

    public: bytes

    @property
    def id(self) -> bytes:
        """Its id, 16 bytes."""
        return public_id(self.public)

    def to_text(self) -> str:
        """As it is handed to whoever makes it a recipient; no secret."""
        return _RECIPIENT_PREFIX + _written(self.public)

    @classmethod
    def from_text(cls, text: str) -> Recipient:
        """The recipient that `to_text` wrote; `WrongKeyError` if it is none."""
        return cls(_read(text, _RECIPIENT_PREFIX, RECIPIENT_SIZE, "recipient"))

    def seal(self, key: Buffer, info: bytes) -> bytes:
        """`key` sealed so that only the identity opens it, and only with the same `info`.

        Raises `DamageError` if the recipient's public key is invalid.
        """
        if len(self.public) != RECIPIENT_SIZE:
            raise DamageError("seal a key", "the recipient's public key has a wrong length")
        try:
            kem = MLKEM768PublicKey.from_public_bytes(self.public[:_MLKEM_PUBLIC_SIZE])
            dh = X25519PublicKey.from_public_bytes(self.public[_MLKEM_PUBLIC_SIZE:])
            return _SUITE.encrypt(key, MLKEM768X25519PublicKey(kem, dh), info)
        except ValueError as error:
            raise DamageError("seal a key", "the recipient's public key is invalid") from error


@dataclass(frozen=True)
class Identity:
    """The private half of a repository's keys: 32 bytes, from which all the rest is derived."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_secret(self.secret)

    def __reduce__(self) -> tuple[type[Identity], tuple[bytes]]:
        return Identity, (self.secret,)  # what is derived cannot be pickled, nor need it be

    @classmethod
    def generate(cls, random: Random = secrets.token_bytes) -> Identity:
        """A new identity."""
        return cls(random(SECRET_SIZE))

    def recovery_key(self) -> str:
        """The identity as people keep it: in groups of six, checked when it is typed in."""
        body = _written(self.secret)
        return _IDENTITY_PREFIX + "-".join(body[at : at + 6] for at in range(0, len(body), 6))

    @classmethod
    def from_recovery_key(cls, text: str) -> Identity:
        """The identity that a recovery key stands for; `WrongKeyError` if it is mistyped."""
        return cls(_read(text, _IDENTITY_PREFIX, SECRET_SIZE, "recovery key"))

    @cached_property
    def root_private(self) -> Ed25519PrivateKey:
        """The root's signing key."""
        return Ed25519PrivateKey.from_private_bytes(derive(self.secret, b"", b"smsnapd v1 identity root"))

    @cached_property
    def root_public(self) -> bytes:
        """The root's public key, 32 bytes."""
        return self.root_private.public_key().public_bytes_raw()

    @cached_property
    def _private_halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        seed = derive(self.secret, b"", b"smsnapd v1 identity ml-kem-768", 64)
        scalar = derive(self.secret, b"", b"smsnapd v1 identity x25519")
        return MLKEM768PrivateKey.from_seed_bytes(seed), X25519PrivateKey.from_private_bytes(scalar)

    @cached_property
    def recipient(self) -> Recipient:
        """The public half."""
        kem, dh = self._private_halves
        return Recipient(kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw())

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """The key that `Recipient.seal` sealed with this `info`; `DamageError` if it was not so."""
        try:
            return _SUITE.decrypt(sealed, MLKEM768X25519PrivateKey(*self._private_halves), info)
        except (InvalidTag, ValueError) as error:
            raise DamageError("open a sealed key", "it was not sealed to this identity for this") from error


@dataclass(frozen=True)
class VolumeKeys:
    """The keys of one volume, 32 bytes each: for the names of chunks and of catalogs, and for cutting."""

    chunk_names: bytes = field(repr=False)
    catalog_names: bytes = field(repr=False)
    boundaries: bytes = field(repr=False)


@dataclass(frozen=True)
class WriteKey:
    """What a daemon holds: `repository_id` (16 bytes) and a secret of 32 bytes."""

    repository_id: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_secret(self.secret)

    def __reduce__(self) -> tuple[type[WriteKey], tuple[bytes, bytes]]:
        return WriteKey, (self.repository_id, self.secret)

    @classmethod
    def generate(cls, repository_id: bytes, random: Random = secrets.token_bytes) -> WriteKey:
        """A new write key for a repository."""
        return cls(repository_id, random(SECRET_SIZE))

    def derive(self, info: bytes) -> bytes:
        """A key of 32 bytes for one purpose."""
        return derive(self.secret, self.repository_id, info)

    @cached_property
    def catalog_key(self) -> bytes:
        """The key under which manifests and catalogs are sealed, 32 bytes."""
        return self.derive(b"smsnapd v1 catalog")

    @cached_property
    def signing(self) -> Ed25519PrivateKey:
        """The key that signs manifests and data keys."""
        return Ed25519PrivateKey.from_private_bytes(self.derive(b"smsnapd v1 signing"))

    @cached_property
    def verify_key(self) -> bytes:
        """The public half of the signing key, 32 bytes."""
        return self.signing.public_key().public_bytes_raw()

    @cached_property
    def writer_id(self) -> bytes:
        """The id of the writer, 16 bytes."""
        return public_id(self.verify_key)

    def volume(self, volume: str) -> VolumeKeys:
        """The keys of a volume."""
        suffix = b"\0" + volume.encode()
        return VolumeKeys(
            chunk_names=self.derive(b"smsnapd v1 chunk names" + suffix),
            catalog_names=self.derive(b"smsnapd v1 catalog names" + suffix),
            boundaries=self.derive(b"smsnapd v1 boundaries" + suffix),
        )

    def to_text(self, root_public: bytes) -> str:
        """The content of a write key file, in one line without its end; `root_public` is pinned by it."""
        return _WRITE_KEY_PREFIX + _written(self.repository_id + root_public + self.secret)


def parse_write_key(text: str) -> tuple[WriteKey, bytes]:
    """The write key and the root's public key of a write key file; `WrongKeyError` if it is none."""
    payload = _read(text, _WRITE_KEY_PREFIX, 80, "write key")
    return WriteKey(payload[:16], payload[48:]), payload[16:48]


def _written(payload: bytes) -> str:
    checked = payload + blake3(payload).digest(_CHECKSUM_SIZE)
    return base64.b32encode(checked).decode("ascii").rstrip("=")


def _read(text: str, prefix: str, size: int, kind: str) -> bytes:
    """The payload that `_written` wrote behind `prefix`. Messages repeat nothing of the text."""
    what = f"read the {kind}"
    body = _body(text, prefix, what, kind)
    expected = -(-(size + _CHECKSUM_SIZE) * 8 // 5)
    if not re.fullmatch(r"[A-Z2-7]*", body):
        raise WrongKeyError(what, "it has a character that is not A to Z nor 2 to 7", "look for 0, 1, 8, 9")
    if len(body) != expected:
        raise WrongKeyError(what, f"it has {len(body)} characters instead of {expected} after {prefix}")
    payload = base64.b32decode(body + "=" * (-len(body) % 8))[:size]
    if _written(payload) != body:
        raise WrongKeyError(what, "its checksum is wrong", "it is mistyped: compare every character")
    return payload


def _body(text: str, prefix: str, what: str, kind: str) -> str:
    """What follows the prefix, in capitals, without hyphens and white space."""
    if not text.isascii():
        raise WrongKeyError(what, "it has a character that is no letter, digit or hyphen")
    capitals = re.sub(r"[-\s]", "", text).upper()
    squeezed = prefix.replace("-", "")
    if not capitals.startswith(squeezed):
        raise WrongKeyError(what, f"it does not begin with {prefix}", f"give the {kind} from its start")
    return capitals[len(squeezed) :]


def write_key_info(repository_id: bytes, writer_id: bytes) -> bytes:
    """The purpose that a sealed write key is bound to."""
    return b"smsnapd v1 write key\0" + repository_id + writer_id


def data_key_info(repository_id: bytes, key_id: bytes, volume: str) -> bytes:
    """The purpose that a sealed data key is bound to."""
    return b"smsnapd v1 data key\0" + repository_id + key_id + volume.encode()


def _seal_all(key: Buffer, info: bytes, recipients: Iterable[Recipient]) -> tuple[SealedKey, ...]:
    return tuple(SealedKey(recipient.id, recipient.seal(key, info)) for recipient in recipients)


def _unseal_one(sealed: Iterable[SealedKey], identity: Identity, info: bytes, object_name: str) -> bytes:
    """The 32-byte key, from whichever of `sealed` is for the identity."""
    for key in sealed:
        if key.recipient == identity.recipient.id:
            secret = identity.unseal(key.sealed, info)
            if len(secret) != SECRET_SIZE:
                raise DamageError(f"open {object_name}", "the key in it has a wrong length")
            return secret
    raise WrongKeyError(
        f"open {object_name}", "it is not sealed to this identity", "use the identity of a recipient"
    )


def seal_write_key(
    write_key: WriteKey,
    recipients: Iterable[Recipient],
    root: Ed25519PrivateKey,
    roster: int | None = None,
    before: Iterable[WriteKey] = (),
) -> bytes:
    """The record of a write key; `roster` is the roster's sequence if it is sealed again.

    `before` are the write keys that it follows: whoever has it opens what was written with them.
    """
    info = write_key_info(write_key.repository_id, write_key.writer_id)
    sealed = _seal_all(write_key.secret, info, recipients)
    earlier = tuple(
        SealedKey(key.writer_id, _earlier_cipher(write_key, key.writer_id).encrypt(_NONCE, key.secret, None))
        for key in before
    )
    return WriterKey(write_key.repository_id, write_key.writer_id, sealed, roster, earlier).encode(root)


def open_earlier_keys(
    data: bytes, name: names.WriterName, write_key: WriteKey, root: bytes
) -> tuple[WriteKey, ...]:
    """The write keys that `write_key` followed, by its record; `root` is the root's public key."""
    record = WriterKey.decode(data, name, write_key.repository_id, root)
    return tuple(_earlier_key(write_key, key, record.object_name()) for key in record.before)


def _earlier_key(write_key: WriteKey, sealed: SealedKey, object_name: str) -> WriteKey:
    what = f"open {object_name}"
    try:
        secret = _earlier_cipher(write_key, sealed.recipient).decrypt(_NONCE, sealed.sealed, None)
    except InvalidTag as error:
        raise DamageError(what, "an earlier key in it was not sealed to this one") from error
    earlier = WriteKey(write_key.repository_id, secret)
    if earlier.writer_id != sealed.recipient:
        raise DamageError(what, "an earlier key in it is of another writer")
    return earlier


def _earlier_cipher(write_key: WriteKey, earlier_id: bytes) -> AESGCM:
    """What seals the key of an earlier writer, and nothing else."""
    return AESGCM(write_key.derive(b"smsnapd v1 earlier write key\0" + earlier_id))


def open_write_key(
    data: bytes,
    name: names.WriterName,
    repository_id: bytes,
    identity: Identity,
    root: bytes | None = None,
) -> WriteKey:
    """The write key of a record that `root` signed (its public key; by default the identity's own).

    Raises `WrongKeyError` if it is not sealed to the identity: another record of it may be.
    """
    record = WriterKey.decode(data, name, repository_id, root or identity.root_public)
    object_name = record.object_name()
    info = write_key_info(repository_id, record.writer_id)
    write_key = WriteKey(repository_id, _unseal_one(record.sealed, identity, info, object_name))
    if write_key.writer_id != record.writer_id:
        raise DamageError(f"open {object_name}", "the key in it is of another writer")
    return write_key


@dataclass(frozen=True)
class DataKey:
    """A key for chunks: its id (16 bytes) and its secret (32 bytes).

    The secret of a key to seal with is a bytearray, of which there is no copy, and which can be wiped.
    """

    id: bytes
    secret: Buffer = field(repr=False)

    def __post_init__(self) -> None:
        _check_secret(self.secret)

    @classmethod
    def generate(cls, random_into: Callable[[bytearray], object]) -> DataKey:
        """A new data key; `random_into` fills a buffer with random bytes, and keeps none of them."""
        id_, secret = bytearray(16), bytearray(SECRET_SIZE)
        random_into(id_)
        random_into(secret)
        return cls(bytes(id_), secret)

    @classmethod
    def unusable(cls, id_: bytes = bytes(16)) -> DataKey:
        """One that seals nothing, for where nothing will be sealed."""
        made = cls(id_, bytearray(SECRET_SIZE))
        made.wipe()
        return made

    def wipe(self) -> None:
        """Overwrite the secret: nothing can be sealed or opened with this object any more."""
        if isinstance(self.secret, bytearray):
            self.secret[:] = bytes(len(self.secret))
            self.secret.clear()


def seal_data_key(
    data_key: DataKey,
    volume: str,
    recipients: Iterable[Recipient],
    writer: WriteKey,
    roster: int | None = None,
) -> bytes:
    """The record of a data key, signed by `writer`; `roster` as for `seal_write_key`."""
    repository_id = writer.repository_id
    sealed = _seal_all(data_key.secret, data_key_info(repository_id, data_key.id, volume), recipients)
    record = DataKeyRecord(repository_id, volume, data_key.id, writer.writer_id, sealed, roster)
    return record.encode(writer.signing)


def open_data_key(
    data: bytes,
    name: names.DataKeyName,
    repository_id: bytes,
    identity: Identity,
    verify_key_for_writer: Callable[[bytes], bytes],
) -> DataKey:
    """The data key of a record that its writer signed, whose public key is asked for by id.

    Raises `WrongKeyError` if it is not sealed to the identity: another record of it may be.
    """
    record = DataKeyRecord.decode(data, name, repository_id, verify_key_for_writer)
    info = data_key_info(repository_id, record.key_id, record.volume)
    return DataKey(record.key_id, _unseal_one(record.sealed, identity, info, record.object_name()))
