"""Sealed objects: compressed, padded, encrypted; and opened again (FORMAT.md, section 5)."""

from __future__ import annotations

import enum
import secrets
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from smsnapd.errors import DamageError
from smsnapd.format.members import UPGRADE

Buffer = bytes | bytearray | memoryview


class ObjectType(enum.IntEnum):
    """What a sealed object holds: the number in its header."""

    CHUNK = 1
    CATALOG = 2
    MANIFEST = 3
    GARBAGE = 4
    TAG = 5


CONTENT_LIMITS: Final = {
    ObjectType.CHUNK: 32 * 1024 * 1024,
    ObjectType.CATALOG: 64 * 1024 * 1024,
    ObjectType.MANIFEST: 64 * 1024 * 1024,
    ObjectType.GARBAGE: 16 * 1024 * 1024,
    ObjectType.TAG: 64 * 1024,
}
"""Bytes of the largest content before compression."""

SEALED_MINIMUM: Final = 4096
"""Bytes of the smallest sealed object."""

HEADER_SIZE: Final = 64
SALT_SIZE: Final = 32
KEY_SIZE: Final = 32

_MAGIC: Final = b"SMSN"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBH16s32sQ")
_LENGTH_SIZE: Final = 8
_TAG_SIZE: Final = 16
_NONCE: Final = bytes(12)  # each object has a key of its own, which seals once
_FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1; a skippable frame has another


class Context(NamedTuple):
    """Where an object belongs, bound to it: repository id (16 bytes), volume, full object name."""

    repository_id: bytes
    volume: str
    object_name: str


class Header(NamedTuple):
    """The header of a sealed object; `length` is that of ciphertext and tag, in bytes."""

    version: int
    type: ObjectType
    key_id: bytes
    salt: bytes
    length: int

    @property
    def sealed_size(self) -> int:
        """Bytes of the sealed object; behind it come attachments."""
        return HEADER_SIZE + self.length


class Sealed(NamedTuple):
    """A sealed object, and the BLAKE3 (32 bytes) of it. `data` is the sealer's, until it seals again."""

    data: memoryview
    stored_hash: bytes


