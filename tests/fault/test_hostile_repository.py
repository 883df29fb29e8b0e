"""A repository whose every object is the attacker's own, restored by root and by an ordinary user.

Each attack works on a restore that does what the catalog says, by path, which is beside it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import zstandard

from smsnapd.engine.history import History
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.format.codec import Context, ObjectType, Sealer, open_sealed
from smsnapd.model import Entry, Kind, Listing, data_bytes, join_path
from smsnapd.store import StoreSettings
from tests.fault.test_hostile import commit_full
from tests.property.children import run_child
from tests.property.protected import VOLUME, Protected

pytestmark = pytest.mark.root
NOBODY = 65534
GIB = 1 << 30


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that an ordinary user may enter, with something precious in it."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "outside").mkdir()
        (Path(directory) / "outside/precious").write_bytes(b"precious")
        yield Path(directory)


@pytest.fixture
def protected(place: Path) -> Protected:
    (place / "volume/directory").mkdir(parents=True)
    (place / "volume/directory/file").write_bytes(b"content\n" * 1000)
    made = Protected.create(place / "volume", place / "state", StoreSettings((place / "repo").as_uri()))
    made.backup(workers=0)
    return made


def forge(
    protected: Protected,
    change: Callable[[Entry], Entry] = lambda entry: entry,
    more: Callable[[list[Listing]], list[Listing]] = lambda listings: listings,
) -> None:
    with protected.repository() as repository:
        commit_full(repository, repository.write_key, change, more)
    repo = protected.root.with_name("repo")
    for path in (repo, *repo.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def entries_of(protected: Protected) -> list[tuple[bytes, Entry]]:
    """What the newest catalog says, whether it makes a tree or not."""
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        layer = SnapshotTree(repository, [history.record(history.names[-1])]).layer()
        return [(join_path(item.directory, entry.name), entry) for item in layer for entry in item.entries]


def naive(protected: Protected, target: Path) -> None:
    """A restore by path, in the order of the catalog, as if it were all well meant."""
    for raw, entry in entries_of(protected):
        path = target / os.fsdecode(raw)
        with suppress(PermissionError):
            if entry.kind == Kind.DIRECTORY:
                path.mkdir(exist_ok=True)
            elif entry.kind == Kind.SYMLINK:
                path.symlink_to(os.fsdecode(entry.target))
            elif entry.kind in (Kind.CHARACTER, Kind.BLOCK):
                os.mknod(
                    path, stat.S_IFCHR | entry.mode, os.makedev(entry.rdev >> 32, entry.rdev & 0xFFFFFFFF)
                )
            else:
                path.write_bytes(b"evil")
                path.chmod(entry.mode)


def for_nobody(place: Path, name: str) -> Path:
    """A directory of the ordinary user's."""
    made = place / name
    made.mkdir()
    os.chown(made, NOBODY, NOBODY)
    return made


def with_new(
    name: bytes, entry: Entry, below: tuple[Entry, ...] = ()
) -> Callable[[list[Listing]], list[Listing]]:
    """An entry more in `directory`, and what lies below it."""

    def more(listings: list[Listing]) -> list[Listing]:
        changed = []
        for listing in listings:
            entries = listing.entries
            if listing.directory == b"directory":
                header = entries[0].header
                made = [msgspec.structs.replace(entry, name=name, header=header)]
                entries = sorted([*entries, *made], key=lambda entry: entry.name)
                below_it = [msgspec.structs.replace(item, header=header) for item in below]
            changed.append(Listing(listing.directory, entries))
        return [*changed, Listing(b"directory/" + name, below_it)] if below else changed

    return more


def test_a_link_that_it_planted_is_not_followed(place: Path, protected: Protected) -> None:
    aim = os.fsencode(place / "outside")
    link = Entry(b"", int(Kind.SYMLINK), target=aim, size=len(aim))
    forge(protected, more=with_new(b"link", link, (Entry(b"precious", int(Kind.REGULAR), mode=0o644),)))
    with pytest.raises(DamageError, match="does not lie in a directory"):
        protected.restore(place / "restored", workers=0)
    assert not (place / "restored").exists()
    assert (place / "outside/precious").read_bytes() == b"precious"
    (place / "naive").mkdir()
    naive(protected, place / "naive")
    assert (place / "outside/precious").read_bytes() == b"evil"


