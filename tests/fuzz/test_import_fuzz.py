"""Archives with garbled headers whose checksums are right: a clean error or a snapshot that restores."""

from __future__ import annotations

import io
import tarfile
import tempfile
import uuid
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smsnapd.engine.intake.run import ImportRequest, run_import
from smsnapd.engine.progress import Silent
from smsnapd.errors import SmsnapError
from smsnapd.repository import Repository
from smsnapd.store import StoreSettings, open_store
from smsnapd.volume.archive.members import TarReader
from smsnapd.volume.archive.stream import FileSource, Peekable
from tests.property.protected import VOLUME, Protected

BLOCK = 512


def archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as made:
        for number, kind in enumerate((b"0", b"5", b"2", b"1", b"3", b"6", b"0", b"S")):
            info = tarfile.TarInfo(f"d/{number}")
            info.type, info.linkname = kind, "d/0"
            info.size = 700 if kind == b"0" else 0
            info.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"} if number % 2 else {}
            made.addfile(info, io.BytesIO(bytes(info.size)))
    return data.getvalue()


ARCHIVE = archive()
HEADERS = [at for at in range(0, len(ARCHIVE), BLOCK) if ARCHIVE[at + 257 : at + 262] == b"ustar"]
EDIT = st.tuples(st.sampled_from(HEADERS), st.integers(0, BLOCK - 1), st.integers(0, 255))


def garbled(edits: list[tuple[int, int, int]]) -> bytes:
    data = bytearray(ARCHIVE)
    for at, offset, byte in edits:
        data[at + offset] = byte
    for at, _, _ in edits:
        block = data[at : at + BLOCK]
        block[148:156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EDIT, min_size=1, max_size=8))
def test_garbled_headers(edits: list[tuple[int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        stored = StoreSettings(f"memory://{uuid.uuid4().hex}")
        made = Repository.create(open_store(stored), None)
        there = Protected(Path(place), Path(place) / "state", stored, made.recovery_key, made.write_key_text)
        arrivals = TarReader(Peekable(FileSource(io.BytesIO(garbled(edits)), "read")), "read")
        request = ImportRequest(VOLUME, "made", there.state_dir, 0, 0)
        try:
            run_import(made.repository, request, arrivals, Silent())
        except SmsnapError as error:
            assert "reader would" not in error.why and "catalog" not in error.what, error
            return
        assert there.check().findings == ()
