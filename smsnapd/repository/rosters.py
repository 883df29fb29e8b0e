"""Rosters: the unbroken row of them, and the newest one that this machine has seen.

Whoever may delete in the bucket can take the newest roster away, and so undo a revocation. Three things tell:
every manifest names the roster that its writer knew; this machine remembers the newest that it has seen; and
a write key whose grant is gone is told as one that was never granted.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.errors import DamageError
from smsnapd.format import names
from smsnapd.format.manifest import RosterRef
from smsnapd.format.record import record_hash
from smsnapd.format.roster import Roster
from smsnapd.store.base import Store

_UNDONE: Final = "whoever deleted it undid what it says, such as a revocation: ask who may delete there"
log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A roster as it lies in the repository, and the hash of its record (32 bytes)."""

    roster: Roster
    hash: bytes

    @property
    def ref(self) -> RosterRef:
        """As manifests name it."""
        return RosterRef(self.roster.sequence, self.hash)


def rosters_in_order(
    store: Store, repository_id: bytes, root_public: bytes, known: Sequence[Seen] = ()
) -> Iterator[Seen]:
    """Every roster, oldest first; DamageError at a gap or a broken link. What is `known` is not read."""
    previous = None
    found = (names.parse_roster_name(info.name) for info in store.list(names.ROSTERS_PREFIX))
    for number, sequence in enumerate(filter(None, found), start=1):
        name = names.roster_name(number)
        if sequence != number:
            raise DamageError("open the repository", f"the object {name} is missing")
        seen = known[number - 1] if number <= len(known) else _load(store, number, repository_id, root_public)
        if seen.roster.previous != previous:
            raise DamageError(f"read {name}", "it does not follow the roster before it")
        previous = seen.hash
        yield seen


def _load(store: Store, number: int, repository_id: bytes, root_public: bytes) -> Seen:
    data = store.get(names.roster_name(number))
    return Seen(Roster.decode(data, number, repository_id, root_public), record_hash(data))


def load_rosters(
    store: Store, repository_id: bytes, root_public: bytes, known: Sequence[Seen] = ()
) -> tuple[Seen, ...]:
    """All of them; the last one holds. DamageError as `rosters_in_order`, or if there is none."""
    rosters = tuple(rosters_in_order(store, repository_id, root_public, known))
    if not rosters:
        raise DamageError("open the repository", "its roster of recipients and writers is missing")
    return rosters


def check_known(rosters: Sequence[Seen], known: RosterRef, who: str) -> None:
    """DamageError unless the roster that `who` knew is among `rosters`."""
    name = names.roster_name(known.sequence)
    if known.sequence > len(rosters):
        raise DamageError(f"read {name}", f"it is missing, and {who} has seen it", _UNDONE)
    if rosters[known.sequence - 1].hash != known.hash:
        raise DamageError(f"read {name}", f"it is another one than {who} has seen", _UNDONE)


class RosterMemory:
    """The newest roster that this machine has seen of a repository; a small file beside the local state."""

    def __init__(self, directory: Path, repository_id: bytes) -> None:
        self._path = directory / f"{repository_id.hex()[:16]}.roster"

    def hold(self, rosters: Sequence[Seen]) -> None:
        """DamageError if what was seen before is not there any more; else the newest is remembered."""
        known = self._read()
        if known is not None:
            check_known(rosters, known, "this machine")
        newest = rosters[-1].ref
        if newest != known:
            self._write(newest)

    def _read(self) -> RosterRef | None:
        try:
            found = json.loads(self._path.read_bytes())
            return RosterRef(int(found["sequence"]), bytes.fromhex(found["hash"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("what this machine knew of rosters cannot be read from %s: %s", self._path, error)
            return None

    def _write(self, newest: RosterRef) -> None:
        """Durable, whole, 0600. Where that cannot be (another user's state) it is not remembered."""
        text = json.dumps({"sequence": newest.sequence, "hash": newest.hash.hex()})
        part = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(part, "xb", opener=_private) as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            log.info("the newest roster is not remembered in %s: %s", self._path, error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
