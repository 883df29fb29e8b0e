"""The process that looks at a volume for its report, apart from the one that keeps the volume's keys.

It has no more rights than the volume's owner, bounded memory and time, and nothing of ours: whatever lies on
the volume, what can become of it is a report that is wrong, or none. It ends with whoever started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from smsnapd.engine.environment.capture import capture, home_of
from smsnapd.engine.environment.judging import Judged, judge
from smsnapd.engine.environment.reading import Deadline, TimeUpError
from smsnapd.engine.environment.report import REPORT_BYTES, Conda, Report, Venv, encode_report
from smsnapd.engine.environment.words import raw

GRACE_S: Final = 30.0
"""After its time is over a process gets so long to tell what it knows."""
MEMORY_BYTES: Final = 1024 * 1024 * 1024
ANSWER_BYTES: Final = REPORT_BYTES + 4 * 1024 * 1024
_LOOK_AGAIN_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1
_NETWORK: Final = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
"""Beginnings of variables that say where an index is, and how to reach it."""
_START: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; from smsnapd.engine.environment.surveyor import serve; serve()"
)


class SurveyError(Exception):
    """There is no report; why, in a sentence."""


class SurveyTask(msgspec.Struct, frozen=True):
    """What to look at, for how long; `left_out` are directories that are nobody's business.

    With `judging_s` it is also judged, for so long, which environments the report alone can rebuild.
    """

    root: bytes
    seconds: float
    left_out: tuple[tuple[int, int], ...] = ()
    judging_s: float = 0.0

    @property
    def longest_s(self) -> float:
        """How long it takes at most."""
        return self.seconds + self.judging_s


class Answer(msgspec.Struct, frozen=True):
    """What came of it: a report as JSON and what was judged, or why there is none."""

    report: bytes = b""
    judged: tuple[Judged, ...] = ()
    error: str = ""


class Surveyor:
    """A survey under way. `collect` waits for its end; `close` ends it."""

    def __init__(self, task: SurveyTask) -> None:
        """Start it. SurveyError if that cannot be."""
        self._give_up_s = time.monotonic() + task.longest_s + GRACE_S
        try:
            self._answer = os.memfd_create("smsnap-survey")
        except OSError as error:
            raise SurveyError(f"it could not be started: {error}") from error
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=self._answer,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(task.root),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._answer)
            raise SurveyError(f"it could not be started: {error}") from error
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.msgpack.encode(task))

    def collect(self, beat: Callable[[], None]) -> Answer:
        """The answer; `beat` is called while it is waited for. SurveyError if there is none."""
        while self._process.poll() is None:
            if time.monotonic() > self._give_up_s:
                raise SurveyError("it took too long")
            beat()
            time.sleep(_LOOK_AGAIN_S)
        if self._process.returncode:
            raise SurveyError(f"its process ended with status {self._process.returncode}")
        size = os.fstat(self._answer).st_size
        if size > ANSWER_BYTES:
            raise SurveyError("it said too much")
        try:
            answer = msgspec.msgpack.decode(os.pread(self._answer, size, 0), type=Answer)
        except (msgspec.DecodeError, RecursionError) as error:
            raise SurveyError(f"what it said is not understood: {error}") from error
        if answer.error:
            raise SurveyError(answer.error)
        return answer

    def close(self) -> None:
        """End it, and whatever it started. May be called more than once."""
        if self._answer < 0:
            return
        if self._process.poll() is None:
            # Its session outlives it otherwise: git may be at work.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._answer)
        self._answer = -1


def survey(task: SurveyTask, beat: Callable[[], None]) -> Answer:
    """All of it at once. SurveyError if there is no answer."""
    surveyor = Surveyor(task)
    try:
        return surveyor.collect(beat)
    finally:
        surveyor.close()


def _environment(root: bytes) -> dict[str, str]:
    """No credentials, no settings: what a process of the owner's needs."""
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    network = {name: value for name, value in os.environ.items() if name.upper().startswith(_NETWORK)}
    own = {"PATH": path, "HOME": os.fsdecode(home_of(root)), "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    return network | own


# --- in the process


def serve() -> None:
    """What the process does: a task from standard input, an answer to standard output."""
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=SurveyTask)
    try:
        _confine(task)
        report = capture(task.root, task.left_out, task.seconds)
        answer = Answer(encode_report(report), tuple(_judged(task, report)))
    except Exception as error:  # whatever a volume has done to it
        answer = Answer(error=f"{type(error).__name__}: {error}"[:1000])
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    sys.stdout.flush()


def _judged(task: SurveyTask, report: Report) -> Iterator[Judged]:
    """Which environments of the volume the report can rebuild; of one for which there is no time, none."""
    if not task.judging_s:
        return
    deadline = Deadline(task.judging_s)
    root = os.path.realpath(task.root)
    environments: tuple[Venv | Conda, ...] = (*report.venvs, *report.condas)
    for environment in environments:
        path = raw(environment.path)
        if path.startswith(b"/") or not path:
            continue
        try:
            yield judge(os.path.join(root, path), path, environment, deadline)
        except TimeUpError:
            yield Judged(path, "there was no time to look at all of it")


def _confine(task: SurveyTask) -> None:
    """Bound what this process may use, and give up what its task's owner may not do."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_DATA, MEMORY_BYTES)
    _lower(resource.RLIMIT_FSIZE, ANSWER_BYTES + 1024 * 1024)
    os.nice(10)
    status = os.stat(task.root)
    if os.geteuid() == 0 and status.st_uid != 0:
        _become(status.st_uid, status.st_gid)
    signal.alarm(int(task.longest_s + GRACE_S) + 1)
    # A change of user would undo this, so it comes behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lower(limit: int, value: int) -> None:
    """Set a limit, unless it is lower already."""
    _, hard = resource.getrlimit(limit)
    lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (lowest, lowest))


def _become(uid: int, gid: int) -> None:
    """Be this user, with the groups of theirs, for good."""
    groups = [gid]
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        groups, gid = os.getgrouplist(user.pw_name, user.pw_gid), user.pw_gid
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
