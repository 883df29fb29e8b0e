"""What a file is, found out by looking: sealed with `openssl enc`, packed, a tarball, an image."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from smsnapd.errors import UsageError
from smsnapd.volume.archive.compress import MAGIC_SIZE, Unpacked, format_of
from smsnapd.volume.archive.header import is_header
from smsnapd.volume.archive.openssl import HEAD_SIZE, ITERATIONS, MAGIC, Opened, wrong_passphrase
from smsnapd.volume.archive.stream import Ahead, ByteSource, Peekable

Kind = Literal["tar", "image"]

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
        opened = Opened(outer, seal.passphrase, what, _is_known, seal.iterations)
        outer = Peekable(Ahead(opened, "unseal"))
    packing = format_of(outer.peek(MAGIC_SIZE))
    inner = outer
    if packing != "none":
        wrapping.append(packing)
        inner = Peekable(Ahead(Unpacked(outer, packing, what), "unpack"))
    kind = _kind(inner.peek(HEAD_SIZE))
    if kind is None:
        raise wrong_passphrase(what) if sealed and packing == "none" else _unknown(what)
    return Content(inner, kind, tuple(wrapping))


def _is_known(head: bytes) -> bool:
    """Whether what begins so is packed in a way that is known, or what a packed file may hold."""
    return format_of(head) != "none" or _kind(head) is not None


def _kind(head: bytes) -> Kind | None:
    if is_header(head[:_BLOCK]):
        return "tar"
    offset, mark = _EXT_MAGIC
    if head[offset : offset + len(mark)] == mark:
        return "image"
    is_empty_tar = len(head) >= 2 * _BLOCK and not head.strip(b"\0")
    return "tar" if is_empty_tar else None


def _unknown(what: str) -> UsageError:
    return UsageError(
        what,
        "it is neither a tarball nor an image of a file system, plain or packed with gzip, xz, lz4 or zstd",
        "of an `aws s3 sync` copy, give the prefix with a slash at its end",
    )
