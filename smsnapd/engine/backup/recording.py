"""What a run leaves behind in the whole tree: changed directories among those that stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from smsnapd.engine.backup.assembly import Recorded
from smsnapd.model import Entry, Listing, directory_key
from smsnapd.state import State, StateUpdate


def whole_tree(
    indexed: Iterator[Listing], changed: Iterator[Recorded]
) -> Iterator[tuple[Listing, Recorded | None]]:
    """Every directory of the tree as it is now, in catalog order, with what changed in it, if anything."""
    old, new = next(indexed, None), next(changed, None)
    while old is not None or new is not None:
        old_key = directory_key(old.directory) if old is not None else None
        key = directory_key(new.after.directory) if new is not None else None
        if new is None or (old_key is not None and key is not None and old_key < key):
            assert old is not None
            yield old, None
            old = next(indexed, None)
            continue
        yield new.after, new
        if old_key == key:
            old = next(indexed, None)
        new = next(changed, None)


def put_settled(state: State, update: StateUpdate, settled: Mapping[bytes, list[Entry]]) -> None:
    """Tell the index of entries, by directory, that turned out to be as it has them and are settled now."""
    for directory, entries in settled.items():
        before = state.listing(directory)
        by_name = {entry.name: entry for entry in entries}
        update.put(Listing(directory, [by_name.get(entry.name, entry) for entry in before]), before)
