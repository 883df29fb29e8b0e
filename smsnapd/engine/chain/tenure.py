"""One writer's tenure of a volume's chain: the lease, and what stays known for as long as it is unbroken.

While the lease is this writer's nobody else commits, so the head that it listed or committed is the head:
the next run neither lists nor reads it. That this was so shows after the commit, when the lease is read and
its generation is this writer's still (architecture, invariant 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.chain.index import Parent
from smsnapd.engine.history import History
from smsnapd.format import names
from smsnapd.format.keys import DataKey
from smsnapd.repository import Repository
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.lease import LEASE_S, Lease, is_dead
from smsnapd.repository.leasenote import LeaseNote
from smsnapd.state import Head

DATA_KEY_S: Final = 86400.0
"""How long one data key is used: the first run behind that makes another."""


def taken_over(lease: Lease) -> str:
    """From whom the lease was taken, to be told once; "" if it was free, or that was told."""
    who, lease.taken_from = lease.taken_from, ""
    return f"the lease was taken over from {who}, whose runs fail from now on" if who else ""


class _MadeKey(NamedTuple):
    """A data key, and when it was made by the steady clock."""

    key: DataKey
    made_s: float


class Tenure:
    """From the first `begin` to `release`, over any number of runs. For one thread.

    Who runs more than one backup keeps it between them: calls `keep` now and then, and `forget` after
    anything unexpected; then the lease is taken anew, with a higher generation.
    """

    def __init__(
        self,
        repository: Repository,
        volume: str,
        *,
        lease_s: float = LEASE_S,
        clock: StoreClock | None = None,
        open_note: Callable[[], LeaseNote] | None = None,
    ) -> None:
        """`lease_s` is how long the lease lasts without renewal, in seconds.

        With `open_note`, which opens where the lease is noted, a lease that this writer left behind when it
        lost its power does not keep it waiting.
        """
        self._repository = repository
        self._volume = volume
        self._lease_s = lease_s
        self._clock = clock or StoreClock(repository.store.now)
        self._open_note = open_note
        self._note: LeaseNote | None = None
        self._lease: Lease | None = None
        self._began_s = 0.0
        self._is_sound = False
        self._head: Parent | None = None
        self._data_key: _MadeKey | None = None
        self._data_keys: set[bytes] = set()

    @property
    def lease(self) -> Lease:
        """The lease of the run that `begin` began."""
        assert self._lease is not None
        return self._lease

    @property
    def lasted_s(self) -> float:
        """How long it is since the run was begun, by the store's clock."""
        return self._clock.now() - self._began_s

    def begin(self, *, take_over: bool = False) -> None:
        """Hold the lease, for a run. LockedError, saying who has it, if that is another writer.

        `take_over` takes it from whoever has it.
        """
        if self._data_key is not None and self._clock.steady() - self._data_key.made_s >= DATA_KEY_S:
            self._wipe()
        if self._lease is not None and self._is_sound and not take_over:
            self._lease.renew()
            self._began_s = self._clock.now()
            return
        self.forget()
        if self._open_note is not None:
            self._note = self._open_note()
        self._lease = Lease.take(
            self._repository.store,
            self._repository.id,
            self._volume,
            take_over=take_over,
            lease_s=self._lease_s,
            clock=self._clock,
            dead=is_dead if self._note is None else self._note.is_dead,
        )
        if self._note is not None:
            self._note.keep(self._lease.holder)
        self._is_sound = True
        self._began_s = self._clock.now()

    def keep(self) -> None:
        """Extend the lease between runs if half of it is over. LockedError if it is lost, or StoreError."""
        if self._lease is not None and self._is_sound:
            self._lease.renew()

    def forget(self) -> None:
        """Believe nothing of what is known, after anything unexpected; the next run takes the lease anew.

        A request of a failed run may still be on its way, so the generation must not be used again.
        """
        self._is_sound = False
        self._head = None
        self._wipe()
        self._data_keys = set()
        if self._lease is not None:
            self._lease.abandon()
        if self._note is not None:
            self._note.close()

    def release(self) -> None:
        """Give the lease back, if there is one. Nothing is raised if that fails: it ends by its time."""
        self.forget()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    # --- the head

    def known_head(self, mirrored: Head | None, root: bytes, filesystem: str) -> Parent | None:
        """The head, if it is known, and what the local index mirrors; None if it must be listed."""
        head = self._head
        if head is None:
            return None
        name = head.name
        known = Head(name.snapshot, name.sequence, head.hash, root, filesystem)
        is_mirrored = mirrored is not None and mirrored == msgspec.structs.replace(
            known, rewrites=mirrored.rewrites
        )
        return head if is_mirrored else None

    def listed(self, history: History) -> None:
        """The manifests were listed, under the lease: its generation must be above all of theirs."""
        self.lease.rise_above(history.highest_generation)

    def stands_at(self, head: Parent | None) -> None:
        """This is the head: it was listed under the lease, or committed."""
        self._head = head

    # --- the data keys

    def existing_data_keys(self, wanted: Iterable[bytes]) -> set[bytes]:
        """Which data keys' objects exist; lists them unless all that are `wanted` (ids) are known to."""
        if not self._data_keys.issuperset(wanted):
            prefix = names.data_keys_prefix(self._volume)
            found = (names.parse_data_key_name(info.name) for info in self._repository.store.list(prefix))
            self._data_keys = {name.key_id for name in found if name is not None}
        return self._data_keys

    def data_key(self) -> DataKey:
        """The key to seal with, the same for all of a run; its object is put before it is first used."""
        made = self._data_key
        if made is None:
            key = self._repository.new_data_key(self._volume)
            made = self._data_key = _MadeKey(key, self._clock.steady())
            self._data_keys.add(key.id)
        return made.key

    def _wipe(self) -> None:
        """What was sealed until now cannot be opened here any more, whoever reads this process's memory."""
        made, self._data_key = self._data_key, None
        if made is not None:
            made.key.wipe()


@contextmanager
def held(repository: Repository, volume: str) -> Iterator[tuple[Tenure, History]]:
    """A tenure for one run, begun and in the end released, and the history as it was listed under it.

    LockedError, saying who has the lease, if that is another writer.
    """
    tenure = Tenure(repository, volume)
    try:
        tenure.begin()
        history = History.load(repository, volume)
        tenure.listed(history)
        yield tenure, history
    finally:
        tenure.release()
