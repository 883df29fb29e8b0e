"""Folding against a model of dictionaries, the check of the folded tree, and the selection of paths."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.engine.trees.fold import checked, find_entry, fold, merge, select
from smsnapd.errors import DamageError
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, directory_key, join_path

HEADER = Extent(0, 0, 512)
Tree = dict[bytes, Entry]


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def entry(path: bytes, kind: int = 1, **changes: Any) -> Entry:
    made = Entry(path.rpartition(b"/")[2], kind, header=None if kind == 0 else HEADER)
    return msgspec.structs.replace(made, **changes) if changes else made


def stream(tree: Tree, split: int = 1000) -> list[Listing]:
    """A tree as listings in catalog order, of at most `split` entries each."""
    groups: dict[bytes, list[Entry]] = {}
    for path, made in tree.items():
        groups.setdefault(parent_of(path), []).append(made)
    out = []
    for directory in sorted(groups, key=directory_key):
        members = sorted(groups[directory], key=lambda made: made.name)
        out += [Listing(directory, members[row : row + split]) for row in range(0, len(members), split)]
    return out


def tree_of(listings: Iterable[Listing]) -> Tree:
    return {join_path(listing.directory, made.name): made for listing in listings for made in listing.entries}


def paths_of(listings: Iterable[Listing]) -> list[bytes]:
    return [join_path(listing.directory, made.name) for listing in listings for made in listing.entries]


def folded_model(layers: Sequence[Tree]) -> Tree:
    """The rule as the format words it, layer upon layer."""
    tree: Tree = {}
    for layer in layers:
        blocked = {path for path, made in layer.items() if made.kind != Kind.DIRECTORY}
        tree = {
            path: made for path, made in tree.items() if not any(above in blocked for above in lineage(path))
        }
        tree.update(layer)
        tree = {path: made for path, made in tree.items() if made.kind != Kind.TOMBSTONE}
    return tree


def lineage(path: bytes) -> Iterator[bytes]:
    while path:
        path = parent_of(path)
        if path:
            yield path


parts = st.sampled_from([b"a", b"b", b"a.", b"c\xff", b"a\x01"])
any_path = st.lists(parts, min_size=1, max_size=4).map(b"/".join)
any_layer = st.dictionaries(
    any_path, st.tuples(st.sampled_from([0, 0, 1, 2, 2, 3]), st.integers(0, 9)), max_size=14
).map(lambda rows: {path: entry(path, kind, inode=mark) for path, (kind, mark) in rows.items()})


@given(st.lists(any_layer, min_size=1, max_size=6), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_fold_is_the_model_whatever_the_layers(layers: list[Tree], split: int) -> None:
    folded = list(fold([stream(layer, split) for layer in layers]))
    assert tree_of(folded) == folded_model(layers)
    keys = [(directory_key(listing.directory), made.name) for listing in folded for made in listing.entries]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("seed", range(8))
def test_a_volume_that_changes_is_each_of_its_moments(seed: int) -> None:
    """A chain of real changes; every fold of it passes the check and is the tree of its moment."""
    noise = random.Random(seed)
    tree: Tree = {b"": entry(b"", 2)}
    layers: list[Tree] = []
    for step in range(25):
        before = dict(tree)
        for _ in range(noise.randrange(30 if not step else 8)):
            change(tree, noise, step)
        layers.append(difference(before, tree) if layers else dict(tree))
        folded = list(checked(fold([stream(layer, noise.randrange(1, 6)) for layer in layers])))
        assert tree_of(folded) == tree


@given(any_layer, st.lists(any_layer, min_size=1, max_size=6), st.integers(1, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_merged_layers_do_what_they_did(
    base: Tree, layers: list[Tree], split: int, data: st.DataObject
) -> None:
    """Over any tree; also merged bit by bit, and over a tree that has the first or some of them already."""
    streams = [stream(layer, split) for layer in layers]
    after = tree_of(fold([stream(base), *streams]))
    merged = list(merge(streams))
    keys = [(directory_key(listing.directory), made.name) for listing in merged for made in listing.entries]
    assert keys == sorted(set(keys))
    assert tree_of(fold([stream(base), merged])) == after
    cut = data.draw(st.integers(0, len(layers)))
    assert tree_of(fold([stream(base), *streams[:cut], merged])) == after
    begun = data.draw(st.integers(0, cut))
    bits = [merge(streams[:cut]), merge(streams[begun:])] if cut else [merged]
    assert tree_of(fold([stream(base), *bits])) == after
    assert tree_of(fold([stream(base), merge([merge(streams[:cut]), *streams[cut:]])])) == after


def change(tree: Tree, noise: random.Random, step: int) -> None:
    directories = sorted(path for path, made in tree.items() if made.kind == Kind.DIRECTORY)
    path = join_path(noise.choice(directories), noise.choice([b"x", b"y", b"z", b"x.y"]))
    for below in [known for known in tree if known.startswith(path + b"/")]:
        del tree[below]
    if noise.random() < 0.3:
        tree.pop(path, None)
    else:
        tree[path] = entry(path, noise.choice([1, 2, 3]), inode=step)


def difference(before: Tree, after: Tree) -> Tree:
    """What an incremental records: no tombstones below what is gone or no directory any more."""
    layer = {path: made for path, made in after.items() if before.get(path) != made}
    for path in before.keys() - after.keys():
        above = list(lineage(path))
        if all(after.get(place, entry(b"", 1)).kind == Kind.DIRECTORY for place in above):
            layer[path] = entry(path, 0)
    return layer


def test_what_one_layer_has_passes_uncopied() -> None:
    full = stream({b"": entry(b"", 2), b"a": entry(b"a", 2), b"a/f": entry(b"a/f"), b"b": entry(b"b")})
    assert all(out is given for out, given in zip(fold([full]), full, strict=True))
    layered = list(fold([full, stream({b"b": entry(b"b", inode=7)})]))
    assert layered[-1] is full[-1]


def test_fold_is_lazy() -> None:
    taken = []

    def layer(number: int) -> Iterator[Listing]:
        for row in range(100):
            taken.append(number)
            yield Listing(b"d%02d" % row, [entry(b"f")])

    folded = fold([layer(0), layer(1)])
    assert not taken
    next(folded)
    assert len(taken) <= 4


def test_a_huge_directory_is_not_gathered() -> None:
    held: list[int] = []

    def layer(number: int, step: int) -> Iterator[Listing]:
        for start in range(0, 10_000, 100):
            held.append(number)
            rows = range(start, start + 100, step)
            yield Listing(b"d", [entry(b"f%05d" % row, inode=number) for row in rows])

    count = 0
    for listing in fold([layer(0, 1), layer(1, 10)]):
        count += len(listing.entries)
        assert len(held) <= 2 * (count // 100) + 6
    assert count == 10_000


def test_a_directory_that_came_back_does_not_bring_back_what_it_had() -> None:
    full = {
        path: entry(path, kind)
        for path, kind in ((b"", 2), (b"d", 2), (b"d/old", 1), (b"d/s", 2), (b"d/s/f", 1))
    }
    for gone in (entry(b"d", 0), entry(b"d", 1)):
        again = {b"d": entry(b"d", 2), b"d/new": entry(b"d/new")}
        layers = [full, {b"d": gone}, again]
        assert paths_of(checked(fold(list(map(stream, layers))))) == [b"", b"d", b"d/new"]


def test_many_layers_fold() -> None:
    full = {b"": entry(b"", 2)} | {b"f%03d" % row: entry(b"f%03d" % row) for row in range(300)}
    layers = [full] + [{b"f%03d" % row: entry(b"f%03d" % row, row % 2, inode=row)} for row in range(200)]
    result = tree_of(checked(fold(list(map(stream, layers)))))
    assert len(result) == 201
    assert result[b"f151"].inode == 151
    assert b"f150" not in result


ROOT = {b"": entry(b"", 2)}
FIRST = entry(b"a", links=2)
ALIAS = entry(b"b", flags=int(Flag.ALIAS), links=2, target=b"a")
BROKEN = {
    "nothing": [],
    "no root": stream({b"a": entry(b"a")}),
    "no root entry": [Listing(b"d", [entry(b"a")])],
    "a root that is a file": [Listing(b"", [entry(b"", 1)])],
    "an entry without a directory": stream(ROOT | {b"d/f": entry(b"d/f")}),
    "an entry in a file": stream(ROOT | {b"d": entry(b"d"), b"d/f": entry(b"d/f")}),
    "an entry in a symlink": stream(ROOT | {b"d": entry(b"d", 3), b"d/f": entry(b"d/f")}),
    "a directory without a directory": stream(ROOT | {b"d": entry(b"d", 2), b"d/e/f": entry(b"d/e/f")}),
    "a directory with a name known further up": stream(
        ROOT | {b"d": entry(b"d", 2), b"d/e": entry(b"d/e", 2), b"d/x/e/f": entry(b"f")}
    ),
    "a directory of another place": stream(
        ROOT | {b"d": entry(b"d", 2), b"d/e": entry(b"d/e", 2), b"e/f": entry(b"f")}
    ),
    "a deletion": stream(ROOT | {b"d": entry(b"d", 0)}),
    "a name twice": [*stream(ROOT), Listing(b"", [entry(b"a"), entry(b"a")])],
    "names that fall": [Listing(b"", [entry(b"", 2), entry(b"b"), entry(b"a")])],
    "listings that fall": [*stream(ROOT | {b"b": entry(b"b")}), Listing(b"", [entry(b"a")])],
    "a listing twice": 2 * stream(ROOT),
    "an alias of nothing": stream(ROOT | {b"b": ALIAS}),
    "an alias before its first name": stream(
        ROOT | {b"a": entry(b"a", flags=1, links=2, target=b"b"), b"b": entry(b"b", links=2)}
    ),
    "an alias of an alias": stream(
        ROOT | {b"a": FIRST, b"b": ALIAS, b"c": entry(b"c", flags=1, links=2, target=b"b")}
    ),
    "an alias of a directory": stream(ROOT | {b"a": entry(b"a", 2, links=2), b"b": ALIAS}),
    "an alias of itself": stream(ROOT | {b"b": msgspec.structs.replace(ALIAS, target=b"b")}),
}


@pytest.mark.parametrize("listings", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_tree_is_refused(listings: list[Listing]) -> None:
    with pytest.raises(DamageError):
        list(checked(listings))


def test_a_good_tree_passes_uncopied() -> None:
    tree = ROOT | {b"a": FIRST, b"b": ALIAS, b"d": entry(b"d", 2), b"d.e": entry(b"d.e", 2)}
    tree |= {
        b"d/a": entry(b"d/a", 2),
        b"d/b": entry(b"d/b", 2),
        b"d/b/f": entry(b"d/b/f"),
        b"d.e/f": entry(b"f"),
    }
    tree |= {b"d/z": entry(b"d/z", flags=1, target=b"a"), b"empty": entry(b"empty", 2)}
    for split in (1, 2, 100):
        listings = stream(tree, split)
        assert all(out is given for out, given in zip(checked(listings), listings, strict=True))


def test_find_entry() -> None:
    tree = ROOT | {
        b"d": entry(b"d", 2),
        b"d/f": entry(b"d/f", inode=4),
        b"e": entry(b"e", 2),
        b"e/f": entry(b"e/f"),
    }
    for split in (1, 10):
        for path, made in tree.items():
            assert find_entry(stream(tree, split), path) == made
        for path in (b"x", b"d/x", b"d/f/x", b"x/y", b"d/a"):
            assert find_entry(stream(tree, split), path) is None


def test_find_entry_reads_no_further_than_needed() -> None:
    def endless() -> Iterator[Listing]:
        yield Listing(b"", [entry(b"", 2)])
        yield Listing(b"b", [entry(b"f")])
        raise AssertionError("read on")

    assert find_entry(endless(), b"a/f") is None
    assert find_entry(endless(), b"b/f") == entry(b"f")


def selected(tree: Tree, *paths: bytes, split: int = 100) -> Tree:
    selection = select(lambda: iter(stream(tree, split)), paths)
    assert not selection.missing
    listings = list(checked(selection.listings()))
    assert tree_of(selection.listings()) == tree_of(listings)
    return tree_of(listings)


NESTED = ROOT | {
    path: entry(path, 2 if path.endswith((b"d", b"e")) else 1)
    for path in (b"d", b"d/e", b"d/e/f", b"d/e/g", b"d/f", b"d.d", b"d.d/f", b"f", b"d/e/d", b"d/e/d/f")
}


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        ([b"f"], [b"", b"f"]),
        ([b"d.d"], [b"", b"d.d", b"d.d/f"]),
        ([b"d/e/f"], [b"", b"d", b"d/e", b"d/e/f"]),
        ([b"d/e"], [b"", b"d", b"d/e", b"d/e/d", b"d/e/d/f", b"d/e/f", b"d/e/g"]),
        ([b"d/e", b"d/e/f"], [b"", b"d", b"d/e", b"d/e/d", b"d/e/d/f", b"d/e/f", b"d/e/g"]),
        ([b"f", b"d/e/d", b"f"], [b"", b"d", b"d/e", b"d/e/d", b"d/e/d/f", b"f"]),
        ([b""], sorted(NESTED)),
        ([b"", b"f"], sorted(NESTED)),
        ([], sorted(NESTED)),
    ],
)
def test_select_keeps_paths_and_what_is_above_and_below(paths: list[bytes], kept: list[bytes]) -> None:
    for split in (1, 100):
        assert sorted(selected(NESTED, *paths, split=split)) == kept


@given(st.lists(any_path, min_size=1, max_size=4))
@settings(deadline=None)
def test_select_is_the_model(paths: list[bytes]) -> None:
    tree = dict(ROOT)
    for number in range(60):
        path = b"/".join(
            [b"a", b"b", b"a.", b"c\xff"][number // 4**depth % 4] for depth in range(number % 3 + 1)
        )
        for place in (*lineage(path), path):
            tree[place] = entry(place, 2)
    selection = select(lambda: iter(stream(tree)), paths)
    assert set(selection.missing) == set(paths) - tree.keys()
    kept = {
        place
        for place in tree
        for path in paths
        if place in (b"", path) or place.startswith(path + b"/") or path.startswith(place + b"/")
    }
    assert tree_of(selection.listings()).keys() == kept


def test_paths_that_are_not_there_are_told() -> None:
    selection = select(lambda: iter(stream(NESTED)), [b"d/e", b"no", b"d/e/no", b"f/x", b"", b"d/e/f"])
    assert selection.missing == (b"no", b"d/e/no", b"f/x")


LINKED = ROOT | {
    b"a": entry(b"a", links=4, size=1024, content=(Extent(3, 512, 1024),)),
    b"b": entry(b"b", flags=1, links=4, size=1024, target=b"a", header=Extent(1, 0, 512)),
    b"d": entry(b"d", 2),
    b"d/m": entry(b"d/m", flags=1, links=4, size=1024, target=b"a"),
    b"d/n": entry(b"d/n", flags=1, links=4, size=1024, target=b"a"),
    b"d/s": entry(b"d/s", 3, size=1, target=b"a"),
}


def test_the_first_selected_alias_takes_the_contents() -> None:
    kept = selected(LINKED, b"d", b"b")
    assert kept[b"b"] == msgspec.structs.replace(LINKED[b"a"], name=b"b", header=None)
    assert kept[b"d/m"] == msgspec.structs.replace(LINKED[b"d/m"], target=b"b")
    assert kept[b"d/n"].target == b"b"
    assert kept[b"d/s"] == LINKED[b"d/s"]
    assert selected(LINKED, b"d")[b"d/m"].content == LINKED[b"a"].content
    assert selected(LINKED, b"d/n") == ROOT | {
        b"d": LINKED[b"d"],
        b"d/n": msgspec.structs.replace(LINKED[b"a"], name=b"n", header=None),
    }


def test_aliases_whose_first_name_is_selected_stay() -> None:
    assert selected(LINKED, b"a", b"d/m")[b"d/m"] == LINKED[b"d/m"]
