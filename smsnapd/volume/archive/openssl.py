"""What `openssl enc -aes-256-cbc -iter N` of 1.1.1 and later writes and reads (openssl-enc(1)).

`Salted__`, 8 bytes of salt, and AES-256-CBC with PKCS#7 padding; key and initialisation vector are
PBKDF2-HMAC-SHA256 of the passphrase. It has no authentication: a wrong passphrase shows only in what comes
out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.volume.archive.stream import Peekable

MAGIC: Final = b"Salted__"
ITERATIONS: Final = 100_000
"""Those of the article's commands."""

HEAD_SIZE: Final = 4096
"""Bytes by which what was sealed is known."""

_SALT_SIZE: Final = 8
_KEY_SIZE: Final = 32
_BLOCK: Final = 16


def _cipher(passphrase: bytes, salt: bytes, iterations: int) -> Cipher[CBC]:
    made = hashlib.pbkdf2_hmac("sha256", passphrase, salt, iterations, _KEY_SIZE + _BLOCK)
    return Cipher(AES(made[:_KEY_SIZE]), CBC(made[_KEY_SIZE:]))


class Sealing:
    """Takes plain bytes, hands sealed ones to `write`. `finish` ends it."""

    def __init__(
        self,
        write: Callable[[memoryview], object],
        passphrase: bytes,
        iterations: int = ITERATIONS,
        salt: bytes | None = None,
    ) -> None:
        """`salt`, of 8 bytes, is random if None."""
        salt = os.urandom(_SALT_SIZE) if salt is None else salt
        self._write = write
        self._encryptor = _cipher(passphrase, salt, iterations).encryptor()
        self._size = 0
        write(memoryview(MAGIC + salt))

    def write(self, piece: memoryview) -> None:
        """Seal a piece."""
        self._size += len(piece)
        self._write(memoryview(self._encryptor.update(piece)))

    def finish(self) -> None:
        """Write the padding."""
        count = _BLOCK - self._size % _BLOCK
        self._write(memoryview(self._encryptor.update(bytes([count]) * count) + self._encryptor.finalize()))


class Opened:
    """The plain bytes of a sealed source; what it holds is not known to be right (see above).

    At an end that is none, `DamageError`: the source was cut off; or `WrongKeyError`, if what came out was
    not `is_known`, which is asked of its first `HEAD_SIZE` bytes.
    """

    def __init__(
        self,
        source: Peekable,
        passphrase: bytes,
        what: str,
        is_known: Callable[[bytes], bool],
        iterations: int = ITERATIONS,
    ) -> None:
        """`source` begins with `MAGIC`."""
        salt = source.peek(len(MAGIC) + _SALT_SIZE)[len(MAGIC) :]
        source.read(len(MAGIC) + _SALT_SIZE)
        self._source = source
        self._what = what
        self._decryptor = _cipher(passphrase, salt.ljust(_SALT_SIZE, b"\0"), iterations).decryptor()
        self._is_known = is_known
        self._head = b""
        self._sealed = 0
        self._last = b""  # the newest block, which may be the padding
        self._ended = False

    def read(self, size: int) -> bytes:
        """At most about `size` bytes; b"" only at the end."""
        while not self._ended:
            piece = self._source.read(max(size, _BLOCK))
            self._sealed += len(piece)
            plain = self._last + self._decryptor.update(piece)
            if len(self._head) < HEAD_SIZE:
                self._head += plain[: HEAD_SIZE - len(self._head)]
            if not piece:
                self._ended = True
                return self._without_padding(plain)
            self._last = plain[-_BLOCK:]
            if len(plain) > _BLOCK:
                return plain[:-_BLOCK]
        return b""

    def _without_padding(self, plain: bytes) -> bytes:
        count = plain[-1] if plain else 0
        if self._sealed % _BLOCK or not 1 <= count <= _BLOCK or plain[-count:] != bytes([count]) * count:
            if not self._is_known(self._head):
                raise wrong_passphrase(self._what)
            raise DamageError(
                self._what,
                "the sealed stream has no proper end: it was cut off or damaged",
                "compare its size with the original's; nothing was kept of it",
            )
        return plain[:-count]

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def wrong_passphrase(what: str) -> WrongKeyError:
    """The error for sealed bytes in which there is nothing that is known; `what` was being done."""
    return WrongKeyError(
        what,
        "the passphrase is wrong: what comes out is neither a tarball nor an image",
        "if it is right, the file was sealed otherwise than with -aes-256-cbc -iter 100000: "
        "give --openssl-iterations, or unseal it first and pipe it in",
    )


def passphrase_in(text: bytes) -> bytes:
    """The passphrase in a file as `openssl … -pass file:` reads it: its first line, without the line feed."""
    return text.partition(b"\n")[0]
