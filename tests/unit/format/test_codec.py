"""Sealed objects: what is sealed opens, at its place and under its key, and nothing else does."""

from __future__ import annotations

import math
import struct

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError
from smsnapd.format.codec import (
    CONTENT_LIMITS,
    Context,
    ObjectType,
    Sealer,
    chunk_hash,
    derive,
    open_sealed,
    padme,
    parse_header,
    seal,
    stored_hash,
)

KEY = b"k" * 32
KEY_ID = bytes(range(16))
CONTEXT = Context(b"r" * 16, "home", "volumes/home/chunks/00/x")
CHUNK = ObjectType.CHUNK
SALT = b"s" * 32


def seal_plain(
    plain: bytes, size: int | None = None, type_: ObjectType = CHUNK, context: Context = CONTEXT
) -> bytes:
    """An object with any plaintext, made from the specification with nothing of the codec but HKDF."""
    size = padme(max(4096, 64 + len(plain) + 16)) if size is None else size
    plain = plain.ljust(size - 80, b"\0")
    header = b"SMSN" + bytes([1, type_, 0, 0]) + KEY_ID + SALT + struct.pack("<Q", len(plain) + 16)
    volume, name = context.volume.encode(), context.object_name.encode()
    associated = header + context.repository_id
    for text in (volume, name):
        associated += struct.pack("<H", len(text)) + text
    return header + AESGCM(derive(KEY, SALT, b"smsnapd v1 object")).encrypt(bytes(12), plain, associated)


def plain_of(frame: bytes) -> bytes:
    return struct.pack("<Q", len(frame)) + frame


@given(st.binary(min_size=1, max_size=20_000), st.sampled_from(ObjectType), st.sampled_from([-1, 1, 3]))
def test_contents_round_trip(content: bytes, type_: ObjectType, level: int) -> None:
    data = seal(type_, KEY, KEY_ID, CONTEXT, content, level=level)
    assert open_sealed(data, type_, KEY, CONTEXT) == content
    assert open_sealed(memoryview(data), type_, KEY, CONTEXT, len(content)) == content
    assert len(data) >= 4096 and padme(len(data)) == len(data)


def test_an_object_is_that_of_the_specification() -> None:
    content = b"some content" * 9
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    assert seal(CHUNK, KEY, KEY_ID, CONTEXT, content, salt=SALT) == seal_plain(plain_of(frame))


def test_every_object_has_a_salt_of_its_own() -> None:
    one, two = (seal(CHUNK, KEY, KEY_ID, CONTEXT, b"same") for _ in range(2))
    assert parse_header(one).salt != parse_header(two).salt
    assert one[64:] != two[64:]


def test_a_sealer_reuses_its_buffer() -> None:
    sealer = Sealer()
    sizes = [5, 3_000_000, 1, 700_000, 4_000_000, 512]
    for size in sizes:
        content = blake3(size.to_bytes(4, "little")).digest(size)
        sealed = sealer.seal(CHUNK, KEY, KEY_ID, CONTEXT, memoryview(content), salt=SALT)
        assert sealed.stored_hash == stored_hash(sealed.data) == blake3(bytes(sealed.data)).digest()
        assert bytes(sealed.data) == seal(CHUNK, KEY, KEY_ID, CONTEXT, content, salt=SALT)
        assert open_sealed(sealed.data, CHUNK, KEY, CONTEXT) == content


def test_a_result_may_be_used_until_the_sealer_asks_for_its_memory() -> None:
    used: list[bytes] = []
    sealer = Sealer(release=lambda: used.append(bytes(last.data)) if last else None)
    last, wanted = None, []
    for size in (3_000_000, 10, 4_000_000, 3_000_000):
        content = blake3(size.to_bytes(4, "little")).digest(size)
        wanted.append(seal(CHUNK, KEY, KEY_ID, CONTEXT, content, salt=SALT))
        last = sealer.seal(CHUNK, KEY, KEY_ID, CONTEXT, content, salt=SALT)
    assert used == wanted[:-1]


