"""What a run need not store again."""

from __future__ import annotations

from itertools import chain

from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.reuse import reusable
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository


def known_chunks(
    repository: Repository,
    volume: str,
    tenure: Tenure,
    committed: dict[int, ChunkRef],
    journal: list[ChunkRef],
) -> ChunkTable:
    """The chunks that need not be stored again: those there are whose data keys' objects exist.

    `committed` are those that a manifest refers to, by number; the `journal` has what a run before made
    durable without committing.
    """
    data_keys = tenure.existing_data_keys({ref.key_id for ref in chain(committed.values(), journal)})
    usable = [ref for ref in journal if ref.key_id in data_keys]
    return ChunkTable(committed, reusable(repository, volume, usable), data_keys)
