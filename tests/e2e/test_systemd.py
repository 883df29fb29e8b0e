"""The unit under a real systemd, booted in a container over an overlay of this machine's root file system."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import smsnapd
from smsnapd.cli.install import unit_text
from tests.e2e.transcript import PASSPHRASE

PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))
PLACE = Path("/opt/smsnapd-test")
"""Inside; not below /tmp and /run, which the container mounts anew."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn (systemd-container)"
    ),
    pytest.mark.skipif(
        sys.executable.startswith(("/tmp/", "/run/")), reason="Python is not seen in a container"
    ),
]

CONFIG = """
[volume]
path = "volume"
name = "nb"
[encryption]
passphrase_command = ["sh", "-c", "while test -e hang; do sleep 0.1; done; cat passphrase"]
[state]
dir = "state"
[repository]
url = "file:///opt/smsnapd-test/repo"
[schedule]
quiet = "1s"
full = ""
check = ""
"""
DROP_IN = "[Service]\nWatchdogSec=10\nRestartSec=1\nWorkingDirectory=/opt/smsnapd-test\n"


def eventually(look: Callable[[], object], what: str, more: Callable[[], str] = str) -> None:
    """Wait until `look` finds something; `more` is what to show if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{more()}"
        time.sleep(0.2)


class Machine:
    """A booted container, and the daemon's place in it."""

    def __init__(self, root: Path, nspawn: subprocess.Popen[bytes]) -> None:
        self.root = root
        self.place = Path(f"{root}{PLACE}")
        # A file system of its own, as on a notebook: an overlay's files are not on their directory's device.
        self.volume = root.parent / "volume"
        self._nspawn = nspawn
        self._init = 0

    def boot(self) -> None:
        """Wait until systemd inside answers."""

        def is_up() -> bool:
            assert self._nspawn.poll() is None, "the container ended"
            self._init = next(iter(children_of(self._nspawn.pid)), 0)
            return bool(self._init) and self.inside("systemctl", "is-active", "basic.target") == "active"

        eventually(is_up, "systemd in the container")

    def inside(self, *command: str) -> str:
        """What a command prints in there, whatever its status."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", *command], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def show(self, name: str) -> str:
        return self.inside("systemctl", "show", "--value", "-p", name, "smsnapd")

    def smsnap(self, *arguments: str) -> str:
        return self.inside("env", "-C", str(PLACE), str(PLACE / "bin/smsnap"), *arguments)

    def holds(self, name: str, content: str) -> None:
        eventually(
            lambda: self.smsnap("cat", "latest", name) == content, f"{name} in a snapshot\n{self.log()}"
        )

    def log(self) -> str:
        return self.inside("journalctl", "-u", "smsnapd", "--no-pager", "-n", "60") + self.smsnap("status")

    def restarted(self, before: int) -> None:
        eventually(
            lambda: int(self.show("NRestarts")) > before and self.show("ActiveState") == "active",
            "a restart",
            self.log,
        )


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with the service installed and nothing running but systemd."""
    work = Path(tempfile.mkdtemp(prefix="smsnapd-nspawn-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "smsnapd-test", work], check=True)
    merged = work / "merged"
    for name in ("upper", "work", "merged", "volume"):
        (work / name).mkdir()
    (work / "volume" / "a.txt").write_text("first\n")
    layers = f"lowerdir=/,upperdir={work}/upper,workdir={work}/work"
    mounted = subprocess.run(["mount", "-t", "overlay", "smsnapd-test", "-o", layers, merged], check=False)
    nspawn = None
    try:
        if mounted.returncode != 0:
            pytest.skip("an overlay of the root file system cannot be mounted here")
        furnish(merged)
        nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", str(merged), "--boot", "--register=no", "--keep-unit",
             f"--machine=smsnapd-test-{os.getpid()}", "--console=pipe",
             f"--bind={work}/volume:{PLACE}/volume", "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        made = Machine(merged, nspawn)
        made.boot()
        yield made
    finally:
        if nspawn is not None:
            switch_off(nspawn)
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", merged], check=False)
        subprocess.run(["umount", "-l", work], check=True)
        work.rmdir()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def switch_off(nspawn: subprocess.Popen[bytes]) -> None:
    """End the container's first process, with which all others end; nspawn's own death would leave them."""
    if nspawn.poll() is None:
        for child in children_of(nspawn.pid):
            os.kill(child, signal.SIGKILL)
    nspawn.wait()


def furnish(root: Path) -> None:
    """Lay the package, a volume, a configuration and the unit into the container's file system."""
    place = Path(f"{root}{PLACE}")
    (place / "volume").mkdir(parents=True)
    shutil.copytree(
        Path(smsnapd.__file__).parent, place / "smsnapd", ignore=shutil.ignore_patterns("__pycache__")
    )
    (place / "bin").mkdir()
    for name, module in (("smsnapd", "smsnapd.daemon.main"), ("smsnap", "smsnapd.cli.main")):
        program = place / "bin" / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PLACE)!r})\n"
            f"if __name__ == '__main__':\n    from {module} import main\n    sys.exit(main())\n"
        )
        program.chmod(0o755)
    (place / "passphrase").write_text(PASSPHRASE + "\n")
    (place / "smsnapd.toml").write_text(CONFIG)
    system = root / "etc/systemd/system"
    (system / "smsnapd.service.d").mkdir(parents=True)
    (system / "smsnapd.service").write_text(
        unit_text(PLACE / "bin/smsnapd", PLACE / "smsnapd.toml", PLACE / "volume")
    )
    (system / "smsnapd.service.d/test.conf").write_text(DROP_IN)


