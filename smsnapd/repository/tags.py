"""Tags of recovery points: listed, read, put. What has one stays, whatever the policy lets go."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from smsnapd.errors import DamageError, ObjectMissingError
from smsnapd.format import names
from smsnapd.format.codec import parse_header
from smsnapd.format.keys import WriteKey
from smsnapd.format.names import TagName
from smsnapd.format.tag import Tag, decode_tag, encode_tag
from smsnapd.repository.access import Repository


class Tagged(NamedTuple):
    """A recovery point (its snapshot's id) and a tag that it has."""

    snapshot: str
    label: str


def read_tags(repository: Repository, volume: str) -> list[Tagged]:
    """The tags that recovery points have, in the order in which they were given.

    DamageError if one is forged or damaged, for nobody can know what it keeps; WrongKeyError if the key at
    hand does not open one. One of a revoked writer is believed if it keeps something, and else not.
    """
    revoked = {item.id for item in repository.roster.revoked}
    found: dict[Tagged, None] = {}
    for info in repository.store.list(names.tags_prefix(volume)):
        name = TagName.parse(info.name)
        if name is None:
            continue
        try:
            data = repository.store.get(info.name)
        except ObjectMissingError as error:
            raise DamageError(f"read {info.name}", "the object is missing") from error
        tag = decode_tag(data, name, repository.id, repository.catalog_key_of, repository.verify_key_of)
        tagged = Tagged(tag.snapshot, tag.label)
        if tag.is_set:
            found[tagged] = None
        elif parse_header(data).key_id not in revoked:
            found.pop(tagged, None)
    return list(found)


def pinned(repository: Repository, volume: str) -> set[str]:
    """The ids of the snapshots that have a tag."""
    return {tagged.snapshot for tagged in read_tags(repository, volume)}


def put_tag(repository: Repository, volume: str, tagged: Tagged, signer: WriteKey, *, is_set: bool) -> None:
    """Give a recovery point a tag, or take it; it is durable when this returns. By the store's clock.

    One given behind another counts, also within a second of a clock that knows no less.
    """
    prefix = names.tags_prefix(volume)
    newest = max(
        (
            name.time_us
            for name in map(TagName.parse, (i.name for i in repository.store.list(prefix)))
            if name
        ),
        default=0,
    )
    time_us = max(int(repository.store.now() * 1e6), newest + 1)
    name = TagName(volume, time_us, secrets.token_hex(8))
    tag = Tag(repository.id, name, tagged.snapshot, tagged.label, is_set)
    repository.store.put(name.object_name(), encode_tag(tag, signer))
    repository.store.barrier()
