"""What `export` and `import` share: places in S3 that are no repository, and passphrases for openssl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smsnapd.cli.session import Session
from smsnapd.daemon import protection
from smsnapd.errors import UsageError
from smsnapd.instance import read_notebook

if TYPE_CHECKING:
    from smsnapd.store.s3_objects import PlainObjects
    from smsnapd.volume.archive.opening import Seal

S3 = "s3://"


class Place(NamedTuple):
    """A bucket that is reached, and a key or prefix in it."""

    objects: PlainObjects
    key: str


@contextmanager
def place_at(session: Session, url: str) -> Iterator[Place]:
    """The place that an s3:// URL names, reached as the configuration reaches the repository's server.

    UsageError if it names none.
    """
    from smsnapd.store.s3 import open_s3

    bucket, _, key = url.removeprefix(S3).partition("/")
    if not bucket:
        raise UsageError("use an s3:// URL", "it has no bucket", "give s3://bucket/key")
    base = f"{S3}{bucket}"
    configured = session.settings
    region = configured.region or protection.region_of(base, read_notebook())
    store = open_s3(replace(configured, url=base, region=region, storage_class="", as_of_s=0.0))
    try:
        yield Place(store.objects(), key)
    finally:
        store.close()


def seal_in(file: str | None, iterations: int = 100_000) -> Seal | None:
    """What opens or makes a seal of `openssl enc`; None without a file. UsageError if that has none."""
    from smsnapd.volume.archive.opening import Seal
    from smsnapd.volume.archive.openssl import passphrase_in

    if file is None:
        return None
    what = f"read the passphrase for openssl from {file}"
    try:
        passphrase = passphrase_in(Path(file).read_bytes())
    except OSError as error:
        raise UsageError(what, error.strerror or str(error)) from error
    if not passphrase:
        raise UsageError(what, "its first line is empty")
    return Seal(passphrase, iterations)
