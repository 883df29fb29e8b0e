"""What may be done in a store, found out by trying each thing in a way that changes nothing.

>>> from smsnapd.store.memory import MemoryStore
>>> store = MemoryStore("example")
>>> store.put("repository", b"record")
>>> [(right.name, right.outcome) for right in try_rights(store, "repository", "volumes/v/lease")][:3]
[('list', 'allowed'), ('read', 'allowed'), ('create', 'allowed')]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeVar

from smsnapd.errors import ConflictError, ObjectMissingError, StoreError
from smsnapd.store.base import Store
from smsnapd.store.s3_answers import NO_ETAG

RightName = Literal["list", "read", "create", "replace", "delete"]
Outcome = Literal["allowed", "refused", "ignored", "untried"]

T = TypeVar("T")
_NOTHING: Final = b""


class Right(NamedTuple):
    """One thing that a store must let do.

    `refused`: `error` says why. `ignored`: the store did not keep to the condition of the request, so it
    cannot hold a repository. `untried`: what is needed to try it is not there, or did not answer.
    """

    name: RightName
    outcome: Outcome
    error: StoreError | None = None


def try_rights(store: Store, kept: str, replaced: str) -> tuple[Right, ...]:
    """Try every right, in the order of `RightName`; nothing is raised, changed or left behind.

    `kept` is the name of an object that is never replaced, `replaced` of one that is, again and again;
    neither need exist. Requests are conditional and carry the bytes that are there, so that not even a store
    that ignores conditions is harmed. `store` must try each call only once (`attempts`): a second attempt
    could take the object for the first one's.
    """
    listed, _ = _tried("list", lambda: next(iter(store.list(kept)), None))
    read, content = _tried("read", lambda: store.get(kept))
    if isinstance(read.error, ObjectMissingError):
        read = Right("read", "untried", read.error)
    create = Right("create", "untried") if content is None else _create(store, kept, content)
    can_try = create.outcome in ("allowed", "refused")
    replace = _replace(store, replaced) if can_try else Right("replace", "untried")
    below = replaced[: replaced.rfind("/") + 1]  # rights may be of what lies there alone
    delete, _ = _tried("delete", lambda: store.try_delete(below))
    return listed, read, create, replace, delete


def _create(store: Store, name: str, content: bytes) -> Right:
    """Create what is there already, with the bytes that it has."""
    return _conditional("create", lambda: store.replace(name, content, None))


def _replace(store: Store, name: str) -> Right:
    """Replace an object at a version that it is not at, with the bytes that it has."""
    current, content = _tried("replace", lambda: store.get(name))
    if current.outcome != "allowed" and not isinstance(current.error, ObjectMissingError):
        return Right("replace", "untried", current.error)
    return _conditional("replace", lambda: store.replace(name, content or _NOTHING, NO_ETAG))


def _conditional(name: RightName, call: Callable[[], object]) -> Right:
    """Try what must end in a conflict."""
    right, _ = _tried(name, call)
    if isinstance(right.error, ConflictError):
        return Right(name, "allowed")
    return right if right.error else Right(name, "ignored")


def _tried(name: RightName, call: Callable[[], T]) -> tuple[Right, T | None]:
    """What came of a call; an error that may pass by itself refuses nothing."""
    try:
        return Right(name, "allowed"), call()
    except StoreError as error:
        return Right(name, "untried" if error.transient else "refused", error), None
