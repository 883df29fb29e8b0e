"""Keys: derived, sealed, written down, typed in wrongly."""

from __future__ import annotations

import base64
import json
import os
import pickle
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError, UsageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, derive, open_sealed, seal
from smsnapd.format.keys import (
    DataKey,
    Identity,
    Recipient,
    WriteKey,
    open_data_key,
    open_write_key,
    parse_write_key,
    seal_data_key,
    seal_write_key,
)
from smsnapd.format.keyslot import DEFAULT_COST, Argon2Cost, make_keyslot, open_keyslot
from smsnapd.format.record import DataKeyRecord, Keyslot, SealedKey, encode_record

REPOSITORY = bytes(range(16))
IDENTITY = Identity(b"i" * 32)
OTHER = Identity(b"o" * 32)
WRITE_KEY = WriteKey(REPOSITORY, b"w" * 32)
DATA_KEY = DataKey(b"k" * 16, b"d" * 32)


def random_into(buffer: bytearray) -> None:
    buffer[:] = os.urandom(len(buffer))


CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
SECRETS = st.binary(min_size=32, max_size=32)


def verify_key(writer_id: bytes) -> bytes:
    assert writer_id == WRITE_KEY.writer_id
    return WRITE_KEY.verify_key


def test_generated_keys_are_all_different() -> None:
    assert (
        len({Identity.generate().secret for _ in range(3)} | {bytes(DataKey.generate(random_into).secret)})
        == 4
    )
    assert WriteKey.generate(REPOSITORY).secret != WriteKey.generate(REPOSITORY).secret


def test_no_repr_shows_a_secret() -> None:
    slot = make_keyslot(IDENTITY, "passphrase", REPOSITORY, "", CHEAP)
    shown = repr([IDENTITY, WRITE_KEY, DATA_KEY, WRITE_KEY.volume("v"), slot])
    for secret in (IDENTITY.secret, WRITE_KEY.secret, DATA_KEY.secret, WRITE_KEY.volume("v").chunk_names):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown


def test_secrets_of_a_wrong_length_are_refused() -> None:
    for make in (Identity, lambda s: WriteKey(REPOSITORY, s), lambda s: DataKey(bytes(16), s)):
        with pytest.raises(ValueError, match="32 bytes"):
            make(b"short")


def test_keys_go_to_other_processes() -> None:
    assert WRITE_KEY.writer_id and IDENTITY.recipient and IDENTITY.root_public  # fill what is cached
    for key in (IDENTITY, WRITE_KEY, DATA_KEY, WRITE_KEY.volume("v")):
        assert pickle.loads(pickle.dumps(key)) == key


def test_keys_of_volumes_and_repositories_differ() -> None:
    a, b = WRITE_KEY.volume("a"), WRITE_KEY.volume("b")
    elsewhere = WriteKey(bytes(16), WRITE_KEY.secret)
    keys = [
        *(getattr(k, f) for k in (a, b) for f in ("chunk_names", "catalog_names", "boundaries")),
        WRITE_KEY.catalog_key,
        elsewhere.catalog_key,
        WRITE_KEY.verify_key,
        elsewhere.verify_key,
    ]
    assert len(set(keys)) == len(keys) == 10


@given(SECRETS)
def test_recovery_keys_round_trip(secret: bytes) -> None:
    text = Identity(secret).recovery_key()
    assert text.startswith("SMSNAP-IDENTITY-1-")
    assert Identity.from_recovery_key(text).secret == secret
    assert Identity.from_recovery_key(f"\n {text.lower().replace('-', ' - ')}\n").secret == secret


def test_every_mistyped_character_of_a_recovery_key_is_found() -> None:
    text = IDENTITY.recovery_key()
    for position in range(len(text)):
        for character in "A7Z2":
            wrong = text[:position] + character + text[position + 1 :]
            if wrong != text and text[position] != "-":
                with pytest.raises(WrongKeyError):
                    Identity.from_recovery_key(wrong)


