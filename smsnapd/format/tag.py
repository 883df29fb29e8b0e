"""Tags: names that people give to recovery points, which stay for them (FORMAT.md, section 16).

Each object says one thing once: that a recovery point has a tag, or from then on has it no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from smsnapd.errors import DamageError, UsageError
from smsnapd.format.codec import Context, ObjectType
from smsnapd.format.keys import WriteKey
from smsnapd.format.members import UPGRADE, canonical_json, parse_canonical_json
from smsnapd.format.names import TagName, format_time_us
from smsnapd.format.signed import KeyOfWriter, open_signed, seal_signed

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Tag:
    """What a tag's object says: whether the recovery point `snapshot` (16 hex digits) has the tag `label`."""

    repository_id: bytes
    name: TagName
    snapshot: str
    label: str
    is_set: bool


def check_label(label: str) -> None:
    """Raise `UsageError` unless a tag may be called so."""
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"use the tag {label!r}",
            "the form of the name is wrong",
            "use 1 to 63 letters, digits, dots, hyphens and underscores, a letter or digit first",
        )


def encode_tag(tag: Tag, write_key: WriteKey) -> bytes:
    """The object of a tag: signed and sealed. `UsageError` for a name that it may not have."""
    check_label(tag.label)
    name = tag.name.object_name()
    text = canonical_json(
        {
            "format": 1,
            "must_understand": [],
            "repository": tag.repository_id.hex(),
            "volume": tag.name.volume,
            "id": tag.name.id,
            "time": format_time_us(tag.name.time_us),
            "snapshot": tag.snapshot,
            "tag": tag.label,
            "set": tag.is_set,
        }
    )
    return seal_signed(ObjectType.TAG, Context(tag.repository_id, tag.name.volume, name), text, write_key)


def decode_tag(
    data: bytes, name: TagName, repository_id: bytes, catalog_key: KeyOfWriter, verify_key: KeyOfWriter
) -> Tag:
    """The tag in the object `name`; `DamageError` if anything in it deviates from the format.

    The keys are as for `decode_garbage`. Whether its writer was revoked is for the caller.
    """
    what = f"read {name.object_name()}"
    context = Context(repository_id, name.volume, name.object_name())
    text = open_signed(ObjectType.TAG, context, data, catalog_key, verify_key).text
    members = parse_canonical_json(text, what)
    if members.integer("format") != 1 or members.texts("must_understand"):
        raise DamageError(what, "it is of another version of the format", UPGRADE)
    said = {
        "repository": repository_id.hex(),
        "volume": name.volume,
        "id": name.id,
        "time": format_time_us(name.time_us),
    }
    for member, value in said.items():
        if members.text(member) != value:
            members.refuse(member, "that of the object's name and place")
    label = members.text("tag")
    if not _LABEL.fullmatch(label):
        members.refuse("tag", "a tag's name")
    return Tag(repository_id, name, members.hex("snapshot", 8).hex(), label, members.truth("set"))
