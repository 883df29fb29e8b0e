"""What the daemon remembers from one life to the next, next to the local index. Losing it costs a check."""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


def last_check(state_dir: Path, volume: str) -> float | None:
    """When the last check of this volume ended, in seconds since the epoch; None if that is not known."""
    try:
        return float(_file(state_dir, volume).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def remember_check(state_dir: Path, volume: str, when_s: float) -> None:
    """Keep the time of a check; a failure is logged, and costs a check at the next start."""
    path = _file(state_dir, volume)
    new = path.with_suffix(".new")
    try:
        new.write_text(f"{when_s:.0f}\n", encoding="ascii")
        os.replace(new, path)
    except OSError as error:
        _log.warning("the time of the check was not kept: %s", error)


def _file(state_dir: Path, volume: str) -> Path:
    return state_dir / f"{volume}.checked"
