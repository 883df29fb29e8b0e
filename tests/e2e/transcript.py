"""A notebook to type `smsnap` commands in: a volume, a repository, a configuration, real processes."""

import ctypes
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import smsnapd
from smsnapd.cli.main import main

PASSPHRASE = "correct horse battery staple"
_PR_CAPBSET_DROP = 24  # prctl(2)
_CAPABILITIES = 41


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The last JSON object on standard error."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])
        return found


class Notebook:
    """Below `place`: volume/, repo/, smsnapd.toml, passphrase. Commands run there, with no terminal."""

    def __init__(self, place: Path, url: str = "", more: str = "") -> None:
        self.place = place
        self.volume = place / "volume"
        self.repo = place / "repo"
        self.volume.mkdir(parents=True)
        (place / "home").mkdir()
        (place / "passphrase").touch(0o600)
        (place / "passphrase").write_text(PASSPHRASE + "\n")
        self.url = url or self.repo.as_uri()
        self.configure(more)

    def configure(self, more: str = "", encryption: str = 'passphrase_file = "passphrase"') -> None:
        """Write the configuration anew; `more` follows `[repository] url`."""
        (self.place / "smsnapd.toml").write_text(
            f'[volume]\npath = "volume"\nname = "nb"\n[encryption]\n{encryption}\n[state]\ndir = "state"\n'
            f'[repository]\nurl = "{self.url}"\n{more}\n'
        )

    def say(self, *arguments: str, **environment: str) -> Said:
        """Run `smsnap` with these arguments, here: a process of its own costs a quarter of a second."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        before = dict(os.environ), Path.cwd(), sys.stdin
        try:
            _replace_environment(self._environment(environment))
            os.chdir(self.place)
            with open(os.devnull) as sys.stdin, redirect_stdout(out), redirect_stderr(err):
                status = main(arguments)
        finally:
            _replace_environment(before[0])
            os.chdir(before[1])
            sys.stdin = before[2]
        return Said(status, out.buffer.getvalue(), err.buffer.getvalue().decode())

    def say_alone(self, *arguments: str, capable: bool = True, **environment: str) -> Said:
        """Run `smsnap` as a process of its own; not `capable` is root without its privileges."""
        process = self.start(
            *arguments,
            stdout=subprocess.PIPE,
            preexec_fn=None if capable else _drop_capabilities,
            **environment,
        )
        out, err = process.communicate()
        return Said(process.returncode, out, err.decode())

    def start(
        self,
        *arguments: str,
        stdout: IO[bytes] | int,
        preexec_fn: Callable[[], None] | None = None,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Begin a command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "smsnapd.cli.main", *arguments],
            cwd=self.place,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=preexec_fn,
        )

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        package = str(Path(smsnapd.__file__).parents[1])
        own = {"HOME": str(self.place / "home"), "PYTHONPATH": package, "AWS_EC2_METADATA_DISABLED": "true"}
        return {**inherited, **own, **more}

    def well(self, *arguments: str, **environment: str) -> Said:
        """The same, and it must end with status 0 and without an error."""
        said = self.say(*arguments, **environment)
        assert said.status == 0 and "cannot" not in said.err, said
        return said

    def objects(self) -> dict[str, bytes]:
        """Every object of the directory repository."""
        return {
            str(path.relative_to(self.repo)): path.read_bytes()
            for path in self.repo.rglob("*")
            if path.is_file()
        }


def _replace_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def one_line(said: Said, status: int, *pieces: str) -> None:
    """Assert that a command failed as it must: a line that says what and why, a hint, no traceback."""
    assert said.status == status, said
    assert "Traceback" not in said.err
    told = ("smsnap: WARNING", "smsnap: full ", "smsnap: incremental ")
    lines = [line for line in said.err.splitlines() if not line.startswith(told)]
    assert lines[0].startswith("smsnap: cannot "), said
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  ")), said
    for piece in pieces:
        assert piece in said.err, (piece, said)
