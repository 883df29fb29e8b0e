"""Which recovery points of a volume are to be copied, of names alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from smsnapd.format.names import ManifestName


class Step(NamedTuple):
    """One recovery point to copy; as a full of its whole tree if its parent is not there."""

    name: ManifestName
    whole: bool


class CopyPlan(NamedTuple):
    """What to copy, in order; what is there; what is older than that, and so has no place."""

    steps: tuple[Step, ...]
    there: tuple[ManifestName, ...]
    too_old: tuple[ManifestName, ...]


def plan_copy(
    source: Sequence[ManifestName], there: Sequence[ManifestName], wanted: Collection[str] | None
) -> CopyPlan:
    """The plan for a volume, oldest first; `wanted` are ids, None all. What they follow from comes along.

    A recovery point keeps its kind if what it follows from in `source` is what it will follow there.
    """
    chosen = source if wanted is None else _with_chains(source, wanted)
    ids = {name.snapshot for name in there}
    head = there[-1] if there else None
    steps: list[Step] = []
    too_old: list[ManifestName] = []
    before = dict(zip(source[1:], source, strict=False))
    standing = head.snapshot if head else ""
    for name in chosen:
        if name.snapshot in ids:
            continue
        if head is not None and name.time_us <= head.time_us:
            too_old.append(name)
            continue
        parent = before.get(name)
        follows = parent is not None and parent.snapshot == standing
        steps.append(Step(name, whole=name.kind == "incremental" and not follows))
        standing = name.snapshot
    return CopyPlan(tuple(steps), tuple(name for name in chosen if name.snapshot in ids), tuple(too_old))


def _with_chains(source: Sequence[ManifestName], wanted: Collection[str]) -> list[ManifestName]:
    """Those of the ids, and of each chain all before them."""
    chosen: list[ManifestName] = []
    chain: list[ManifestName] = []
    for name in source:
        if name.kind == "full":
            chain = []
        chain.append(name)
        if name.snapshot in wanted:
            chosen += chain
            chain = []
    return chosen
