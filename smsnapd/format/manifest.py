"""Manifests: the commit records of snapshots, as what they say (FORMAT.md, section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from smsnapd.format.image import Image
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef

Consistency = Literal["live", "read-only", "freeze"]
"""How the volume was held while it was read: not at all, remounted, or frozen (images only)."""


class ParentRef(NamedTuple):
    """The manifest with the sequence before: its snapshot (16 hex digits) and hash (32 bytes)."""

    snapshot: str
    manifest_hash: bytes


class StoodFor(NamedTuple):
    """A manifest that another stands for: its sequence, and the hash of its whole object (32 bytes)."""

    sequence: int
    manifest_hash: bytes


class CopiedFrom(NamedTuple):
    """The manifest that one is a copy of: the id of its repository (16 bytes) and its hash (32 bytes)."""

    repository_id: bytes
    manifest_hash: bytes


class Source(NamedTuple):
    """Where the entries were read: root directory as text, file system UUID or ""."""

    path: str
    filesystem: str


class RosterRef(NamedTuple):
    """The newest roster that a writer knew: its sequence, and the hash of its whole record (32 bytes)."""

    sequence: int
    hash: bytes


class Issue(NamedTuple):
    """A path of the volume that is not in the snapshot as it should be, and why."""

    path: bytes
    reason: str


@dataclass(frozen=True)
class Completeness:
    """How the writer knows that it saw everything, and what it could not store."""

    method: Literal["scan", "events"]
    complete: bool
    incomplete: tuple[Issue, ...] = ()
    vanished: tuple[bytes, ...] = ()
    skipped: tuple[Issue, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """Entries, regular files and bytes of the whole tree; the rest is of this snapshot. Sizes in bytes."""

    entries: int
    files: int
    bytes: int
    stored_bytes: int
    changed: int
    deleted: int


class Owner(NamedTuple):
    """The name of a user or group id, on the machine that wrote the snapshot."""

    id: int
    name: str


@dataclass(frozen=True)
class Owners:
    """Names for the ids in the catalog, sorted by id."""

    users: tuple[Owner, ...] = ()
    groups: tuple[Owner, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a manifest says. Times are in microseconds since the epoch; `parent` is None if it begins at 1.

    `stands_for` is of a replacement or shortcut: the manifests that it can be taken for, sorted.

    A row of `chunks` or `catalog` has in `manifest` "" for an object of its own, this manifest's
    object name if it is attached here, or that of the manifest that it is attached to. `image` is that of
    a block snapshot, whose catalog holds its pieces; None of a tar one.

    `environment` is the name hash (32 bytes) of the row of `chunks` that holds the environment report, None
    if there is none (FORMAT.md, section 14). A row that went makes it None, for whoever reads it.
    """

    repository_id: bytes
    name: ManifestName
    finished_us: int
    parent: ParentRef | None
    program: str
    host: str
    source: Source
    consistency: Consistency
    completeness: Completeness
    statistics: Statistics
    owners: Owners
    chunks: tuple[ChunkRef, ...]
    catalog: tuple[ChunkRef, ...]
    image: Image | None = None
    environment: bytes | None = None
    roster: RosterRef | None = None
    stands_for: tuple[StoodFor, ...] = ()
    copied_from: CopiedFrom | None = None

    @property
    def mode(self) -> Literal["tar", "block"]:
        """What it was read as: a tree of files or a device."""
        return "tar" if self.image is None else "block"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The ids of the data keys that its chunks name."""
        return tuple(dict.fromkeys(ref.key_id for ref in self.chunks))
