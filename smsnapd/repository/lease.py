"""The lease: one writer per volume's chain, by conditional writes of one small record.

Its generation goes into every manifest's name. A writer that slept through its lease finds out
when it reads the lease after its commit; what it committed is fenced by the higher generation
(architecture, invariant 1). Who may take it is judged by the store's clock, which all writers share.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.errors import ConflictError, DamageError, LockedError, ObjectMissingError, StoreError
from smsnapd.format import names
from smsnapd.format.record import Lease as LeaseRecord
from smsnapd.repository.clock import StoreClock
from smsnapd.store.base import Store

log = logging.getLogger(__name__)

LEASE_S: Final = 600.0
"""How long a lease lasts without renewal; a writer that died on another machine blocks that long."""

NAME_FIELDS: Final = 6
HINT: Final = (
    "if that is another notebook, give this one's volume a name of its own (volume.name); "
    "if this one is to go on with the chain, take over: smsnap backup --take-over"
)

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
    """A lease that was taken. For one thread."""

    def __init__(
        self, store: Store, repository_id: bytes, volume: str, clock: StoreClock, lease_s: float
    ) -> None:
        self._store = store
        self._repository_id = repository_id
        self._volume = volume
        self._clock = clock
        self._lease_s = lease_s
        self._version: str | None = None
        self._renewed_s = 0.0
        self.generation = 0
        self.holder = ""
        self.taken_from = ""
        """Whom it was taken from before its end, for people; "" if it was free."""

    @classmethod
    def take(
        cls,
        store: Store,
        repository_id: bytes,
        volume: str,
        *,
        take_over: bool = False,
        lease_s: float = LEASE_S,
        holder: Holder | None = None,
        clock: StoreClock | None = None,
        dead: Callable[[str], bool] = is_dead,
    ) -> Lease:
        """Take the lease, or raise LockedError saying who has it; `take_over` takes it from anybody.

        What it was taken from may have been an old record that was put back, or was none at all: whoever
        has listed the manifests must call `rise_above`.
        """
        lease = cls(store, repository_id, volume, clock or StoreClock(store.now), lease_s)
        lease.holder = (holder or Holder.this_process()).text()
        current, lease._version = lease._read()
        if current is not None and lease._is_held(current, dead):
            if not take_over:
                raise lease._refusal(current)
            lease.taken_from = _who(current)
        lease.generation = (current.generation if current else 0) + 1
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
        """Extend the lease if half of it is over; LockedError if another writer has taken it."""
        if self._clock.steady() - self._renewed_s >= self._lease_s / 2:
            self._write(self.holder)

    def confirm(self) -> None:
        """Read the lease: LockedError unless it is still this one. To be called after a commit."""
        current, version = self._read()
        if not self._is_own(current):
            raise self._refusal(current, was_ours=True)
        self._version = version

    def abandon(self) -> None:
        """Use it no more. The record stays, but does not keep this process from taking the lease anew."""
        _held.discard(self.holder)

    def release(self) -> None:
        """Give the lease back. If another writer has it by now, or the store fails, that is no matter:

        it is not ours any more, or ends with this process, or by its time.
        """
        self.abandon()
        try:
            self._write("")
        except (LockedError, StoreError) as error:
            log.info("the lease of volume %s was not released: %s", self._volume, error)

    def _is_held(self, current: LeaseRecord, dead: Callable[[str], bool]) -> bool:
        """Whether somebody else has it. The store is asked for the time: no clock of ours robs anybody."""
        if not current.holder or dead(current.holder):
            return False
        return current.expires_us > self._clock.ask() * 1e6

    def _is_own(self, current: LeaseRecord | None) -> bool:
        return current is not None and current.generation == self.generation and current.holder == self.holder

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
        began_s = self._clock.steady()
        data = LeaseRecord(
            repository_id=self._repository_id,
            volume=self._volume,
            generation=self.generation,
            holder=holder,
            expires_us=int((self._clock.now() + self._lease_s) * 1e6),
        ).encode()
        try:
            self._replace(data)
        except ConflictError as error:
            # A replacement of ours whose answer was lost may have taken place: the token in it tells.
            current, version = self._read()
            if current is None or current.holder != self.holder:
                raise self._refusal(current, was_ours=self._renewed_s > 0) from error
            self._version = version
            self._replace(data)
        self._renewed_s = began_s

    def _replace(self, data: bytes) -> None:
        self._version = self._store.replace(names.lease_name(self._volume), data, self._version)

    def _refusal(self, current: LeaseRecord | None, *, was_ours: bool = False) -> LockedError:
        """Why nothing may be written, of the record as it is now."""
        what = f"write to the chain of volume {self._volume}"
        if current is None or not current.holder:
            return LockedError(what, "another writer has had the lease meanwhile", HINT)
        took = "has taken the lease over, and has it" if was_ours else "has the lease"
        renewed = names.format_time_us(max(0, current.expires_us - int(self._lease_s * 1e6)))
        until = names.format_time_us(current.expires_us)
        return LockedError(what, f"{_who(current)} {took} until {until}, renewed at {renewed}", HINT)


def _who(record: LeaseRecord) -> str:
    """The holder of a lease, for people."""
    host, *rest = record.holder.split(" ")
    if len(rest) == NAME_FIELDS - 1 and rest[0] == _boot_id():
        return f"another writer on {host} (process {rest[2]} of this machine)"
    return f"another writer on {host}"


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
