"""Objects in this process's memory: for tests and for trying things out; gone when it ends."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator

from smsnapd.errors import ConflictError, ObjectExistsError, ObjectMissingError, UsageError
from smsnapd.store.base import Buffer, ObjectInfo, check_size, one_level
from smsnapd.store.names import check_name, check_prefix

_stores: dict[str, MemoryStore] = {}
_stores_lock = threading.Lock()


def open_memory(name: str) -> MemoryStore:
    """The store of this process that is called `name`; raises `UsageError` if that is no name."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UsageError("open a memory:// URL", "it has no plain name", "give memory://some-name")
    with _stores_lock:
        if name not in _stores:
            _stores[name] = MemoryStore(name)
        return _stores[name]


class MemoryStore:
    """A `Store` in a dictionary. Versions are hashes of the content.

    `clock` gives seconds since the epoch, and is the store's own.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.time) -> None:
        self.url = f"memory://{name}"
        self._clock = clock
        self._objects: dict[str, bytes] = {}
        self._locks: dict[str, float] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r}, objects={len(self._objects)})"

    def get(self, name: str) -> bytes:
        """The whole object."""
        check_name("read", name)
        what = f"read {name} in {self.url}"
        try:
            content = self._objects[name]
        except KeyError as error:
            raise ObjectMissingError(what, "there is no such object") from error
        check_size(len(content), what)
        return content

    def put(self, name: str, data: Buffer) -> None:
        """Create the object, or find it there with the same bytes."""
        check_name("store", name)
        content = bytes(data)
        with self._lock:
            if self._objects.setdefault(name, content) != content:
                raise ObjectExistsError(f"store {name} in {self.url}", "it exists and has other bytes")

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        """The whole object and its version."""
        content = self.get(name)
        return content, _version(content)

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        """Put `data` if the object is at `version` still."""
        check_name("replace", name)
        content = bytes(data)
        with self._lock:
            current = self._objects.get(name)
            if (None if current is None else _version(current)) != version:
                raise ConflictError(f"replace {name} in {self.url}", "somebody else changed it")
            self._objects[name] = content
        return _version(content)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with `prefix`, as they are now, sorted."""
        check_prefix(prefix)
        with self._lock:
            found = [ObjectInfo(name, len(data)) for name, data in self._objects.items()]
        return iter(sorted(info for info in found if info.name.startswith(prefix)))

    def children(self, prefix: str) -> tuple[str, ...]:
        """What is one level below `prefix`."""
        return one_level(self.list(prefix), prefix)

    def delete(self, name: str) -> None:
        """Remove the object, if there is one."""
        check_name("delete", name)
        with self._lock:
            self._objects.pop(name, None)
            self._locks.pop(name, None)

    def locked_until(self, name: str) -> float:
        """What `lock` was told."""
        self.get(name)
        return self._locks.get(name, 0.0)

    def lock(self, name: str, until_s: float) -> None:
        """Remember it: whoever deletes must ask."""
        self.get(name)
        with self._lock:
            self._locks[name] = max(until_s, self._locks.get(name, 0.0))

    def try_delete(self, below: str = "") -> None:
        """Nobody is kept from deleting."""

    def abandon_uploads(self, below: str, before_s: float) -> int:
        """A put here is never half done."""
        return 0

    def now(self) -> float:
        """The clock that was handed in."""
        return self._clock()

    def barrier(self) -> None:
        """Nothing in memory is durable, so there is nothing to wait for."""

    def close(self) -> None:
        """Keep the objects: whoever opens the name again finds them."""


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