@pytest.mark.parametrize("type_", ObjectType)
def test_the_largest_content_is_sealed_and_one_byte_more_is_not(type_: ObjectType) -> None:
    limit = CONTENT_LIMITS[type_]
    content = bytes(limit)
    assert open_sealed(seal(type_, KEY, KEY_ID, CONTEXT, content), type_, KEY, CONTEXT) == content
    with pytest.raises(ValueError, match="cannot be sealed"):
        seal(type_, KEY, KEY_ID, CONTEXT, bytes(limit + 1))
    with pytest.raises(ValueError, match="cannot be sealed"):
        seal(type_, KEY, KEY_ID, CONTEXT, b"")


def test_every_flipped_byte_is_refused() -> None:
    data = seal(CHUNK, KEY, KEY_ID, CONTEXT, b"content" * 100)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        with pytest.raises(DamageError):
            open_sealed(broken, CHUNK, KEY, CONTEXT)


def test_every_truncation_and_any_addition_is_refused() -> None:
    data = seal(CHUNK, KEY, KEY_ID, CONTEXT, b"content" * 100)
    for broken in [*(data[:end] for end in range(0, len(data), 61)), data[:-1], data + b"\0", data + data]:
        with pytest.raises(DamageError):
            open_sealed(broken, CHUNK, KEY, CONTEXT)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_random_bytes_are_damage(data: bytes, plain: bytes) -> None:
    frame = b"\x28\xb5\x2f\xfd" + plain
    for candidate in (data, b"SMSN\1\1\0\0" + data, seal_plain(plain), seal_plain(plain_of(frame))):
        try:
            assert len(open_sealed(candidate, CHUNK, KEY, CONTEXT)) >= 1
        except DamageError:
            continue


@pytest.mark.parametrize(
    "other",
    [
        CONTEXT._replace(repository_id=b"R" * 16),
        CONTEXT._replace(volume="work"),
        CONTEXT._replace(object_name="volumes/home/chunks/00/y"),
        CONTEXT._replace(volume="hom", object_name="evolumes/home/chunks/00/x"),
    ],
)
def test_an_object_opens_at_its_place_alone(other: Context) -> None:
    data = seal(CHUNK, KEY, KEY_ID, CONTEXT, b"content")
    with pytest.raises(DamageError, match="under this name"):
        open_sealed(data, CHUNK, KEY, other)


def test_an_object_opens_under_its_key_and_type_alone() -> None:
    data = seal(CHUNK, KEY, KEY_ID, CONTEXT, b"content")
    with pytest.raises(DamageError, match="under this name"):
        open_sealed(data, CHUNK, b"K" * 32, CONTEXT)
    with pytest.raises(DamageError, match="it is a sealed chunk"):
        open_sealed(data, ObjectType.CATALOG, KEY, CONTEXT)


def test_only_a_manifest_may_have_attachments() -> None:
    for type_ in (CHUNK, ObjectType.CATALOG):
        with pytest.raises(DamageError, match="its header says"):
            open_sealed(seal(type_, KEY, KEY_ID, CONTEXT, b"x") + b"more", type_, KEY, CONTEXT)
    data = seal(ObjectType.MANIFEST, KEY, KEY_ID, CONTEXT, b"x")
    assert open_sealed(data + b"more", ObjectType.MANIFEST, KEY, CONTEXT) == b"x"
    assert parse_header(data + b"more").sealed_size == len(data)


def test_another_version_says_to_upgrade() -> None:
    data = bytearray(seal(CHUNK, KEY, KEY_ID, CONTEXT, b"x"))
    data[4] = 2
    with pytest.raises(DamageError) as caught:
        open_sealed(data, CHUNK, KEY, CONTEXT)
    assert "later smsnapd" in caught.value.hint


