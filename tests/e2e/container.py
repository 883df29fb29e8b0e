"""Real systemd machines: containers over overlays of this machine's root file system.

Needs root, systemd-nspawn and overlayfs; `MARKS` says so for a module that uses them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))

MARKS = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"
    ),
]


def eventually(look: Callable[[], object], what: str, more: Callable[[], str] = str) -> None:
    """Wait until `look` finds something; `more` is what to show if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{more()}"
        time.sleep(0.2)


class Container:
    """A booted machine. `root` is its file system as it is seen from outside."""

    def __init__(self, root: Path, nspawn: subprocess.Popen[bytes]) -> None:
        self.root = root
        self._nspawn = nspawn
        self._init = 0

    def boot(self) -> None:
        """Wait until systemd inside answers."""

        def is_up() -> bool:
            assert self._nspawn.poll() is None, "the container ended"
            self._init = next(iter(children_of(self._nspawn.pid)), 0)
            return bool(self._init) and self.inside("systemctl", "is-active", "basic.target") == "active"

        eventually(is_up, "systemd in the container")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there."""
        entered = ["nsenter", "-t", str(self._init), "-a", *command]
        return subprocess.run(entered, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def inside(self, *command: str) -> str:
        """What a command prints in there, whatever its status."""
        return self.run(*command).stdout.strip()

    def show(self, name: str) -> str:
        """A property of the daemon's unit."""
        return self.inside("systemctl", "show", "--value", "-p", name, "smsnapd")

    def is_active(self) -> bool:
        """Whether the daemon has said READY."""
        return self.inside("systemctl", "is-active", "smsnapd") == "active"


@contextmanager
def workplace(size: str) -> Iterator[Path]:
    """A directory on a file system of its own: an overlay's upper layer cannot lie on an overlay."""
    work = Path(tempfile.mkdtemp(prefix="smsnapd-nspawn-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "smsnapd-test", work], check=True)
    try:
        yield work
    finally:
        subprocess.run(["umount", "-l", work], check=True)
        work.rmdir()


@contextmanager
def fresh_root(work: Path, name: str) -> Iterator[Path]:
    """This machine's root file system, to be written to and thrown away; skips where it cannot be had."""
    upper, scratch, merged = (work / f"{name}-{part}" for part in ("upper", "work", "merged"))
    for directory in (upper, scratch, merged):
        directory.mkdir()
    layers = f"lowerdir=/,upperdir={upper},workdir={scratch}"
    mounted = subprocess.run(["mount", "-t", "overlay", "smsnapd-test", "-o", layers, merged], check=False)
    if mounted.returncode != 0:
        pytest.skip("an overlay of the root file system cannot be mounted here")
    try:
        yield merged
    finally:
        subprocess.run(["umount", "-l", merged], check=False)
        shutil.rmtree(upper, ignore_errors=True)


@contextmanager
def booted(root: Path, binds: Sequence[tuple[Path, Path]], *options: str) -> Iterator[Container]:
    """A container over `root`, with (outside, inside) bound in; at the end it loses its power."""
    with ExitStack() as stack:
        nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", str(root), "--boot", "--register=no", "--keep-unit",
             f"--machine=smsnapd-test-{os.getpid()}", "--console=pipe", *options,
             *(f"--bind={outside}:{inside}" for outside, inside in binds),
             *(f"--bind-ro={place}" for place in unseen()),
             "systemd.unit=basic.target", "systemd.mask=tmp.mount"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(switch_off, nspawn)
        container = Container(root, nspawn)
        container.boot()
        yield container


def unseen() -> list[Path]:
    """What Python needs and an overlay of the root does not show: below /tmp, or on another file system."""
    needed = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix, CHECKOUT)}
    device = os.stat("/").st_dev
    hidden = (place for place in needed if place.is_relative_to("/tmp") or place.stat().st_dev != device)
    return sorted(hidden, key=lambda place: len(place.parts))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def switch_off(nspawn: subprocess.Popen[bytes]) -> None:
    """End the container's first process, with which all others end; nspawn's own death would leave them."""
    if nspawn.poll() is None:
        for child in children_of(nspawn.pid):
            os.kill(child, signal.SIGKILL)
    nspawn.wait()