def test_the_spare_bits_of_a_recovery_key_are_checked() -> None:
    text = IDENTITY.recovery_key()
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"["ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".index(text[-1]) ^ 1]
    with pytest.raises(WrongKeyError, match="checksum"):
        Identity.from_recovery_key(text[:-1] + last)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:-1], "57 characters instead of 58"),
        (lambda text: text + "A", "59 characters instead of 58"),
        (lambda text: text[:-1] + "1", "not A to Z nor 2 to 7"),
        (lambda text: text[:-1] + "é", "no letter, digit or hyphen"),
        (lambda text: text[18:], "does not begin with SMSNAP-IDENTITY-1-"),
        (lambda text: WRITE_KEY.to_text(bytes(32)), "does not begin with SMSNAP-IDENTITY-1-"),
        (lambda text: "", "does not begin with"),
        (lambda text: text[:-2] + text[-1] + text[-2], "checksum is wrong"),
    ],
)
def test_what_is_wrong_with_a_recovery_key_is_said(change, why: str) -> None:  # type: ignore[no-untyped-def]
    text = IDENTITY.recovery_key()
    assert text[-1] != text[-2]
    with pytest.raises(WrongKeyError, match=why) as caught:
        Identity.from_recovery_key(change(text))
    assert text[20:30] not in str(caught.value)


@given(st.text())
def test_any_text_is_a_wrong_key(text: str) -> None:
    for prefix in ("", "SMSNAP-IDENTITY-1-", "SMSNAP-WRITE-KEY-1-"):
        with pytest.raises(WrongKeyError):
            Identity.from_recovery_key(prefix + text)
        with pytest.raises(WrongKeyError):
            parse_write_key(prefix + text)


@given(st.binary(min_size=16, max_size=16), SECRETS, SECRETS)
def test_write_key_files_round_trip(repository_id: bytes, secret: bytes, root: bytes) -> None:
    text = WriteKey(repository_id, secret).to_text(root)
    assert parse_write_key(text + "\n") == (WriteKey(repository_id, secret), root)
    payload = base64.b32decode(text.removeprefix("SMSNAP-WRITE-KEY-1-") + "=")
    assert payload[:80] == repository_id + root + secret