def padme(length: int) -> int:
    """The Padmé length for `length`, at least 2: rounded up so that it tells little."""
    exponent = length.bit_length() - 1
    step = 1 << (exponent - exponent.bit_length())
    return -(-length // step) * step


def chunk_hash(key: bytes, content: Buffer, threads: int = 1) -> bytes:
    """The keyed hash (32 bytes) that names a chunk or a catalog segment; `key` is 32 bytes.

    For one that has other cores at rest, on several `threads`.
    """
    return blake3(content, key=key, max_threads=threads).digest()


def stored_hash(data: Buffer) -> bytes:
    """The BLAKE3 (32 bytes) of stored bytes."""
    return blake3(data).digest()


def derive(secret: bytes, salt: bytes, info: bytes, size: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=size, salt=salt, info=info).derive(secret)


@contextmanager
def _object_key(key: Buffer, salt: bytes) -> Iterator[bytearray]:
    """The key of one object, for the length of a `with`: of a chunk's nothing stays in memory."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}: one that was wiped has none")
    made = bytearray(KEY_SIZE)
    try:
        HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=b"smsnapd v1 object").derive_into(key, made)
        yield made
    finally:
        made[:] = bytes(KEY_SIZE)


def _associated(header: bytes, context: Context) -> bytes:
    volume, name = context.volume.encode(), context.object_name.encode()
    lengths = len(volume).to_bytes(2, "little"), len(name).to_bytes(2, "little")
    return header + context.repository_id + lengths[0] + volume + lengths[1] + name


def _memory(size: int) -> memoryview:
    return memoryview(bytearray(size))


class Sealer:
    """Seals objects one after the other, with one compression context and one buffer.

    For one thread. Its memory is that of the largest object that it has sealed.
    """

    def __init__(
        self,
        level: int = 1,
        memory: Callable[[int], memoryview] = _memory,
        release: Callable[[], None] | None = None,
    ) -> None:
        """`memory` gives so many bytes for results; its own are a bytearray's.

        `release` is called when the memory of the last result is needed: until then it may be used.
        """
        self._memory = memory
        self._release = release
        self._compressor = zstandard.ZstdCompressor(
            level=level, write_checksum=False, write_content_size=True, write_dict_id=False
        )
        self._buffer = memoryview(b"")

    def seal(
        self,
        type_: ObjectType,
        key: Buffer,
        key_id: bytes,
        context: Context,
        content: Buffer,
        *,
        salt: bytes | None = None,
    ) -> Sealed:
        """Seal `content` under `key` (a data key or a catalog key, 32 bytes), whose id is `key_id`.

        The content is 1 byte to the limit of its type, contiguous. `salt` (32 bytes) is random if None;
        one that is handed in must never have been used with this key. The result is valid until
        the next call.
        """
        if not 1 <= memoryview(content).nbytes <= CONTENT_LIMITS[type_]:
            raise ValueError(f"a content of {memoryview(content).nbytes} bytes cannot be sealed")
        salt = secrets.token_bytes(SALT_SIZE) if salt is None else salt
        frame = self._compressor.compress(content)
        plain_size = _LENGTH_SIZE + len(frame)
        size = padme(max(SEALED_MINIMUM, HEADER_SIZE + plain_size + _TAG_SIZE))
        header = _HEADER.pack(_MAGIC, _VERSION, type_, 0, key_id, salt, size - HEADER_SIZE)
        if self._release is not None:
            self._release()
        target = self._room(size)
        target[:HEADER_SIZE] = header
        padding = size - HEADER_SIZE - plain_size - _TAG_SIZE
        with _object_key(key, salt) as object_key:
            _encrypt(object_key, _associated(header, context), frame, padding, target)
        return Sealed(target, blake3(target).digest())

    def _room(self, size: int) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = memoryview(b"")  # let go of the old one first
            self._buffer = self._memory(size + size // 8)
        return self._buffer[:size]


def _encrypt(key: bytearray, associated: bytes, frame: bytes, padding: int, target: memoryview) -> None:
    """Write ciphertext and tag behind the header, in pieces: so the plaintext is joined nowhere.

    `update_into` asks for 15 bytes more than it writes: the tag's place has them.
    """
    encryptor = Cipher(AES(key), GCM(_NONCE)).encryptor()
    encryptor.authenticate_additional_data(associated)
    position = HEADER_SIZE
    for piece in (len(frame).to_bytes(_LENGTH_SIZE, "little"), frame, bytes(padding)):
        position += encryptor.update_into(piece, target[position:])
    encryptor.finalize()
    target[position:] = encryptor.tag


def seal(
    type_: ObjectType,
    key: Buffer,
    key_id: bytes,
    context: Context,
    content: Buffer,
    *,
    level: int = 1,
    salt: bytes | None = None,
) -> bytes:
    """Seal one object; arguments as for `Sealer.seal`."""
    return bytes(Sealer(level).seal(type_, key, key_id, context, content, salt=salt).data)


def parse_header(data: Buffer, what: str = "read a sealed object") -> Header:
    """The header of a sealed object, checked by itself. `what` is the operation, for messages."""
    if len(data) < HEADER_SIZE:
        raise DamageError(what, f"it has only {len(data)} bytes")
    magic, version, number, zero, key_id, salt, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise DamageError(what, "it does not begin as a sealed object does")
    if version != _VERSION:
        raise DamageError(what, f"it is of version {version} of the format", UPGRADE)
    size = HEADER_SIZE + length
    if number not in CONTENT_LIMITS or zero or size < SEALED_MINIMUM or padme(size) != size:
        raise DamageError(what, "its header is not one that this format has")
    return Header(version, ObjectType(number), key_id, salt, length)


def open_sealed(
    data: Buffer, type_: ObjectType, key: Buffer, context: Context, limit: int | None = None
) -> bytes:
    """The content of a sealed object; `DamageError` if it is not what was sealed at this place.

    `limit` is the most bytes that the content may have, at most and by default those of the type.
    """
    what = f"open {context.object_name}"
    header = parse_header(data, what)
    if header.type is not type_:
        raise DamageError(what, f"it is a sealed {header.type.name.lower()}")
    surplus = len(data) - header.sealed_size
    if surplus < 0 or (surplus and type_ is not ObjectType.MANIFEST):
        raise DamageError(what, f"it has {len(data)} bytes, but its header says {header.sealed_size}")
    view = memoryview(data)
    associated = _associated(bytes(view[:HEADER_SIZE]), context)
    sealed = view[HEADER_SIZE : header.sealed_size]
    try:
        with _object_key(key, header.salt) as object_key:
            plain = AESGCM(object_key).decrypt(_NONCE, sealed, associated)
    except InvalidTag as error:
        raise DamageError(what, "it is not what was sealed under this name") from error
    highest = CONTENT_LIMITS[type_]
    return _decompress(_frame(plain, what), highest if limit is None else min(limit, highest), what)


def _frame(plain: bytes, what: str) -> memoryview:
    """The zstd frame in the plaintext, if only zeros follow it."""
    end = _LENGTH_SIZE + int.from_bytes(plain[:_LENGTH_SIZE], "little")
    if end > len(plain) or not plain.endswith(bytes(len(plain) - end)):
        raise DamageError(what, "its padding is wrong")
    return memoryview(plain)[_LENGTH_SIZE:end]


def _decompress(frame: memoryview, limit: int, what: str) -> bytes:
    """The content of one zstd frame, whose header must state a size from 1 to `limit`.

    `decompress` allocates what the header states and writes no byte more; it refuses a frame that is
    cut off, and bytes or frames behind it. Frames that state 0 bytes it would not look into.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if bytes(frame[:4]) != _FRAME_MAGIC or not 1 <= size <= limit:
            raise DamageError(what, f"its content does not state a size from 1 to {limit} bytes")
        return zstandard.ZstdDecompressor().decompress(
            frame, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise DamageError(what, "its content cannot be decompressed") from error
