"""Deleting what ripe lists name and nothing needs, in an order that a crash at any moment leaves sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Final

from smsnapd.engine.prune.plan import Plan
from smsnapd.engine.prune.report import Amount
from smsnapd.errors import KeptError, ObjectMissingError
from smsnapd.format import names
from smsnapd.format.names import (
    CatalogName,
    ChunkName,
    DataKeyName,
    Disposable,
    GarbageName,
    ManifestName,
    parse_disposable,
)
from smsnapd.repository import Repository
from smsnapd.repository.garbage import load_garbage
from smsnapd.store.base import Store

AT_ONCE: Final = 8
BATCH: Final = 256

_ORDER: Final[tuple[type, ...]] = (ManifestName, ChunkName, CatalogName)
"""What names goes before what it names; and data keys, that chunks of any list may name, last of all."""

Doomed = tuple[str, Disposable]


class Sweep:
    """Deletes the objects of ripe lists, and lists. A context manager: it has threads."""

    def __init__(
        self, repository: Repository, plan: Plan, now_s: float, deleted: Callable[[int], object]
    ) -> None:
        """`deleted` is called for each object that is gone, with its size in bytes.

        `now_s` is by the store's clock: what is locked then is kept.
        """
        self._now_s = now_s
        self._repository = repository
        self._store: Store = repository.store
        self._plan = plan
        self._deleted = deleted
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prune")
        self.amount = Amount()
        self.kept = 0
        self._data_keys: set[str] = set()

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def sweep(self, name: GarbageName) -> bool:
        """Do what one list says, but for data keys; False if the store keeps an object that is on it.

        False as well if another prune has deleted the list. DeniedError if it is not allowed.
        """
        loaded = load_garbage(self._repository, name)
        if loaded is None:
            return False
        kept_before, objects = self.kept, loaded.garbage.objects
        for kind in _ORDER:
            self._delete_all(self._doomed(objects, kind))
        prefix = names.data_keys_prefix(name.volume)
        self._data_keys.update(item for item in objects if item.startswith(prefix))
        return self.kept == kept_before

    def sweep_data_keys(self) -> None:
        """Delete the data keys of the lists that were swept; to be called when all were."""
        self._delete_all(self._doomed(sorted(self._data_keys), DataKeyName))

    def forget(self, name: GarbageName) -> None:
        """Delete a list, and nothing that is on it."""
        self._store.delete(name.object_name())

    def _doomed(self, objects: Sequence[str], kind: type) -> Iterator[Doomed]:
        for name in objects:
            item = parse_disposable(name)
            if isinstance(item, kind) and item is not None and self._plan.doomed(name, item):
                yield name, item

    def _delete_all(self, doomed: Iterator[Doomed]) -> None:
        while batch := list(islice(doomed, BATCH)):
            self._delete(batch)

    def _delete(self, batch: list[Doomed]) -> None:
        for (name, item), gone in zip(batch, self._threads.map(self._delete_one, batch), strict=True):
            if gone:
                size = self._plan.deleted(name, item)
                self.amount = self.amount.plus(size)
                self._deleted(size)
            else:
                self.kept += 1

    def _delete_one(self, doomed: Doomed) -> bool:
        """Delete an object; False if the store keeps it, or would keep its bytes."""
        with suppress(ObjectMissingError):  # what deletes it anyway tells whether it is so
            if self._store.locked_until(doomed[0]) > self._now_s:
                return False
        try:
            self._store.delete(doomed[0])
        except KeptError:
            return False
        return True
