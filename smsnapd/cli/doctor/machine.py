"""The machine: its system, and the Python that smsnapd runs on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smsnapd.cli.doctor.findings import Check, Judged, fail, ok, warn
from smsnapd.cli.doctor.patient import Patient, lies_on

_OS_RELEASE: Final = Path("/etc/os-release")
_OLDEST: Final = (3, 11)


def system(_: Patient) -> Iterator[Judged]:
    """Which Linux this is. All are accepted: new platforms come without asking us."""
    machine = os.uname()
    told = f"{_distribution(_OS_RELEASE)}, kernel {machine.release}, {machine.machine}"
    if sys.platform == "linux":
        yield ok(told)
    else:
        yield fail(f"{told}: not Linux", "run smsnapd on the notebook instance")


def python(patient: Patient) -> Iterator[Judged]:
    """Whether Python is new enough, and whether this installation survives a stop of the notebook."""
    version, place = ".".join(map(str, sys.version_info[:3])), Path(sys.prefix)
    told = f"Python {version} in {place}"
    if sys.version_info[:2] < _OLDEST:
        yield fail(
            f"{told}: smsnapd needs 3.11", "sudo dnf install -y python3.12, and install smsnapd with that"
        )
    elif patient.notebook.use() is None or lies_on(place, patient.device_of_volume()):
        yield ok(told)
    else:
        root = Path(os.fsdecode(patient.root.use()))
        venv = shlex.quote(str(root / ".smsnapd" / "venv"))
        told = f"{told}, on the root volume, which is reset at every start of the notebook"
        yield warn(told, f"{shlex.quote(sys.executable)} -m venv {venv} && {venv}/bin/pip install smsnapd")


def _distribution(file: Path) -> str:
    """What the system calls itself (os-release(5))."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "an unknown Linux"
    fields = {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    return fields.get("PRETTY_NAME") or fields.get("NAME") or "an unknown Linux"


CHECKS: Final = (Check("machine", "system", system), Check("machine", "python", python))
