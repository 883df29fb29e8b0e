"""A store that fails as planned: for enumerating every moment at which a run can be cut off."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from smsnapd.errors import StoreError
from smsnapd.store import Buffer, ObjectInfo, Store


class Crash(BaseException):
    """The process died here. No `except Exception` catches it, as none would catch a kill."""


class Fault(enum.Enum):
    """What happens to one call."""

    TRANSIENT = "raises a transient StoreError; nothing was done"
    PERMANENT = "raises a permanent StoreError; nothing was done"
    LOST = "is done, then raises a transient StoreError"
    CRASH = "raises Crash, and so does every call from then on; nothing was done"
    CRASH_AFTER = "is done, then raises Crash, and so does every call from then on"
    GARBLE = "a read returns the bytes with one bit flipped"
    TRUNCATE = "a read returns the first half of the bytes"


WRITES = frozenset(("put", "replace", "delete"))


class Call(NamedTuple):
    """One call to the store: its number from 0, the method, and the name or prefix ("" where it has none)."""

    number: int
    method: str
    name: str


T = TypeVar("T")
Plan = Mapping[int, Fault] | Callable[[Call], Fault | None]


class FaultyStore:
    """`wrapped`, with faults where `plan` has them: by the call's number, or as a function of the call.

    `calls` is every call so far. A listing is one call, made when it begins. `close` is neither
    counted nor passed on, so that the wrapped store can be looked at after a crash. Thread-safe; with
    several threads the numbers are those of arrival.
    """

    def __init__(self, wrapped: Store, plan: Plan | None = None) -> None:
        self.wrapped = wrapped
        self.calls: list[Call] = []
        self._plan: Plan = {} if plan is None else plan
        self._crashed = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self.wrapped.url

    def get(self, name: str) -> bytes:
        fault = self._before("get", name)
        return self._after(fault, "get", name, _spoiled(self.wrapped.get(name), fault))

    def put(self, name: str, data: Buffer) -> None:
        fault = self._before("put", name)
        self._after(fault, "put", name, self.wrapped.put(name, data))

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        fault = self._before("get_versioned", name)
        content, version = self.wrapped.get_versioned(name)
        return self._after(fault, "get_versioned", name, (_spoiled(content, fault), version))

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        fault = self._before("replace", name)
        return self._after(fault, "replace", name, self.wrapped.replace(name, data, version))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        fault = self._before("list", prefix)
        yield from self.wrapped.list(prefix)
        self._after(fault, "list", prefix, None)

    def children(self, prefix: str) -> tuple[str, ...]:
        fault = self._before("children", prefix)
        return self._after(fault, "children", prefix, self.wrapped.children(prefix))

    def delete(self, name: str) -> None:
        fault = self._before("delete", name)
        self._after(fault, "delete", name, self.wrapped.delete(name))

    def locked_until(self, name: str) -> float:
        fault = self._before("locked_until", name)
        return self._after(fault, "locked_until", name, self.wrapped.locked_until(name))

    def lock(self, name: str, until_s: float) -> None:
        fault = self._before("lock", name)
        self._after(fault, "lock", name, self.wrapped.lock(name, until_s))

    def try_delete(self, below: str = "") -> None:
        fault = self._before("try_delete", below)
        self._after(fault, "try_delete", below, self.wrapped.try_delete(below))

    def abandon_uploads(self, below: str, before_s: float) -> int:
        fault = self._before("abandon_uploads", below)
        return self._after(fault, "abandon_uploads", below, self.wrapped.abandon_uploads(below, before_s))

    def now(self) -> float:
        fault = self._before("now", "")
        return self._after(fault, "now", "", self.wrapped.now())

    def barrier(self) -> None:
        fault = self._before("barrier", "")
        self._after(fault, "barrier", "", self.wrapped.barrier())

    def close(self) -> None:
        """Does nothing."""

    def _before(self, method: str, name: str) -> Fault | None:
        """Count the call, and fail if it must not be done."""
        with self._lock:
            if self._crashed:
                raise Crash(f"{method} {name} after the crash")
            call = Call(len(self.calls), method, name)
            self.calls.append(call)
            fault = self._plan(call) if callable(self._plan) else self._plan.get(call.number)
            if fault in (Fault.CRASH, Fault.CRASH_AFTER):
                self._crashed = True
        if fault is Fault.CRASH:
            raise Crash(f"{method} {name}")
        if fault in (Fault.TRANSIENT, Fault.PERMANENT):
            raise _error(method, name, fault)
        return fault

    def _after(self, fault: Fault | None, method: str, name: str, result: T) -> T:
        """The result, unless it must not arrive."""
        if fault is Fault.CRASH_AFTER:
            raise Crash(f"after {method} {name}")
        if fault is Fault.LOST:
            raise _error(method, name, fault)
        return result


def _error(method: str, name: str, fault: Fault) -> StoreError:
    return StoreError(f"{method} {name}", f"planned: {fault.value}", transient=fault is not Fault.PERMANENT)


def _spoiled(content: bytes, fault: Fault | None) -> bytes:
    if fault is Fault.TRUNCATE:
        return content[: len(content) // 2]
    if fault is Fault.GARBLE and content:
        middle = len(content) // 2
        return content[:middle] + bytes((content[middle] ^ 1,)) + content[middle + 1 :]
    return content
