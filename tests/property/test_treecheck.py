"""Random layers, good and bad: to check one by one says the same as to fold every tree from the start."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.engine.trees.fold import checked, fold
from smsnapd.engine.trees.treecheck import TreeCheck
from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Kind, Listing, directory_key

LONG = "SMSNAP_LONG" in os.environ
PATHS = [b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a", b"a/a/b", b"a!", b"a!/a"]
ROOT = Entry(b"", int(Kind.DIRECTORY))


def entry(path: bytes, what: str, target: bytes) -> Entry:
    name = path.rpartition(b"/")[2]
    match what:
        case "directory":
            return Entry(name, int(Kind.DIRECTORY))
        case "anew":
            return Entry(name, int(Kind.DIRECTORY), flags=int(Flag.ANEW))
        case "file":
            return Entry(name, int(Kind.REGULAR))
        case "first":
            return Entry(name, int(Kind.REGULAR), links=2)
        case "alias":
            return Entry(name, int(Kind.REGULAR), flags=int(Flag.ALIAS), links=2, target=target)
        case _:
            return Entry(name, int(Kind.TOMBSTONE))


WHATS = st.sampled_from(
    ("directory", "directory", "directory", "anew", "file", "first", "first", "alias", "alias", "tombstone")
)
CHANGES = st.dictionaries(st.sampled_from(PATHS), st.tuples(WHATS, st.sampled_from(PATHS)), max_size=7)
LAYERS = st.lists(CHANGES, min_size=1, max_size=6)


def listings(changes: dict[bytes, tuple[str, bytes]], *, root: bool) -> list[Listing]:
    by_directory: dict[bytes, list[Entry]] = {b"": [ROOT]} if root else {}
    for path, (what, target) in changes.items():
        by_directory.setdefault(path.rpartition(b"/")[0], []).append(entry(path, what, target))
    return [
        Listing(directory, sorted(entries, key=lambda item: item.name))
        for directory, entries in sorted(by_directory.items(), key=lambda item: directory_key(item[0]))
    ]


def is_tree(layers: list[list[Listing]]) -> bool:
    try:
        for _ in checked(fold(layers)):
            pass
    except DamageError:
        return False
    return True


@settings(max_examples=20_000 if LONG else 600, deadline=None, derandomize=not LONG, database=None)
@given(changes=LAYERS)
def test_one_by_one_is_as_from_the_start(changes: list[dict[bytes, tuple[str, bytes]]]) -> None:
    """Up to the first tree that is none: what comes behind that is not asked."""
    check = TreeCheck()
    layers: list[list[Listing]] = []
    for number, layer in enumerate(changes):
        layers.append(listings(layer, root=not number))
        good = is_tree(layers)
        try:
            check.add(layers[-1])
        except DamageError:
            assert not good
            return
        assert good
