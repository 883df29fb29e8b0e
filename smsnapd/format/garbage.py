"""Garbage lists: what nothing referred to at one moment, signed and sealed (FORMAT.md, section 12).

A list is a permission to delete, later, what it names if nothing refers to that still. Nothing else is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.codec import Context, ObjectType
from smsnapd.format.keys import WriteKey
from smsnapd.format.members import UPGRADE, Members, canonical_json, parse_canonical_json
from smsnapd.format.names import (
    NUMBER_MAX,
    GarbageName,
    ManifestName,
    format_time_us,
    parse_disposable,
    volume_prefix,
)
from smsnapd.format.signed import KeyOfWriter, open_signed, seal_signed

OBJECTS_LIMIT: Final = 65_536
"""Objects that a list names, at most."""


class GarbageHead(NamedTuple):
    """The newest manifest that counted when a list was made, and its hash (32 bytes)."""

    name: ManifestName
    hash: bytes


@dataclass(frozen=True)
class GarbageList:
    """What a garbage list says.

    `generation` is that of the lease that it was made under; `head` is None if the volume had no manifest.
    `objects` are whole object names, sorted, none twice: 1 to `OBJECTS_LIMIT` of them.
    """

    repository_id: bytes
    name: GarbageName
    generation: int
    head: GarbageHead | None
    program: str
    objects: tuple[str, ...]


def encode_garbage(garbage: GarbageList, write_key: WriteKey, *, salt: bytes | None = None) -> bytes:
    """The object of a list: signed and sealed. `salt` as for `seal`.

    Raises `SmsnapError` for a list that a reader would refuse, so that none is ever written.
    """
    name = garbage.name.object_name()
    what = f"write {name}"
    text = canonical_json(_members(garbage))
    try:
        decoded = _parse(text, garbage.name, write_key.repository_id)
    except DamageError as error:
        raise SmsnapError(what, f"a reader would refuse it: {error.why}") from error
    if decoded != garbage:
        raise SmsnapError(what, "a reader would understand something else")
    context = Context(write_key.repository_id, garbage.name.volume, name)
    return seal_signed(ObjectType.GARBAGE, context, text, write_key, salt=salt)


def decode_garbage(
    data: bytes,
    name: GarbageName,
    repository_id: bytes,
    catalog_key: KeyOfWriter,
    verify_key: KeyOfWriter,
) -> GarbageList:
    """The list in the object `name`; `DamageError` if anything in it deviates from the format.

    `catalog_key` and `verify_key` give a writer's catalog key and its public key. Whether its writer was
    revoked is for the caller.
    """
    context = Context(repository_id, name.volume, name.object_name())
    return _parse(
        open_signed(ObjectType.GARBAGE, context, data, catalog_key, verify_key).text, name, repository_id
    )


def _members(garbage: GarbageList) -> dict[str, object]:
    head, prefix = garbage.head, volume_prefix(garbage.name.volume)
    return {
        "format": 1,
        "must_understand": [],
        "repository": garbage.repository_id.hex(),
        "volume": garbage.name.volume,
        "list": garbage.name.id,
        "time": format_time_us(garbage.name.time_us),
        "generation": garbage.generation,
        "head": head and {"object": head.name.object_name().removeprefix(prefix), "hash": head.hash.hex()},
        "program": garbage.program,
        "objects": [name.removeprefix(prefix) for name in garbage.objects],
    }


def _parse(text: bytes, name: GarbageName, repository_id: bytes) -> GarbageList:
    what = f"read {name.object_name()}"
    members = parse_canonical_json(text, what)
    if members.integer("format") != 1:
        raise DamageError(what, "it is of another version of the format", UPGRADE)
    if unknown := members.texts("must_understand"):
        raise DamageError(what, f"it uses {', '.join(unknown)}", UPGRADE)
    _check_name(members, name, repository_id)
    return GarbageList(
        repository_id=repository_id,
        name=name,
        generation=members.integer("generation", 1, NUMBER_MAX),
        head=_head(members, name.volume),
        program=members.text("program"),
        objects=_objects(members, name.volume),
    )


def _check_name(members: Members, name: GarbageName, repository_id: bytes) -> None:
    said = {
        "repository": repository_id.hex(),
        "volume": name.volume,
        "list": name.id,
        "time": format_time_us(name.time_us),
    }
    for member, value in said.items():
        if members.text(member) != value:
            members.refuse(member, "that of the object's name and place")


def _head(members: Members, volume: str) -> GarbageHead | None:
    if members.is_null("head"):
        return None
    head = members.nested("head")
    name = ManifestName.parse(volume_prefix(volume) + head.text("object"))
    if name is None or name.volume != volume:
        members.refuse("head", "null or a manifest of the volume")
    return GarbageHead(name, head.hex("hash", 32))


def _objects(members: Members, volume: str) -> tuple[str, ...]:
    prefix = volume_prefix(volume)
    found = members.texts("objects")
    if not 1 <= len(found) <= OBJECTS_LIMIT:
        members.refuse("objects", f"a list of 1 to {OBJECTS_LIMIT} names")
    if any(one >= other for one, other in pairwise(found)):
        members.refuse("objects", "sorted, with no name twice")
    objects = tuple(prefix + name for name in found)
    if not all(map(parse_disposable, objects)):
        members.refuse("objects", "a list of chunks, catalog segments, data keys and manifests")
    return objects
