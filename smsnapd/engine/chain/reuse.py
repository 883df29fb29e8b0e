"""What a run may refer to though no manifest does: nothing on a garbage list (architecture, invariant 2)."""

from __future__ import annotations

from collections.abc import Iterable

from smsnapd.errors import SmsnapError
from smsnapd.format import names
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.garbage import GarbageBelow

GRACE_S = 72 * 3600.0
"""The grace period unless another is configured: from an object's listing as garbage to its deletion."""


def reusable(repository: Repository, volume: str, journal: Iterable[ChunkRef]) -> list[ChunkRef]:
    """The chunks of a journal that may be used: they are there, and neither they nor their data keys are
    on a garbage list. A sweep that began before they were put knows nothing of them, and takes the key away.

    None if there is a list that cannot be read: to store them again costs less than to be wrong.
    """
    by_name = {names.chunk_name(volume, ref.name_hash, ref.key_id): ref for ref in journal}
    if not by_name:
        return []
    # The lists first: a chunk that is swept between the two looks is on a list that was seen, or is gone.
    garbage = GarbageBelow(repository, volume, names.volume_prefix(volume))
    if not garbage.is_all:
        return []
    there = (info.name for info in repository.store.list(names.chunks_prefix(volume)))
    refs = [by_name[name] for name in there if name in by_name and name not in garbage]
    return [ref for ref in refs if names.data_key_name(volume, ref.key_id) not in garbage]


def check_kept(
    repository: Repository,
    volume: str,
    chunks: Iterable[ChunkRef],
    catalog: Iterable[ChunkRef],
    *,
    lasted_s: float,
) -> None:
    """Of a run that lasted so long that a `prune` may have come to what it stored: that must be there still.

    `chunks` are those that no manifest refers to yet, `catalog` the run's segments. SmsnapError if one that
    is an object of its own, or a data key, is gone or on a garbage list; the next run stores it again.
    """
    wanted: set[str] = set()
    for ref in chunks:
        wanted.add(names.data_key_name(volume, ref.key_id))
        if not ref.manifest:
            wanted.add(names.chunk_name(volume, ref.name_hash, ref.key_id))
    for ref in catalog:
        if not ref.manifest:
            wanted.add(names.catalog_name(volume, ref.name_hash, ref.key_id))
    garbage = GarbageBelow(repository, volume, names.volume_prefix(volume))
    lost = {name for name in wanted if name in garbage}
    for prefix in (names.chunks_prefix, names.catalogs_prefix, names.data_keys_prefix):
        wanted.difference_update(info.name for info in repository.store.list(prefix(volume)))
    if lost or wanted:
        count = len(lost | wanted)
        raise SmsnapError(
            f"commit a snapshot of volume {volume}",
            f"after {lasted_s / 3600:.0f} hours, {count} objects that it needs were taken for garbage",
            "run it again: it stores those again, and uses the others",
        )
