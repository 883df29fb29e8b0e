"""Garbage lists: what is written is read, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format import garbage as garbage_module
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, open_sealed, seal
from smsnapd.format.garbage import GarbageHead, GarbageList, decode_garbage, encode_garbage
from smsnapd.format.keys import WriteKey
from smsnapd.format.members import canonical_json, parse_canonical_json
from smsnapd.format.names import GarbageName, ManifestName

REPOSITORY = bytes(range(16))
WRITE_KEY = WriteKey(REPOSITORY, b"w" * 32)
OTHER_KEY = WriteKey(REPOSITORY, b"o" * 32)
NAME = GarbageName("home", 1_767_323_045_000_006, "0123456789abcdef")
OWN = NAME.object_name()
CONTEXT = Context(REPOSITORY, "home", OWN)
HEAD = ManifestName("home", 5, 2, 1_767_323_045_000_006, "incremental", "0123456789abcdef")
OBJECTS = (
    names.catalog_name("home", b"c" * 32, b"w" * 16),
    names.chunk_name("home", b"a" * 32, b"k" * 16),
    names.data_key_name("home", b"k" * 16),
    names.data_key_name("home", b"k" * 16, 3),
    HEAD._replace(sequence=4).object_name(),
)
LIST = GarbageList(REPOSITORY, NAME, 7, GarbageHead(HEAD, b"h" * 32), "smsnapd 0", OBJECTS)
DATA = encode_garbage(LIST, WRITE_KEY)


def verify_key_of(writer_id: bytes) -> bytes:
    for key in (WRITE_KEY, OTHER_KEY):
        if key.writer_id == writer_id:
            return key.verify_key
    raise DamageError("trust a writer", "the root has not granted it")


def read(data: bytes, name: GarbageName = NAME, repository_id: bytes = REPOSITORY) -> GarbageList:
    return decode_garbage(data, name, repository_id, lambda _: WRITE_KEY.catalog_key, verify_key_of)


def forged(context: Context = CONTEXT, key: WriteKey = WRITE_KEY, **changes: Any) -> bytes:
    """A list with other members, well signed and sealed."""
    content = open_sealed(DATA, ObjectType.GARBAGE, WRITE_KEY.catalog_key, CONTEXT)
    members = dict(parse_canonical_json(content[64:], "read")._values)
    for name, value in changes.items():
        if value is None and name != "head":
            del members[name]
        else:
            members[name] = value
    return sealed(canonical_json(members), context, key)


def sealed(text: bytes, context: Context = CONTEXT, key: WriteKey = WRITE_KEY) -> bytes:
    signed = b"smsnapd v1 garbage\0" + len(OWN).to_bytes(2, "little") + OWN.encode() + text
    content = key.signing.sign(signed) + text
    return seal(ObjectType.GARBAGE, WRITE_KEY.catalog_key, WRITE_KEY.writer_id, context, content)


@pytest.mark.parametrize("head", [LIST.head, None])
def test_a_list_is_read_as_it_was_written(head: GarbageHead | None) -> None:
    written = replace(LIST, head=head)
    assert read(encode_garbage(written, WRITE_KEY)) == written


def test_the_name_is_that_of_the_specification() -> None:
    assert OWN == "volumes/home/garbage/20260102T030405000006Z-0123456789abcdef"
    assert GarbageName.parse(OWN) == NAME
    for other in (OWN + "0", OWN[:-1] + "G", OWN.replace("0102T", "0232T"), OWN.replace("garbage", "chunks")):
        assert GarbageName.parse(other) is None
    assert names.parse_disposable(OWN) is None
    assert names.parse_disposable("volumes/home/lease") is None
    assert names.parse_disposable("volumes/home/") is None
    assert names.parse_disposable("repository") is None


def test_additions_are_passed_over() -> None:
    assert read(forged(later="addition")) == LIST


BAD: list[Any] = [
    ("format", 2),
    ("must_understand", ["more"]),
    ("repository", "00" * 16),
    ("volume", "work"),
    ("list", "00" * 8),
    ("time", "2026-01-02T03:04:05.000007Z"),
    ("generation", 0),
    ("head", "none"),
    ("head", {"object": "manifests/x", "hash": "00" * 32}),
    ("head", {"object": HEAD.object_name(), "hash": "00" * 32}),
    ("head", {"object": HEAD.object_name().removeprefix("volumes/home/"), "hash": "00" * 31}),
    ("program", None),
    ("objects", None),
    ("objects", []),
    ("objects", [7]),
    ("objects", ["lease"]),
    ("objects", ["../home/lease"]),
    ("objects", ["garbage/20260102T030405000006Z-0123456789abcdef"]),
    ("objects", ["chunks/../../../repository"]),
    ("objects", ["keys/" + "00" * 16, "keys/" + "00" * 16]),
    ("objects", ["keys/" + "11" * 16, "keys/" + "00" * 16]),
    ("objects", [OBJECTS[1]]),
]


@pytest.mark.parametrize(("member", "value"), BAD)
def test_every_member_is_held_to_its_form(member: str, value: Any) -> None:
    with pytest.raises(DamageError):
        read(forged(**{member: value}))


def test_there_are_not_too_many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage_module, "OBJECTS_LIMIT", len(OBJECTS) - 1)
    with pytest.raises(DamageError, match="1 to"):
        read(DATA)
    with pytest.raises(SmsnapError, match="refuse"):
        encode_garbage(LIST, WRITE_KEY)


@pytest.mark.parametrize("objects", [(), (OBJECTS[1], OBJECTS[0]), ("volumes/home/lease",)])
def test_what_no_reader_would_take_is_not_written(objects: tuple[str, ...]) -> None:
    with pytest.raises(SmsnapError, match="refuse"):
        encode_garbage(replace(LIST, objects=objects), WRITE_KEY)


def test_it_is_bound_to_its_place_and_its_writer() -> None:
    with pytest.raises(DamageError):
        read(DATA, NAME._replace(id="00" * 8))
    with pytest.raises(DamageError):
        read(DATA, repository_id=b"r" * 16)
    moved = NAME._replace(time_us=NAME.time_us - 10**12)
    context = Context(REPOSITORY, "home", moved.object_name())
    with pytest.raises(DamageError, match="signature"):
        read(forged(context), moved)
    with pytest.raises(DamageError, match="signature"):
        read(forged(key=OTHER_KEY))
    stranger = WriteKey(REPOSITORY, b"s" * 32)
    with pytest.raises(DamageError, match="granted"):
        read(seal(ObjectType.GARBAGE, WRITE_KEY.catalog_key, stranger.writer_id, CONTEXT, b"x" * 99))
    manifest = seal(ObjectType.MANIFEST, WRITE_KEY.catalog_key, WRITE_KEY.writer_id, CONTEXT, b"x" * 99)
    with pytest.raises(DamageError, match="sealed manifest"):
        read(manifest)


def test_text_that_is_not_canonical_is_refused() -> None:
    content = open_sealed(DATA, ObjectType.GARBAGE, WRITE_KEY.catalog_key, CONTEXT)
    for text in (content[64:] + b" ", b"", b"[]", b'{"a":1,"a":2}', b"\xff"):
        with pytest.raises(DamageError):
            read(sealed(text))


@settings(max_examples=300)
@given(st.data())
def test_a_broken_object_is_damage(data: st.DataObject) -> None:
    broken = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken))) :]
    assume(broken != DATA)
    with pytest.raises(DamageError):
        read(bytes(broken))


TEXT = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([name for name, _ in BAD]), TEXT)
def test_any_member_is_a_right_one_or_damage(member: str, value: Any) -> None:
    """Signed by somebody who is trusted, and wrong all the same."""
    try:
        found = read(forged(**{member: value}))
    except DamageError:
        return
    assert encode_garbage(found, WRITE_KEY)
