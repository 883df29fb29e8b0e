"""Proof that a repository is whole: records, chains, catalogs, objects, and their bytes if asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec

from smsnapd.engine.chain.remembered import newest_remembered
from smsnapd.engine.coverage import Coverage, keep_coverage, known_coverage
from smsnapd.engine.history import History, check_link, gap_text
from smsnapd.engine.keycheck import KeyCheck, KeyFault
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree, chunk_names_keys
from smsnapd.engine.trees.treecheck import TreeCheck
from smsnapd.errors import DamageError, UsageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.manifest import Manifest
from smsnapd.format.names import GarbageName, ManifestName
from smsnapd.format.record import Lease
from smsnapd.model import ChunkRef, Listing
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.repository.garbage import load_garbage
from smsnapd.repository.manifests import Recorded, load_manifest
from smsnapd.repository.tags import read_tags
from smsnapd.state import State
from smsnapd.store.base import StoreSettings

P = ParamSpec("P")


@dataclass(frozen=True)
class CheckRequest:
    """What to check. `read_data` (n, t): also read the n-th of t shares of the chunks, (1, 1) for all.
    (0, t) is the one of them that this machine has read longest ago.

    `expect_head` is the id, or its beginning, of a snapshot that must be there. `volume` None means all
    volumes. `state_dir` None is for a repository as it was, which local state knows more of.
    """

    volume: str | None
    read_data: tuple[int, int] | None
    expect_head: str | None
    state_dir: Path | None


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written."""

    object: str
    problem: str


@dataclass(frozen=True)
class CheckReport:
    """What was found. `opened` says whether contents were decrypted, and not only held against hashes.

    `coverage` is, by volume, what this machine knows of the contents that it has read, now and before; there
    is none of a repository as it was.
    """

    findings: tuple[Finding, ...]
    fenced: tuple[str, ...]
    snapshots: int
    objects: int
    bytes_read: int
    opened: bool
    notes: tuple[str, ...]
    coverage: dict[str, Coverage] = field(default_factory=dict)


def run_check(
    repository: Repository, settings: StoreSettings, request: CheckRequest, progress: Progress
) -> CheckReport:
    """Check a repository; damage is a finding, never an exception. Raises StoreError and UsageError."""
    return _Check(repository, request, progress).go()


@dataclass
class _Volume:
    """What is known of one volume while it is checked."""

    name: str
    sizes: dict[str, int]
    recorded: list[Recorded] = field(default_factory=list)
    history: History | None = None
    refs: dict[str, ChunkRef] = field(default_factory=dict)


