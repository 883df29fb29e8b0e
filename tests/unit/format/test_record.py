"""Records: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError, SmsnapError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.record import (
    RECORD_LIMIT,
    SEALED_KEY_SIZE,
    DataKeyRecord,
    Keyslot,
    Lease,
    RecordType,
    RepositoryRecord,
    SealedKey,
    WriterKey,
    decode_record,
    encode_record,
    public_id,
)
from smsnapd.format.roster import RECIPIENT_SIZE, Head, Revocation, Roster, RosterKey

REPOSITORY = bytes(range(16))
ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
ROOT_PUBLIC = ROOT.public_key().public_bytes_raw()
WRITER = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
WRITER_PUBLIC = WRITER.public_key().public_bytes_raw()
WRITER_ID = public_id(WRITER_PUBLIC)
TIME_US = 1_767_323_045_000_006
SEALED = (SealedKey(b"a" * 16, b"s" * SEALED_KEY_SIZE), SealedKey(b"b" * 16, b"t" * SEALED_KEY_SIZE))
RECIPIENT = b"p" * RECIPIENT_SIZE

LEASE = Lease(REPOSITORY, "home", 3, "notebook-1 (é)", TIME_US)
REPOSITORY_RECORD = RepositoryRecord(REPOSITORY, ROOT_PUBLIC, TIME_US)
ROSTER = Roster(
    REPOSITORY,
    2,
    b"h" * 32,
    (RosterKey(public_id(RECIPIENT), RECIPIENT, "owner"),),
    (RosterKey(WRITER_ID, WRITER_PUBLIC, "notebook"),),
    (Revocation(b"x" * 16, (Head("a", b"1" * 32), Head("b", b"2" * 32))), Revocation(b"y" * 16)),
)
WRITER_KEY = WriterKey(REPOSITORY, WRITER_ID, SEALED, 2)
DATA_KEY = DataKeyRecord(REPOSITORY, "home", b"k" * 16, WRITER_ID, SEALED)


def verify_key(writer_id: bytes) -> bytes:
    assert writer_id == WRITER_ID
    return WRITER_PUBLIC


DECODERS: dict[str, tuple[bytes, Callable[[bytes], object], object]] = {
    "lease": (LEASE.encode(), lambda data: Lease.decode(data, "home", REPOSITORY), LEASE),
    "repository": (
        REPOSITORY_RECORD.encode(ROOT),
        lambda data: RepositoryRecord.decode(data, ROOT_PUBLIC),
        REPOSITORY_RECORD,
    ),
    "roster": (ROSTER.encode(ROOT), lambda data: Roster.decode(data, 2, REPOSITORY, ROOT_PUBLIC), ROSTER),
    "writer": (
        WRITER_KEY.encode(ROOT),
        lambda data: WriterKey.decode(data, names.WriterName(WRITER_ID, 2), REPOSITORY, ROOT_PUBLIC),
        WRITER_KEY,
    ),
    "datakey": (
        DATA_KEY.encode(WRITER),
        lambda data: DataKeyRecord.decode(
            data, names.DataKeyName("home", b"k" * 16, None), REPOSITORY, verify_key
        ),
        DATA_KEY,
    ),
}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)
SIGNERS = {"lease": None, "repository": ROOT, "roster": ROOT, "writer": ROOT, "datakey": WRITER}


def remade(record: str, change: Callable[[dict[str, object]], None]) -> bytes:
    """The record with changed members, checksum and signature right."""
    members = json.loads(DECODERS[record][0].split(b"\n")[1])
    change(members)
    kind: RecordType = record  # type: ignore[assignment]
    return encode_record(kind, members, SIGNERS[record])


def with_checksum(data: bytes) -> bytes:
    return data + b"blake3 " + blake3(data).hexdigest().encode() + b"\n"


@pytest.mark.parametrize("record", DECODERS)
def test_records_round_trip(record: str) -> None:
    data, decode, value = DECODERS[record]
    assert decode(data) == value
    assert data.isascii()
    assert data.count(b"\n") == (3 if record == "lease" else 4)


def test_a_record_is_the_text_of_the_specification() -> None:
    first = b"smsnapd lease 1\n"
    body = (
        b'{"expires":"2026-01-02T03:04:05.000006Z","generation":3,"holder":"notebook-1 (\\u00e9)",'
        b'"object":"volumes/home/lease","repository":"000102030405060708090a0b0c0d0e0f","volume":"home"}\n'
    )
    assert LEASE.encode() == with_checksum(first + body)


def test_a_signature_is_that_of_the_specification() -> None:
    lines = REPOSITORY_RECORD.encode(ROOT).split(b"\n")
    signed = b"smsnapd v1 record\0" + lines[0] + b"\n" + lines[1] + b"\n"
    assert lines[2] == b"ed25519 " + ROOT.sign(signed).hex().encode()


@pytest.mark.parametrize("record", DECODERS)
def test_every_flipped_byte_is_refused(record: str) -> None:
    data, decode, _ = DECODERS[record]
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        with pytest.raises(DamageError):
            decode(bytes(broken))


@pytest.mark.parametrize("record", DECODERS)
def test_every_truncation_and_any_addition_is_refused(record: str) -> None:
    data, decode, _ = DECODERS[record]
    for broken in [*(data[:end] for end in range(0, len(data), 7)), data[:-1], data + b"\n", data + data]:
        with pytest.raises(DamageError):
            decode(broken)


@pytest.mark.parametrize("record", DECODERS)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_damage(record: str, data: bytes) -> None:
    for candidate in (data, with_checksum(data), with_checksum(f"smsnapd {record} 1\n".encode() + data)):
        with pytest.raises(DamageError):
            DECODERS[record][1](candidate)


@pytest.mark.parametrize("record", DECODERS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_member_of_any_other_form_is_damage_or_well_formed(record: str, data: st.DataObject) -> None:
    names_ = sorted(json.loads(DECODERS[record][0].split(b"\n")[1]))
    name, value = data.draw(st.sampled_from(names_)), data.draw(VALUES)
    broken = remade(record, lambda members: members.update({name: value}))
    try:
        assert type(DECODERS[record][1](broken)) is type(DECODERS[record][2])
    except (DamageError, WrongKeyError):
        return


@pytest.mark.parametrize("record", DECODERS)
def test_a_missing_member_is_damage(record: str) -> None:
    for name in json.loads(DECODERS[record][0].split(b"\n")[1]):
        with pytest.raises(DamageError):
            DECODERS[record][1](remade(record, lambda members, name=name: members.pop(name)))  # type: ignore[misc]


@pytest.mark.parametrize("record", DECODERS)
def test_unknown_members_are_ignored(record: str) -> None:
    _, decode, value = DECODERS[record]
    assert decode(remade(record, lambda members: members.update(later={"a": [1, None]}))) == value


@pytest.mark.parametrize("record", DECODERS)
def test_another_version_says_to_upgrade(record: str) -> None:
    data, decode, _ = DECODERS[record]
    later = data.replace(f"smsnapd {record} 1".encode(), f"smsnapd {record} 2".encode())
    later = with_checksum(later[: later.rindex(b"blake3 ")])
    with pytest.raises(DamageError) as caught:
        decode(later)
    assert "later smsnapd" in caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        b'{"object": "x"}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e5}',
        b'{"a":NaN}',
        b'{"a":"\\u00E9"}',
        b'{"a":"\\/"}',
        b'{"a":"\\ud800"}',
        b"[1]",
        b"1",
        b"",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
        '{"a":"é"}'.encode(),
    ],
)
def test_json_that_is_not_canonical_is_damage(body: bytes) -> None:
    data = with_checksum(b"smsnapd lease 1\n" + body + b"\n")
    with pytest.raises(DamageError):
        decode_record(data, "lease", "volumes/home/lease", REPOSITORY, None)


@pytest.mark.parametrize("end", [b"BLAKE3", b"blake3 ", b"blake3\t"])
def test_the_checksum_is_compared_as_text(end: bytes) -> None:
    data = LEASE.encode()
    head, digits = data[: data.rindex(b"blake3 ")], data[data.rindex(b"blake3 ") + 7 :]
    with pytest.raises(DamageError, match="checksum"):
        Lease.decode(head + end + b" " + digits, "home", REPOSITORY)
    with pytest.raises(DamageError, match="checksum"):
        Lease.decode(head + b"blake3 " + digits.upper(), "home", REPOSITORY)


def test_another_name_or_repository_is_refused() -> None:
    with pytest.raises(DamageError, match="'object'"):
        Lease.decode(LEASE.encode(), "work", REPOSITORY)
    with pytest.raises(DamageError, match="'repository'"):
        Lease.decode(LEASE.encode(), "home", bytes(16))
    with pytest.raises(DamageError, match="'object'"):
        Roster.decode(ROSTER.encode(ROOT), 3, REPOSITORY, ROOT_PUBLIC)


def test_a_signature_by_another_is_refused() -> None:
    with pytest.raises(DamageError, match="signature"):
        Roster.decode(ROSTER.encode(WRITER), 2, REPOSITORY, ROOT_PUBLIC)
    with pytest.raises(DamageError, match="signature"):
        WriterKey.decode(WRITER_KEY.encode(WRITER), names.WriterName(WRITER_ID, 2), REPOSITORY, ROOT_PUBLIC)
    name = names.DataKeyName("home", b"k" * 16, None)
    with pytest.raises(DamageError, match="signature"):
        DataKeyRecord.decode(DATA_KEY.encode(ROOT), name, REPOSITORY, verify_key)


def test_a_repository_with_another_root_is_a_wrong_key() -> None:
    with pytest.raises(WrongKeyError):
        RepositoryRecord.decode(REPOSITORY_RECORD.encode(ROOT), WRITER_PUBLIC)


def test_a_repository_record_must_be_signed_by_the_root_that_it_names() -> None:
    data = REPOSITORY_RECORD.encode(WRITER)
    for root in (None, ROOT_PUBLIC):
        with pytest.raises(DamageError, match="signature"):
            RepositoryRecord.decode(data, root)
    assert RepositoryRecord.decode(REPOSITORY_RECORD.encode(ROOT), None) == REPOSITORY_RECORD


def test_signed_types_are_never_written_unsigned() -> None:
    with pytest.raises(ValueError, match="signature"):
        encode_record("roster", {}, None)
    with pytest.raises(ValueError, match="signature"):
        encode_record("lease", {}, ROOT)


def test_an_id_on_the_roster_must_be_that_of_the_key() -> None:
    def swap(members: dict[str, object]) -> None:
        members["writers"] = [{"id": "00" * 16, "public": WRITER_PUBLIC.hex(), "label": ""}]

    with pytest.raises(DamageError, match="'id'"):
        DECODERS["roster"][1](remade("roster", swap))


def test_a_key_stands_on_the_roster_once() -> None:
    twice = {"id": WRITER_ID.hex(), "public": WRITER_PUBLIC.hex(), "label": ""}
    with pytest.raises(DamageError, match="'writers'"):
        DECODERS["roster"][1](remade("roster", lambda members: members.update(writers=[twice, twice])))


def test_only_the_first_roster_has_no_previous() -> None:
    first = Roster(REPOSITORY, 1, None, (), ())
    assert Roster.decode(first.encode(ROOT), 1, REPOSITORY, ROOT_PUBLIC) == first
    for sequence, previous in ((1, b"h" * 32), (2, None)):
        wrong = Roster(REPOSITORY, sequence, previous, (), ())
        with pytest.raises(DamageError, match="'previous'"):
            Roster.decode(wrong.encode(ROOT), sequence, REPOSITORY, ROOT_PUBLIC)


def test_what_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(SmsnapError, match="Unicode"):
        Lease(REPOSITORY, "home", 1, "\udc80", TIME_US).encode()
    with pytest.raises(SmsnapError, match="larger"):
        Lease(REPOSITORY, "home", 1, "x" * RECORD_LIMIT, TIME_US).encode()


def test_a_record_beyond_the_limit_is_refused() -> None:
    data = with_checksum(b"smsnapd lease 1\n" + b"x" * RECORD_LIMIT + b"\n")
    with pytest.raises(DamageError, match="larger"):
        Lease.decode(data, "home", REPOSITORY)


@pytest.mark.parametrize(
    ("memory_kib", "iterations", "lanes"),
    [(2_097_153, 1, 1), (64, 65, 1), (1024, 1, 65), (7, 1, 1), (64, 0, 1), (64, 1, 0), (2**62, 1, 1)],
)
def test_a_keyslot_of_hostile_cost_is_refused(memory_kib: int, iterations: int, lanes: int) -> None:
    slot = Keyslot(
        REPOSITORY, "00" * 8, "", bytes(16), memory_kib, iterations, lanes, bytes(12), b"", bytes(48)
    )
    with pytest.raises(DamageError):
        Keyslot.decode(slot.encode(), "00" * 8, REPOSITORY)
