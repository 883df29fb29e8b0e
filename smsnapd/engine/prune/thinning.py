"""What becomes of a chain when recovery points go: which manifests are folded into which. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from smsnapd.engine.retention import Point
from smsnapd.format.names import ManifestName, SnapshotKind


class Fold(NamedTuple):
    """Manifests in a row, of which one is to stand for all: the recovery point of the last one stays."""

    names: tuple[ManifestName, ...]

    @property
    def last(self) -> ManifestName:
        """The one whose recovery point stays."""
        return self.names[-1]

    @property
    def gone(self) -> tuple[ManifestName, ...]:
        """Those whose recovery points go."""
        return self.names[:-1]

    @property
    def layers(self) -> tuple[ManifestName, ...]:
        """Those whose catalogs make the new one: none before the last full matters."""
        fulls = accumulate(name.kind == "full" for name in self.names)
        total = sum(name.kind == "full" for name in self.names)
        return tuple(name for name, seen in zip(self.names, fulls, strict=True) if seen == total)

    @property
    def kind(self) -> SnapshotKind:
        """What comes of it: a full if there is one among them."""
        return self.layers[0].kind


def points_of(counting: Sequence[ManifestName]) -> list[Point]:
    """The recovery points, for the policy."""
    return [Point(name.snapshot, name.time_us) for name in counting]


def plan_folds(
    counting: Sequence[ManifestName], stay: Collection[str], is_image: Callable[[ManifestName], bool]
) -> list[Fold]:
    """The folds by which those recovery points go that do not `stay` (snapshot ids).

    The newest manifest is left alone, for whoever writes the next one names its hash, and so is the recovery
    point before it. `is_image` tells of a full whether it is one of a device: such a one and what follows it
    make no full, so it stays for as long as anything follows it.
    """
    folds: list[Fold] = []
    row: list[ManifestName] = []
    for name in counting[:-1]:
        if row and is_image(row[-1]) and name.kind != "full":
            folds.append(Fold(tuple(row)))
            row = []
        row.append(name)
        if name.snapshot in stay or name is counting[-2]:
            folds.append(Fold(tuple(row)))
            row = []
    return [fold for fold in folds if fold.gone]
