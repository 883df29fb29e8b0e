"""`import`, cut off at every call to the store: no recovery point or a whole one, and the next run works."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from smsnapd.engine.intake.run import ImportRequest, run_import
from smsnapd.engine.progress import Silent
from smsnapd.errors import LockedError, SmsnapError
from smsnapd.format import names
from smsnapd.format.garbage import GarbageList
from smsnapd.repository import Repository
from smsnapd.repository.garbage import new_garbage_name, put_garbage
from smsnapd.repository.lease import Lease
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.base import Store
from smsnapd.volume.archive.members import TarReader
from smsnapd.volume.archive.stream import FileSource, Peekable
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.property.protected import VOLUME, Protected

FILES = {"a": os.urandom(400_000), "d/b": b"small", "d/c": os.urandom(9_000_000)}


def archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as made:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return data.getvalue()


def archive_of_root() -> bytes:
    """One that says all there is to say of its tree: another import of it makes the same catalog."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as made:
        info = tarfile.TarInfo(".")
        info.type = tarfile.DIRTYPE
        made.addfile(info)
    return data.getvalue()


ARCHIVE = archive()
FAULTS = [Fault.CRASH_AFTER, *([Fault.LOST, Fault.CRASH] if os.environ.get("SMSNAP_LONG") else [])]


def target(place: Path) -> Protected:
    settings = StoreSettings(f"memory://{uuid.uuid4().hex}")
    made = Repository.create(open_store(settings), None)
    return Protected(place / "none", place / "state", settings, made.recovery_key, made.write_key_text)


def imported(there: Protected, store: Store | None = None, data: bytes = ARCHIVE) -> str:
    with there.repository(store, write_key=True) as repository:
        arrivals = TarReader(Peekable(FileSource(io.BytesIO(data), "read")), "read")
        request = ImportRequest(VOLUME, "made", there.state_dir, 0, 0)
        return run_import(repository, request, arrivals, Silent()).snapshot.id


def check(there: Protected, place: Path, expected: int) -> None:
    assert there.check().findings == ()
    assert len(there.snapshots()) == expected
    if expected:
        restored = place / uuid.uuid4().hex
        there.restore(restored)
        assert {name: (restored / name).read_bytes() for name in FILES} == FILES


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_cut_off_at_every_call(place: Path, fault: Fault) -> None:
    first = target(place)
    whole = FaultyStore(open_store(first.settings))
    imported(first, whole)
    check(first, place, 1)
    assert len(whole.calls) > 15
    for number in range(len(whole.calls)):
        there = target(place)
        with suppress(Crash, SmsnapError):
            imported(there, FaultyStore(open_store(there.settings), {number: fault}))
        done = len(there.snapshots())
        check(there, place, done)
        assert not list(there.state_dir.glob("import-*"))
        imported(there)
        check(there, place, done + 1)


def test_another_writer_is_not_disturbed(place: Path) -> None:
    there = target(place)
    with there.repository() as repository:
        lease = Lease.take(repository.store, repository.id, VOLUME)
        with pytest.raises(LockedError):
            imported(there)
        lease.release()
    imported(there)


def test_a_segment_that_is_listed_as_garbage_and_cannot_be_halved_goes_with_the_manifest(place: Path) -> None:
    there = target(place)
    imported(there, data=archive_of_root())
    store = open_store(there.settings)
    with there.repository(write_key=True) as repository:
        (segment,) = [info.name for info in store.list(names.catalogs_prefix(VOLUME))]
        listed = new_garbage_name(VOLUME, store.now())
        put_garbage(
            repository, GarbageList(repository.id, listed, 1, None, "x", (segment,)), repository.write_key
        )
    # As after a prune of what referred to it, in the middle of its sweep.
    for name in (segment, *(info.name for info in store.list(names.manifests_prefix(VOLUME)))):
        store.delete(name)
    imported(there, data=archive_of_root())
    assert there.check().findings == ()
    there.restore(place / "restored")
