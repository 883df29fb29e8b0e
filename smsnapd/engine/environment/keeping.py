"""The report in the repository: a chunk of a full, sealed as contents are, that only the identity opens."""

from __future__ import annotations

from smsnapd.engine.chain.storedchunk import put_chunk
from smsnapd.engine.environment.report import Report, decode_report
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.trees.tree import chunk_names_keys
from smsnapd.errors import UsageError
from smsnapd.format.keys import DataKey
from smsnapd.model import BLOCK, ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.repository.manifests import Recorded

LEVEL = 9


def put_report(repository: Repository, volume: str, data_key: DataKey, report: bytes) -> ChunkRef:
    """Store a report as a chunk; the data key's object must be there. The write key suffices."""
    content = report + bytes(-len(report) % BLOCK)
    return put_chunk(repository, volume, data_key, content, level=LEVEL)


def newest_report(
    repository: Repository, history: History, snapshot: SnapshotSummary
) -> tuple[Report, SnapshotSummary]:
    """The report that was newest at a recovery point, and the snapshot that it came with.

    UsageError if there is none; WrongKeyError without the identity; DamageError.
    """
    for name in reversed([name for name in history.names if name.sequence <= snapshot.sequence]):
        if name.kind != "full":
            continue
        recorded = history.record(name)
        if recorded.manifest.environment is not None:
            return _read(repository, recorded), summarise(recorded)
    raise UsageError(
        f"find the environment report of snapshot {snapshot.id}",
        "no full up to it has one",
        "one is made with every full: smsnap backup --full; or now: smsnap environment capture",
    )


def _read(repository: Repository, recorded: Recorded) -> Report:
    manifest, volume = recorded.manifest, recorded.name.volume
    ref = next(ref for ref in manifest.chunks if ref.name_hash == manifest.environment)
    keys = {ref.key_id: bytes(repository.data_key(volume, ref.key_id).secret)}
    opener = ChunkOpener(
        Fetcher(repository.store, volume), repository.id, volume, keys, chunk_names_keys(repository, volume)
    )
    what = f"read the environment report of snapshot {recorded.name.snapshot}"
    return decode_report(opener.open(ref).rstrip(b"\0"), what)
