"""Manifests: signed, sealed, with attachments; and every lie in one found."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.codec import Context, ObjectType, open_sealed, parse_header, seal, stored_hash
from smsnapd.format.image import Image
from smsnapd.format.keys import WriteKey
from smsnapd.format.manifest import (
    Completeness,
    Issue,
    Manifest,
    Owner,
    Owners,
    ParentRef,
    Source,
    Statistics,
)
from smsnapd.format.manifest_object import decode_manifest, encode_manifest, manifest_hash
from smsnapd.format.members import canonical_json
from smsnapd.format.names import ManifestName
from smsnapd.format.table import attached_object
from smsnapd.model import ChunkRef

REPOSITORY = bytes(range(16))
WRITE_KEY = WriteKey(REPOSITORY, b"w" * 32)
NAME = ManifestName("home", 5, 2, 1_767_323_045_000_006, "incremental", "0123456789abcdef")
OWN = NAME.object_name()
EARLIER = NAME._replace(sequence=4, snapshot="00" * 8).object_name()
CONTEXT = Context(REPOSITORY, "home", OWN)
ATTACHED = b"A" * 4096, b"B" * 4608
ATTACHMENTS = b"".join(ATTACHED)


def ref(label: int, key: bytes = b"k" * 16, **changes: Any) -> ChunkRef:
    values: dict[str, Any] = {
        "name_hash": blake3(bytes([label])).digest(),
        "key_id": key,
        "length": 1024,
        "stored_length": 4096,
        "stored_hash": blake3(bytes([label, 1])).digest(),
    }
    return ChunkRef(**values | changes)


def attached(label: int, index: int, offset: int, key: bytes = b"k" * 16) -> ChunkRef:
    data = ATTACHED[index]
    return ref(
        label, key, stored_length=len(data), stored_hash=stored_hash(data), manifest=OWN, offset=offset
    )


MANIFEST = Manifest(
    repository_id=REPOSITORY,
    name=NAME,
    finished_us=NAME.time_us + 5,
    parent=ParentRef("fedcba9876543210", b"p" * 32),
    program="smsnapd 0.1.0",
    host="notebook-1",
    source=Source("/home/ec2-user/SageMaker", "uuid"),
    consistency="live",
    completeness=Completeness(
        "scan",
        False,
        (Issue(b"a/\xff", "changed while read"), Issue(b"", "unreadable: I/O error")),
        (b"b\n", "ü\\x".encode()),
        (Issue(b"s", "socket"),),
    ),
    statistics=Statistics(1, 2, 2**63 - 1, 4, 5, 6),
    owners=Owners((Owner(0, "root"), Owner(9, "i"), Owner(10, "x")), (Owner(2**32 - 1, "größe"),)),
    chunks=(ref(1), attached(2, 0, 0), ref(3, b"l" * 16), ref(4, manifest=EARLIER, offset=77)),
    catalog=(ref(5, WRITE_KEY.writer_id, length=77), attached(6, 1, 4096, WRITE_KEY.writer_id)),
)
DATA = encode_manifest(MANIFEST, WRITE_KEY, ATTACHMENTS)


def catalog_key(writer_id: bytes) -> bytes:
    return WRITE_KEY.catalog_key


def verify_key(writer_id: bytes) -> bytes:
    return WRITE_KEY.verify_key


def decode(data: bytes, name: ManifestName = NAME) -> Manifest:
    return decode_manifest(data, name, REPOSITORY, catalog_key, verify_key)


def members() -> dict[str, Any]:
    content = open_sealed(DATA, ObjectType.MANIFEST, WRITE_KEY.catalog_key, CONTEXT)
    loaded: dict[str, Any] = json.loads(content[64:])
    return loaded


def remade(change: Callable[[dict[str, Any]], object], attachments: bytes = ATTACHMENTS) -> bytes:
    """The manifest with changed members, rightly signed and sealed."""
    changed = members()
    change(changed)
    return sealed_text(canonical_json(changed)) + attachments


def sealed_text(text: bytes, signer: WriteKey = WRITE_KEY) -> bytes:
    signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(OWN)) + OWN.encode() + text
    content = signer.signing.sign(signed) + text
    return seal(ObjectType.MANIFEST, WRITE_KEY.catalog_key, WRITE_KEY.writer_id, CONTEXT, content)


def test_a_manifest_round_trips() -> None:
    assert decode(DATA) == MANIFEST
    assert MANIFEST.keys == (b"k" * 16, b"l" * 16)
    assert manifest_hash(DATA) == blake3(DATA).digest()


def test_its_members_are_those_of_the_specification() -> None:
    found = members()
    assert found.pop("completeness") == {
        "method": "scan",
        "complete": False,
        "incomplete": [
            {"path": "a/\\xff", "reason": "changed while read"},
            {"path": ".", "reason": "unreadable: I/O error"},
        ],
        "vanished": ["b\\x0a", "ü\\x5cx"],
        "skipped": [{"path": "s", "reason": "socket"}],
    }
    chunks, catalog = base64.b64decode(found.pop("chunks")), base64.b64decode(found.pop("catalog"))
    assert len(chunks) == 4 * 84 and len(catalog) == 2 * 84
    second = MANIFEST.chunks[1]
    assert chunks[84:168] == struct.pack(
        "<32sHHII32sQ", second.name_hash, 0, 1, 1024, 4096, second.stored_hash, 0
    )
    assert struct.unpack_from("<HH", chunks, 2 * 84 + 32) == (1, 0)
    assert struct.unpack_from("<HH", chunks, 3 * 84 + 32) == (0, 2)
    assert struct.unpack_from("<Q", catalog, 84 + 76) == (4096,)
    assert found == {
        "format": 1,
        "must_understand": [],
        "repository": REPOSITORY.hex(),
        "volume": "home",
        "snapshot": "0123456789abcdef",
        "sequence": 5,
        "generation": 2,
        "kind": "incremental",
        "time": "2026-01-02T03:04:05.000006Z",
        "finished": "2026-01-02T03:04:05.000011Z",
        "mode": "tar",
        "parent": {"snapshot": "fedcba9876543210", "hash": (b"p" * 32).hex()},
        "program": "smsnapd 0.1.0",
        "host": "notebook-1",
        "source": {"path": "/home/ec2-user/SageMaker", "filesystem": "uuid"},
        "consistency": "live",
        "statistics": {
            "entries": 1,
            "files": 2,
            "bytes": 2**63 - 1,
            "stored_bytes": 4,
            "changed": 5,
            "deleted": 6,
        },
        "owners": {"users": {"0": "root", "9": "i", "10": "x"}, "groups": {"4294967295": "größe"}},
        "keys": [(b"k" * 16).hex(), (b"l" * 16).hex()],
        "attached_to": [EARLIER],
    }


def test_the_first_manifest_is_a_full_without_parent() -> None:
    name = NAME._replace(sequence=1, kind="full")
    first = replace(MANIFEST, name=name, parent=None, chunks=(), catalog=())
    assert decode(encode_manifest(first, WRITE_KEY), name) == first


IMAGE = Image(5 * 2**30 + 512, "ext4", "9f0c1a52-8c52-4b8e-9a8b-1e8f3d1c2b00")
FULL = NAME._replace(kind="full")


def test_an_image_is_a_full_that_no_reader_can_take_for_a_tree() -> None:
    block = replace(MANIFEST, name=FULL, chunks=(), catalog=(), consistency="freeze", image=IMAGE)
    data = encode_manifest(block, WRITE_KEY)
    assert decode(data, FULL) == block and block.mode == "block"
    assert [size for _, size in IMAGE.pieces()] == [2**32, 2**30 + 512]


@pytest.mark.parametrize(
    "change",
    [
        {"consistency": "freeze"},
        {"mode": "block"},
        {"must_understand": ["block"]},
        {"mode": "block", "must_understand": ["block"]},
        {"mode": "block", "must_understand": ["block"], "image": IMAGE._asdict()},
    ],
)
def test_an_incremental_is_no_image(change: dict[str, Any]) -> None:
    with pytest.raises(DamageError):
        decode(remade(lambda members: members.update(change)))


@pytest.mark.parametrize("wrong", [{"size": 513}, {"size": 0}, {"piece": 65537}, {"filesystem": "ext9"}])
def test_an_image_is_cut_at_cells_and_made_of_blocks(wrong: dict[str, Any]) -> None:
    image = IMAGE._replace(**wrong)
    block = replace(MANIFEST, name=FULL, chunks=(), catalog=(), image=image)
    with pytest.raises(SmsnapError, match="a reader would refuse it"):
        encode_manifest(block, WRITE_KEY)


def test_attachments_are_found_by_their_rows() -> None:
    for row, stored in ((MANIFEST.chunks[1], ATTACHED[0]), (MANIFEST.catalog[1], ATTACHED[1])):
        assert attached_object(DATA, row) == stored
    for wrong in (replace_ref(MANIFEST.chunks[1], offset=1), replace_ref(MANIFEST.chunks[1], offset=10**6)):
        with pytest.raises(DamageError, match="attachment"):
            attached_object(DATA, wrong)


def replace_ref(row: ChunkRef, **changes: Any) -> ChunkRef:
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    return ChunkRef(**fields | changes)


def test_every_flipped_byte_is_refused() -> None:
    sealed = parse_header(DATA).sealed_size
    positions = [*range(sealed), *range(sealed, len(DATA), 37), len(DATA) - 1]
    for position in positions:
        broken = bytearray(DATA)
        broken[position] ^= 1 << position % 8
        with pytest.raises(DamageError):
            decode(bytes(broken))


@pytest.mark.parametrize(
    "broken",
    [b"", DATA[:63], DATA[:64], DATA[:4096], DATA[:-1], DATA + b"\0", DATA[:-4608], DATA + ATTACHED[1]],
    ids=lambda broken: f"{len(broken)} bytes",  # the bytes themselves are others in every process
)
def test_other_lengths_are_refused(broken: bytes) -> None:
    with pytest.raises(DamageError):
        decode(broken)


@given(st.binary(max_size=300))
def test_random_bytes_are_damage(data: bytes) -> None:
    for candidate in (data, DATA[:64] + data, sealed_text(data), sealed_text(b'{"format":1' + data)):
        with pytest.raises(DamageError):
            decode(candidate)


def paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        return found + [p for key in value for p in paths(value[key], (*path, key))]
    if isinstance(value, list):
        return found + [p for index in range(len(value)) for p in paths(value[index], (*path, index))]
    return found


def put(tree: Any, path: tuple[Any, ...], value: object) -> None:
    for step in path[:-1]:
        tree = tree[step]
    tree[path[-1]] = value


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)
KEYS = st.text("019ab", max_size=12) | st.just("٣")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.data())
def test_a_member_of_any_other_form_is_damage_or_a_manifest(data: st.DataObject) -> None:
    path, value = data.draw(st.sampled_from(paths(members()))), data.draw(VALUES)
    try:
        assert isinstance(decode(remade(lambda found: put(found, path, value))), Manifest)
    except DamageError:
        return


def test_a_missing_member_is_damage() -> None:
    for name in members():
        with pytest.raises(DamageError, match=f"'{name}' is missing"):
            decode(remade(lambda found, name=name: found.pop(name)))  # type: ignore[misc]


def test_an_environment_report_is_a_row_of_the_chunk_table() -> None:
    report = MANIFEST.chunks[2].name_hash
    data = encode_manifest(replace(MANIFEST, environment=report), WRITE_KEY, ATTACHMENTS)
    assert decode(data).environment == report
    assert decode(DATA).environment is None
    assert "environment" not in members()


def test_a_report_whose_chunk_is_not_in_the_table_is_none() -> None:
    data = remade(lambda found: found.update(environment="ab" * 32))
    assert decode(data).environment is None
    with pytest.raises(DamageError, match="32 bytes in lower-case hex"):
        decode(remade(lambda found: found.update(environment="AB" * 32)))


def test_unknown_members_are_ignored() -> None:
    assert decode(remade(lambda found: found.update(later={"x": [1]}))) == MANIFEST


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("format", 2),
        ("must_understand", ["fold"]),
        ("mode", "block"),
        ("repository", "00" * 16),
        ("volume", "work"),
        ("snapshot", "00" * 8),
        ("sequence", 6),
        ("generation", 1),
        ("kind", "full"),
        ("time", "2026-01-02T03:04:05.000007Z"),
        ("finished", "2026-01-02T03:04:05Z"),
        ("parent", None),
        ("parent", {"snapshot": "FEDCBA9876543210", "hash": "00" * 32}),
        ("consistency", "frozen"),
        ("keys", []),
        ("keys", ["6b" * 16, "6b" * 16]),
        ("attached_to", []),
        ("attached_to", [OWN]),
        ("attached_to", [EARLIER.replace("home", "work")]),
        ("attached_to", ["../x"]),
        ("chunks", "AAAA"),
        ("chunks", "*" * 112),
        ("catalog", base64.b64encode(bytes(85)).decode()),
    ],
)
def test_a_wrong_value_is_refused(member: str, value: object) -> None:
    with pytest.raises(DamageError):
        decode(remade(lambda found: found.update({member: value})))


@pytest.mark.parametrize("member", ["format", "must_understand", "mode"])
def test_what_a_later_version_wrote_says_to_upgrade(member: str) -> None:
    value = {"format": 2, "must_understand": ["fold"], "mode": "fold"}[member]
    with pytest.raises(DamageError) as caught:
        decode(remade(lambda found: found.update({member: value})))
    assert "later smsnapd" in caught.value.hint


@pytest.mark.parametrize(
    "row",
    [
        (9, 0, 1024, 4096, 0),
        (0, 3, 1024, 4096, 0),
        (0, 0, 0, 4096, 0),
        (0, 0, 32 * 1024 * 1024 + 512, 4096, 0),
        (0, 0, 1023, 4096, 0),
        (0, 0, 1024, 4095, 0),
        (0, 0, 1024, 4096, 1),
        (0, 1, 1024, 4096, 0),
        (0, 1, 1024, 4096, 8704),
    ],
)
def test_an_impossible_row_is_refused(row: tuple[int, int, int, int, int]) -> None:
    key, place, length, stored_length, offset = row
    packed = struct.pack("<32sHHII32sQ", bytes(32), key, place, length, stored_length, bytes(32), offset)

    def add(found: dict[str, Any]) -> None:
        found["chunks"] = base64.b64encode(base64.b64decode(found["chunks"]) + packed).decode()

    with pytest.raises(DamageError):
        decode(remade(add))


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "..", "a/../b", "a/.", "\\x00", "\\xFF", "a\\b", "a\nb", "\\x41"]
)
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(DamageError, match="not a path"):
        decode(remade(lambda found: found["completeness"].update(vanished=[path])))


@pytest.mark.parametrize("digits", ["01", "-1", "x", "", "٣", "4294967296", "9" * 5000])
def test_an_owner_that_is_no_id_is_refused(digits: str) -> None:
    with pytest.raises(DamageError, match="'users'"):
        decode(remade(lambda found: found["owners"].update(users={digits: "x"})))


def test_json_that_is_not_canonical_is_refused() -> None:
    text = canonical_json(members())
    for broken in (text + b" ", text.replace(b":1,", b":1.0,", 1), b'{"format":1,' + text[1:]):
        assert broken != text
        with pytest.raises(DamageError):
            decode(sealed_text(broken) + ATTACHMENTS)


def test_a_signature_by_another_writer_is_refused() -> None:
    """Whoever has the catalog key, but not the writer's secret, can seal but not sign."""
    other = WriteKey(REPOSITORY, b"o" * 32)
    with pytest.raises(DamageError, match="signature"):
        decode(sealed_text(canonical_json(members()), other) + ATTACHMENTS)
    with pytest.raises(DamageError, match="writer"):
        decode_manifest(DATA, NAME, REPOSITORY, catalog_key, lambda _: other.verify_key)