def test_a_sealed_key_opens_for_its_identity_and_purpose_alone() -> None:
    sealed = IDENTITY.recipient.seal(b"secret" * 5 + b"12", b"purpose")
    assert len(sealed) == 1168
    assert IDENTITY.unseal(sealed, b"purpose") == b"secret" * 5 + b"12"
    for identity, info in ((OTHER, b"purpose"), (IDENTITY, b"other")):
        with pytest.raises(DamageError):
            identity.unseal(sealed, info)
    for broken in (b"", sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(DamageError):
            IDENTITY.unseal(broken, b"purpose")


@pytest.mark.parametrize("public", [b"", b"\xff" * 1216, bytes(1216), b"x" * 1215])
def test_an_invalid_recipient_is_refused(public: bytes) -> None:
    with pytest.raises(DamageError):
        Recipient(public).seal(bytes(32), b"")


def test_a_write_key_is_sealed_to_every_recipient() -> None:
    data = seal_write_key(WRITE_KEY, [IDENTITY.recipient, OTHER.recipient], IDENTITY.root_private)
    name = names.WriterName(WRITE_KEY.writer_id, None)
    assert open_write_key(data, name, REPOSITORY, IDENTITY) == WRITE_KEY
    with pytest.raises(DamageError, match="signature"):  # the other identity has another root
        open_write_key(data, name, REPOSITORY, OTHER)


def test_a_data_key_is_sealed_to_every_recipient() -> None:
    data = seal_data_key(DATA_KEY, "home", [IDENTITY.recipient, OTHER.recipient], WRITE_KEY, 4)
    name = names.DataKeyName("home", DATA_KEY.id, 4)
    for identity in (IDENTITY, OTHER):
        assert open_data_key(data, name, REPOSITORY, identity, verify_key) == DATA_KEY
    with pytest.raises(WrongKeyError, match="not sealed to this identity"):
        open_data_key(data, name, REPOSITORY, Identity(b"n" * 32), verify_key)
    with pytest.raises(DamageError):
        open_data_key(data, name._replace(volume="work"), REPOSITORY, IDENTITY, verify_key)


def test_a_data_key_sealed_for_another_volume_is_refused() -> None:
    """Even when a writer signs it: the volume is bound by what the key is sealed for."""
    record = seal_data_key(DATA_KEY, "home", [IDENTITY.recipient], WRITE_KEY)
    sealed = bytes.fromhex(json.loads(record.split(b"\n")[1])["sealed"][IDENTITY.recipient.id.hex()])
    rows = (SealedKey(IDENTITY.recipient.id, sealed),)
    moved = DataKeyRecord(REPOSITORY, "work", DATA_KEY.id, WRITE_KEY.writer_id, rows)
    name = names.DataKeyName("work", DATA_KEY.id, None)
    with pytest.raises(DamageError):
        open_data_key(moved.encode(WRITE_KEY.signing), name, REPOSITORY, IDENTITY, verify_key)


def test_keyslots_open_with_their_passphrase_alone() -> None:
    slot = make_keyslot(IDENTITY, "correct horse", REPOSITORY, "desk", CHEAP)
    read = Keyslot.decode(slot.encode(), slot.slot, REPOSITORY)
    assert read == slot
    assert open_keyslot(read, "correct horse") == IDENTITY
    for wrong in ("correct hors", "correct horse ", ""):
        with pytest.raises(WrongKeyError, match="passphrase is wrong"):
            open_keyslot(read, wrong)


def test_a_passphrase_is_normalised() -> None:
    slot = make_keyslot(IDENTITY, "u\u0308ber", REPOSITORY, "", CHEAP)
    assert open_keyslot(slot, "über") == IDENTITY


@pytest.mark.parametrize("passphrase", ["", "\udc80"])
def test_a_passphrase_that_cannot_be_used(passphrase: str) -> None:
    with pytest.raises(UsageError):
        make_keyslot(IDENTITY, passphrase, REPOSITORY, "", CHEAP)


@pytest.mark.parametrize("change", [{"label": "x"}, {"iterations": 2}, {"nonce": "00" * 12}, {"new": 1}])
def test_nothing_in_a_keyslot_can_be_changed(change: dict[str, object]) -> None:
    slot = make_keyslot(IDENTITY, "p", REPOSITORY, "desk", CHEAP)
    forged = encode_record("keyslot", slot.members() | {"sealed": slot.sealed.hex()} | change, None)
    with pytest.raises(WrongKeyError):
        open_keyslot(Keyslot.decode(forged, slot.slot, REPOSITORY), "p")


def test_members_of_later_keyslots_are_bound_too() -> None:
    """A later version may add a member; this one ignores it, but opens the slot."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from smsnapd.format.keyslot import _wrapping_key
    from smsnapd.format.members import canonical_json

    slot = make_keyslot(IDENTITY, "p", REPOSITORY, "desk", CHEAP)
    members = slot.members() | {"later": [1]}
    sealed = AESGCM(_wrapping_key(slot, "p")).encrypt(slot.nonce, IDENTITY.secret, canonical_json(members))
    data = encode_record("keyslot", members | {"sealed": sealed.hex()}, None)
    assert open_keyslot(Keyslot.decode(data, slot.slot, REPOSITORY), "p") == IDENTITY


def test_the_default_cost_is_that_of_the_brief_and_is_recorded() -> None:
    slot = make_keyslot(IDENTITY, "p", REPOSITORY, "")
    assert (slot.memory_kib, slot.iterations, slot.lanes) == tuple(DEFAULT_COST) == (65536, 3, 4)
    assert open_keyslot(Keyslot.decode(slot.encode(), slot.slot, REPOSITORY), "p") == IDENTITY


def test_two_keyslots_of_one_identity_share_nothing() -> None:
    one, two = (make_keyslot(IDENTITY, "p", REPOSITORY, "", CHEAP) for _ in range(2))
    assert one.slot != two.slot and one.salt != two.salt and one.nonce != two.nonce
    with pytest.raises(WrongKeyError):
        open_keyslot(replace(one, sealed=two.sealed), "p")


@settings(max_examples=20)
@given(SECRETS)
def test_the_public_half_is_that_of_x25519_and_ml_kem(secret: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    seed = derive(secret, b"", b"smsnapd v1 identity ml-kem-768", 64)
    scalar = derive(secret, b"", b"smsnapd v1 identity x25519")
    public = Identity(secret).recipient.public
    assert public[:1184] == MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
    assert public[1184:] == X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes_raw()


def test_a_data_key_that_was_wiped_seals_nothing() -> None:
    key = DataKey.generate(random_into)
    buffer = key.secret
    context = Context(REPOSITORY, "home", "name")
    sealed = seal(ObjectType.CHUNK, key.secret, key.id, context, b"content")
    assert open_sealed(sealed, ObjectType.CHUNK, bytes(buffer), context) == b"content"
    key.wipe()
    assert buffer == b""
    for unusable in (key, DataKey.unusable()):
        with pytest.raises(ValueError, match="wiped"):
            seal(ObjectType.CHUNK, unusable.secret, unusable.id, context, b"content")
