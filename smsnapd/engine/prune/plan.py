"""What is garbage and what becomes of it: decided from names alone. Pure.

Sets hold 60-bit fingerprints: 10⁶ chunks in under 100 MB. Two of one fingerprint are taken for one: then
garbage is kept, and what is needed never taken for garbage.
"""

from __future__ import annotations

import enum
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from smsnapd.format.garbage import GarbageList
from smsnapd.format.manifest import Manifest
from smsnapd.format.names import (
    CatalogName,
    ChunkName,
    DataKeyName,
    Disposable,
    ManifestName,
    catalog_name,
    chunk_name,
)

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


class Attached(NamedTuple):
    """What a manifest refers to that is attached to another: the name that it would have as an object."""

    object: str
    print: int
    is_chunk: bool


class Referred(NamedTuple):
    """What one manifest refers to, in few bytes."""

    keys: tuple[bytes, ...]
    chunks: array[int]
    catalogs: array[int]
    attached: Mapping[str, tuple[Attached, ...]]
    """By the manifest that it is attached to."""


def referred_by(manifest: Manifest) -> Referred:
    """All that a manifest refers to but itself."""
    volume, own = manifest.name.volume, manifest.name.object_name()
    attached: dict[str, tuple[Attached, ...]] = {}
    prints: list[array[int]] = []
    for refs, is_chunk in ((manifest.chunks, True), (manifest.catalog, False)):
        prints.append(
            array("Q", (_fingerprint(ref.name_hash, ref.key_id) for ref in refs if not ref.manifest))
        )
        name_of = chunk_name if is_chunk else catalog_name
        for ref in refs:
            if ref.manifest not in ("", own):
                name = name_of(volume, ref.name_hash, ref.key_id)
                one = Attached(name, _fingerprint(ref.name_hash, ref.key_id), is_chunk)
                attached[ref.manifest] = (*attached.get(ref.manifest, ()), one)
    return Referred(manifest.keys, prints[0], prints[1], attached)


class Needs:
    """What the recovery points of a volume refer to. What was needed once stays so."""

    def __init__(self) -> None:
        self._counting: set[ManifestName] = set()
        self._hosts: set[str] = set()
        self._there: set[str] = set()
        self._chunks: set[int] = set()
        self._catalogs: set[int] = set()
        self._keys: set[bytes] = set()
        self._wanted: dict[str, set[str]] = {}
        self._released: set[str] = set()

    def exist(self, counting: Collection[ManifestName], others: Collection[ManifestName]) -> None:
        """These manifests are there; the first of them are needed, and stay."""
        self._counting.update(counting)
        self._hosts = {name.object_name() for name in counting}
        self._there.update(name.object_name() for name in others)

    def add(self, referred: Referred) -> None:
        """All that a manifest refers to.

        What is attached to one that stays need not be an object. What is attached to another one must be,
        and that one is needed until it is.
        """
        self._keys.update(referred.keys)
        self._chunks.update(referred.chunks)
        self._catalogs.update(referred.catalogs)
        for host, attached in referred.attached.items():
            if host in self._hosts:
                continue
            for one in attached:
                (self._chunks if one.is_chunk else self._catalogs).add(one.print)
            if host in self._there:
                wanted = self._wanted.setdefault(host, set())
                if not wanted.issuperset(one.object for one in attached):
                    wanted.update(one.object for one in attached)
                    self._released.discard(host)

    def wanted_of(self, host: str) -> set[str]:
        """Of a manifest that is there and does not stay: what is attached to it and must become objects."""
        return set() if host in self._released else self._wanted.get(host, set())

    def wanted(self) -> set[str]:
        """The same of all of them."""
        return {name for host in self._wanted for name in self.wanted_of(host)}

    def release(self, host: str) -> None:
        """All that is wanted of this manifest's attachments is objects now."""
        self._released.add(host)

    def covers(self, item: Disposable) -> bool:
        """Whether this object is referred to."""
        if isinstance(item, ChunkName):
            return _fingerprint(item.name_hash, item.key_id) in self._chunks
        if isinstance(item, CatalogName):
            return _fingerprint(item.name_hash, item.writer_id) in self._catalogs
        if isinstance(item, ManifestName):
            return item in self._counting or bool(self.wanted_of(item.object_name()))
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

    def is_listed(self, name: str) -> bool:
        """Whether a list names this object."""
        return name in self._ripe or name in self._waiting

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
