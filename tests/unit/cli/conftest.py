"""A command line run in this process, apart from the machine's own configuration."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smsnapd.cli.main import main
from smsnapd.format.keyslot import Argon2Cost, make_keyslot

PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True)
class Ran:
    """What a run of `smsnap` came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.err.splitlines()[-1])


Smsnap = Callable[..., Ran]


@pytest.fixture
def smsnap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: Any) -> Iterator[Smsnap]:
    """`smsnap("ls", "latest")`: standard input is no terminal, there is no configuration, home is empty."""
    (tmp_path / "home").mkdir()
    for name in [name for name in os.environ if name.startswith(("SMSNAP_", "AWS_", "STATE_DIR", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("smsnapd")
    before = log.level, list(log.handlers), log.propagate

    def run(*arguments: str, **environment: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            status = main(arguments)
        out, err = capfdbinary.readouterr()
        return Ran(status, out.decode(), err.decode())

    yield run
    log.level, log.handlers, log.propagate = before


@pytest.fixture
def configured(smsnap: Smsnap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smsnap:
    """The same, with a volume, a configuration in ./smsnapd.toml and a repository just made.

    Its keyslot opens at once: a guess of the passphrase shall cost 0.35 s of CPU, and every run makes one.
    """
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    (tmp_path / "volume").mkdir()
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    (tmp_path / "passphrase").chmod(0o600)
    (tmp_path / "smsnapd.toml").write_text(
        f'[volume]\npath = "volume"\nname = "nb"\n[repository]\nurl = "{(tmp_path / "repo").as_uri()}"\n'
        '[encryption]\npassphrase_file = "passphrase"\n'
    )
    assert smsnap("init").status == 0
    return smsnap
