"""What the recovery points of a volume refer to: every manifest that counts, read and held to its chain.

Where anything is wrong with them nothing is known of what is needed, and so nothing is garbage.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from smsnapd.engine.history import gap_text
from smsnapd.engine.prune.plan import Needs
from smsnapd.errors import DamageError
from smsnapd.format import names
from smsnapd.format.garbage import GarbageHead
from smsnapd.format.manifest import ParentRef
from smsnapd.format.names import ManifestName
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Listed, Recorded, heads_of_revoked, load_manifest

HINT = "nothing was removed; run `smsnap check`"


class _Seen(NamedTuple):
    """What is kept of a manifest that was read."""

    hash: bytes
    parent: ParentRef | None
    writer_id: bytes


class References:
    """What the manifests say that were read; `needs` grows with them."""

    def __init__(self, repository: Repository, volume: str) -> None:
        self._repository = repository
        self._volume = volume
        self._seen: dict[ManifestName, _Seen] = {}
        self._counting: tuple[ManifestName, ...] = ()
        self.needs = Needs()

    @property
    def head(self) -> GarbageHead | None:
        """The newest manifest that counts."""
        return (
            GarbageHead(self._counting[-1], self._seen[self._counting[-1]].hash) if self._counting else None
        )

    @property
    def head_writer(self) -> bytes | None:
        """The id of who signed it."""
        return self._seen[self._counting[-1]].writer_id if self._counting else None

    def read(self, listed: Listed, each: Callable[[], object]) -> None:
        """Read all that count and were not read; `each` is called for each. One is in memory at a time.

        DamageError if one is not whole or not trusted, or missing in the sequence; WrongKeyError if the key
        at hand does not open one.
        """
        self._counting = listed.counting
        self.needs.exist(listed.counting, listed.fenced)
        trust = _Trust(self._repository, self._volume)
        for name in reversed(listed.counting):
            if name not in self._seen:
                recorded = load_manifest(self._repository, name)
                trust.check(recorded)
                self.needs.add(recorded.manifest)
                self._seen[name] = _Seen(recorded.hash, recorded.manifest.parent, recorded.writer_id)
                each()
        self._check_chain()

    def check_head(self, head: GarbageHead | None) -> None:
        """DamageError if what was the newest manifest when a list was made is not there any more.

        One that was fenced since then is no matter.
        """
        if head is None:
            return
        found = next((name for name in self._counting if name.sequence == head.name.sequence), None)
        if found is not None and (found > head.name or self._seen[found].hash == head.hash):
            return
        why = "it was the newest one when garbage was listed, and is not there any more"
        raise DamageError(f"read {head.name.object_name()}", why, HINT)

    def _check_chain(self) -> None:
        """Each of them follows from the one before, and the first one is the first."""
        expected = 1
        for name in self._counting:
            if name.sequence != expected:
                why = gap_text(expected, name.sequence - 1)
                raise DamageError(f"read {names.manifests_prefix(self._volume)}", why, HINT)
            expected += 1
        for before, after in pairwise(self._counting):
            if self._seen[after].parent != ParentRef(before.snapshot, self._seen[before].hash):
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
        writer_id = recorded.writer_id
        if writer_id not in self._heads or writer_id in self._believed:
            return
        if recorded.hash not in self._heads[writer_id]:
            why = f"its writer {writer_id.hex()} was revoked, and it is not among what counts of it"
            raise DamageError(f"read {recorded.name.object_name()}", why, HINT)
        self._believed.add(writer_id)
