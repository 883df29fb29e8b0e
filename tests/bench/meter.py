"""What a command took: time, processor, and the memory of all its processes together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_FIRST_S, _LAST_S = 0.1, 0.5
"""Between two looks at the memory of processes, which cost some milliseconds: rarer the longer it lasts."""


@dataclass(frozen=True)
class Taken:
    """Seconds of wall clock and of processor, and MiB at the most (what processes share counts once)."""

    wall_s: float
    cpu_s: float
    peak_mib: float


class CommandFailedError(Exception):
    """A command that was to be measured failed; what it said."""


def measure(command: str, environment: dict[str, str], directory: Path) -> Taken:
    """Run a shell line in a session of its own, and wait for it. What was written before is on disk then."""
    os.sync()
    peak = [0.0]
    done = threading.Event()
    began_s = time.monotonic()
    with open(os.devnull, "rb") as nothing, subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment, cwd=directory, stdin=nothing, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        watch = threading.Thread(target=_watch, args=(process.pid, peak, done), name="memory")
        watch.start()
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watch.join()
    if process.returncode not in (0, 3):
        raise CommandFailedError(f"{command}: status {process.returncode}: {said.decode(errors='replace')}")
    return Taken(time.monotonic() - began_s, usage.ru_utime + usage.ru_stime, peak[0])


def _watch(session: int, peak: list[float], done: threading.Event) -> None:
    every_s = _FIRST_S
    while not done.wait(every_s):
        every_s = min(_LAST_S, 1.05 * every_s)
        peak[0] = max(peak[0], memory_mib(session))


def quickest(command: str, environment: dict[str, str], directory: Path, times: int = 5) -> float:
    """The least seconds of some runs: of short ones the others tell of the machine."""
    return min(measure(command, environment, directory).wall_s for _ in range(times))


def memory_mib(session: int) -> float:
    """The proportional share of memory (PSS) of all processes of a session."""
    held = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                lines = (place / "smaps_rollup").read_text().splitlines()
                held += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return held / 1024
