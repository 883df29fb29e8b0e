"""What making environments again has at hand: where, as whom, with which commands; and what came of each."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from smsnapd.engine.environment.words import raw
from smsnapd.model import path_text

COMMAND_S: Final = 3600.0
_TOLD_LINES: Final = 15
_KEPT_BACK: Final = (
    "SMSNAP_",
    "PYTHON",
    "VIRTUAL_ENV",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX",
    "PIP_REQUIRE",
)
"""Beginnings of variables that no command gets: ours, and what would make it work elsewhere."""

Standing = Literal["made", "there", "brought up to date", "restored", "failed"]


@dataclass
class Item:
    """One thing to make again: what became of it. Without `problems` it is as it was."""

    kind: str
    path: str
    standing: Standing = "failed"
    commands: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unsaved: tuple[str, ...] = ()

    def fail(self, problem: str) -> None:
        """It is not as it was, because of this."""
        self.standing = "failed"
        self.problems.append(problem)


class CommandError(Exception):
    """A command failed; the last that it said."""


@dataclass(frozen=True)
class Site:
    """The place: `target` is where the volume is now, `root` where it was; as `owner` commands run.

    With `dry_run` nothing is run or written. `told` is called with each command before it is run.
    """

    target: bytes
    root: bytes
    owner: tuple[int, int] | None
    home: bytes
    dry_run: bool
    told: Callable[[str], None]

    @classmethod
    def at(cls, target: bytes, root: str, *, dry_run: bool, told: Callable[[str], None]) -> Site:
        """As root, commands run as the owner of the target: what pip and git bring may run code."""
        owner = None
        home = os.fsencode(os.path.expanduser("~"))
        place = target
        while not os.path.isdir(place) and place != b"/":
            place = os.path.dirname(place)
        status = os.stat(place)
        if os.geteuid() == 0 and status.st_uid != 0:
            owner = status.st_uid, status.st_gid
            home = _home_of(status.st_uid)
        return cls(target, raw(root), owner, home, dry_run, told)

    def place(self, path: str) -> bytes | None:
        """Where a path of the report is here; None if it would lead out of the target."""
        here = raw(path)
        if here.startswith(b"/"):
            return here if b".." not in here.split(b"/") else None
        inside = os.path.realpath(self.target).rstrip(b"/")
        if not here:
            return inside
        found = os.path.realpath(os.path.join(inside, here))
        return found if found == os.path.join(inside, here) else None

    def moved(self, path: bytes) -> bytes:
        """An absolute path of then as it is now: below the target what was below the root."""
        old = self.root.rstrip(b"/")
        return self.target.rstrip(b"/") + path[len(old) :] if path.startswith(old + b"/") else path

    def run(self, item: Item, command: Sequence[str | bytes], cwd: bytes | None = None) -> None:
        """Run a command, and note it. CommandError if it fails."""
        shown = shlex.join(path_text(os.fsencode(word)) if word else "" for word in command)
        item.commands.append(shown)
        self.told(shown)
        if not self.dry_run:
            self.ask(command, cwd)

    def ask(
        self, command: Sequence[str | bytes], cwd: bytes | None = None, *, seconds: float = COMMAND_S
    ) -> str:
        """What a command says; it is not noted. CommandError if it fails or takes longer."""
        rights = {"user": self.owner[0], "group": self.owner[1], "extra_groups": []} if self.owner else {}
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd or b"/",
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                **rights,  # type: ignore[call-overload]
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise CommandError(f"it could not be started: {error}") from error
        return _said(process, seconds)

    def tool(self, *names: str) -> str:
        """The first of these programs that is there; "" if none is."""
        return next(filter(None, map(shutil.which, names)), "")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_BACK)}
        return kept | {"HOME": os.fsdecode(self.home), "GIT_TERMINAL_PROMPT": "0", "PIP_NO_INPUT": "1"}


def _home_of(uid: int) -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        return b"/"


def _said(process: subprocess.Popen[str], seconds: float) -> str:
    """All that it says, or of a command that fails the last lines in a CommandError."""
    with process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandError(f"it took more than {seconds:,.0f} seconds") from error
            raise
    if process.returncode:
        last = [line.strip() for line in said.splitlines()[-_TOLD_LINES:] if line.strip()]
        raise CommandError(" / ".join(last) or f"exit status {process.returncode}")
    return said