class _Check:
    def __init__(self, repository: Repository, request: CheckRequest, progress: Progress) -> None:
        self._repository = repository
        self._store = repository.store
        self._request = request
        self._progress = progress
        self._key_check = KeyCheck(repository)
        self._findings: list[Finding] = []
        self._fenced: list[str] = []
        self._notes: list[str] = []
        self._snapshots = 0
        self._objects = 0
        self._bytes_read = 0
        self._coverage: dict[str, Coverage] = {}

    def go(self) -> CheckReport:
        """Check keys, then each volume."""
        self._progress.phase("check keys")
        self._keys()
        heads: set[str] = set()
        for volume in self._volumes():
            heads.update(self._volume(volume))
        expected = self._request.expect_head
        if expected is not None and not any(head.startswith(expected) for head in heads):
            self._find(
                "manifests",
                f"snapshot {expected}, which was expected, is not there: a newest end was cut off",
            )
        return CheckReport(
            findings=tuple(self._findings),
            fenced=tuple(self._fenced),
            snapshots=self._snapshots,
            objects=self._objects,
            bytes_read=self._bytes_read,
            opened=self._repository.identity is not None and self._request.read_data is not None,
            notes=tuple(self._notes),
            coverage=self._coverage,
        )

    def _volumes(self) -> list[str]:
        """The volumes to check: also those that this machine remembers and the repository has not."""
        state_dir = self._request.state_dir
        remembered = State.volumes_in(state_dir, self._repository.repository_id) if state_dir else []
        volume = self._request.volume
        if volume in remembered or (volume is not None and self._repository.holds(volume)):
            return [volume]
        known = {*self._repository.volumes(), *remembered}
        if volume is None:
            return sorted(known)
        hint = f"it holds {', '.join(sorted(known))}" if known else "it holds no backup yet"
        raise UsageError(f"check volume {volume}", "the repository does not hold it", hint)

    def _find(self, name: str, problem: str) -> None:
        self._findings.append(Finding(name, problem))

    def _try(self, name: str, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Do something; damage becomes a finding about the object `name`."""
        try:
            work(*args, **kwargs)
        except DamageError as error:
            # What is damaged may be another object: a catalog of the snapshot that was looked at.
            self._find(name, error.why if name in error.what else f"{error.what}: {error.why}")
            return False
        return True

    # --- keys

    def _keys(self) -> None:
        self._take(self._key_check.rosters())
        slots = 0
        for info in self._store.list("keys/"):
            self._objects += 1
            slots += names.parse_keyslot_name(info.name) is not None
            self._take(self._key_check.object(info.name))
        if not slots and not self._repository.may_lack_keyslots:
            self._find("keys/slots/", "every keyslot is missing")
        known = {finding.object for finding in self._findings}
        self._take(fault for fault in self._key_check.writers() if fault.object not in known)

    def _take(self, faults: Iterable[KeyFault]) -> None:
        for fault in faults:
            if fault.is_note:
                self._notes.append(f"{fault.object}: {fault.problem}")
            else:
                self._find(fault.object, fault.problem)

    # --- one volume

    def _volume(self, name: str) -> Iterator[str]:
        self._progress.phase(f"check {name}")
        sizes = {info.name: info.size for info in self._store.list(f"volumes/{name}/")}
        self._objects += len(sizes)
        volume = _Volume(name, sizes)
        self._manifests(volume)
        self._shortcuts(volume)
        self._lease(volume)
        self._chains(volume)
        self._data_keys(volume)
        self._garbage(volume)
        self._tags(volume)
        self._presence(volume)
        self._share(volume)
        self._local(volume)
        return (recorded.name.snapshot for recorded in volume.recorded)

    def _manifests(self, volume: _Volume) -> None:
        history = volume.history = History.load(self._repository, volume.name)
        self._fenced += [name.object_name() for name in history.fenced if name not in history.refused]
        for name in history.names_of_revoked():
            self._notes.append(f"{name.object_name()} is fenced and a revoked writer's; it does not count")
        for name in history.refused:
            self._find(name.object_name(), "its writer was revoked, and it is not among what counts of it")
        history.load_ahead(history.names)
        previous: Recorded | None = None
        expected = 1
        for name in history.names:
            if name.begins > expected:
                self._find(names.manifests_prefix(volume.name), gap_text(expected, name.begins - 1))
                previous = None
            expected = name.sequence + 1
            previous = self._manifest(volume, history, name, previous)
        for info_name in volume.sizes:
            if (
                info_name.startswith(names.manifests_prefix(volume.name))
                and ManifestName.parse(info_name) is None
            ):
                self._notes.append(f"{info_name} is no manifest's name; it is ignored")

    def _shortcuts(self, volume: _Volume) -> None:
        """What leads past others must be whole, and say what they do."""
        history = volume.history
        if history is None:
            return
        for name in history.useful_shortcuts:
            self._try(name.object_name(), self._shortcut, volume, history, name)

    def _shortcut(self, volume: _Volume, history: History, name: ManifestName) -> None:
        recorded = load_manifest(self._repository, name)
        self._collect(volume, recorded.manifest)
        for _ in SnapshotTree(self._repository, [recorded]).layer():
            pass  # reading it is the check
        before = next(item for item in history.names if item.sequence == name.begins - 1)
        check_link(history.record(before), recorded)

    def _manifest(
        self, volume: _Volume, history: History, name: ManifestName, previous: Recorded | None
    ) -> Recorded | None:
        found: list[Recorded] = []
        if not self._try(name.object_name(), lambda: found.append(history.record(name))):
            return None
        recorded = found[0]
        self._snapshots += 1
        self._progress.advance()
        volume.recorded.append(recorded)
        if previous is not None:
            self._try(name.object_name(), check_link, previous, recorded)
        elif name.begins == 1 and recorded.manifest.parent is not None:
            self._find(name.object_name(), "it is the first and names a parent")
        self._collect(volume, recorded.manifest)
        return recorded

    def _collect(self, volume: _Volume, manifest: Manifest) -> None:
        for ref in manifest.chunks:
            volume.refs.setdefault(names.chunk_name(volume.name, ref.name_hash, ref.key_id), ref)
        for ref in manifest.catalog:
            volume.refs.setdefault(names.catalog_name(volume.name, ref.name_hash, ref.key_id), ref)

    def _lease(self, volume: _Volume) -> None:
        name = names.lease_name(volume.name)
        if name in volume.sizes:
            self._try(name, self._lease_record, volume, name)
        elif volume.recorded:
            self._find(name, "the object is missing; the next backup writes it anew")

    def _lease_record(self, volume: _Volume, name: str) -> None:
        lease = Lease.decode(self._store.get(name), volume.name, self._repository.id)
        written = (recorded.name for recorded in volume.recorded if not recorded.name.first)
        highest = max((name.generation for name in written), default=0)
        if lease.generation < highest:
            why = f"its generation {lease.generation} is below a manifest's {highest}: it is an old one"
            raise DamageError(f"read {name}", why)

    def _chains(self, volume: _Volume) -> None:
        """Open every catalog, and hold the tree of every recovery point to what it must be."""
        chains: list[list[Recorded]] = []
        for recorded in volume.recorded:
            if recorded.name.kind == "full" or not chains:
                chains.append([])
            chains[-1].append(recorded)
        for chain in chains:
            if chain[0].name.kind != "full":
                self._find(chain[0].name.object_name(), "the full that it follows from is missing")
                continue
            if chain[0].manifest.image is None:
                self._trees(chain)
            else:
                self._try(chain[-1].name.object_name(), SnapshotTree(self._repository, chain).verify)

    def _trees(self, chain: list[Recorded]) -> None:
        """Behind the first tree that is none the others are none either: their catalogs are opened alone."""
        check = TreeCheck()
        is_whole = True
        for recorded in chain:
            layer = SnapshotTree(self._repository, [recorded]).layer()
            read = check.add if is_whole else deque[Listing](maxlen=0).extend
            is_whole = self._try(recorded.name.object_name(), read, layer) and is_whole
            self._progress.advance()

    def _data_keys(self, volume: _Volume) -> None:
        """Those that chunks need must be there; what is there must be whole."""
        needed = {ref.key_id for recorded in volume.recorded for ref in recorded.manifest.chunks}
        found = [(name, names.parse_data_key_name(name)) for name in volume.sizes]
        there = {key.key_id for _, key in found if key is not None}
        for key_id in sorted(needed - there):
            self._find(names.data_key_name(volume.name, key_id), "the object is missing")
        for name, key in found:
            if key is not None:
                self._take(self._key_check.data_key(name, key))

    def _garbage(self, volume: _Volume) -> None:
        """Lists of what may be deleted must be somebody's who is trusted."""
        for name in filter(None, map(GarbageName.parse, volume.sizes)):
            self._try(name.object_name(), self._garbage_list, name)

    def _garbage_list(self, name: GarbageName) -> None:
        try:
            loaded = load_garbage(self._repository, name)
        except WrongKeyError as error:
            self._notes.append(f"{name.object_name()} was not checked: {error.why}")
            return
        if loaded is not None and loaded.is_revoked:
            self._notes.append(f"{name.object_name()} is a revoked writer's; nothing is deleted by it")

    def _tags(self, volume: _Volume) -> None:
        """What a tag keeps must be known, or nothing can be let go."""
        self._try(names.tags_prefix(volume.name), read_tags, self._repository, volume.name)

    def _presence(self, volume: _Volume) -> None:
        for name, ref in volume.refs.items():
            if name not in volume.sizes:
                if (ref.manifest or name) not in volume.sizes:
                    self._find(ref.manifest or name, "the object is missing")
            elif volume.sizes[name] != ref.stored_length:
                self._find(name, f"it has {volume.sizes[name]} bytes, and should have {ref.stored_length}")

    def _share(self, volume: _Volume) -> None:
        """Read what is asked for of the contents, and remember that."""
        state_dir, asked = self._request.state_dir, self._request.read_data
        coverage = Coverage(self._repository.repository_id)
        if state_dir is not None:
            coverage = known_coverage(state_dir, volume.name, self._repository.repository_id)
        if asked is not None:
            share, shares = asked[0] or coverage.next_share(asked[1]), asked[1]
            self._contents(volume, share, shares)
            opened = self._repository.identity is not None
            coverage = coverage.after(share, shares, time.time(), opened=opened)
            if state_dir is not None:
                keep_coverage(state_dir, volume.name, coverage)
        if state_dir is not None:
            self._coverage[volume.name] = coverage

    def _contents(self, volume: _Volume, share: int, shares: int) -> None:
        refs = [
            (name, ref)
            for name, ref in sorted(volume.refs.items())
            if int.from_bytes(ref.name_hash[:4]) % shares == share - 1
        ]
        self._progress.phase(
            f"read {volume.name}", files=len(refs), bytes=sum(ref.stored_length for _, ref in refs)
        )
        fetcher = Fetcher(self._store, volume.name)
        names_keys = chunk_names_keys(self._repository, volume.name)
        for name, ref in refs:
            self._try(name, self._content, volume, fetcher, name, ref, names_keys)
            self._progress.advance(files=1, bytes=ref.stored_length)
        self._bytes_read += fetcher.fetched_bytes

    def _content(
        self, volume: _Volume, fetcher: Fetcher, name: str, ref: ChunkRef, names_keys: tuple[bytes, ...]
    ) -> None:
        if names.parse_chunk_name(name) is None or self._repository.identity is None:
            fetcher.fetch(ref, name)
            return
        keys = {ref.key_id: bytes(self._repository.data_key(volume.name, ref.key_id).secret)}
        ChunkOpener(fetcher, self._repository.id, volume.name, keys, names_keys).open(ref)

    def _local(self, volume: _Volume) -> None:
        """What this machine remembers having committed must be there."""
        state_dir = self._request.state_dir
        if state_dir is None:
            return
        newest = newest_remembered(state_dir, self._repository.repository_id, volume.name, self._notes.append)
        if newest is None:
            self._notes.append(
                f"{volume.name}: this machine remembers no snapshot, so a newest end that was cut off "
                "would not show; give --expect-head"
            )
            return
        if volume.history is None or not volume.history.accounts_for(*newest):
            self._find(
                names.manifests_prefix(volume.name),
                f"snapshot {newest[1]}, made from here, is not there: a newest end was cut off",
            )
