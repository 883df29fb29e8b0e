"""Sealed objects that a writer has signed: manifests, garbage lists, tags (FORMAT.md, 7, 12, 16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature

from smsnapd.errors import DamageError
from smsnapd.format.codec import Context, ObjectType, open_sealed, parse_header, seal
from smsnapd.format.keys import WriteKey
from smsnapd.format.record import public_id, public_key

SIGNATURE_SIZE: Final = 64
_DOMAINS: Final = {
    ObjectType.MANIFEST: b"smsnapd v1 manifest\0",
    ObjectType.GARBAGE: b"smsnapd v1 garbage\0",
    ObjectType.TAG: b"smsnapd v1 tag\0",
}

KeyOfWriter = Callable[[bytes], bytes]
"""Gets a writer's id (16 bytes), and gives a key of it (32 bytes) or raises."""


class Signed(NamedTuple):
    """What was in such an object, and the id of the writer who signed it."""

    text: bytes
    writer_id: bytes


def seal_signed(
    kind: ObjectType,
    context: Context,
    text: bytes,
    write_key: WriteKey,
    *,
    level: int = 3,
    salt: bytes | None = None,
) -> bytes:
    """The object of `text`. `level` and `salt` as for `seal`."""
    content = write_key.signing.sign(_signed(kind, context, text)) + text
    key, writer_id = write_key.catalog_key, write_key.writer_id
    return seal(kind, key, writer_id, context, content, level=level, salt=salt)


def open_signed(
    kind: ObjectType, context: Context, data: bytes, catalog_key: KeyOfWriter, verify_key: KeyOfWriter
) -> Signed:
    """The text in `data`; `DamageError` if anything deviates from the format, or the signature is wrong.

    Whether the writer was revoked is for the caller.
    """
    what = f"read {context.object_name}"
    writer_id = parse_header(data, what).key_id
    content = open_sealed(data, kind, catalog_key(writer_id), context)
    signature, text = content[:SIGNATURE_SIZE], content[SIGNATURE_SIZE:]
    public = verify_key(writer_id)
    if public_id(public) != writer_id:
        raise DamageError(what, "its writer's id is not that of the public key")
    try:
        public_key(public, what).verify(signature, _signed(kind, context, text))
    except InvalidSignature as error:
        raise DamageError(what, "its signature is wrong") from error
    return Signed(text, writer_id)


def _signed(kind: ObjectType, context: Context, text: bytes) -> bytes:
    raw = context.object_name.encode()
    return _DOMAINS[kind] + len(raw).to_bytes(2, "little") + raw + text
