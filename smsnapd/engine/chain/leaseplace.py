"""Where a writer notes its lease: beside the local index, for this machine and this file system only."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from smsnapd.errors import SmsnapError
from smsnapd.instance import InstanceError, read_notebook
from smsnapd.repository.leasenote import LeaseNote
from smsnapd.state import State
from smsnapd.volume.mounts import find_mount


def lease_note(state_dir: Path, repository_id: str, volume: str) -> LeaseNote:
    """The note of the writer whose index is below `state_dir`, open; one that says nothing if that fails."""
    index = State.path_of(state_dir, repository_id, volume)
    with contextlib.suppress(OSError):  # the note tells, and goes without
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return LeaseNote(index.with_suffix(".lease"), f"{_machine()} {_filesystem(state_dir)}")


def _machine() -> str:
    """The notebook, whatever instance it runs on today; elsewhere the host."""
    try:
        notebook = read_notebook()
    except InstanceError:
        notebook = None
    return " ".join(notebook) if notebook else socket.gethostname()


def _filesystem(directory: Path) -> str:
    try:
        return find_mount(os.fsencode(directory)).filesystem_uuid
    except SmsnapError:
        return ""
