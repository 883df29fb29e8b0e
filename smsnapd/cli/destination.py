"""Where an export goes: a file that has its name once it is whole, standard output, or an object in S3."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from smsnapd.cli import output
from smsnapd.cli.exchange import S3, place_at
from smsnapd.cli.session import Session
from smsnapd.errors import TargetError, UsageError

if TYPE_CHECKING:
    from smsnapd.volume.archive.compress import Format
    from smsnapd.volume.archive.opening import Seal

Write = Callable[[memoryview], object]
_HOLE = 64 * 1024
_ZEROS = memoryview(bytes(_HOLE))
_HINT = "remove it, name another, or say --overwrite"


def opened(
    session: Session, text: str, most_bytes: int, *, overwrite: bool, sparse: bool = False
) -> AbstractContextManager[Write]:
    """A function that writes to FILE, `-` or an s3:// URL, for the length of a `with` that must end well.

    `most_bytes` is about as much as will be written; `sparse`: zeros become holes of a file. UsageError if
    there is something that may not be overwritten, before anything is written.
    """
    if text.startswith(S3):
        return _new_object(session, text, most_bytes, overwrite=overwrite)
    if "://" in text:
        raise UsageError(f"write {text}", "it is no s3:// URL", "use --output FILE, - or s3://bucket/key")
    return _standard_output() if text == "-" else new_file(Path(text), overwrite=overwrite, sparse=sparse)


@contextmanager
def wrapped(write: Write, packing: Format, seal: Seal | None) -> Iterator[Write]:
    """`write` behind compression and a seal of `openssl enc`; at a good end both are finished."""
    from smsnapd.volume.archive.compress import Packing
    from smsnapd.volume.archive.openssl import Sealing

    sealing = Sealing(write, seal.passphrase, seal.iterations) if seal is not None else None
    inner: Write = sealing.write if sealing is not None else write
    if packing == "none":
        yield inner
    else:
        packer = Packing(packing, inner)
        try:
            yield packer.write
            packer.finish()
        finally:
            packer.close()
    if sealing is not None:
        sealing.finish()


@contextmanager
def _new_object(session: Session, url: str, most_bytes: int, *, overwrite: bool) -> Iterator[Write]:
    from smsnapd.store.s3_objects import part_size

    with place_at(session, url) as place:
        what = f"write {url}"
        if not place.key or place.key.endswith("/"):
            raise UsageError(what, "it names no object", "give s3://bucket/key")
        if not overwrite and place.objects.find(place.key) is not None:
            raise UsageError(what, "it exists, and nothing is overwritten", _HINT)
        with place.objects.upload(place.key, {}, part_size(most_bytes), overwrite=overwrite) as upload:
            yield upload.write
            upload.commit()


@contextmanager
def _standard_output() -> Iterator[Write]:
    if sys.stdout.isatty():
        raise UsageError(
            "write the archive to the terminal", "it is no text", "pipe it, or use --output FILE"
        )
    yield output.data
    output.flush()


@contextmanager
def new_file(
    path: Path, *, overwrite: bool = False, sparse: bool = False, durable: bool = True
) -> Iterator[Write]:
    """A function that writes to a file which has its name, 0600, only once it is whole and durable.

    With `sparse` zeros are holes in it. Who writes many sees to their being durable at once.
    """
    what = f"write {path}"
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(what, "it exists, and nothing is overwritten", _HINT)
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent
        )
    except OSError as error:
        raise TargetError(
            what, error.strerror or str(error), "choose a directory that can be written"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield _translated(partial(_write_sparsely, file) if sparse else file.write, what)
            _translated(lambda _: file.truncate(), what)(memoryview(b""))
            if durable:
                os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except OSError as error:
        raise TargetError(what, error.strerror or str(error)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_sparsely(file: BinaryIO, piece: memoryview) -> None:
    """Write a piece at the file's position, as holes what of it is zero."""
    for start in range(0, len(piece), _HOLE):
        part = piece[start : start + _HOLE]
        if part == _ZEROS[: len(part)]:
            file.seek(len(part), os.SEEK_CUR)
        else:
            file.write(part)


def _translated(write: Callable[[memoryview], object], what: str) -> Write:
    def checked(piece: memoryview) -> None:
        try:
            write(piece)
        except OSError as error:
            hint = "make room, or choose another place"
            raise TargetError(what, error.strerror or str(error), hint) from error

    return checked
