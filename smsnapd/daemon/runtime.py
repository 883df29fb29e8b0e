"""Where a running daemon is found: by itself, and by the command line, which loads nothing else of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOCKET: Final = "control.sock"


def runtime_dir(environment: Mapping[str, str]) -> Path:
    """Where the control socket and the status lie: as systemd says, else where root or a user has such.

    The command line finds the daemon's by the same rule, run by root or by the volume's owner.
    """
    if given := environment.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    xdg = environment.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0 or not xdg.startswith("/"):
        return Path("/run/smsnapd")
    own = Path(xdg, "smsnapd")
    return own if own.is_dir() or not Path("/run/smsnapd").is_dir() else Path("/run/smsnapd")


def is_there(directory: Path) -> bool:
    """Whether a daemon may listen there; without its socket there is none that could be asked."""
    try:
        os.lstat(directory / SOCKET)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