FRAME = zstandard.ZstdCompressor().compress(b"content" * 50)
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip"
BOMB = zstandard.ZstdCompressor().compress(bytes(CONTENT_LIMITS[CHUNK] + 1))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no frame at all", id="no frame"),
        pytest.param(FRAME + FRAME, id="two frames"),
        pytest.param(FRAME + b"\0", id="trailing zero"),
        pytest.param(FRAME[:-1], id="cut off"),
        pytest.param(SKIPPABLE, id="skippable frame"),
        pytest.param(SKIPPABLE + FRAME, id="skippable frame before"),
        pytest.param(FRAME + SKIPPABLE, id="skippable frame behind"),
        pytest.param(zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 99), id="no size"),
        pytest.param(zstandard.ZstdCompressor().compress(b""), id="empty"),
        pytest.param(zstandard.ZstdCompressor().compress(b"") + b"rest", id="empty with rest"),
        pytest.param(BOMB, id="too large"),
    ],
)
def test_anything_but_one_frame_that_states_its_size_is_refused(frame: bytes) -> None:
    with pytest.raises(DamageError):
        open_sealed(seal_plain(plain_of(frame)), CHUNK, KEY, CONTEXT)


@pytest.mark.parametrize("stated", [99_999, 100_001, 32 * 1024 * 1024, 10])
def test_a_frame_that_states_a_wrong_size_is_refused(stated: int) -> None:
    frame = zstandard.ZstdCompressor().compress(b"a" * 100_000)
    forged = frame.replace((100_000).to_bytes(4, "little"), stated.to_bytes(4, "little"))
    assert forged != frame
    with pytest.raises(DamageError):
        open_sealed(seal_plain(plain_of(forged)), CHUNK, KEY, CONTEXT)


def test_the_limit_is_that_of_the_caller_if_that_is_lower() -> None:
    data = seal(CHUNK, KEY, KEY_ID, CONTEXT, bytes(1000))
    assert open_sealed(data, CHUNK, KEY, CONTEXT, 1000) == bytes(1000)
    with pytest.raises(DamageError, match="999"):
        open_sealed(data, CHUNK, KEY, CONTEXT, 999)
    bomb = seal_plain(plain_of(BOMB))
    with pytest.raises(DamageError):
        open_sealed(bomb, CHUNK, KEY, CONTEXT, 2**40)


def test_padding_is_zeros_within_the_object() -> None:
    assert open_sealed(seal_plain(plain_of(FRAME)), CHUNK, KEY, CONTEXT) == b"content" * 50
    for plain in (
        plain_of(FRAME) + b"\1",
        plain_of(FRAME) + bytes(1000) + b"\1",
        struct.pack("<Q", 4096) + FRAME,
        struct.pack("<Q", 2**64 - 1) + FRAME,
        struct.pack("<Q", len(FRAME) - 1) + FRAME,
    ):
        with pytest.raises(DamageError):
            open_sealed(seal_plain(plain), CHUNK, KEY, CONTEXT)


@pytest.mark.parametrize("size", [1024, 4095, 4097, 4096 + 16])
def test_a_size_that_is_not_padded_is_refused(size: int) -> None:
    with pytest.raises(DamageError, match="header"):
        open_sealed(seal_plain(plain_of(FRAME), size), CHUNK, KEY, CONTEXT)


@settings(max_examples=300)
@given(st.integers(2, 2**40))
def test_padme_is_that_of_the_paper(length: int) -> None:
    exponent = math.floor(math.log2(length)) if length < 2**40 else 40
    bits = exponent - (math.floor(math.log2(exponent)) + 1 if exponent else 0)
    mask = (1 << max(bits, 0)) - 1
    padded = padme(length)
    assert padded == (length + mask) & ~mask
    assert padme(padded) == padded
    assert length <= padded <= length * 1.12 + 1


def test_chunks_are_named_by_a_keyed_hash() -> None:
    assert chunk_hash(KEY, b"content") == blake3(b"content", key=KEY).digest()
    assert chunk_hash(KEY, memoryview(b"content")) != chunk_hash(b"K" * 32, b"content")


@settings(max_examples=300)
@given(st.data())
def test_a_broken_frame_is_damage_or_within_the_limit(data: st.DataObject) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"abcdefgh" * 400 + bytes(300)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(4, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert 1 <= len(open_sealed(seal_plain(plain_of(bytes(frame))), CHUNK, KEY, CONTEXT, 5000)) <= 5000
    except DamageError:
        return
