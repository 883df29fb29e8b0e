"""What is asked of a prune, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.engine.retention import KEEP_ALL, Policy
from smsnapd.errors import SmsnapError


class Amount(NamedTuple):
    """Objects, and their stored bytes."""

    objects: int = 0
    bytes: int = 0

    def plus(self, size: int) -> Amount:
        """With one object more, of `size` bytes."""
        return Amount(self.objects + 1, self.bytes + size)


NOTHING: Final = Amount()


@dataclass(frozen=True)
class PruneRequest:
    """What to prune: a volume, or all of them if that is None.

    Garbage is deleted when it has been on a list for longer than `grace_s`. On a `dry_run` nothing is listed
    or deleted, and the report says what would be. `state_dir` is where this machine remembers what it
    has committed, None if it is not to be asked. What recovery points need is kept locked for `lock_s`
    seconds from now, or half of that at least; 0 is no locks. `policy` says which recovery points stay.
    """

    volume: str | None
    grace_s: float
    dry_run: bool = False
    state_dir: Path | None = None
    lock_s: float = 0.0
    policy: Policy = KEEP_ALL


@dataclass(frozen=True)
class VolumePruned:
    """What came of one volume.

    `sparse` are chunks that are mostly dead, or small, with the bytes in them that no recovery point names;
    `rewritten` says how many of them were written anew, which takes the identity.
    `removed` are recovery points that the policy let go now, `points` those that there are still.
    `listed` are objects that were put on a list now, `deleted` what is gone, `waiting` all that is on a list
    still, the first of it until `waiting_until_us` (by the store's clock; None if none is); `kept` how many
    the store did not let go yet, `uploads` how many unfinished uploads were abandoned. `locks` are objects
    whose lock was extended; with a `lock_error` others were not.
    `marked`: nothing was listed if False, because another writer has the lease. `may_delete`: whether the
    store lets whoever asks delete. `refused` are lists that are damaged or forged, and objects that are
    damaged and kept recovery points from going; and why. With an
    `error` the volume was left as it was, as far as that is known.
    """

    volume: str
    removed: int = 0
    points: int = 0
    sparse: Amount = NOTHING
    rewritten: int = 0
    listed: Amount = NOTHING
    deleted: Amount = NOTHING
    waiting: Amount = NOTHING
    waiting_until_us: int | None = None
    kept: int = 0
    uploads: int = 0
    locks: int = 0
    lock_error: SmsnapError | None = None
    marked: bool = False
    may_delete: bool = False
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    error: SmsnapError | None = None


@dataclass(frozen=True)
class PruneReport:
    """What came of all of them."""

    volumes: tuple[VolumePruned, ...]
