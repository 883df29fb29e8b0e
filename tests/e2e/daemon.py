"""The daemon as a process of its own, and the systemd that listens to it, for the tests that need one.

Waits are generous and end as soon as what is waited for is there; no time is asserted.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from smsnapd.cli.comparison import describe, differences
from tests.e2e.transcript import Notebook

PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "120"))
SCHEDULE = '[schedule]\nquiet = "1s"\nincremental = "5s"\nfull = ""\ncheck = ""\n'
T = TypeVar("T")


def eventually(look: Callable[[], T], what: str) -> T:
    """What `look` returns as soon as that is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


class Daemon:
    """A notebook with a daemon, and the systemd that listens to it."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.run = notebook.place / "run"
        self.run.mkdir(exist_ok=True)
        self.log = notebook.place / "log"
        self.process: subprocess.Popen[bytes] | None = None
        (notebook.place / "notify").unlink(missing_ok=True)
        self.command = [sys.executable, "-W", "error", "-m", "smsnapd.daemon.main", "-v"]
        self.environment: dict[str, str] = {}
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.bind(str(notebook.place / "notify"))
        self.heard: list[str] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        """Hear what comes; an empty message is the end."""
        while message := self._systemd.recv(65536):
            self.heard.extend(message.decode().splitlines())

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self.heard.clear()
        environment = self.notebook._environment(self.environment)
        environment.update(
            NOTIFY_SOCKET=str(self.notebook.place / "notify"),
            WATCHDOG_USEC="2000000",
            RUNTIME_DIRECTORY=str(self.run),
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.notebook.place, env=environment, stdin=subprocess.DEVNULL,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self.hears("READY=1")

    def hears(self, message: str, times: int = 1) -> None:
        """Wait until systemd has heard it."""

        def heard() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            return sum(message in line for line in list(self.heard)) >= times

        eventually(heard, message)

    def status(self) -> dict[str, Any]:
        said = self.notebook.say("status", "--json", RUNTIME_DIRECTORY=str(self.run))
        found: dict[str, Any] = json.loads(said.out)
        return found

    def until(self, state: str) -> dict[str, Any]:
        """Wait for a state."""

        def look() -> dict[str, Any] | None:
            found = self.status()
            return found if found["state"] == state else None

        return eventually(look, f"state {state}")

    def say(self, *arguments: str) -> Any:
        return self.notebook.say(*arguments, RUNTIME_DIRECTORY=str(self.run))

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it and all its workers, wherever they are."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.notebook.place / "notify"))
        self._listener.join()
        self._systemd.close()

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.notebook.well("snapshots", "--json").json
        return found

    def holds(self, name: str, content: str) -> None:
        """Wait until the last recovery point has this file."""
        eventually(
            lambda: self.notebook.say("cat", "latest", name).out == content.encode(), f"{name} in a snapshot"
        )

    def is_whole(self) -> None:
        """The chain is unbroken, all of it opens, and the last recovery point is the volume."""
        report = self.notebook.well("check", "--read-data", "--json").json
        assert report["ok"] and report["opened"], report
        snapshots = self.snapshots()
        assert [item["parent"] for item in snapshots] == [None, *(item["id"] for item in snapshots[:-1])]
        target = self.notebook.place / "restored"
        shutil.rmtree(target, ignore_errors=True)
        self.notebook.well("restore", "--target", str(target))
        assert differences(describe(self.notebook.volume), describe(target)) == []
