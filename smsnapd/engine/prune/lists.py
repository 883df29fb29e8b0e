"""The garbage lists of a volume, read and told apart; one is in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from smsnapd.engine.prune.plan import Prints, Standing, standing
from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.format.garbage import GarbageHead
from smsnapd.format.names import GarbageName
from smsnapd.repository import Repository
from smsnapd.repository.garbage import garbage_names, load_garbage


class Known(NamedTuple):
    """A list that was read."""

    name: GarbageName
    standing: Standing
    head: GarbageHead | None


@dataclass
class Lists:
    """All of them, oldest first; `refused` are those that are damaged or forged, and why."""

    known: list[Known] = field(default_factory=list)
    waiting: Prints = field(default_factory=Prints)
    ripe: Prints = field(default_factory=Prints)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def standing_as(self, *standings: Standing) -> list[Known]:
        """Those that stand so, oldest first."""
        return [known for known in self.known if known.standing in standings]

    def times_us(self, standing: Standing) -> list[int]:
        """The times of those that stand so, in microseconds since the epoch."""
        return [known.name.time_us for known in self.standing_as(standing)]


def read_lists(repository: Repository, volume: str, now_s: float, grace_s: float) -> Lists:
    """Read every list. `now_s` is by the store's clock."""
    lists = Lists()
    for name in garbage_names(repository, volume):
        try:
            loaded = load_garbage(repository, name)
        except DamageError as error:
            lists.refused.append((name.object_name(), error.why))
            continue
        except WrongKeyError as error:
            lists.notes.append(f"{name.object_name()} was left alone: {error.why}")
            continue
        if loaded is None:
            continue
        garbage = loaded.garbage
        stands = standing(garbage, is_revoked=loaded.is_revoked, now_s=now_s, grace_s=grace_s)
        lists.known.append(Known(name, stands, garbage.head))
        if stands is not Standing.VOID:
            (lists.waiting if stands is Standing.WAITING else lists.ripe).add(garbage.objects)
    return lists
