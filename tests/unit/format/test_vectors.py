"""The vectors of format 1: what they say is what comes out, and a reader written anew reads them."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, open_sealed, padme
from smsnapd.format.keys import DataKey, Identity, WriteKey, open_data_key, open_write_key, parse_write_key
from smsnapd.format.keyslot import open_keyslot
from smsnapd.format.manifest_object import decode_manifest
from smsnapd.format.names import ManifestName
from smsnapd.format.record import Keyslot, Lease, RepositoryRecord, record_hash
from smsnapd.format.roster import Roster
from smsnapd.format.table import attached_object

DIRECTORY = Path(__file__).parents[2] / "vectors"
VECTORS: dict[str, Any] = json.loads((DIRECTORY / "format-1.json").read_text("utf-8"))
REPOSITORY = bytes.fromhex(VECTORS["repository_id"])
IDENTITY = Identity(bytes.fromhex(VECTORS["identity"]["secret"]))
WRITE_KEY = WriteKey(REPOSITORY, bytes.fromhex(VECTORS["write_key"]["secret"]))
DATA_KEY = DataKey(bytes.fromhex(VECTORS["data_key"]["id"]), bytes.fromhex(VECTORS["data_key"]["secret"]))
SEALED = {name: bytes.fromhex(data) for name, data in VECTORS["sealed"].items()}
CHUNK = VECTORS["chunk"]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_format_1", DIRECTORY / "make_format_1.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def only(names_: dict[str, Any], part: str) -> str:
    (name,) = (name for name in names_ if part in name)
    return name


def verify_key(writer_id: bytes) -> bytes:
    assert writer_id.hex() == VECTORS["write_key"]["writer_id"]
    return bytes.fromhex(VECTORS["write_key"]["verify_key"])


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """RFC 5869, from its text."""
    pseudorandom = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    block, out = b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = hmac.new(pseudorandom, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:size]


def open_anew(data: bytes, key: bytes, name: str) -> bytes:
    """FORMAT.md, section 5, from its text."""
    (length,) = struct.unpack("<Q", data[56:64])
    associated = data[:64] + REPOSITORY
    for text in (VECTORS["volume"].encode(), name.encode()):
        associated += struct.pack("<H", len(text)) + text
    cipher = AESGCM(hkdf(key, data[24:56], b"smsnapd v1 object"))
    plain = cipher.decrypt(bytes(12), data[64 : 64 + length], associated)
    (frame,) = struct.unpack("<Q", plain[:8])
    return zstandard.decompress(plain[8 : 8 + frame])


def test_what_is_fixed_has_not_changed(maker: ModuleType) -> None:
    found = json.loads(json.dumps(maker.fixed_parts()))
    assert found == {name: value for name, value in VECTORS.items() if name != "sealed"}


def test_keys_derived_anew_are_those_of_the_vectors() -> None:
    said, secret = VECTORS["write_key"], WRITE_KEY.secret
    assert hkdf(secret, REPOSITORY, b"smsnapd v1 catalog").hex() == said["catalog_key"]
    for member, label in (
        ("chunk_names", b"smsnapd v1 chunk names\0home"),
        ("catalog_names", b"smsnapd v1 catalog names\0home"),
        ("boundaries", b"smsnapd v1 boundaries\0home"),
    ):
        assert hkdf(secret, REPOSITORY, label).hex() == said[member]
    assert blake3(bytes.fromhex(said["verify_key"])).hexdigest()[:32] == said["writer_id"]
    public = bytes.fromhex(VECTORS["identity"]["recipient_public"])
    assert blake3(public).hexdigest()[:32] == VECTORS["identity"]["recipient_id"]


def test_written_keys_are_read() -> None:
    assert Identity.from_recovery_key(VECTORS["identity"]["recovery_key"]) == IDENTITY
    root = bytes.fromhex(VECTORS["identity"]["root_public"])
    assert parse_write_key(VECTORS["write_key"]["file"]) == (WRITE_KEY, root)


def test_records_are_read() -> None:
    records = {name: text.encode() for name, text in VECTORS["records"].items()}
    repository = RepositoryRecord.decode(records[names.REPOSITORY], IDENTITY.root_public)
    assert names.format_time_us(repository.created_us) == "2026-01-02T03:04:05.000006Z"
    slot = names.parse_keyslot_name(only(records, "slots")) or ""
    keyslot = Keyslot.decode(records[names.keyslot_name(slot)], slot, REPOSITORY)
    assert open_keyslot(keyslot, VECTORS["passphrase"]) == IDENTITY
    lease = Lease.decode(records[names.lease_name("home")], "home", REPOSITORY)
    assert (lease.generation, lease.holder) == (3, "notebook-1")
    second = Roster.decode(records[names.roster_name(2)], 2, REPOSITORY, IDENTITY.root_public)
    assert second.previous == record_hash(records[names.roster_name(1)])
    assert [writer.label for writer in second.writers] == ["notebook-1", "äußerst “gone”"]
    assert second.revoked[0].id == second.writers[1].id


def test_sealed_keys_are_opened() -> None:
    writer, data_key = only(SEALED, "keys/writers/"), only(SEALED, "volumes/home/keys/")
    writer_name, data_key_name = names.parse_writer_name(writer), names.parse_data_key_name(data_key)
    assert writer_name and data_key_name and data_key_name.roster == 2
    assert open_write_key(SEALED[writer], writer_name, REPOSITORY, IDENTITY) == WRITE_KEY
    found = open_data_key(SEALED[data_key], data_key_name, REPOSITORY, IDENTITY, verify_key)
    assert found == DATA_KEY


def test_the_chunk_is_opened_by_the_codec_and_anew() -> None:
    data, content, name = bytes.fromhex(CHUNK["object"]), bytes.fromhex(CHUNK["content"]), CHUNK["name"]
    context = Context(REPOSITORY, "home", name)
    assert open_sealed(data, ObjectType.CHUNK, DATA_KEY.secret, context) == content
    assert open_anew(data, DATA_KEY.secret, name) == content
    parsed = names.parse_chunk_name(name)
    chunk_names = bytes.fromhex(VECTORS["write_key"]["chunk_names"])
    assert parsed == ("home", blake3(content, key=chunk_names).digest(), DATA_KEY.id)


def test_the_manifest_is_read_by_the_package_and_anew(maker: ModuleType) -> None:
    object_name = only(SEALED, "/manifests/")
    data, name = SEALED[object_name], ManifestName.parse(object_name)
    assert name
    read = decode_manifest(data, name, REPOSITORY, lambda _: WRITE_KEY.catalog_key, verify_key)
    assert read == maker.manifest()
    assert attached_object(data, read.chunks[0]) == bytes.fromhex(CHUNK["object"])

    content = open_anew(data, bytes.fromhex(VECTORS["write_key"]["catalog_key"]), object_name)
    raw = object_name.encode()
    signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(raw)) + raw + content[64:]
    Ed25519PublicKey.from_public_bytes(verify_key(data[8:24])).verify(content[:64], signed)
    assert json.loads(content[64:])["sequence"] == 2


def test_padded_lengths() -> None:
    for length, padded in VECTORS["padme"].items():
        assert padme(int(length)) == padded
