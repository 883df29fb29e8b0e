"""Running git on a repository that somebody hostile may have made: it reads, and executes nothing.

A repository's configuration can name programs that git runs for a mere `git status`: file system monitors,
filters, hooks, helpers. Here the configuration of the machine and of the user is not read, each such setting
of the repository's own is overruled, no other repository is gone to, and as root git runs as the user whom
the repository belongs to. Sources: git(1), git-config(1), gitattributes(5), git-update-index(1).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from smsnapd.engine.environment.reading import Deadline

OUTPUT_BYTES: Final = 8 * 1024 * 1024
COMMAND_S: Final = 20.0
"""Seconds that one command may take."""

_OVERRULED: Final = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.untrackedCache": "false",
    "core.pager": "cat",
    "core.editor": "false",
    "core.sshCommand": "false",
    "core.gitProxy": "false",
    "core.askPass": "false",
    "credential.helper": "",
    "gpg.program": "false",
    "diff.external": "",
    "protocol.allow": "never",
    "uploadpack.packObjectsHook": "",
    "submodule.recurse": "false",
    "status.submoduleSummary": "false",
    "log.showSignature": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "safe.directory": "*",
}
"""Settings that could start a program, and what stands in their place."""

_ENVIRONMENT: Final = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "/bin/false",
}


class GitError(Exception):
    """Git could not tell: why, in one line."""


class Git:
    """Commands on one repository. `directory` is its git directory, `work_tree` None of a bare one."""

    def __init__(self, directory: bytes, work_tree: bytes | None, deadline: Deadline) -> None:
        """GitError if the repository's settings cannot be read."""
        self._deadline = deadline
        self._owner = _owner_of(directory)
        self._environment: dict[bytes, bytes] = {
            os.fsencode(k): os.fsencode(v) for k, v in _ENVIRONMENT.items()
        }
        self._environment[b"GIT_DIR"] = directory
        if work_tree is not None:
            self._environment[b"GIT_WORK_TREE"] = work_tree
        self._place = work_tree or directory
        self._overrule(_OVERRULED)
        self._overrule({**_OVERRULED, **_named_programs(self.read("config", "--list", "--name-only", "-z"))})

    def _overrule(self, settings: Mapping[str, str]) -> None:
        """Settings by environment, as git-config(1) has it: names may hold what no argument could."""
        self._environment[b"GIT_CONFIG_COUNT"] = str(len(settings)).encode()
        for number, (key, value) in enumerate(settings.items()):
            self._environment[f"GIT_CONFIG_KEY_{number}".encode()] = os.fsencode(key)
            self._environment[f"GIT_CONFIG_VALUE_{number}".encode()] = value.encode()

    def read(self, *arguments: str, none: bool = False) -> bytes:
        """What a command prints. GitError if it fails (with `none`, b"" then), or says or takes too much."""
        command = ["git", "--no-pager", "--literal-pathspecs", *arguments]
        self._deadline.check()
        status, out, err = _run(command, self._place, self._environment, self._owner, self._deadline)
        if status and not none:
            raise GitError(f"git {arguments[0]}: {_first_line(err) or f'exit status {status}'}")
        return b"" if status else out


def _named_programs(listing: bytes) -> dict[str, str]:
    """What overrules the settings of a repository whose names it has chosen itself: filters and the like."""
    overruled: dict[str, str] = {}
    for raw in listing.split(b"\0"):
        key = os.fsdecode(raw)
        section, _, rest = key.partition(".")
        variable = rest.rpartition(".")[2].lower()
        if section.lower() == "filter" and variable == "required":
            overruled[key] = "false"
        elif (section.lower(), variable) in _PROGRAMS:
            overruled[key] = ""
    return overruled


_PROGRAMS: Final = frozenset(
    {
        *(("filter", variable) for variable in ("clean", "smudge", "process")),
        *(("diff", variable) for variable in ("command", "textconv")),
        *(("merge", "driver"), ("credential", "helper"), ("trailer", "command"), ("trailer", "cmd")),
        *(("remote", variable) for variable in ("uploadpack", "receivepack", "vcs")),
    }
)


def _owner_of(directory: bytes) -> tuple[int, int] | None:
    """As whom to run, if that is not who we are."""
    try:
        status = os.stat(directory)
    except OSError as error:
        raise GitError(error.strerror or str(error)) from error
    is_other = os.geteuid() == 0 and status.st_uid != 0
    return (status.st_uid, status.st_gid) if is_other else None


def _run(
    command: Sequence[str],
    place: bytes,
    environment: Mapping[bytes, bytes],
    owner: tuple[int, int] | None,
    deadline: Deadline,
) -> tuple[int, bytes, bytes]:
    """Status, standard output and standard error of a process group that is over, one way or another."""
    rights = {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}
    try:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            **rights,  # type: ignore[call-overload]
        )
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise GitError(f"git could not be started: {error}") from error
    with process:
        try:
            out, err = _drain(process, Deadline(min(COMMAND_S, deadline.left_s)))
            return process.wait(), out, err
        finally:
            _end(process)


def _drain(process: subprocess.Popen[bytes], deadline: Deadline) -> tuple[bytes, bytes]:
    """All that a process says, until it has said all. GitError if that is too much, or takes too long."""
    said: dict[object, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            ready = selector.select(deadline.left_s)
            if not ready:
                raise GitError("git took too long")
            for key, _ in ready:
                piece = os.read(key.fd, 65536)
                if not piece:
                    selector.unregister(key.fileobj)
                said[key.fileobj] += piece
                if len(said[key.fileobj]) > OUTPUT_BYTES:
                    raise GitError("git said too much")
    return bytes(said[process.stdout]), bytes(said[process.stderr])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; nothing if it is over."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _first_line(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip().partition("\n")[0][:300]
