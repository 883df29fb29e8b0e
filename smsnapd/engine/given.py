"""What a run that reads a volume or a device is given: where to, what is asked of it, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from smsnapd.engine.pool import default_workers
from smsnapd.engine.progress import Progress
from smsnapd.repository import Repository
from smsnapd.store.base import StoreSettings


class Asked(Protocol):
    """What every such request says."""

    @property
    def volume(self) -> str:
        """The volume's name in the repository."""

    @property
    def level(self) -> int:
        """That of zstd."""

    @property
    def workers(self) -> int | None:
        """How many processes store, 0 for none; None means one a core."""

    @property
    def grace_s(self) -> float:
        """How long garbage stays on a list before it is deleted, in seconds."""


R_co = TypeVar("R_co", bound=Asked, covariant=True)


@dataclass(frozen=True)
class Given(Generic[R_co]):
    """What one run is given. `clock_ns` is in nanoseconds since the epoch; `notes` are for people."""

    repository: Repository
    settings: StoreSettings
    request: R_co
    progress: Progress
    clock_ns: Callable[[], int]
    notes: list[str] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """How many processes store, 0 for none."""
        asked = self.request.workers
        return default_workers(self.settings.url) if asked is None else asked

    def note(self, text: str) -> None:
        """Tell a person, now and with the outcome."""
        self.notes.append(text)
        self.progress.note(text)
