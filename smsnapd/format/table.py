"""Tables of chunks and catalog segments in a manifest (FORMAT.md, section 7), and attachments."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from blake3 import blake3

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.codec import SEALED_MINIMUM, parse_header
from smsnapd.model import BLOCK, ChunkRef

_ROW: Final = struct.Struct("<32sHHII32sQ")
_NUMBERS: Final = 1 << 16
_PLACES_KEPT: Final = 2  # 0: an object of its own; 1: attached to this manifest


def number_keys(chunks: Iterable[ChunkRef], what: str) -> dict[bytes, int]:
    """The data keys that `chunks` name, each with its number, in order of first use."""
    keys = {key_id: number for number, key_id in enumerate(dict.fromkeys(ref.key_id for ref in chunks))}
    if len(keys) > _NUMBERS:
        raise SmsnapError(what, "its chunks name too many data keys", "take a full with --reread")
    return keys


def number_places(own: str, refs: Iterable[ChunkRef], what: str) -> dict[str, int]:
    """The places that `refs` lie at, each with its number; those from 2 on are other manifests."""
    others = dict.fromkeys(ref.manifest for ref in refs)
    others.pop("", None)
    others.pop(own, None)
    if len(others) > _NUMBERS - _PLACES_KEPT:
        raise SmsnapError(what, "its chunks are attached to too many manifests", "take a full with --reread")
    return {"": 0, own: 1} | {name: number for number, name in enumerate(others, _PLACES_KEPT)}


def encode_table(refs: Iterable[ChunkRef], keys: Mapping[bytes, int], places: Mapping[str, int]) -> str:
    """The table in base64; `keys` and `places` number the ids and manifests that `refs` name."""
    pack = _ROW.pack
    rows = [
        pack(
            ref.name_hash,
            keys[ref.key_id],
            places[ref.manifest],
            ref.length,
            ref.stored_length,
            ref.stored_hash,
            ref.offset,
        )
        for ref in refs
    ]
    return binascii.b2a_base64(b"".join(rows), newline=False).decode("ascii")


def decode_table(
    text: str, keys: Sequence[bytes], places: Sequence[str], length_limit: int, what: str
) -> tuple[ChunkRef, ...]:
    """The rows of a table; `DamageError` for one that names no key or place, or has impossible lengths."""
    try:
        table = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise DamageError(what, "a table in it is not base64") from error
    if len(table) % _ROW.size:
        raise DamageError(what, "a table in it ends within a row")
    refs: list[ChunkRef] = []
    for name_hash, key, place, length, stored_length, stored_hash, offset in _ROW.iter_unpack(table):
        if (
            key >= len(keys)
            or place >= len(places)
            or not 0 < length <= length_limit
            or stored_length < SEALED_MINIMUM
            or (offset and not place)
        ):
            raise DamageError(what, f"row {len(refs)} of a table in it is impossible")
        refs.append(ChunkRef(name_hash, keys[key], length, stored_length, stored_hash, places[place], offset))
    return tuple(refs)


def check_blocks(chunks: Iterable[ChunkRef], what: str) -> None:
    """Raise `DamageError` if the content of one of `chunks` is not whole blocks."""
    if any(ref.length % BLOCK for ref in chunks):
        raise DamageError(what, "a chunk in it is not made of whole blocks")


def check_attachments(refs: Iterable[ChunkRef], attachments: memoryview, what: str) -> None:
    """Raise `DamageError` unless `refs`, all attached, are exactly `attachments`: no gap, no overlap."""
    end = 0
    for ref in sorted(refs, key=lambda ref: ref.offset):
        stored = attachments[end : end + ref.stored_length]
        if ref.offset != end or len(stored) != ref.stored_length:
            raise DamageError(what, "its attachments do not lie where it says")
        if blake3(stored).digest() != ref.stored_hash:
            raise DamageError(what, f"the attachment at {end} is not what was stored")
        end += ref.stored_length
    if end != len(attachments):
        raise DamageError(what, f"{len(attachments) - end} bytes behind its attachments belong to nothing")


def attached_object(manifest: bytes, ref: ChunkRef) -> memoryview:
    """The sealed object that `ref` says is attached, in the bytes of the object `ref.manifest`.

    Raises `DamageError` if it is not there with the hash that `ref` states.
    """
    what = f"read an attachment of {ref.manifest}"
    start = parse_header(manifest, what).sealed_size + ref.offset
    stored = memoryview(manifest)[start : start + ref.stored_length]
    if len(stored) != ref.stored_length or blake3(stored).digest() != ref.stored_hash:
        raise DamageError(what, f"the attachment at {ref.offset} is not what was stored")
    return stored
