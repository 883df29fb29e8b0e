"""What a run leaves behind in the whole tree: changed directories among those that stay as they were."""

from __future__ import annotations

from collections.abc import Iterator

from smsnapd.engine.backup.assembly import Recorded
from smsnapd.model import Entry, Listing, directory_key


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


def with_settled(listing: list[Entry], settled: list[Entry]) -> list[Entry]:
    """A listing with some of its entries replaced by their settled forms."""
    by_name = {entry.name: entry for entry in settled}
    return [by_name.get(entry.name, entry) for entry in listing]
