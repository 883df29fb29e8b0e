"""Which manifests are folded into which."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smsnapd.engine.prune.thinning import Fold, plan_folds
from smsnapd.format.names import ManifestName


def chain(kinds: str) -> list[ManifestName]:
    """`f` a full, `b` one of a device, `i` an incremental."""
    return [
        ManifestName("v", number, 1, number, "incremental" if kind == "i" else "full", f"{number:016x}")
        for number, kind in enumerate(kinds, 1)
    ]


def folded(kinds: str, *stay: int) -> list[tuple[list[int], list[int], str]]:
    names = chain(kinds)
    images = {name for name, kind in zip(names, kinds, strict=True) if kind == "b"}
    plan = plan_folds(names, {f"{number:016x}" for number in stay}, images.__contains__)
    return [
        ([name.sequence for name in fold.names], [name.sequence for name in fold.layers], fold.kind)
        for fold in plan
    ]


def test_what_stays_stands_for_what_goes_before_it() -> None:
    assert folded("fiiiii", 1, 3, 6) == [([2, 3], [2, 3], "incremental"), ([4, 5], [4, 5], "incremental")]
    assert folded("fiiiii", 4, 6) == [([1, 2, 3, 4], [1, 2, 3, 4], "full")]
    assert folded("fifii", 4, 5) == [([1, 2, 3, 4], [3, 4], "full")]
    assert folded("fifii", 2, 3, 5) == [([1, 2], [1, 2], "full")]


def test_the_newest_and_the_one_before_it_are_left_alone() -> None:
    assert folded("fiii", 1, 2, 3, 4) == folded("f") == folded("fi") == folded("") == []
    assert folded("fii") == [([1, 2], [1, 2], "full")]


def test_an_image_stays_below_what_follows_it() -> None:
    assert folded("biiii", 4, 5) == [([2, 3, 4], [2, 3, 4], "incremental")]
    assert folded("fibiii", 5, 6) == [([1, 2, 3], [3], "full"), ([4, 5], [4, 5], "incremental")]
    assert folded("bibi", 3, 4) == [([2, 3], [3], "full")]
    assert folded("bbi", 3) == [([1, 2], [2], "full")]


@given(st.text("fib", max_size=12).map(lambda text: "f" + text), st.sets(st.integers(1, 13)))
def test_whatever_the_chain(kinds: str, stay: set[int]) -> None:
    names = chain(kinds)
    plan = plan_folds(names, {f"{number:016x}" for number in stay}, lambda name: False)
    gone = {name.sequence for fold in plan for name in fold.gone}
    newest = {len(names), len(names) - 1}
    assert gone == {name.sequence for name in names} - stay - newest
    for fold in plan:
        sequences = [name.sequence for name in fold.names]
        assert sequences == list(range(sequences[0], sequences[-1] + 1))
        assert fold.layers == fold.names[-len(fold.layers) :]
        assert isinstance(fold, Fold) and all(name.kind == "incremental" for name in fold.layers[1:])
