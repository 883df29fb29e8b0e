"""The last steps to a new snapshot, alike for all who make one: its tables, its manifest, the commit."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from smsnapd import __version__
from smsnapd.engine.chain.catalog import Attachments, CatalogBuilder
from smsnapd.engine.chain.index import Parent, reference
from smsnapd.engine.chain.reuse import check_kept
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.format.image import Image
from smsnapd.format.manifest import Completeness, Consistency, Manifest, Owners, Source, Statistics
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded, commit_manifest

_NOTHING: Final[Mapping[int, bytes]] = MappingProxyType({})


class Numbered(Protocol):
    """Chunks by the numbers that a run gave them."""

    def __getitem__(self, number: int, /) -> ChunkRef:
        """The chunk with a number."""


@dataclass(frozen=True)
class Tables:
    """What a manifest refers to: chunks, by the run's numbers and in the order of rows, and segments.

    `attached` are the sealed objects that go with the manifest, joined.
    """

    by_number: dict[int, ChunkRef]
    segments: tuple[ChunkRef, ...]
    attached: bytes

    @property
    def chunks(self) -> tuple[ChunkRef, ...]:
        """The rows of the manifest's chunk table."""
        return tuple(self.by_number.values())


def tables_of(
    name: ManifestName,
    catalog: CatalogBuilder,
    chunks: Numbered,
    attached: Mapping[int, bytes] = _NOTHING,
) -> Tables:
    """The tables of the manifest `name`, once its catalog is finished and every chunk's place is final.

    `attached` are the sealed bytes of the chunks that are no objects of their own, by number.
    """
    attachments = Attachments(name.object_name())
    # The order matters: chunks and then segments are attached, as the tables list them.
    by_number = {
        number: attachments.add(chunks[number], attached.get(number, b"")) for number in catalog.rows
    }
    segments = tuple(attachments.add(ref, sealed) for ref, sealed in catalog.segments)
    return Tables(by_number, segments, attachments.data())


def new_manifest(
    repository: Repository,
    name: ManifestName,
    head: Parent | None,
    finished_ns: int,
    tables: Tables,
    *,
    source: Source,
    consistency: Consistency,
    completeness: Completeness,
    statistics: Statistics,
    owners: Owners,
    image: Image | None = None,
) -> Manifest:
    """The manifest of a snapshot that is made here and now, behind `head`."""
    return Manifest(
        repository_id=repository.id,
        name=name,
        finished_us=finished_ns // 1000,
        parent=reference(head),
        program=f"smsnapd {__version__}",
        host=socket.gethostname(),
        source=source,
        consistency=consistency,
        completeness=completeness,
        statistics=statistics,
        owners=owners,
        chunks=tables.chunks,
        catalog=tables.segments,
        image=image,
        roster=repository.rosters[-1].ref,
    )


def commit(
    repository: Repository,
    tenure: Tenure,
    manifest: Manifest,
    attached: bytes,
    fresh: Iterable[ChunkRef],
    grace_s: float,
) -> Recorded:
    """Make the recovery point, if all that it needs is there; that is not asked after a short run.

    `fresh` are the chunks that no manifest refers to yet. LockedError if another writer has taken the lease.
    """
    lasted_s = tenure.lasted_s
    if lasted_s > grace_s / 2:
        check_kept(repository, manifest.name.volume, fresh, manifest.catalog, lasted_s=lasted_s)
    return commit_manifest(repository, tenure.lease, manifest, attached)
