"""Keyslots: an identity wrapped by a passphrase (FORMAT.md, sections 3 and 4)."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from smsnapd.errors import DamageError, SmsnapError, UsageError, WrongKeyError
from smsnapd.format.keys import SECRET_SIZE, Identity, Random
from smsnapd.format.members import canonical_json
from smsnapd.format.record import Keyslot, KmsSlot


class Argon2Cost(NamedTuple):
    """What every guess of the passphrase costs."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4


DEFAULT_COST = Argon2Cost()


def make_keyslot(
    identity: Identity,
    passphrase: str,
    repository_id: bytes,
    label: str,
    cost: Argon2Cost = DEFAULT_COST,
    random: Random = secrets.token_bytes,
) -> Keyslot:
    """Wrap `identity` into a new keyslot. Raises `UsageError` for a passphrase that cannot be used."""
    if not passphrase:
        raise UsageError("set the passphrase", "it is empty", "give one of several words")
    bare = Keyslot(repository_id, random(8).hex(), label, random(16), *cost, nonce=random(12))
    slot = replace(bare, associated=canonical_json(bare.members()))
    cipher = AESGCM(_wrapping_key(slot, passphrase))
    return replace(slot, sealed=cipher.encrypt(slot.nonce, identity.secret, slot.associated))


def open_keyslot(slot: Keyslot, passphrase: str) -> Identity:
    """The identity in a keyslot that `Keyslot.decode` gave; `WrongKeyError` if the passphrase is wrong."""
    cipher = AESGCM(_wrapping_key(slot, passphrase))
    try:
        return Identity(cipher.decrypt(slot.nonce, slot.sealed, slot.associated))
    except InvalidTag as error:
        raise WrongKeyError(
            f"open the keyslot {slot.slot}", "the passphrase is wrong", "try again, or use the recovery key"
        ) from error


def is_weaker(slot: Keyslot, cost: Argon2Cost = DEFAULT_COST) -> bool:
    """Whether a guess at this slot's passphrase costs less than at one made today."""
    return slot.memory_kib * slot.iterations < cost.memory_kib * cost.iterations


def make_kms_slot(
    identity: Identity,
    bare: KmsSlot,
    encrypt: Callable[[str, bytes, dict[str, str]], bytes],
) -> KmsSlot:
    """`bare` with the identity in it, wrapped by `encrypt`: of a key, a plaintext and a context."""
    return replace(bare, sealed=encrypt(bare.kms_key, identity.secret, bare.context))


def open_kms_slot(slot: KmsSlot, decrypt: Callable[[str, bytes, dict[str, str]], bytes]) -> Identity:
    """The identity in a slot, unwrapped by `decrypt`: of a key, a ciphertext and a context."""
    secret = decrypt(slot.kms_key, slot.sealed, slot.context)
    if len(secret) != SECRET_SIZE:
        raise DamageError(f"open the keyslot {slot.slot}", "what it holds is no identity")
    return Identity(secret)


def _wrapping_key(slot: Keyslot, passphrase: str) -> bytes:
    try:
        text = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError as error:
        raise UsageError("use the passphrase", "it is not valid Unicode", "type it as UTF-8") from error
    function = Argon2id(
        salt=slot.salt,
        length=32,
        iterations=slot.iterations,
        lanes=slot.lanes,
        memory_cost=slot.memory_kib,
    )
    try:
        return function.derive(text)
    except MemoryError as error:
        raise SmsnapError(
            f"open the keyslot {slot.slot}",
            f"it takes {slot.memory_kib // 1024} MiB of memory, and there is less",
            "use a larger machine, or the recovery key",
        ) from error
