"""What this machine remembers of a volume: the newest snapshot that it has made itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from smsnapd.errors import SmsnapError
from smsnapd.state import State


def newest_remembered(
    directory: Path, repository_id: str, volume: str, note: Callable[[str], object]
) -> tuple[int, str] | None:
    """Sequence and id of the newest snapshot made here, by the local state below `directory`; None if none.

    `note` is told why a state that is there cannot be read.
    """
    try:
        if not State.path_of(directory, repository_id, volume).exists():
            return None
        with closing(State.open(directory, repository_id, volume)) as state:
            return state.newest_seen
    except (SmsnapError, PermissionError) as error:
        note(f"{volume}: {error}")
        return None
