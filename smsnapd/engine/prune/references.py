"""What the recovery points of a volume refer to: every manifest that counts, read and held to its chain.

Where anything is wrong with them nothing is known of what is needed, and so nothing is garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from smsnapd.engine.history import gap_text
from smsnapd.engine.prune.plan import Needs, Referred, referred_by
from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.garbage import GarbageHead
from smsnapd.format.manifest import ParentRef, StoodFor
from smsnapd.format.names import ManifestName
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded, heads_of_revoked, load_manifest

HINT = "nothing was removed; run `smsnap check`"


class Seen(NamedTuple):
    """What is kept of a manifest that was read."""

    hash: bytes
    stands_for: tuple[StoodFor, ...]
    parent: ParentRef | None
    writer_id: bytes
    is_image: bool
    referred: Referred

    @property
    def hashes(self) -> set[bytes]:
        """As those of `Recorded`."""
        return {self.hash, *(row.manifest_hash for row in self.stands_for)}


class References:
    """What the manifests say that were read; `needs` grows with what is reckoned."""

    def __init__(self, repository: Repository, volume: str) -> None:
        self._repository = repository
        self._volume = volume
        self.seen: dict[ManifestName, Seen] = {}
        self._counting: tuple[ManifestName, ...] = ()
        self.needs = Needs()

    @property
    def head(self) -> GarbageHead | None:
        """The newest manifest that counts."""
        return GarbageHead(self._counting[-1], self.seen[self._counting[-1]].hash) if self._counting else None

    @property
    def head_writer(self) -> bytes | None:
        """The id of who signed it."""
        return self.seen[self._counting[-1]].writer_id if self._counting else None

    def read(self, counting: Sequence[ManifestName], each: Callable[[], object]) -> None:
        """Read all that count and were not read; `each` is called for each. One is in memory at a time.

        DamageError if one is not whole or not trusted, or missing in the sequence; WrongKeyError if the key
        at hand does not open one.
        """
        self._counting = tuple(counting)
        trust = _Trust(self._repository, self._volume)
        for name in reversed(counting):
            if name not in self.seen:
                recorded = load_manifest(self._repository, name)
                trust.check(recorded)
                self.suppose(recorded)
                each()
        self._check_chain()

    def read_shortcuts(self, shortcuts: Sequence[ManifestName]) -> list[ManifestName]:
        """Read these, which nobody depends upon; those that are whole and of a trusted writer."""
        whole = []
        for name in shortcuts:
            with suppress(DamageError, WrongKeyError):
                if name not in self.seen:
                    self.suppose(load_manifest(self._repository, name))
                whole.append(name)
        return whole

    def suppose(self, recorded: Recorded) -> None:
        """Know this manifest, read or to be written."""
        manifest = recorded.manifest
        self.seen[recorded.name] = Seen(
            recorded.hash,
            manifest.stands_for,
            manifest.parent,
            recorded.writer_id,
            manifest.mode == "block",
            referred_by(manifest),
        )

    def reckon(self, counting: Sequence[ManifestName], others: Sequence[ManifestName]) -> None:
        """What all that count refer to is needed; the `others` are manifests that are there as well."""
        self.needs.exist(counting, others)
        for name in counting:
            self.needs.add(self.seen[name].referred)

    def check_head(self, head: GarbageHead | None) -> None:
        """DamageError if what was the newest manifest when a list was made is not there any more.

        One that was fenced since then is no matter, nor is one that another stands for.
        """
        if head is None:
            return
        found = next((name for name in self._counting if name.sequence >= head.name.sequence), None)
        if found is not None and (
            found.begins <= head.name.sequence < found.sequence
            or (found.sequence == head.name.sequence and found > head.name)
            or head.hash in self.seen[found].hashes
        ):
            return
        why = "it was the newest one when garbage was listed, and is not there any more"
        raise DamageError(f"read {head.name.object_name()}", why, HINT)

    def _check_chain(self) -> None:
        """Each of them follows from the one before, and the first one is the first."""
        expected = 1
        for name in self._counting:
            if name.begins > expected:
                why = gap_text(expected, name.begins - 1)
                raise DamageError(f"read {names.manifests_prefix(self._volume)}", why, HINT)
            expected = name.sequence + 1
        for before, after in pairwise(self._counting):
            parent = self.seen[after].parent
            if parent is None or parent.manifest_hash not in self.seen[before].hashes:
                why = f"it does not follow from {before.object_name()}"
                raise DamageError(f"read {after.object_name()}", why, HINT)


class _Trust:
    """Whether manifests count that writers signed who are revoked; they come newest first.

    Of such a writer the one that the root has fixed counts, and what that follows from.
    """

    def __init__(self, repository: Repository, volume: str) -> None:
        self._heads = heads_of_revoked(repository, volume)
        self._believed: set[bytes] = set()

    def check(self, recorded: Recorded) -> None:
        """DamageError if it does not count."""
        for writer_id, heads in self._heads.items():
            if recorded.writer_id not in self._heads and recorded.hashes & heads:
                self._believed.add(writer_id)
        writer_id = recorded.writer_id
        if writer_id not in self._heads or (writer_id in self._believed and not recorded.name.first):
            return
        if recorded.hash not in self._heads[writer_id]:
            why = f"its writer {writer_id.hex()} was revoked, and it is not among what counts of it"
            raise DamageError(f"read {recorded.name.object_name()}", why, HINT)
        self._believed.add(writer_id)
