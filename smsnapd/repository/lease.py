"""The lease: one writer per volume's chain, by conditional writes of one small record.

Its generation goes into every manifest's name. A writer that slept through its lease finds out
when it reads the lease after its commit; what it committed is fenced by the higher generation
(architecture, invariant 1).
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.errors import ConflictError, DamageError, LockedError, ObjectMissingError, StoreError
from smsnapd.format import names
from smsnapd.format.record import Lease as LeaseRecord
from smsnapd.store.base import Store

log = logging.getLogger(__name__)

LEASE_S: Final = 600.0
"""How long a lease lasts without renewal; a writer that died on another machine blocks that long."""

RENEW_S: Final = 60.0
NAME_FIELDS: Final = 6

_held: Final[set[str]] = set()
"""The holders that are leases of this process. A record of the process that is none of these is left over:
a lease was not taken or given back to the end, and must not lock this process out of its own chain."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: one process, so that a dead one on the same machine is told at once."""

    host: str
    boot: str
    pid_space: str
    pid: int
    started: str
    token: str

    @classmethod
    def this_process(cls) -> Holder:
        """The calling process, with a token of its own for each call."""
        return cls(
            host=socket.gethostname().replace(" ", "_") or "?",
            boot=_boot_id(),
            pid_space=str(os.stat("/proc/self/ns/pid").st_ino),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            token=secrets.token_hex(8),
        )

    def text(self) -> str:
        """As it stands in the record."""
        return f"{self.host} {self.boot} {self.pid_space} {self.pid} {self.started} {self.token}"


def is_dead(holder: str) -> bool:
    """Whether the holder was a process, or a lease of this one, that is no more. False if nobody can know."""
    fields = holder.split(" ")
    if len(fields) != NAME_FIELDS or not fields[3].isdecimal():
        return False
    _, boot, pid_space, pid, started, _ = fields
    if boot != _boot_id() or pid_space != str(os.stat("/proc/self/ns/pid").st_ino):
        return False
    if int(pid) == os.getpid() and holder not in _held:
        return True
    return _start_time(int(pid)) != started


class Lease:
    """A lease that was taken."""

    def __init__(self, store: Store, repository_id: bytes, volume: str, clock: Callable[[], float]) -> None:
        self._store = store
        self._repository_id = repository_id
        self._volume = volume
        self._clock = clock
        self._version: str | None = None
        self._renewed = 0.0
        self.generation = 0
        self.holder = ""

    @classmethod
    def take(
        cls,
        store: Store,
        repository_id: bytes,
        volume: str,
        *,
        holder: Holder | None = None,
        clock: Callable[[], float] = time.time,
        dead: Callable[[str], bool] = is_dead,
        highest_generation: Callable[[], int] = lambda: 0,
    ) -> Lease:
        """Take the lease, or raise LockedError saying who has it.

        `highest_generation` looks at the manifests; it is asked only when there is no record, since one
        that was lost must not bring an old generation back.
        """
        lease = cls(store, repository_id, volume, clock)
        lease.holder = (holder or Holder.this_process()).text()
        current, version = lease._read()
        if (
            current is not None
            and current.holder
            and current.expires_us > clock() * 1e6
            and not dead(current.holder)
        ):
            raise _locked(volume, current)
        lease.generation = (current.generation if current else highest_generation()) + 1
        lease._version = version
        _held.add(lease.holder)
        try:
            lease._write(lease.holder)
        except BaseException:
            _held.discard(lease.holder)
            raise
        return lease

    def rise_above(self, generation: int) -> None:
        """Take a higher generation if this one is not: an old record was put back, and must fence nobody."""
        if self.generation <= generation:
            self.generation = generation + 1
            self._write(self.holder)

    def renew(self) -> None:
        """Extend the lease if it is time to; LockedError if another writer has taken it."""
        # A clock that was put back must not keep a lease from being renewed.
        if not 0 <= self._clock() - self._renewed < RENEW_S:
            self._write(self.holder)

    def confirm(self) -> None:
        """Read the lease: LockedError unless it is still this one. To be called after a commit."""
        current, _ = self._read()
        if current is None or current.generation != self.generation or current.holder != self.holder:
            raise _locked(self._volume, current)

    def release(self) -> None:
        """Give the lease back. If another writer has it by now, or the store fails, that is no matter:

        it is not ours any more, or ends with this process, or by its time.
        """
        _held.discard(self.holder)
        try:
            self._write("")
        except (LockedError, StoreError) as error:
            log.info("the lease of volume %s was not released: %s", self._volume, error)

    def _read(self) -> tuple[LeaseRecord | None, str | None]:
        name = names.lease_name(self._volume)
        try:
            data, version = self._store.get_versioned(name)
        except ObjectMissingError:
            return None, None
        try:
            record = LeaseRecord.decode(data, self._volume, self._repository_id)
        except DamageError:
            # It protects against accidents only; a damaged one is written anew, `check` reports it.
            return None, version
        # No generation can follow the highest one: nobody came there by counting.
        return (None if record.generation == names.NUMBER_MAX else record), version

    def _write(self, holder: str) -> None:
        name = names.lease_name(self._volume)
        now = self._clock()
        record = LeaseRecord(
            repository_id=self._repository_id,
            volume=self._volume,
            generation=self.generation,
            holder=holder,
            expires_us=int((now + LEASE_S) * 1e6),
        )
        try:
            self._version = self._store.replace(name, record.encode(), self._version)
        except ConflictError as error:
            current, _ = self._read()
            raise _locked(self._volume, current) from error
        self._renewed = now


def _locked(volume: str, current: LeaseRecord | None) -> LockedError:
    why = "another writer has had the lease meanwhile"
    if current is not None and current.holder:
        until = names.format_time_us(current.expires_us)
        why = f"another writer on {current.holder.split(' ')[0]} has the lease until {until}"
    return LockedError(
        f"write to the chain of volume {volume}",
        why,
        "wait for it, or give this volume a name of its own (volume.name) if it is another notebook",
    )


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); "" if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return ""
    state, *rest = fields.split()
    return "" if state in "ZX" else rest[18]
