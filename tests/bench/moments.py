"""Short things: what the daemon does about one event, at rest, and how long commands take to start.

The daemon is the real one, on the volume and the repository that `tests.bench.compare` has measured fulls
of, after these. One run of it is asked for through its control socket, so nothing of a command's start is in
its time; delays are from a file's close to the manifest's name in the repository, less `quiet`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from smsnapd.daemon.asking import ask_backup, ask_status
from smsnapd.daemon.control import Request
from smsnapd.daemon.status import Pending
from smsnapd.engine.backup import BackupOutcome
from smsnapd.engine.progress import Silent
from tests.bench import corpus
from tests.bench.meter import measure, memory_mib, quickest
from tests.bench.peers import beside, prepared, smsnapd

QUIET_S = 1.0
_SCHEDULE = f'\n[schedule]\nquiet = "{QUIET_S:.0f}s"\nincremental = "5m"\nfull = ""\ncheck = ""\nprune = ""\n'
_PATIENCE_S = 300.0


class Protected:
    """A daemon at work on `volume`, with the configuration of a peer's `home`."""

    def __init__(self, home: Path, volume: Path, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._home = home
        self._asked = Request("backup", "nb", os.path.realpath(volume), (home / "repo").as_uri())

    def run(self) -> tuple[float, BackupOutcome]:
        """Have it make a recovery point now; seconds, and what it did."""
        began_s = time.monotonic()
        outcome = ask_backup(self._home / "run", self._asked, Silent())
        assert outcome is not None, "the daemon is for something else"
        return time.monotonic() - began_s, outcome

    def rest(self) -> None:
        """Wait until it has nothing to do."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                status = ask_status(self._home / "run")
                if status is not None and status.state == "idle" and _is_quiet(status.pending):
                    return
            assert self.process.poll() is None, (self._home / "log").read_text()[-2000:]
            assert time.monotonic() < deadline_s, "the daemon does not come to rest"
            time.sleep(0.05)

    def settle(self) -> None:
        """Until a run finds nothing: what was written within a clock's tick of one is looked at again."""
        for _ in range(10):
            time.sleep(0.3)
            if self.run()[1].snapshot is None:
                return

    def delay_s(self, path: Path) -> float:
        """Append to a file; seconds from its close to its recovery point, beyond `quiet`."""
        manifests = next((self._home / "repo").glob("**/manifests"))
        before = set(os.listdir(manifests))
        with path.open("ab") as file:
            file.write(b"more")
        closed_s = time.monotonic()
        while set(os.listdir(manifests)) == before:
            time.sleep(0.001)
            assert time.monotonic() - closed_s < _PATIENCE_S, "no recovery point comes"
        return time.monotonic() - closed_s - QUIET_S


def _is_quiet(pending: Pending) -> bool:
    return not (pending.directories or pending.subtrees or pending.rescan)


@contextlib.contextmanager
def protected(home: Path, volume: Path, smsnap: Path | None) -> Iterator[Protected]:
    """The daemon, once it is at rest."""
    (home / "daemon.toml").write_text((home / "smsnapd.toml").read_text() + _SCHEDULE)
    (home / "run").mkdir(exist_ok=True)
    command = [str(beside(smsnap, "smsnapd")), "-c", str(home / "daemon.toml")]
    with (home / "log").open("wb") as log, subprocess.Popen(
        command, env={**os.environ, "RUNTIME_DIRECTORY": str(home / "run")},
        stdin=subprocess.DEVNULL, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            daemon = Protected(home, volume, process)
            daemon.rest()
            yield daemon
        finally:
            process.terminate()
            process.wait(_PATIENCE_S)


def of_events(home: Path, volume: Path, smsnap: Path | None, edits: int = 7) -> dict[str, float]:
    """What the daemon takes for a byte of the largest file, for nothing, for a small file; its memory."""
    found: dict[str, float] = {}
    with protected(home, volume, smsnap) as daemon:
        daemon.settle()
        whole, stored = [], []
        for _ in range(3):
            corpus.change_one_byte(volume)
            seconds, outcome = daemon.run()
            whole.append(seconds)
            stored.append(outcome.new_bytes)
            daemon.settle()
        found["one byte by event, s"] = statistics.median(whole)
        found["one byte by event: stored, bytes"] = max(stored)
        daemon.rest()
        found["unchanged in the daemon, s"] = statistics.median(daemon.run()[0] for _ in range(edits))
        small = volume / "bench-edit.txt"
        delays = []
        for _ in range(edits):
            delays.append(daemon.delay_s(small))
            daemon.rest()
        found["close to recovery point beyond quiet, s"] = statistics.median(delays)
        found["the worst of these, s"] = max(delays)
        time.sleep(2 * QUIET_S)
        found["daemon at rest, MiB"] = memory_mib(daemon.process.pid)
    return found


def of_commands(place: Path, smsnap: Path | None) -> dict[str, float]:
    """How long `smsnap --version` and `smsnap snapshots` take, on a repository of three recovery points."""
    home, volume = place / "small", place / "small-volume"
    for made in (home, volume):
        shutil.rmtree(made, ignore_errors=True)
    volume.mkdir(parents=True)
    peer = smsnapd(smsnap)
    environment = prepared(peer, home, volume)
    measure(peer.prepare, environment, place)
    for number in range(3):
        (volume / "a.txt").write_text(f"{number}")
        measure(peer.again, environment, place)
    run = [str(beside(smsnap, "smsnap")), "-q", "-c", str(home / "smsnapd.toml")]
    listed = subprocess.run([*run, "snapshots", "--json"], check=True, capture_output=True).stdout
    assert len(json.loads(listed)) == 3
    line = " ".join(f'"{word}"' for word in run)
    found = {
        "smsnap --version, s": quickest(f"{line} --version", environment, place),
        "smsnap snapshots, s": quickest(f"{line} snapshots", environment, place),
    }
    for made in (home, volume):
        shutil.rmtree(made)
    return found