def test_nothing_set_uid_of_anothers_for_an_ordinary_user(place: Path, protected: Protected) -> None:
    """Of root, it cannot be root's, and as one's own it would let everybody be the one who restores."""
    forge(protected, lambda entry: msgspec.structs.replace(entry, uid=0, gid=0, mode=entry.mode | 0o6755))
    restored, taken_in = for_nobody(place, "restored"), for_nobody(place, "naive")
    run_child(lambda: restore_as_nobody(protected, restored), uid=NOBODY)
    found = (restored / "directory/file").stat()
    assert (found.st_uid, found.st_mode & 0o6000) == (NOBODY, 0)
    run_child(lambda: naive(protected, taken_in), uid=NOBODY)
    assert (taken_in / "directory/file").stat().st_mode & 0o4000


def restore_as_nobody(protected: Protected, target: Path) -> None:
    own = replace(protected, state_dir=target.with_name("no-state"))
    own.restore(target, workers=0, overwrite="always")


def test_no_device_for_an_ordinary_user(place: Path, protected: Protected) -> None:
    forge(protected, more=with_new(b"device", Entry(b"", int(Kind.CHARACTER), mode=0o666, rdev=1 << 32 | 3)))
    restored = for_nobody(place, "restored")
    run_child(lambda: restore_as_nobody(protected, restored), uid=NOBODY)
    assert not (restored / "directory/device").exists()
    assert (restored / "directory/file").exists()
    (place / "naive").mkdir()
    naive(protected, place / "naive")  # of root
    assert stat.S_ISCHR((place / "naive/directory/device").stat().st_mode)


def test_the_disk_is_not_filled_beyond_what_is_declared(place: Path, protected: Protected) -> None:
    """A few kilobytes of catalog name one chunk a hundred thousand times."""
    (protected.root / "large").write_bytes(os.urandom(9 << 20))
    protected.backup(workers=0)

    def change(entry: Entry) -> Entry:
        if entry.name != b"large":
            return entry
        content = entry.content[:1] * 100_000
        return msgspec.structs.replace(entry, content=content, size=sum(extent.length for extent in content))

    forge(protected, change)
    with pytest.raises(DamageError, match="its manifest declares"):
        protected.restore(place / "restored", workers=0)
    assert not (place / "restored").exists()
    protected.restore(place / "one", workers=0, paths=(b"directory/file",))
    wanted = sum(data_bytes(entry) for _, entry in entries_of(protected) if entry.kind == Kind.REGULAR)
    assert wanted > 700 * GIB > shutil.disk_usage(place).free  # what a naive restore goes on to write


def test_a_chunk_that_is_a_bomb_is_refused_before_it_goes_off() -> None:
    """Half a gigabyte of zeros in some kilobytes, which whoever believes the frame makes room for."""
    writer = zstandard.ZstdCompressor(write_content_size=True).compressobj(size=GIB // 2)
    bomb = b"".join(writer.compress(bytes(1 << 20)) for _ in range(512)) + writer.flush()
    assert len(bomb) < 1 << 20 and zstandard.get_frame_parameters(bomb).content_size == GIB // 2
    context, key = Context(bytes(16), VOLUME, "name"), bytes(32)
    sealer = Sealer()
    sealer._compressor = Packed(bomb)  # type: ignore[assignment]
    sealed = bytes(sealer.seal(ObjectType.CHUNK, key, bytes(16), context, b"x").data)
    with pytest.raises(DamageError, match="does not state a size"):
        open_sealed(sealed, ObjectType.CHUNK, key, context)


class Packed:
    """A compressor that gives what it was made with."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def compress(self, content: bytes) -> bytes:
        return self._data
