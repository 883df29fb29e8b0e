"""A small repository with some of everything, and copies of it with other objects."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from smsnapd.store import StoreSettings, open_store
from smsnapd.store.memory import MemoryStore
from tests.property.observed import Observed, observe
from tests.property.protected import Protected

MARKER = "unmistakable-marker"
Objects = dict[str, bytes]


@dataclass(frozen=True)
class Small:
    """A small repository: its objects, and what each recovery point must give."""

    protected: Protected
    objects: Objects
    moments: dict[str, Observed]

    def without_state(self, place: Path) -> Protected:
        """As on a bare machine."""
        return replace(self.protected, state_dir=place / "no-state")


def objects_of(settings: StoreSettings) -> Objects:
    store = open_store(settings)
    found = {info.name: store.get(info.name) for info in store.list("")}
    store.close()
    return found


def store_of(objects: Objects) -> MemoryStore:
    store = MemoryStore("altered")
    for name, data in objects.items():
        store.put(name, data)
    return store


def in_a_directory(objects: Objects, directory: Path) -> StoreSettings:
    """For worker processes, which open a store of their own."""
    settings = StoreSettings(directory.as_uri())
    store = open_store(settings)
    for name, data in objects.items():
        store.put(name, data)
    store.close()
    return settings


def story(top: Path, large: bool = False) -> Small:
    """Two fulls and some incrementals; some chunks attached to manifests, some objects of their own."""
    root = top / "volume"
    (root / f"{MARKER}-directory").mkdir(parents=True)
    protected = Protected.create(root, top / "state", StoreSettings((top / "repository").as_uri()))
    moments: dict[str, Observed] = {}

    def commit(**request: bool) -> None:
        outcome = protected.backup(**request)
        assert outcome.snapshot is not None
        moments[outcome.snapshot.id] = observe(root)

    for number in range(5):
        (root / f"{MARKER}-directory" / f"{MARKER}-{number}").write_text(f"{MARKER} content {number}\n" * 300)
    (root / f"{MARKER}-link").symlink_to(f"{MARKER}-target")
    if large:
        (root / "large").write_bytes(b"".join(b"%08d" % number for number in range(3 << 20)))
    commit(attach=False)
    (root / "added").write_text(f"{MARKER} added\n" * 100)
    os.link(root / "added", root / "linked")
    commit()
    (root / f"{MARKER}-directory" / f"{MARKER}-1").write_text("changed")
    commit(attach=False)
    commit(full=True)
    (root / f"{MARKER}-directory" / f"{MARKER}-2").unlink()
    (root / "last").write_text(f"{MARKER} last\n" * 50)
    commit()
    return Small(protected, objects_of(protected.settings), moments)


def kind_of(name: str) -> str:
    """The directory that an object lies in, which says what it is."""
    parts = name.split("/")
    return parts[2] if parts[0] == "volumes" else "/".join(parts[:2])
