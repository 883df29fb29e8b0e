"""The unit under a real systemd, booted in a container over an overlay of this machine's root file system."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smsnapd
from smsnapd.cli.install import unit_text
from tests.e2e.container import MARKS, Container, booted, eventually, fresh_root, workplace
from tests.e2e.transcript import PASSPHRASE

PLACE = Path("/opt/smsnapd-test")
"""Inside; not below /tmp and /run, which the container mounts anew."""

pytestmark = MARKS

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


class Machine:
    """A booted container, and the daemon's place in it."""

    def __init__(self, container: Container, volume: Path) -> None:
        self.place = Path(f"{container.root}{PLACE}")
        # A file system of its own, as on a notebook: an overlay's files are not on their directory's device.
        self.volume = volume
        self.inside = container.inside
        self.show = container.show

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
    with workplace("512m") as work, fresh_root(work, "machine") as root:
        volume = work / "volume"
        volume.mkdir()
        (volume / "a.txt").write_text("first\n")
        furnish(root)
        with booted(root, [(volume, PLACE / "volume")]) as container:
            yield Machine(container, volume)


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
