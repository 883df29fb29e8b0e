"""What a file is, found out by looking: sealed with `openssl enc`, packed, a tarball, an image."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from smsnapd.errors import UsageError, WrongKeyError
from smsnapd.volume.archive.compress import MAGIC_SIZE, Unpacked, format_of
from smsnapd.volume.archive.header import is_header
from smsnapd.volume.archive.openssl import ITERATIONS, MAGIC, Opened
from smsnapd.volume.archive.stream import Ahead, ByteSource, Peekable

Kind = Literal["tar", "image"]

_LOOK: Final = 4096
_BLOCK: Final = 512
_EXT_MAGIC: Final = (1080, b"\x53\xef")
"""Where a file system of the ext family has its mark (ext4's "Super Block")."""


class Content(NamedTuple):
    """The plain content of a file, what it is, and how it was wrapped, outermost first, for people."""

    source: Peekable
    kind: Kind
    wrapping: tuple[str, ...]


class Seal(NamedTuple):
    """What opens a sealed file: the passphrase, and as many rounds as it was sealed with."""

    passphrase: bytes
    iterations: int = ITERATIONS


def open_content(source: ByteSource, what: str, seal: Seal | None) -> Content:
    """Look at `source` and take its wrapping off; each layer works on a thread of its own.

    UsageError if it is sealed and there is nothing to open it with, or if it is nothing that is known;
    WrongKeyError if what was sealed in it is nothing that is known.
    """
    wrapping: list[str] = []
    outer = Peekable(source)
    sealed = outer.peek(len(MAGIC)) == MAGIC
    if sealed:
        if seal is None:
            hint = "give the file with its passphrase: --openssl-passphrase-file FILE"
            raise UsageError(what, "it is sealed with openssl enc", hint)
        wrapping.append("openssl")
        outer = Peekable(Ahead(Opened(outer, seal.passphrase, what, seal.iterations), "unseal"))
    packing = format_of(outer.peek(MAGIC_SIZE))
    inner = outer
    if packing != "none":
        wrapping.append(packing)
        inner = Peekable(Ahead(Unpacked(outer, packing, what), "unpack"))
    kind = _kind(inner.peek(_LOOK))
    if kind is None:
        raise _unknown(what, sealed and packing == "none")
    return Content(inner, kind, tuple(wrapping))


def _kind(head: bytes) -> Kind | None:
    if is_header(head[:_BLOCK]):
        return "tar"
    offset, mark = _EXT_MAGIC
    if head[offset : offset + len(mark)] == mark:
        return "image"
    is_empty_tar = len(head) >= 2 * _BLOCK and not head.strip(b"\0")
    return "tar" if is_empty_tar else None


def _unknown(what: str, sealed: bool) -> UsageError | WrongKeyError:
    if sealed:
        return WrongKeyError(
            what,
            "the passphrase is wrong: what comes out is neither a tarball nor an image",
            "if it is right, the file was sealed otherwise than with -aes-256-cbc -iter 100000: "
            "give --openssl-iterations, or unseal it first and pipe it in",
        )
    return UsageError(
        what,
        "it is neither a tarball nor an image of a file system, plain or packed with gzip, xz, lz4 or zstd",
        "of an `aws s3 sync` copy, give the prefix with a slash at its end",
    )
