"""All memory of a daemon's processes, and its whole disk: no chunk from before the current data key opens.

It is the real daemon with the write key alone, whose data keys last for seconds instead of a day.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from smsnapd.format.codec import derive
from smsnapd.format.keys import Identity, open_data_key
from smsnapd.format.names import DataKeyName
from smsnapd.repository import Credentials, Repository
from smsnapd.store import StoreSettings, open_store
from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook

pytestmark = [pytest.mark.root, pytest.mark.slow]

SHORT_DAYS = """
import sys
import smsnapd.engine.chain.tenure as tenure
from smsnapd.daemon.main import main
tenure.DATA_KEY_S = 2.0
sys.exit(main())
"""
NAIVE = (
    """
import smsnapd.engine.chain.tenure as tenure
def let_go(self, kept=[]):
    kept.append(self._data_key)
    self._data_key = None

tenure.Tenure._wipe = let_go
"""
    + SHORT_DAYS
)
"""As if old keys were only let go of: here one reference to each is left."""
PIECE = 1 << 24


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """It has the write key alone; the identity stays with the test."""
    notebook = Notebook(tmp_path, more=SCHEDULE)
    (notebook.place / "passphrase").unlink()
    notebook.configure(SCHEDULE, encryption="")
    notebook.well("init", "--identity-out", "identity", "--write-key-file", "write-key")
    notebook.configure(SCHEDULE, encryption='write_key_file = "write-key"')
    made = Daemon(notebook)
    made.identity = Identity.from_recovery_key((notebook.place / "identity").read_text())  # type: ignore[attr-defined]
    (notebook.place / "identity").unlink()
    made.command = [sys.executable, "-W", "error", "-c", SHORT_DAYS, "-v"]
    yield made
    made.close()


def data_keys(daemon: Daemon) -> dict[bytes, bytes]:
    """Every data key, oldest first, as the identity opens it."""
    identity: Identity = daemon.identity  # type: ignore[attr-defined]
    store = open_store(StoreSettings(daemon.notebook.url))
    repository = Repository.open(store, Credentials(recovery_key=identity.recovery_key()))
    files = sorted(
        (daemon.notebook.repo / "volumes/nb/keys").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    found = {}
    for path in files:
        name = DataKeyName("nb", bytes.fromhex(path.name), None)
        opened = open_data_key(path.read_bytes(), name, repository.id, identity, repository.verify_key_of)
        found[name.key_id] = bytes(opened.secret)
    return found


def opens_chunks(daemon: Daemon, key_ids: set[bytes], keys: dict[bytes, bytes]) -> dict[bytes, str]:
    """What would open a chunk of these data keys: the keys themselves, and the key of each chunk."""
    wanted = {keys[key_id]: f"data key {key_id.hex()}" for key_id in key_ids}
    for path in (daemon.notebook.repo / "volumes/nb").rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        at = data.find(b"SMSN\x01\x01\0\0")
        while at >= 0:  # of its own, or attached to a manifest
            key_id, salt = data[at + 8 : at + 24], data[at + 24 : at + 56]
            if key_id in key_ids:
                object_key = derive(keys[key_id], salt, b"smsnapd v1 object")
                wanted[object_key] = f"the key of a chunk in {path.name}"
            at = data.find(b"SMSN\x01\x01\0\0", at + 1)
    return wanted


def family(pid: int) -> list[int]:
    """A process and all that it has begun."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task").glob("*/children")
        below = [int(child) for path in children for child in path.read_text().split()]
        return [pid, *itertools.chain.from_iterable(map(family, below))]
    return []