def test_the_unit_lives_dies_and_lives_again(machine: Machine) -> None:
    # It is one story, since booting takes the time that it takes.
    assert "repository" in json.loads(machine.smsnap("init", "--json"))
    complaints = machine.inside("systemd-analyze", "verify", "/etc/systemd/system/smsnapd.service")
    assert "smsnapd.service" not in complaints
    machine.inside("systemctl", "--no-block", "start", "smsnapd")
    eventually(lambda: machine.inside("systemctl", "is-active", "smsnapd") == "active", "READY", machine.log)
    machine.holds("a.txt", "first")
    eventually(lambda: "last recovery point" in machine.show("StatusText"), "the status text")
    first_ping = machine.show("WatchdogTimestampMonotonic")
    eventually(lambda: machine.show("WatchdogTimestampMonotonic") != first_ping, "a watchdog ping")
    assert machine.smsnap("status").splitlines()[1].split()[:2][0] == "state:"

    # Killed: systemd starts it again, and what changed is found.
    restarts = int(machine.show("NRestarts"))
    machine.inside("systemctl", "kill", "--kill-who=main", "-s", "KILL", "smsnapd")
    (machine.volume / "a.txt").write_text("after the kill\n")
    machine.restarted(restarts)
    machine.holds("a.txt", "after the kill")

    # Hung: nobody feeds the watchdog while the worker waits for a passphrase that does not come.
    restarts = int(machine.show("NRestarts"))
    (machine.place / "hang").touch()
    machine.inside("systemctl", "reload", "smsnapd")
    eventually(lambda: "watchdog" in machine.log().lower(), "the watchdog", machine.log)
    (machine.place / "hang").unlink()
    (machine.volume / "a.txt").write_text("after the hang\n")
    machine.restarted(restarts)
    machine.holds("a.txt", "after the hang")

    # Stopped: what is pending is committed, and the chain is whole.
    (machine.volume / "late.txt").write_text("late\n")
    machine.inside("systemctl", "stop", "smsnapd")
    assert machine.show("ActiveState") == "inactive" and machine.show("Result") == "success"
    assert machine.smsnap("cat", "latest", "late.txt") == "late"
    assert json.loads(machine.smsnap("check", "--read-data", "--json"))["ok"]
    snapshots = json.loads(machine.smsnap("snapshots", "--json"))
    assert [item["parent"] for item in snapshots] == [None, *(item["id"] for item in snapshots[:-1])]
    log = machine.log()
    assert "protecting" in log and "<6>" not in log
