"""What is asked of a run. Whoever makes a request need not load what fulfils it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smsnapd.engine.chain.reuse import GRACE_S
from smsnapd.store.base import StoreSettings

if TYPE_CHECKING:
    from smsnapd.engine.backup.looks import Hints

SURVEY_S = 120.0
"""Seconds that a survey takes at most: a full that is done sooner waits for so long."""


@dataclass(frozen=True)
class EnvironmentRequest:
    """That a report is wanted, and how long may be looked for it, in seconds.

    With `leave_out` snapshots leave out the environments that the report alone can rebuild. `data_places` are
    where large files may lie too.
    """

    seconds: float = SURVEY_S
    leave_out: bool = False
    data_places: tuple[StoreSettings, ...] = ()


@dataclass(frozen=True)
class BackupRequest:
    """What to back up and how. `root` is the volume's directory; `workers` None means one a core.

    `mode` is that of fulls: "tar", or "block" for images of the device; an incremental is always of files.
    With `hints` only what they name is looked at, for who has watched the volume since the last commit
    without a gap; they are ignored where a scan must be of everything. `take_over` takes the lease from
    whoever has it. `grace_s` is how long garbage stays on a list before it is deleted. With `environment` a
    full gets a report of what is needed to make the volume's environments again. `consistency` "" is "live"
    for files, and "freeze" for images; what it says is for fulls, if these are images.
    """

    root: bytes
    volume: str
    state_dir: Path
    exclude: tuple[str, ...] = ()
    mode: str = "tar"
    full: bool = False
    reread: bool = False
    hints: Hints | None = None
    dry_run: bool = False
    take_over: bool = False
    consistency: str = ""
    level: int = 1
    workers: int | None = None
    grace_s: float = GRACE_S
    environment: EnvironmentRequest | None = None
