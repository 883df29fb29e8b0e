"""What is garbage and what becomes of it: decided from names alone. Pure.

Sets hold 60-bit fingerprints: 10⁶ chunks in under 100 MB. Two of one fingerprint are taken for one: then
garbage is kept, and what is needed never taken for garbage.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

from smsnapd.format.garbage import GarbageList
from smsnapd.format.manifest import Manifest
from smsnapd.format.names import CatalogName, ChunkName, DataKeyName, Disposable, ManifestName

LINGER_S: Final = 86400.0
"""For how long a list stays, at least, when what it names is gone: a writer must not make that anew (a
catalog segment is named by its content alone) while a sweep that was held up may be about to delete it."""

_60_BITS: Final = (1 << 60) - 1


class Standing(enum.Enum):
    """How a garbage list stands."""

    WAITING = "the grace period is not over"
    RIPE = "what it names may be deleted"
    SPENT = "what it names may be deleted, and then the list itself"
    VOID = "it stands for nothing: its writer was revoked, or its time is one that no clock should have given"


def standing(garbage: GarbageList, *, is_revoked: bool, now_s: float, grace_s: float) -> Standing:
    """How a list stands at `now_s` by the store's clock; only the list's own time counts."""
    age_s = now_s - garbage.name.time_us / 1e6
    if is_revoked or age_s < -grace_s:
        return Standing.VOID
    if age_s > grace_s + max(grace_s, LINGER_S):
        return Standing.SPENT
    return Standing.RIPE if age_s > grace_s else Standing.WAITING


class Prints:
    """A set of object names."""

    def __init__(self) -> None:
        self._prints: set[int] = set()

    def add(self, names: Iterable[str]) -> None:
        """Put these in."""
        self._prints.update(map(_print_of, names))

    def __contains__(self, name: str) -> bool:
        return _print_of(name) in self._prints


class Needs:
    """What the recovery points of a volume refer to."""

    def __init__(self) -> None:
        self._there: set[str] = set()
        self._counting: set[ManifestName] = set()
        self._chunks: set[int] = set()
        self._catalogs: set[int] = set()
        self._keys: set[bytes] = set()
        self._manifests: set[str] = set()

    def exist(self, counting: Collection[ManifestName], fenced: Collection[ManifestName]) -> None:
        """These manifests are there, and the first of them are needed."""
        self._counting.update(counting)
        self._there.update(name.object_name() for name in (*counting, *fenced))

    def add(self, manifest: Manifest) -> None:
        """All that a manifest refers to.

        What is attached to a manifest that is there is no object of its own, or need not be one.
        """
        self._keys.update(manifest.keys)
        for refs, needed in ((manifest.chunks, self._chunks), (manifest.catalog, self._catalogs)):
            hosts = {ref.manifest for ref in refs}.intersection(self._there)
            self._manifests.update(hosts)
            needed.update(
                _fingerprint(ref.name_hash, ref.key_id) for ref in refs if ref.manifest not in hosts
            )

    def covers(self, item: Disposable) -> bool:
        """Whether this object is referred to."""
        if isinstance(item, ChunkName):
            return _fingerprint(item.name_hash, item.key_id) in self._chunks
        if isinstance(item, CatalogName):
            return _fingerprint(item.name_hash, item.writer_id) in self._catalogs
        if isinstance(item, ManifestName):
            return item in self._counting or item.object_name() in self._manifests
        return item.key_id in self._keys


class Fate(enum.Enum):
    """What becomes of an object."""

    NEEDED = "it stays"
    NEW = "it is to be listed"
    WAITING = "it is on a list, and waits"
    RIPE = "it may be deleted now"


class Plan:
    """The fate of every object, told one by one in the order of their names: chunks before data keys.

    A data key goes with the chunks that name it, not a grace period later: it is listed when no recovery
    point needs it, and ripe when every chunk that names it is.
    """

    def __init__(self, needs: Needs, waiting: Prints, ripe: Prints) -> None:
        """`waiting` and `ripe` are what the lists name."""
        self._needs = needs
        self._waiting = waiting
        self._ripe = ripe
        self._sizes: dict[int, int] = {}
        self._chunks_of: Counter[bytes] = Counter()
        self._unripe_of: Counter[bytes] = Counter()

    def fate(self, name: str, item: Disposable, size: int) -> Fate:
        """What becomes of the object `name`, which is there and has `size` bytes."""
        if self._needs.covers(item):
            return Fate.NEEDED
        ripe = name in self._ripe
        if isinstance(item, ChunkName):
            self._chunks_of[item.key_id] += 1
            self._unripe_of[item.key_id] += not ripe
        elif ripe and isinstance(item, DataKeyName):
            ripe = not self._unripe_of[item.key_id]
        if ripe:
            self._sizes[_print_of(name)] = size
            return Fate.RIPE
        return Fate.WAITING if name in self._waiting else Fate.NEW

    def doomed(self, name: str, item: Disposable) -> bool:
        """Whether the object `name`, of a ripe list, is to be deleted now.

        It was there, and nothing referred to it; of a data key all chunks are `deleted` by now.
        """
        if self._needs.covers(item) or _print_of(name) not in self._sizes:
            return False
        return not (isinstance(item, DataKeyName) and self._chunks_of[item.key_id])

    def deleted(self, name: str, item: Disposable) -> int:
        """A doomed object is gone; returns the bytes that it had."""
        if isinstance(item, ChunkName):
            self._chunks_of[item.key_id] -= 1
        return self._sizes.pop(_print_of(name))


def _fingerprint(name_hash: bytes, id_: bytes) -> int:
    """Of a chunk or catalog segment: its hash and id are random already."""
    return (int.from_bytes(name_hash[:8], "little") ^ int.from_bytes(id_[:8], "little")) & _60_BITS


def _print_of(name: str) -> int:
    """Of any object's name, within one process."""
    return hash(name) & _60_BITS
