"""The recovery points of a volume: listed, named by people, joined into chains."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from smsnapd.errors import DamageError, SmsnapError, UsageError, WrongKeyError
from smsnapd.format.manifest import Issue
from smsnapd.format.names import ManifestName, format_time_us
from smsnapd.repository import Repository
from smsnapd.repository.manifests import (
    Listed,
    Recorded,
    heads_of_revoked,
    list_manifests,
    load_manifest,
    signer_of,
)

AHEAD: Final = 12
"""Manifests that are fetched at once where all are opened: each takes long, and little of the server."""

_BLOCK: Final = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotSummary:
    """One recovery point, as it is listed."""

    id: str
    volume: str
    time_us: int
    kind: str
    mode: str
    parent: str | None
    files: int
    bytes: int
    stored_bytes: int
    complete: bool
    incomplete: tuple[Issue, ...]
    sequence: int


@dataclass(frozen=True)
class Damaged:
    """A manifest that could not be used."""

    name: ManifestName
    error: SmsnapError


def summarise(recorded: Recorded) -> SnapshotSummary:
    """A manifest as it is listed."""
    manifest = recorded.manifest
    return SnapshotSummary(
        id=recorded.name.snapshot,
        volume=recorded.name.volume,
        time_us=recorded.name.time_us,
        kind=recorded.name.kind,
        mode=manifest.mode,
        parent=manifest.parent.snapshot if manifest.parent else None,
        files=manifest.statistics.files,
        bytes=manifest.statistics.bytes,
        stored_bytes=manifest.statistics.stored_bytes,
        complete=manifest.completeness.complete,
        incomplete=manifest.completeness.incomplete,
        sequence=recorded.name.sequence,
    )


class History:
    """One volume's manifests. Names are listed at once; manifests are opened when asked for, and kept."""

    def __init__(self, repository: Repository, volume: str, listed: Listed) -> None:
        self._repository = repository
        self.volume = volume
        self.names = listed.counting
        self.fenced = listed.fenced
        self.refused = listed.refused
        self.replaced = listed.replaced
        self.shortcuts = listed.shortcuts
        self._recorded: dict[ManifestName, Recorded] = {}
        self._revoked = heads_of_revoked(repository, volume)
        self._believed: set[tuple[bytes, ManifestName]] = set()

    @classmethod
    def load(cls, repository: Repository, volume: str) -> History:
        """List the volume's manifests; says so where some are of a revoked writer and do not count."""
        history = cls(repository, volume, list_manifests(repository, volume, heed_parents=True))
        if history.refused:
            told = "%s: %d manifests of a revoked writer do not count; `smsnap check` names them"
            log.warning(told, volume, len(history.refused))
        return history

    def record(self, name: ManifestName) -> Recorded:
        """One manifest, opened and verified; DamageError if it is of a revoked writer and does not count."""
        found = self._loaded(name)
        if found.writer_id in self._revoked:
            self._check_counts(found)
        return found

    def _loaded(self, name: ManifestName) -> Recorded:
        found = self._recorded.get(name)
        if found is None:
            found = self._recorded[name] = load_manifest(self._repository, name)
        return found

    def load_ahead(self, names: Sequence[ManifestName]) -> None:
        """Get manifests that `record` will be asked for, several at once.

        What goes wrong with one is for `record` to say.
        """
        missing = [name for name in names if name not in self._recorded]
        if len(missing) > 1:
            with ThreadPoolExecutor(AHEAD, thread_name_prefix="manifests") as threads:
                deque(threads.map(self._try_to_load, missing), maxlen=0)

    def _try_to_load(self, name: ManifestName) -> None:
        with suppress(DamageError, WrongKeyError):
            self._loaded(name)

    def in_turn(self, names: Sequence[ManifestName]) -> Iterator[ManifestName]:
        """The names, their manifests got ahead of `record` and dropped behind it: few are held at a time."""
        for start in range(0, len(names), _BLOCK):
            block = names[start : start + _BLOCK]
            self.load_ahead(block)
            yield from block
            for name in block:
                self._recorded.pop(name, None)

    def _check_counts(self, recorded: Recorded) -> None:
        """DamageError unless this manifest of a revoked writer is the head that the root fixed, or before it.

        Reads on up to that head, once: what lies between is known to count then.
        """
        writer_id = recorded.writer_id
        passed: list[Recorded] = []
        for name in self.names[self.names.index(recorded.name) :] if self._revoked[writer_id] else ():
            if (writer_id, name) in self._believed:
                break
            passed.append(self._loaded(name))
            if len(passed) > 1:
                check_link(passed[-2], passed[-1])
            if passed[-1].hashes & self._revoked[writer_id]:
                break
        else:
            raise DamageError(
                f"read {recorded.name.object_name()}",
                f"its writer {writer_id.hex()} was revoked, and it is not among what counts of it",
                "it may be forged; recovery points before it can still be restored",
            )
        self._believed.update((writer_id, item.name) for item in passed)

    def names_of_revoked(self) -> list[ManifestName]:
        """Of what is fenced and not refused, that which says that it is a revoked writer's."""
        fenced = [name for name in self.fenced if name not in self.refused] if self._revoked else []
        return [name for name in fenced if signer_of(self._repository, name) in self._revoked]

    @property
    def head_name(self) -> ManifestName | None:
        """The newest manifest's name."""
        return self.names[-1] if self.names else None

    @property
    def highest_generation(self) -> int:
        """The highest generation of a lease that a manifest was written under; 0 if there is none.

        What stands for others was written without one.
        Whoever has a revoked writer's key could make up the highest one there is, behind which none follows.
        """
        trusted = self.names if self._revoked else (*self.names, *self.fenced)
        return max((name.generation for name in trusted if not name.first), default=0)

    def accounts_for(self, sequence: int, snapshot: str) -> bool:
        """Whether this recovery point is there, or a replacement is that stands for it."""
        return any(
            name.snapshot == snapshot
            if name.sequence == sequence
            else name.begins <= sequence < name.sequence
            for name in self.names
        )

    @cached_property
    def _opened(self) -> tuple[tuple[SnapshotSummary, ...], tuple[Damaged, ...]]:
        good: list[SnapshotSummary] = []
        bad: list[Damaged] = []
        for name in self.in_turn(self.names):
            try:
                good.append(summarise(self.record(name)))
            except DamageError as error:
                bad.append(Damaged(name, error))
        return tuple(good), tuple(bad)

    @property
    def snapshots(self) -> tuple[SnapshotSummary, ...]:
        """All recovery points whose manifests are whole, oldest first; opens every manifest."""
        return self._opened[0]

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The manifests that are not whole."""
        return self._opened[1]

    def find(self, selector: str) -> SnapshotSummary:
        """The recovery point named by an id, a unique prefix of it, or `latest`."""
        self._refuse_refused(f"find the snapshot {selector}")
        if not self.names:
            raise UsageError(f"find the snapshot {selector}", f"volume {self.volume} has none yet")
        if selector == "latest":
            return summarise(self.record(self.names[-1]))
        matches = [name for name in self.names if selector and name.snapshot.startswith(selector)]
        if len(matches) != 1:
            why = "no snapshot has this id" if not matches else f"{len(matches)} snapshots begin so"
            raise UsageError(f"find the snapshot {selector}", why, "`smsnap snapshots` lists them")
        return summarise(self.record(matches[0]))

    def at(self, time_us: int) -> SnapshotSummary:
        """The last recovery point at or before a time (microseconds since the epoch)."""
        self._refuse_refused(f"find a recovery point at or before {format_time_us(time_us)}")
        matches = [name for name in self.names if name.time_us <= time_us]
        if not matches:
            first = (
                f"the first is of {format_time_us(self.names[0].time_us)}"
                if self.names
                else "there is none yet"
            )
            raise UsageError(f"find a recovery point at or before {format_time_us(time_us)}", first)
        return summarise(self.record(matches[-1]))

    def _refuse_refused(self, what: str) -> None:
        """DamageError if there is nothing but what a revoked writer signed and does not count."""
        if self.refused and not self.names:
            why = f"the writer of all that volume {self.volume} has was revoked, and nothing counts of it"
            raise DamageError(what, why, "`smsnap check` names it")

    def chain(self, snapshot: str) -> list[Recorded]:
        """The manifests that make a snapshot's tree: its full, and the incrementals up to it.

        DamageError if one is missing or does not follow from the one before.
        """
        position = next(i for i, name in enumerate(self.names) if name.snapshot == snapshot)
        start = position
        while self.names[start].kind != "full":
            if start == 0:
                raise DamageError(f"restore snapshot {snapshot}", "the full that it follows from is missing")
            start -= 1
        chain = [*self.layers(start, position - 1), self.record(self.names[position])]
        for before, after in pairwise(chain):
            check_link(before, after)
        return chain

    def layers(self, start: int, end: int) -> list[Recorded]:
        """What does the same as the manifests from place `start` to `end` among the names; by shortcuts.

        A shortcut that is missing, damaged or not as it says is left alone. None leads past a full.
        """
        with suppress(DamageError, WrongKeyError):
            found = self._walked(start, end, by_shortcuts=True)
            for before, after in pairwise(found):
                check_link(before, after)
            return found
        return self._walked(start, end, by_shortcuts=False)

    def _walked(self, start: int, end: int, *, by_shortcuts: bool) -> list[Recorded]:
        way: list[tuple[ManifestName, bool]] = []
        while end >= start:
            name = self._shortcut(start, end) if by_shortcuts else None
            way.append((self.names[end], False) if name is None else (name, True))
            end = end - 1 if name is None else self._place_of[name.begins] - 1
        self.load_ahead([name for name, _ in way])
        found = [self._loaded(name) if is_shortcut else self.record(name) for name, is_shortcut in way]
        return found[::-1]

    def _shortcut(self, start: int, end: int) -> ManifestName | None:
        """The widest shortcut to the manifest at place `end` that stands for none before `start`."""
        usable = (
            name
            for name in self._shortcuts_to.get(self.names[end].sequence, ())
            if start <= self._place_of.get(name.begins, -1) < end and name.kind == "incremental"
        )
        return min(usable, key=lambda name: name.begins, default=None)

    @cached_property
    def _place_of(self) -> dict[int, int]:
        """The place of a manifest among the names, by where it begins."""
        return {name.begins: place for place, name in enumerate(self.names)}

    @cached_property
    def _shortcuts_to(self) -> dict[int, list[ManifestName]]:
        """The shortcuts that end where a recovery point is, by its sequence."""
        found: dict[int, list[ManifestName]] = {name.sequence: [] for name in self.names}
        for name in self.shortcuts:
            if name.sequence in found and name.begins in self._place_of and self._is_as_new(name):
                found[name.sequence].append(name)
        return found

    def _is_as_new(self, shortcut: ManifestName) -> bool:
        """Whether nothing of what it stands for was written anew since it was made."""
        within = (name for name in self.names if shortcut.begins <= name.sequence <= shortcut.sequence)
        return shortcut.rewrites >= self.rewrites or shortcut.rewrites >= max(
            name.rewrites for name in within
        )

    @cached_property
    def rewrites(self) -> int:
        """How often what is referred to was written anew; an index of before that names what may go."""
        return max((name.rewrites for name in self.names), default=0)

    @property
    def useful_shortcuts(self) -> list[ManifestName]:
        """Those by which a chain can be read still; what they stood for has not been folded since."""
        return [name for shortcuts in self._shortcuts_to.values() for name in shortcuts]


def gap_text(first: int, last: int) -> str:
    """That the manifests of these sequence numbers are missing."""
    return f"manifest {first} is missing" if first == last else f"manifests {first} to {last} are missing"


def check_link(before: Recorded, after: Recorded) -> None:
    """DamageError unless `after` is a manifest right behind `before`, or one that overlaps it."""
    if after.name.begins > before.name.sequence + 1:
        raise DamageError(
            f"follow the chain of volume {after.name.volume}",
            gap_text(before.name.sequence + 1, after.name.begins - 1),
            "recovery points before them can still be restored",
        )
    parent = after.manifest.parent
    if parent is None or parent.manifest_hash not in before.hashes:
        raise DamageError(
            f"follow the chain of volume {after.name.volume}",
            f"{after.name.object_name()} does not follow from {before.name.object_name()}",
            "one of them was replaced; recovery points before can still be restored",
        )
