"""Putting garbage on lists, some thousand objects on each."""

from __future__ import annotations

from typing import Final

from smsnapd import __version__
from smsnapd.engine.prune.references import References
from smsnapd.engine.prune.report import Amount
from smsnapd.format.garbage import GarbageList
from smsnapd.repository import Repository
from smsnapd.repository.garbage import new_garbage_name, put_garbage, signer_for
from smsnapd.repository.lease import Lease

OBJECTS_OF_A_LIST: Final = 32_768


class Marker:
    """Takes objects in order, and puts lists of their names.

    `amount` is what was taken, `listed_us` are the times of the lists (µs since the epoch).
    """

    def __init__(
        self,
        repository: Repository,
        volume: str,
        references: References,
        lease: Lease,
    ) -> None:
        self._repository = repository
        self._volume = volume
        self._references = references
        self._lease = lease
        self._names: list[str] = []
        self.amount = Amount()
        self.listed_us: list[int] = []

    def add(self, name: str, size: int) -> None:
        """Nothing refers to this object, which has `size` bytes."""
        self.amount = self.amount.plus(size)
        self._names.append(name)
        if len(self._names) == OBJECTS_OF_A_LIST:
            self.finish()

    def finish(self) -> None:
        """Put what was taken and is on no list yet."""
        if not self._names:
            return
        self._lease.renew()
        garbage = GarbageList(
            repository_id=self._repository.id,
            name=new_garbage_name(self._volume, self._repository.store.now()),
            generation=self._lease.generation,
            head=self._references.head,
            program=f"smsnapd {__version__}",
            objects=tuple(self._names),
        )
        put_garbage(self._repository, garbage, signer_for(self._repository, self._references.head_writer))
        self.listed_us.append(garbage.name.time_us)
        self._names = []
