"""The port: what a place for objects must be able to do. Every store passes one contract suite.

Names are the relative ones of FORMAT.md, section 2. All methods raise `StoreError`: transient
or not; `ObjectMissingError` where a name has no object. A store is safe to use from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from smsnapd.errors import DamageError

Buffer = bytes | bytearray | memoryview

OBJECT_LIMIT: Final = 256 * 1024 * 1024
"""Bytes that no object comes near (FORMAT.md, section 5): somebody else's is not read into memory."""


def check_size(size: int, what: str) -> None:
    """Raise `DamageError` ("cannot `what`…") for an object of `size` bytes that is larger than any can be."""
    if size > OBJECT_LIMIT:
        raise DamageError(what, f"it has {size} bytes, more than any object of a repository")


class ObjectInfo(NamedTuple):
    """An object in a listing: its name and its size in bytes."""

    name: str
    size: int


def one_level(listed: Iterable[ObjectInfo], prefix: str) -> tuple[str, ...]:
    """What `children` of `prefix` is where `listed` is all that lies below it."""
    rests = (info.name[len(prefix) :].partition("/") for info in listed)
    return tuple(sorted({f"{prefix}{first}{slash}" for first, slash, _ in rests}))


@dataclass(frozen=True)
class StoreSettings:
    """Which store, and how to reach it; can be sent to another process. Holds no secret.

    `url` is `file:///directory`, `s3://bucket/prefix` or `memory://name`. The rest is for S3:
    `region` and `endpoint_url` may be empty; `path_style` addresses the bucket in the path;
    `checksums` is `when_supported` (boto3's default) or `when_required`, for servers that refuse
    checksum headers; `ca_bundle` a file of certificates; timeouts in seconds.

    All puts together stay at or below `upload_bytes_s` bytes a second, 0 for no limit; "together" are all
    processes with the same `pace_file` ("" for this store alone), which may belong to `pace_owner`. The same
    goes for `download_bytes_s` and gets.

    S3 again: `storage_class` is that of chunks, `sse` ("AES256" or "aws:kms") and `kms_key` are of every put;
    "" leaves it to the bucket. `profile` is one of ~/.aws/config, "" what the SDK takes. `request_payer`
    says that whoever asks pays. With `as_of_s`, seconds since the epoch, the store is what a versioned
    bucket held then, and read only; 0 is now. With `object_lock` ("GOVERNANCE" or "COMPLIANCE") what is put
    is locked against deletion for `object_lock_days`.
    """

    url: str
    region: str = ""
    endpoint_url: str = ""
    path_style: bool = False
    checksums: str = "when_supported"
    ca_bundle: str = ""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 8
    upload_bytes_s: int = 0
    pace_file: str = ""
    pace_owner: int = -1
    download_bytes_s: int = 0
    storage_class: str = ""
    sse: str = ""
    kms_key: str = ""
    request_payer: bool = False
    as_of_s: float = 0.0
    profile: str = ""
    object_lock: str = ""
    object_lock_days: int = 0

    @property
    def lock_s(self) -> float:
        """How long what is put stays locked, in seconds; 0 if it is not locked."""
        return self.object_lock_days * 86400.0 if self.object_lock else 0.0


class Store(Protocol):
    """Objects by name. Nothing is overwritten but by `replace`."""

    @property
    def url(self) -> str:
        """The URL, for messages."""

    def get(self, name: str) -> bytes:
        """The whole object. `DamageError` if it is larger than `OBJECT_LIMIT`."""

    def put(self, name: str, data: Buffer) -> None:
        """Create the object, whole or not at all.

        May be repeated: succeeds if the object exists with the same bytes. Raises
        `ObjectExistsError` if it exists with others. Durable only after `barrier`.
        """

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        """The whole object and a token of its version, for `replace`."""

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        """Put `data` if the object is at `version` still (None: absent); returns the new version.

        Raises `ConflictError` if it is not. This is for the lease alone.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with `prefix`, sorted by name (bytewise)."""

    def children(self, prefix: str) -> tuple[str, ...]:
        """The names one level below `prefix`, "" or ending with "/": of objects, and such as end with "/".

        These stand for the objects below them, one or a million: they cost nothing. Some servers tell of one
        for a while whose objects are gone. Sorted.
        """

    def delete(self, name: str) -> None:
        """Remove the object; nothing happens if there is none.

        `DeniedError` if that is not allowed here, `KeptError` if the store does not let it go yet. A bucket
        with Object Lock lets it go from sight, and keeps the bytes: who minds asks `locked_until` before.
        """

    def locked_until(self, name: str) -> float:
        """Until when the object cannot be deleted for good: seconds since the epoch, by the store's clock.

        0 if it is not locked, infinity if it is until somebody says otherwise. `ObjectMissingError`.
        """

    def lock(self, name: str, until_s: float) -> None:
        """Lock an object that exists until then; a lock that lasts longer stays. May be repeated.

        `DeniedError` if that is not allowed here, another `StoreError` if nothing can be locked here.
        """

    def try_delete(self, below: str = "") -> None:
        """Raise what `delete` would raise if it is not allowed here. Deletes nothing and leaves nothing.

        `below` is "" or ends with "/": rights may be of one volume alone.
        """

    def abandon_uploads(self, below: str, before_s: float) -> int:
        """Drop what puts left that were never finished and began before `before_s`; returns how many.

        Only those of names that begin with `below`, where it shows. `before_s` is by the store's clock.
        """

    def now(self) -> float:
        """The store's own clock, seconds since the epoch: one for all machines that use it.

        It may be of whole seconds, rounded down. Leaves nothing; may be repeated.
        """

    def barrier(self) -> None:
        """Return when all puts that returned before, from any process, are durable."""

    def close(self) -> None:
        """Let go of connections and files. May be called more than once."""
