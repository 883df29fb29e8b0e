"""What the environment reports of fulls need of this machine."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Final

from smsnapd.cli.doctor.findings import Check, Judged, ok, skipped, warn
from smsnapd.cli.doctor.patient import Patient


def environment(patient: Patient) -> Iterator[Judged]:
    """That git is there, and pip where environments are to be left out."""
    backup = patient.config.use().backup
    if not backup.environment:
        yield skipped("[backup] environment is false: no full tells what its environments were made of")
        return
    missing = shutil.which("git") is None
    if missing:
        yield warn("git is not installed: reports do not tell what is not pushed", "sudo dnf install -y git")
    if backup.exclude_recreatable and importlib.util.find_spec("pip") is None:
        missing = True
        told = "smsnapd's Python has no pip to ask an index with: no environment is left out"
        yield warn(told, "python3 -m ensurepip, with that Python")
    if not missing:
        yield ok("every full tells what the volume's environments are made of: smsnap environment show")


CHECKS: Final = (Check("volume", "environment", environment),)
