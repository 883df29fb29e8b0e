"""The hook: a command that is run at the events of runs, told by its environment alone.

It gets nothing secret: of the daemon's environment only PATH, HOME and LANG. What it leaves running in its
process group is killed when it ends; what shall last has to leave the group (setsid(1), systemd-run(1)).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from smsnapd.daemon.plan import Plan
from smsnapd.daemon.standing import Standing
from smsnapd.daemon.telling import Notice
from smsnapd.telemetry.plain import plain
from smsnapd.telemetry.secrets import redacted

_LONGEST_S: Final = 60.0
_REAP_S: Final = 5.0
_LOOK_S: Final = 0.02
_MOST_LINES: Final = 50
_LONGEST_LINE: Final = 500
_LONGEST_ERROR: Final = 10_000
_READ_BYTES: Final = 65536
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger(__name__)


class Hook:
    """One command, run without a shell."""

    def __init__(
        self,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        directory: Path,
        standing: Standing,
        longest_s: float = _LONGEST_S,
    ) -> None:
        """`environment` is all that the command gets beside the notice; `directory` is where it begins."""
        self.command = command
        self.environment = environment
        self.directory = directory
        self.standing = standing
        self.longest_s = longest_s

    @classmethod
    def of(cls, plan: Plan, environment: Mapping[str, str], standing: Standing) -> Hook:
        """The hook of a configuration, in whose directory it begins: relative paths do."""
        given = {
            "PATH": environment.get("PATH") or _PATH,
            "HOME": environment.get("HOME") or os.path.expanduser("~"),
            "LANG": environment.get("LANG") or "C.UTF-8",
            "SMSNAP_VOLUME": plan.request.volume,
        }
        source = plan.config.source
        return cls(plan.config.telemetry.hook, given, source.parent if source else Path("/"), standing)

    def errand(self, notice: Notice) -> HookRun:
        """The run for a notice."""
        return HookRun(self, {**self.environment, **_variables(notice)})


class HookRun:
    """The hook, run once."""

    def __init__(self, hook: Hook, environment: Mapping[str, str]) -> None:
        self._hook = hook
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._abandoned = threading.Event()

    def run(self) -> None:
        """Run it to its end, or kill it when its time is over; the standing hears how that went."""
        try:
            process = self._start()
        except (OSError, ValueError) as error:
            self._hook.standing.failed((error.strerror if isinstance(error, OSError) else "") or str(error))
            return
        if process is None:
            return
        in_time = self._follow(process)
        trouble = self._end(process, in_time)
        if self._abandoned.is_set():
            return
        if trouble:
            self._hook.standing.failed(trouble)
        else:
            self._hook.standing.works()

    def abandon(self) -> None:
        """Kill it."""
        with self._lock:
            self._abandoned.set()
            if self._process is not None:
                _kill_group(self._process)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._abandoned.is_set():
                return None
            self._process = subprocess.Popen(
                self._hook.command,
                cwd=self._hook.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return self._process

    def _follow(self, process: subprocess.Popen[bytes]) -> bool:
        """Log its output until it has ended and nobody writes there; False if that took too long."""
        assert process.stdout is not None
        deadline_s = time.monotonic() + self._hook.longest_s
        output = _Output()
        is_over = False
        while not is_over and (left_s := deadline_s - time.monotonic()) > 0:
            is_over = output.take(process.stdout, left_s)
        output.end()
        while not _has_exited(process):
            # After an abandonment it is killed already, and gone in a moment.
            if time.monotonic() >= deadline_s:
                return False
            self._abandoned.wait(_LOOK_S)
        return is_over

    def _end(self, process: subprocess.Popen[bytes], in_time: bool) -> str:
        """Kill what is left of it, and reap it; what went wrong, "" if nothing."""
        with self._lock:
            # Before it is reaped, so that the group's number cannot be another's yet.
            _kill_group(process)
            self._process = None
        if process.stdout is not None:
            process.stdout.close()
        try:
            status = process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return "it cannot be ended"
        if not in_time:
            return f"it took longer than {self._hook.longest_s:.0f} s and was killed"
        if status:
            return f"it ended with status {status}" if status > 0 else f"it ended by signal {-status}"
        return ""


class _Output:
    """What a hook prints, line by line in the log: so many lines, of a bounded length."""

    def __init__(self) -> None:
        self._begun = b""
        self._lines = 0
        self._left_out = 0

    def take(self, stream: IO[bytes], within_s: float) -> bool:
        """Wait for output, and log it; whether it was the last."""
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        if not poll.poll(max(1.0, within_s * 1000)):
            return False
        data = os.read(stream.fileno(), _READ_BYTES)
        if self._lines >= _MOST_LINES:
            self._left_out += len(data)
            return not data
        *lines, begun = (self._begun + data).split(b"\n")
        self._begun = begun[:_LONGEST_LINE]
        for line in lines:
            self._say(line)
        return not data

    def end(self) -> None:
        """Log what is left."""
        if self._begun:
            self._say(self._begun)
        if self._left_out:
            _log.info("hook: %d bytes more", self._left_out)

    def _say(self, line: bytes) -> None:
        if self._lines >= _MOST_LINES:
            self._left_out += len(line) + 1
            return
        self._lines += 1
        _log.info("hook: %s", line[:_LONGEST_LINE].decode("utf-8", "replace"))


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended, without reaping it."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # PermissionError: all that is left of it belongs to another user.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _variables(notice: Notice) -> dict[str, str]:
    """What a hook is told. All are always there, so that a script may be strict about unset ones."""

    def number(value: int | None) -> str:
        return "" if value is None else str(value)

    return {
        "SMSNAP_EVENT": notice.event,
        "SMSNAP_RUN": notice.run,
        "SMSNAP_SNAPSHOT": notice.snapshot,
        "SMSNAP_SNAPSHOT_KIND": notice.snapshot_kind,
        "SMSNAP_CHANGED": number(notice.changed),
        "SMSNAP_DELETED": number(notice.deleted),
        "SMSNAP_STORED_BYTES": number(notice.stored_bytes),
        "SMSNAP_INCOMPLETE": number(notice.incomplete),
        "SMSNAP_ERROR": plain(redacted(notice.error)).encode("utf-8", "replace").decode()[:_LONGEST_ERROR],
    }