def memory_of(pid: int) -> Iterator[bytes]:
    """Everything that can be read of a process, in overlapping pieces."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.readlines():
            place, rights = line.split()[:2]
            start, end = (int(number, 16) for number in place.split("-"))
            for position in range(start, end if "r" in rights else start, PIECE):
                with suppress(OSError, ValueError):  # [vvar] and the like
                    yield os.pread(memory.fileno(), min(PIECE + 64, end - position), position)


def found_in(pieces: Iterator[bytes], wanted: dict[bytes, str]) -> set[str]:
    return {what for piece in pieces for key, what in wanted.items() if key in piece}


def disk_of(daemon: Daemon) -> Iterator[bytes]:
    for path in daemon.notebook.place.rglob("*"):
        if path.is_file() and not path.is_socket():
            yield path.read_bytes()


def commit(daemon: Daemon, number: int) -> None:
    """A small delta, sealed by the daemon itself; every third time a full, by its workers."""
    name = f"file-{number}"
    (daemon.notebook.volume / name).write_bytes(os.urandom(40_000))
    if number % 3 == 0:
        (daemon.notebook.volume / f"large-{number}").write_bytes(os.urandom(20 << 20))
        assert daemon.say("backup", "--full").status == 0
    else:
        assert daemon.say("backup").status == 0


def rotated(daemon: Daemon, number: int, count: int) -> dict[bytes, bytes]:
    """Commit until there are more than `count` data keys."""

    def more() -> dict[bytes, bytes] | None:
        commit(daemon, number)
        keys = data_keys(daemon)
        return keys if len(keys) > count else None

    return eventually(more, "another data key")


def with_many_keys(daemon: Daemon, count: int) -> tuple[dict[bytes, bytes], set[str]]:
    """Every data key, of which the last is the current one; and what of the others is in memory."""
    daemon.start()
    daemon.until("idle")
    keys: dict[bytes, bytes] = {}
    for number in range(1, count + 1):
        keys = rotated(daemon, number, len(keys))
    assert daemon.process is not None
    *old, current = keys
    sealed_before = opens_chunks(daemon, set(old), keys)
    assert len(sealed_before) > 2 * len(old)
    processes = family(daemon.process.pid)
    # The search does find: what seals now is there.
    assert any(found_in(memory_of(pid), {keys[current]: "current"}) for pid in processes)
    return keys, {what for pid in processes for what in found_in(memory_of(pid), sealed_before)}


def test_no_chunk_from_before_the_current_data_key_opens(daemon: Daemon) -> None:
    keys, leaks = with_many_keys(daemon, 6)
    assert leaks == set()
    assert found_in(disk_of(daemon), opens_chunks(daemon, set(keys), keys)) == set()


def test_of_a_naive_daemon_they_would_open(daemon: Daemon) -> None:
    daemon.command[-2] = NAIVE
    keys, leaks = with_many_keys(daemon, 3)
    assert len(leaks) == len(keys) - 1


AT_REST = """
import sys
from pathlib import Path
from tests.property.protected import Protected, VOLUME
from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.progress import Silent
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.repository import Credentials, Repository
from smsnapd.store import StoreSettings, open_store
import smsnapd.engine.backup.snapshot as snapshot

place, text = Path(sys.argv[1]), sys.stdin.readline()
settings = StoreSettings((place / "repo").as_uri())
repository = Repository.open(open_store(settings), Credentials(write_key_text=text.strip()))
tenure = Tenure(repository, "nb")
for number, (inline_bytes, attach_bytes) in enumerate(((-1, 0), (1 << 30, 0), (1 << 30, 1 << 20))):
    (place / f"volume/file-{number}").write_bytes(b"%d" % number * 9000)
    snapshot.INLINE_BYTES, snapshot.ATTACH_BYTES = inline_bytes, attach_bytes
    request = BackupRequest(bytes(place / "volume"), "nb", place / "state", workers=2)
    run_backup(repository, settings, request, Silent(), tenure=tenure)
    tenure.forget()
print("done", flush=True)
sys.stdin.read()
"""
"""By worker processes, by the process itself, and into the manifest; and then nothing more happens in it."""


def test_right_after_a_key_was_wiped_nothing_of_it_is_left(daemon: Daemon) -> None:
    command = [sys.executable, "-c", AT_REST, str(daemon.notebook.place)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write((daemon.notebook.place / "write-key").read_bytes())
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"
        keys = data_keys(daemon)
        wanted = opens_chunks(daemon, set(keys), keys)
        assert (len(keys), len(wanted)) == (3, 6)
        assert found_in(memory_of(child.pid), wanted) == set()
        child.stdin.close()
        assert child.wait() == 0