def test_a_manifest_opens_at_its_place_alone() -> None:
    with pytest.raises(DamageError):
        decode(DATA, NAME._replace(sequence=6))
    with pytest.raises(DamageError):
        decode(DATA, NAME._replace(volume="work"))
    with pytest.raises(DamageError):
        decode_manifest(DATA, NAME, bytes(16), catalog_key, verify_key)


def test_keys_are_asked_for_by_the_writer_of_the_header() -> None:
    class UnknownError(Exception):
        pass

    def unknown(writer_id: bytes) -> bytes:
        assert writer_id == WRITE_KEY.writer_id
        raise UnknownError

    for keys in ((unknown, verify_key), (catalog_key, unknown)):
        with pytest.raises(UnknownError):
            decode_manifest(DATA, NAME, REPOSITORY, *keys)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(MANIFEST, repository_id=bytes(16)),
        replace(MANIFEST, parent=None),
        replace(MANIFEST, name=NAME._replace(sequence=1)),
        replace(MANIFEST, chunks=(*MANIFEST.chunks, ref(9, length=100))),
        replace(MANIFEST, chunks=(*MANIFEST.chunks, ref(9, name_hash=b"short"))),
        replace(MANIFEST, chunks=(*MANIFEST.chunks, ref(9, manifest=EARLIER.replace("home", "work")))),
        replace(MANIFEST, catalog=(*MANIFEST.catalog, ref(9))),
        replace(MANIFEST, catalog=()),
        replace(MANIFEST, statistics=Statistics(-1, 0, 0, 0, 0, 0)),
        replace(MANIFEST, completeness=Completeness("scan", True, vanished=(b"/x",))),
    ],
)
def test_what_no_reader_would_take_is_not_written(wrong: Manifest) -> None:
    with pytest.raises(SmsnapError) as caught:
        encode_manifest(wrong, WRITE_KEY, ATTACHMENTS)
    assert not isinstance(caught.value, DamageError)


def test_names_that_are_no_unicode_do_not_fail_a_backup() -> None:
    odd = replace(MANIFEST, owners=Owners((Owner(1, "caf\udce9"),)), host="\udc80")
    read = decode(encode_manifest(odd, WRITE_KEY, ATTACHMENTS))
    assert read.owners.users == (Owner(1, "caf\\xe9"),)
    assert read.host == "\\x80"


def test_a_large_table_round_trips() -> None:
    keys = [bytes([number]) * 16 for number in range(200)]
    chunks = tuple(
        ref(1, keys[number % 200], name_hash=blake3(number.to_bytes(4, "little")).digest())
        for number in range(20_000)
    )
    large = replace(MANIFEST, chunks=chunks, catalog=())
    assert decode(encode_manifest(large, WRITE_KEY)) == large
