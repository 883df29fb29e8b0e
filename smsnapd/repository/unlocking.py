"""What opens a repository: a passphrase or KMS key by way of a keyslot, an identity, or a write key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.errors import DamageError, SmsnapError, UsageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.keys import Identity, WriteKey, parse_write_key
from smsnapd.format.keyslot import open_keyslot, open_kms_slot
from smsnapd.format.record import Keyslot, KmsSlot, decode_keyslot
from smsnapd.store.base import Store

SLOTS_TRIED: Final = 64
"""Anybody who may put objects can put keyslots: no more than so many are looked at."""
COST_TRIED: Final = 32 * 1024 * 1024
"""KiB by passes of Argon2id: slots that take more together (20 s or so) are not tried one after the other."""
Unwrap = Callable[[str, bytes, dict[str, str]], bytes]
"""Decrypts with a KMS key: its ARN, the ciphertext and its encryption context."""


@dataclass(frozen=True)
class Credentials:
    """What opens a repository: a passphrase, a recovery key, a write key file's text, or a KMS key.

    `recipients` are ids that the roster's must equal, if given: a pin for the careful. `root` is the root's
    public key in hex, if it is pinned; whoever opens with an identity that is not the root's own needs it.
    `remembered` is where this machine keeps the newest roster that it has seen; None is nowhere. `kms_key`
    is the only key whose keyslots are asked for, and `unwrap` how.
    """

    passphrase: str | None = field(default=None, repr=False)
    recovery_key: str | None = field(default=None, repr=False)
    write_key_text: str | None = field(default=None, repr=False)
    recipients: tuple[str, ...] = ()
    root: str = ""
    remembered: Path | None = None
    kms_key: str = ""
    unwrap: Unwrap | None = None


class Unlocked(NamedTuple):
    """What the credentials hold: the identity or a write key, the root that they trust, the slot used."""

    identity: Identity | None
    write_key: WriteKey | None
    root_public: bytes
    slot: str = ""


def unlock(store: Store, repository_id: bytes, credentials: Credentials) -> Unlocked:
    """Open what the credentials open. WrongKeyError, UsageError, or DamageError of the keyslots."""
    pinned = _pinned_root(credentials.root)
    if credentials.write_key_text is not None:
        write_key, root_public = parse_write_key(credentials.write_key_text)
        if write_key.repository_id != repository_id:
            raise WrongKeyError(
                f"open the repository {store.url}",
                "the write key belongs to another repository",
                "check the URL and [encryption] write_key_file",
            )
        if pinned not in (None, root_public):
            hint = "one of [encryption] root and write_key_file is another repository's"
            raise WrongKeyError(f"open the repository {store.url}", "the write key has another root", hint)
        return Unlocked(None, write_key, root_public)
    identity, slot = _identity(store, repository_id, credentials)
    return Unlocked(identity, None, pinned or identity.root_public, slot)


def _pinned_root(text: str) -> bytes | None:
    if not text:
        return None
    try:
        root = bytes.fromhex(text)
    except ValueError:
        root = b""
    if len(root) != 32:
        hint = "it is 64 hex digits, as `smsnap key list` shows them"
        raise UsageError("pin the root", "[encryption] root is no public key", hint)
    return root


def _identity(store: Store, repository_id: bytes, credentials: Credentials) -> tuple[Identity, str]:
    """The identity, and the keyslot that held it; "" if none did."""
    if credentials.recovery_key is not None:
        return Identity.from_recovery_key(credentials.recovery_key), ""
    if credentials.passphrase is None and credentials.unwrap is None:
        raise UsageError("open the repository", "no passphrase and no key was given")
    slots, error = keyslots(store, repository_id)
    if not slots:
        raise error or DamageError(
            "open the repository", "every keyslot is missing", "open it with the recovery key instead"
        )
    if credentials.passphrase is None:
        return _by_kms(store, slots, credentials)
    return _by_passphrase(store, slots, credentials.passphrase, error)


def _by_passphrase(
    store: Store, slots: list[Keyslot | KmsSlot], passphrase: str, error: SmsnapError | None
) -> tuple[Identity, str]:
    spent = 0
    for slot in slots:
        if isinstance(slot, KmsSlot):
            continue
        spent += _cost(slot)
        if spent > COST_TRIED and slot is not slots[0]:
            error = DamageError("open a keyslot", "there are some that cost too much to try")
            break
        try:
            return open_keyslot(slot, passphrase), slot.slot
        except WrongKeyError as wrong:
            error = error or wrong
    raise WrongKeyError(
        f"open the repository {store.url}",
        "the passphrase is wrong" + (", or its keyslot damaged" if isinstance(error, DamageError) else ""),
        "try again, or open it with the recovery key",
    ) from error


def _by_kms(store: Store, slots: list[Keyslot | KmsSlot], credentials: Credentials) -> tuple[Identity, str]:
    """By a slot of the configured key: nobody who plants a slot has us ask for another's."""
    assert credentials.unwrap is not None
    error: SmsnapError | None = None
    for slot in slots:
        if isinstance(slot, KmsSlot) and slot.kms_key == credentials.kms_key:
            try:
                return open_kms_slot(slot, credentials.unwrap), slot.slot
            except SmsnapError as refused:
                error = error or refused
    why = error.why if error else "it has no keyslot of this key"
    raise WrongKeyError(
        f"open the repository {store.url} with {credentials.kms_key}",
        why,
        (error.hint if error else "") or "add one where the identity is: smsnap key add --kms-key ARN",
    ) from error


def keyslots(store: Store, repository_id: bytes) -> tuple[list[Keyslot | KmsSlot], SmsnapError | None]:
    """The keyslots that are whole, and what is wrong with one that is not.

    Keyslots are unsigned, anybody may have put them there. So those that cost least come first: none that
    is there to waste time and memory is tried before one that opens.
    """
    slots: list[Keyslot | KmsSlot] = []
    damage: SmsnapError | None = None
    found = (names.parse_keyslot_name(info.name) for info in store.list(names.KEYSLOTS_PREFIX))
    for name, _ in zip(filter(None, found), range(SLOTS_TRIED), strict=False):
        try:
            slots.append(decode_keyslot(store.get(names.keyslot_name(name)), name, repository_id))
        except DamageError as error:
            damage = error
    return sorted(slots, key=_cost), damage


def _cost(slot: Keyslot | KmsSlot) -> int:
    return 0 if isinstance(slot, KmsSlot) else slot.memory_kib * slot.iterations
