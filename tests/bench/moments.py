"""Short things: what the daemon does about one event, at rest, and how long commands take to start.

The daemon is the real one, on the volume and the repository that `tests.bench.compare` has measured fulls
of, after these. Delays are from a file's close to the manifest's name in the repository, less `quiet`. A run
that is asked for looks at everything; what trusts events is what they lead to. That finds nothing where a
file was opened for writing and closed as it was: the daemon itself tells how long its last run took.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from smsnapd.daemon.asking import ask_status
from smsnapd.daemon.status import LastRun, Pending
from tests.bench import corpus
from tests.bench.meter import measure, memory_mib, quickest
from tests.bench.peers import beside, prepared, smsnapd

QUIET_S = 1.0
_SCHEDULE = f'\n[schedule]\nquiet = "{QUIET_S:.0f}s"\nincremental = "5m"\nfull = ""\ncheck = ""\nprune = ""\n'
_PATIENCE_S = 300.0


class Protected:
    """A daemon at work, with the configuration of a peer's `home`."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._home = home

    def run_s(self, event: Callable[[], object]) -> float:
        """Cause an event; seconds of the run that it leads to, whatever that finds."""
        before = self._last_run()
        event()
        return self._next_run(before).seconds

    def delay_s(self, change: Callable[[], object]) -> float:
        """Change something; seconds to its recovery point, beyond `quiet`. Returns when the run is over."""
        manifests = next((self._home / "repo").glob("**/manifests"))
        before, run = set(os.listdir(manifests)), self._last_run()
        change()
        closed_s = time.monotonic()
        while set(os.listdir(manifests)) == before:
            time.sleep(0.001)
            assert time.monotonic() - closed_s < _PATIENCE_S, "no recovery point comes"
        delay_s = time.monotonic() - closed_s - QUIET_S
        self._next_run(run)
        return delay_s

    def stored_bytes(self) -> int:
        """All that lies in the repository."""
        return sum(path.stat().st_size for path in (self._home / "repo").rglob("*") if path.is_file())

    def _last_run(self) -> LastRun:
        status = ask_status(self._home / "run")
        assert status is not None and status.last_run is not None
        return status.last_run

    def _next_run(self, before: LastRun) -> LastRun:
        deadline_s = time.monotonic() + _PATIENCE_S
        while (run := self._last_run()) == before:
            assert time.monotonic() < deadline_s, "no run comes"
            time.sleep(0.02)
        return run

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


def _is_quiet(pending: Pending) -> bool:
    return not (pending.directories or pending.subtrees or pending.rescan)


@contextlib.contextmanager
def protected(home: Path, smsnap: Path | None) -> Iterator[Protected]:
    """The daemon, once it is at rest."""
    (home / "daemon.toml").write_text((home / "smsnapd.toml").read_text() + _SCHEDULE)
    (home / "run").mkdir(exist_ok=True)
    command = [str(beside(smsnap, "smsnapd")), "-c", str(home / "daemon.toml")]
    with (home / "log").open("wb") as log, subprocess.Popen(
        command, env={**os.environ, "RUNTIME_DIRECTORY": str(home / "run")},
        stdin=subprocess.DEVNULL, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            daemon = Protected(home, process)
            daemon.rest()
            yield daemon
        finally:
            process.terminate()
            process.wait(_PATIENCE_S)


def of_events(home: Path, volume: Path, smsnap: Path | None, edits: int = 7) -> dict[str, float]:
    """What the daemon takes for a byte of the largest file, for nothing, for a small file; its memory."""
    found: dict[str, float] = {}
    small = volume / "bench-edit.txt"
    with protected(home, smsnap) as daemon:
        daemon.delay_s(lambda: _append(small))  # the first brings a data key, and imports
        before = daemon.stored_bytes()
        found["one byte by event, s"] = daemon.delay_s(lambda: corpus.change_one_byte(volume))
        found["one byte by event: stored, bytes"] = daemon.stored_bytes() - before
        again = [daemon.delay_s(lambda: corpus.change_one_byte(volume)) for _ in range(2)]
        found["one byte by event, s"] = statistics.median([found["one byte by event, s"], *again])
        runs = [daemon.run_s(lambda: small.open("ab").close()) for _ in range(edits)]
        found["unchanged in the daemon, s"] = statistics.median(runs)
        delays = [daemon.delay_s(lambda: _append(small)) for _ in range(edits)]
        found["close to recovery point beyond quiet, s"] = statistics.median(delays)
        found["the worst of these, s"] = max(delays)
        time.sleep(2 * QUIET_S)
        found["daemon at rest, MiB"] = memory_mib(daemon.process.pid)
    return found


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


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
