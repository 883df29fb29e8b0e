"""A file for a key: new, readable by its owner alone, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smsnapd.errors import TargetError, UsageError


@contextmanager
def reserved(path: Path) -> Iterator[Callable[[str | bytes], None]]:
    """Make an empty key file (0600) and give a function that writes the key into it, durably.

    A text is a line of its own; bytes are all that is in the file.

    Making it first means that nothing is in the way when there is a key. A file that got no key is
    removed. UsageError if there is such a file already, TargetError if it cannot be written.
    """
    what = f"write the key file {path}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise UsageError(what, "it exists, and no key is overwritten", "name another file") from error
    except OSError as error:
        raise TargetError(what, error.strerror or str(error)) from error
    written = False

    def write(key: str | bytes) -> None:
        nonlocal written
        content = memoryview(key if isinstance(key, bytes) else key.encode("ascii") + b"\n")
        try:
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        except OSError as error:
            hint = "write it later: smsnap key export-write-key FILE"
            raise TargetError(what, error.strerror or str(error), hint) from error
        written = True

    try:
        yield write
    finally:
        os.close(descriptor)
        if not written:
            path.unlink()
