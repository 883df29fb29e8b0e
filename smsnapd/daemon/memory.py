"""What the daemon remembers from life to life, next to the local index: when it last checked and pruned.

Losing it costs a check and a prune.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


def last_check(state_dir: Path, volume: str) -> float | None:
    """When the last check of this volume ended, in seconds since the epoch; None if that is not known."""
    return _read(state_dir / f"{volume}.checked")


def remember_check(state_dir: Path, volume: str, when_s: float) -> None:
    """Keep the time of a check; a failure is logged, and costs a check at the next start."""
    _write(state_dir / f"{volume}.checked", when_s)


def last_prune(state_dir: Path, volume: str) -> float | None:
    """When the last prune of this volume ended, as for a check."""
    return _read(state_dir / f"{volume}.pruned")


def remember_prune(state_dir: Path, volume: str, when_s: float) -> None:
    """Keep the time of a prune, as for a check."""
    _write(state_dir / f"{volume}.pruned", when_s)


def _read(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _write(path: Path, when_s: float) -> None:
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(f"{when_s:.0f}\n", encoding="ascii")
        os.replace(new, path)
    except OSError as error:
        _log.warning("%s was not kept: %s", path.name, error)
