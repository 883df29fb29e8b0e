"""Manifests that stand for others and tags, as format 1 wrote them once: every later version reads them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from smsnapd.errors import DamageError
from smsnapd.format.catalog import decode_segment
from smsnapd.format.codec import Context, ObjectType, open_sealed
from smsnapd.format.manifest import StoodFor
from smsnapd.format.manifest_object import decode_manifest
from smsnapd.format.names import ManifestName, TagName
from smsnapd.format.tag import decode_tag
from smsnapd.model import Flag, Kind
from tests.vectors.make_format_1 import REPOSITORY_ID, WRITE_KEY, fixed

DIRECTORY = Path(__file__).parents[2] / "vectors"
VECTORS: dict[str, Any] = json.loads((DIRECTORY / "format-1-standing.json").read_text("utf-8"))
PREFIX = "volumes/home/manifests/"
STANDING = "0000000017-0000000004-20260102T030405000006Z-incremental-0123456789abcdef-0000000006-0000000002"
SHORTCUT = "0000000064-0000000009-20260102T030405000006Z-incremental-0123456789abcdef-0000000002-shortcut"


def keys(writer_id: bytes) -> tuple[bytes, bytes]:
    assert writer_id == WRITE_KEY.writer_id
    return WRITE_KEY.catalog_key, WRITE_KEY.verify_key


def decoded(name: str) -> Any:
    parsed = ManifestName.parse(PREFIX + name)
    assert parsed is not None
    data = bytes.fromhex(VECTORS["manifests"][PREFIX + name])
    return decode_manifest(data, parsed, REPOSITORY_ID, lambda id_: keys(id_)[0], lambda id_: keys(id_)[1])


def test_what_stands_for_others() -> None:
    manifest = decoded(STANDING)
    assert (manifest.name.begins, manifest.name.rewrites, manifest.name.is_replacement) == (6, 2, True)
    assert manifest.stands_for == tuple(StoodFor(n, fixed(f"manifest {n}")) for n in (6, 9, 17))
    shortcut = decoded(SHORTCUT)
    assert (shortcut.name.begins, shortcut.name.is_shortcut, shortcut.name.is_replacement) == (2, True, False)
    assert shortcut.stands_for == (StoodFor(64, fixed("manifest 64")),)


def test_its_members_are_those_of_the_specification() -> None:
    name = PREFIX + STANDING
    data = bytes.fromhex(VECTORS["manifests"][name])
    context = Context(REPOSITORY_ID, "home", name)
    content = open_sealed(data, ObjectType.MANIFEST, WRITE_KEY.catalog_key, context)
    signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(name)) + name.encode() + content[64:]
    Ed25519PublicKey.from_public_bytes(WRITE_KEY.verify_key).verify(content[:64], signed)
    members = json.loads(content[64:])
    assert (members["must_understand"], members["first"], members["rewrites"]) == (["stands-for"], 6, 2)
    assert members["shortcut"] is False
    assert members["stands_for"][1] == {"sequence": 9, "hash": fixed("manifest 9").hex()}


@pytest.mark.parametrize("change", [{"first": 5}, {"rewrites": 3}, {"is_shortcut": True}, {"sequence": 18}])
def test_under_another_name_it_is_nothing(change: dict[str, Any]) -> None:
    parsed = ManifestName.parse(PREFIX + STANDING)
    assert parsed is not None
    data = bytes.fromhex(VECTORS["manifests"][PREFIX + STANDING])
    with pytest.raises(DamageError):
        decode_manifest(
            data,
            parsed._replace(**change),
            REPOSITORY_ID,
            lambda id_: keys(id_)[0],
            lambda id_: keys(id_)[1],
        )


def test_a_tag() -> None:
    ((name, data),) = VECTORS["tag"].items()
    parsed = TagName.parse(name)
    assert parsed is not None
    tag = decode_tag(
        bytes.fromhex(data), parsed, REPOSITORY_ID, lambda id_: keys(id_)[0], lambda id_: keys(id_)[1]
    )
    assert (tag.snapshot, tag.label, tag.is_set) == ("0123456789abcdef", "before-upgrade", True)


def test_a_directory_that_is_anew() -> None:
    ((directory, entries),) = decode_segment(bytes.fromhex(VECTORS["segment"]))
    assert directory == b""
    assert [(entry.name, entry.kind, entry.flags) for entry in entries] == [
        (b"came", Kind.DIRECTORY, Flag.ANEW),
        (b"gone", Kind.TOMBSTONE, 0),
    ]
