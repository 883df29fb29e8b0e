"""Where keys must not show: arguments, environments, logs, errors, status, metrics, core dumps."""

from __future__ import annotations

import base64
import itertools
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from smsnapd.format.keys import Identity, parse_write_key
from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import PASSPHRASE, Notebook

NOBODY = 65534
HOOK = """#!/bin/sh
env >> "{place}/told"
tr '\\0' '\\n' < /proc/$PPID/cmdline >> "{place}/told"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """It opens with a passphrase, tells metrics and runs a hook."""
    notebook = Notebook(tmp_path)
    place = notebook.place
    (place / "hook").write_text(HOOK.format(place=place))
    (place / "hook").chmod(0o700)
    telemetry = f'[telemetry]\nmetrics_file = "{place}/metrics.prom"\nhook = "{place}/hook"\n'
    notebook.configure(SCHEDULE + telemetry)
    made = Daemon(notebook)
    yield made
    made.close()


def spellings(secret: bytes) -> list[bytes]:
    """A secret as it may be written down."""
    return [
        secret,
        secret.hex().encode(),
        base64.b64encode(secret),
        base64.b32encode(secret).rstrip(b"=")[:40],
    ]


def processes(pid: int) -> Iterator[Path]:
    """A process and all that it has begun."""
    yield Path(f"/proc/{pid}")
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task").glob("*/children")
        for child in itertools.chain.from_iterable(path.read_text().split() for path in children):
            yield from processes(int(child))


def shown_by(daemon: Daemon) -> Iterator[tuple[str, bytes]]:
    """What anybody may come to see of it: files but the keys' own, arguments, environments."""
    place = daemon.notebook.place
    for path in place.rglob("*"):
        if path.is_file() and path.name not in ("passphrase", "write-key"):
            yield str(path), path.read_bytes()
    assert daemon.process is not None
    yield from told_by(daemon.process.pid)


def told_by(pid: int) -> Iterator[tuple[str, bytes]]:
    """The arguments and environments of a process and all that it has begun."""
    for process in processes(pid):
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                yield f"{process}/{name}", (process / name).read_bytes()


def shows(seen: Iterable[tuple[str, bytes]], secrets: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Where which of the secrets shows."""
    wanted = list(secrets)
    return [(where, secret) for where, text in seen for secret in wanted if secret in text]


def is_open(process: Path) -> bool:
    """Whether a process may leave a core dump, or lets others of its user's look into it."""
    may_dump = "Max core file size        0 " not in (process / "limits").read_text()
    # Not dumpable: its files below /proc are root's, whoever it runs as.
    return may_dump or (os.geteuid() == 0 and (process / "environ").stat().st_uid != 0)


def test_no_secret_shows_anywhere(daemon: Daemon) -> None:
    notebook = daemon.notebook
    made = notebook.well("init", "--write-key-file", "write-key", "--json")
    identity = Identity.from_recovery_key(made.json["recovery_key"])
    write_key, _ = parse_write_key((notebook.place / "write-key").read_text())
    assert stat.S_IMODE((notebook.place / "write-key").stat().st_mode) == 0o600
    said = [made.err]
    daemon.start()
    for number in range(3):
        (notebook.volume / f"file-{number}").write_text(f"{number}\n")
        daemon.holds(f"file-{number}", f"{number}\n")
    for arguments in (
        ("key", "list"), ("check", "--read-data"), ("snapshots",), ("doctor",), ("status", "--json"),
        ("restore", "--target", "back"), ("backup", "--full"), ("key", "rotate"),
    ):  # fmt: skip
        ran = daemon.say("-v", "-v", *arguments)
        said += [ran.text, ran.err]
    recovery_key = made.json["recovery_key"]
    mistyped = recovery_key[:30] + ("B" if recovery_key[30] != "B" else "C") + recovery_key[31:]
    for wrong in ("wrong", mistyped):
        ran = notebook.say("-v", "snapshots", SMSNAP_PASSPHRASE=wrong)
        assert ran.status == 12
        said += [ran.text, ran.err]
    eventually((notebook.place / "metrics.prom").exists, "metrics")
    eventually((notebook.place / "told").exists, "the hook")
    seen = [*shown_by(daemon), ("what was said", "\n".join(said).encode())]
    key_file = (notebook.place / "write-key").read_bytes().strip()
    secrets = [PASSPHRASE.encode(), recovery_key.encode(), mistyped.encode(), key_file]
    for secret in (identity.secret, write_key.secret, write_key.catalog_key):
        secrets += spellings(secret)
    assert shows(seen, secrets) == []
    assert daemon.process is not None
    assert not any(map(is_open, processes(daemon.process.pid)))


NAIVE_ARGUMENT = 'read -r secret; /bin/sh -c "echo begun; read -r line" sh "$secret"; :'
NAIVE_ENVIRONMENT = 'read -r secret; SECRET=$secret /bin/sh -c "echo begun; read -r line"; :'


@contextmanager
def naive(script: str, user: int | None = None) -> Iterator[int]:
    """A process that was told the passphrase and begins another, as most scripts do."""
    command = ["/bin/sh", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd="/", user=user) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{PASSPHRASE}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline() == b"begun\n"
        yield process.pid


@pytest.mark.parametrize(("script", "where"), [(NAIVE_ARGUMENT, "cmdline"), (NAIVE_ENVIRONMENT, "environ")])
def test_of_a_naive_process_it_shows(script: str, where: str) -> None:
    with naive(script) as pid:
        ((found, _),) = shows(told_by(pid), spellings(PASSPHRASE.encode()))
        assert found.endswith(where)


@pytest.mark.root
def test_a_naive_process_is_open_to_its_user() -> None:
    with naive(NAIVE_ARGUMENT, NOBODY) as pid:
        assert all(map(is_open, processes(pid)))
