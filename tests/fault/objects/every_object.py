"""A small repository that has every sort of object, what each restore of it must give, and ways to damage it.

Two volumes; two fulls and several incrementals; chunks attached to manifests and of their own; one file of
several chunks; two writers, rosters and keyslots; a data key that seals nothing. It is a directory:
objects are damaged in place, and the damage is undone.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.check import CheckReport, CheckRequest, run_check
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest, run_restore
from smsnapd.errors import DamageError
from smsnapd.format import names
from smsnapd.format.keys import WriteKey, seal_write_key
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.format.record import record_hash
from smsnapd.format.roster import RosterKey
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings, open_store
from tests.property.observed import Observed, observe
from tests.property.protected import VOLUME, Protected

MIB = 1024 * 1024
OTHER = "other"
SECOND_PASSPHRASE = "another horse, another staple"
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
MARKER = b"mArKeR"
"""Is in every name, content and target of the volumes, and must be in no stored byte."""

SMALL = 1024
"""Records below this many bytes have every byte flipped."""

FLIPS = 24
SORTS = {
    "repository": r"repository",
    "keyslot": r"keys/slots/.*",
    "roster": r"keys/roster/.*",
    "writer": r"keys/writers/.*",
    "lease": r"volumes/[^/]+/lease",
    "datakey": r"volumes/[^/]+/keys/.*",
    "chunk": r"volumes/[^/]+/chunks/.*",
    "catalog": r"volumes/[^/]+/catalogs/.*",
    "manifest": r"volumes/[^/]+/manifests/.*",
}
_MAGIC = b"SMSN"
_HEADER = struct.Struct("<4sBBH16s32sQ")


def sort_of(name: str) -> str:
    return next(sort for sort, pattern in SORTS.items() if re.fullmatch(pattern, name))


class Reading:
    """A store that notes what is read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, name: str) -> bytes:
        self.read.add(name)
        return self._store.get(name)


@dataclass
class Kept:
    """A repository at `root`, and all that is known of it while it is whole.

    `truths` has the tree of each (volume, snapshot), `needs` the objects without which it cannot be restored;
    `objects` is in the order in which they were made.
    """

    root: Path
    protected: Protected
    truths: dict[tuple[str, str], Observed]
    old_lease: bytes
    objects: dict[str, bytes]
    needs: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def of_sort(self, sort: str) -> list[str]:
        return [name for name in self.objects if sort_of(name) == sort]

    def reader(self, name: str) -> tuple[str, str]:
        """The first recovery point that needs an object; the newest if none does."""
        found = (reader for reader, needed in self.needs.items() if name in needed)
        return next(found, (VOLUME, self.latest))

    @property
    def manifests(self) -> list[str]:
        """Those of the first volume."""
        return [name for name in self.of_sort("manifest") if f"/{VOLUME}/" in name]

    @property
    def latest(self) -> str:
        """The first volume's newest snapshot."""
        return self.manifests[-1][-16:]

    @contextlib.contextmanager
    def after(self, changed: Mapping[str, bytes | None]) -> Iterator[None]:
        """The repository with some objects changed, or deleted, for the length of a `with`."""
        try:
            for name, data in changed.items():
                self._set(name, data)
            yield
        finally:
            for name in changed:
                self._set(name, self.objects[name])

    def _set(self, name: str, data: bytes | None) -> None:
        if data is None:
            (self.root / name).unlink()
        else:
            (self.root / name).write_bytes(data)

    def open(self, **credentials: str) -> Repository:
        return Repository.open(open_store(self.protected.settings), Credentials(**credentials))

    def check(self, *, volume: str | None = None, write_key: bool = False, **more: Any) -> CheckReport:
        request = CheckRequest(
            volume=volume,
            read_data=(1, 1),
            expect_head=more.pop("expect_head", None),
            state_dir=more.pop("state_dir", self.protected.state_dir),
        )
        assert not more
        with self.protected.repository(write_key=write_key) as repository:
            return run_check(repository, self.protected.settings, request, Silent())

    def found(self, **request: Any) -> dict[str, str]:
        """What is wrong with which objects. A repository that does not open has one finding."""
        try:
            return {item.object: item.problem for item in self.check(**request).findings}
        except DamageError as error:
            return {error.what.rpartition(" ")[2]: error.why}

    def restore(self, target: Path, volume: str, snapshot: str, store: Store | None = None) -> RestoreOutcome:
        with self.protected.repository(store) as repository:
            history = History.load(repository, volume)
            found = history.find(snapshot)
            request = RestoreRequest(bytes(target), workers=0)
            return run_restore(repository, self.protected.settings, history, found, request, Silent())


# --- how it is made


def keep(place: Path) -> Kept:
    """Make the repository, below an empty directory."""
    protected = make_protected(place)
    root = place / "repository"
    volume = Volume(protected)
    volume.first_chain()
    old_lease = (root / names.lease_name(VOLUME)).read_bytes()
    volume.second_chain()
    add_keyslot(protected)
    truths = {(VOLUME, snapshot): tree for snapshot, tree in volume.truths.items()}
    truths |= other_volume(protected, place / "other", add_writer(protected))
    return Kept(root, protected, truths, old_lease, stored_objects(root))


def make_protected(place: Path) -> Protected:
    """An empty repository, whose keyslot opens at once."""
    (place / "volume").mkdir(parents=True)
    settings = StoreSettings((place / "repository").as_uri())
    cheap = partial(make_keyslot, cost=CHEAP)
    with mock.patch("smsnapd.repository.access.make_keyslot", cheap):
        return Protected.create(place / "volume", place / "state", settings)


def stored_objects(root: Path) -> dict[str, bytes]:
    """Every object, in the order in which they were made."""
    with contextlib.closing(open_store(StoreSettings(root.as_uri()))) as store:
        found = sorted((os.stat(root / info.name).st_mtime_ns, info.name) for info in store.list(""))
        return {name: store.get(name) for _, name in found}


class Volume:
    """What happens on the first volume between its backups; the same in every repository."""

    def __init__(self, protected: Protected) -> None:
        self._protected = protected
        self._root = protected.root
        self._random = random.Random(20_261_123)
        self.truths: dict[str, Observed] = {}

    def first_chain(self) -> None:
        """A full and four incrementals."""
        for number in range(12):
            self._write(f"directory-{number % 3}/small-{number}", self._text(700 * number))
        self._write("empty", b"")
        (self._root / "link-mArKeR").symlink_to("target-of-mArKeR")
        self._backup()
        self._write("own", self._text(50_000))
        self._backup(attach=False)
        (self._root / "own-mArKeR").rename(self._root / "renamed-mArKeR")
        os.link(self._root / "empty-mArKeR", self._root / "hard-link-mArKeR")
        self._backup()
        self._write("large", b"".join(self._text(20_000) + bytes([number]) * 8 * MIB for number in range(2)))
        self._backup()
        (self._root / "directory-0/small-3-mArKeR").unlink()
        (self._root / "empty-mArKeR").unlink()
        self._backup()

    def second_chain(self) -> None:
        """Another full and three incrementals."""
        self._write("directory-1/new", self._text(3000))
        self._backup(full=True)
        self._write("own", self._text(40_000))
        self._write("directory-2/small-5", self._text(9000))
        self._backup(attach=False)
        with (self._root / "large-mArKeR").open("r+b") as file:
            file.seek(9 * MIB)
            file.write(self._text(20_000))
        self._backup()
        self._write("last", self._text(100))
        self._backup()

    def _backup(self, **options: Any) -> None:
        outcome = self._protected.backup(workers=0, **options)
        assert outcome.snapshot is not None
        assert outcome.incomplete == ()
        self.truths[outcome.snapshot.id] = observe(self._root)

    def _write(self, name: str, data: bytes) -> None:
        path = self._root / f"{name}-mArKeR"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def _text(self, size: int) -> bytes:
        """Half of it cannot be compressed."""
        return (MARKER + self._random.randbytes(size))[: size // 2] + MARKER * (size // 12)


def add_keyslot(protected: Protected) -> None:
    with protected.repository() as repository:
        assert repository.identity is not None
        slot = make_keyslot(repository.identity, SECOND_PASSPHRASE, repository.id, "second", CHEAP)
        repository.store.put(names.keyslot_name(slot.slot), slot.encode())


def add_writer(protected: Protected) -> str:
    """Grant a second write key on a second roster; the text of its file."""
    with protected.repository() as repository:
        identity, store = repository.identity, repository.store
        assert identity is not None
        key = WriteKey.generate(repository.id)
        roster = replace(
            repository.roster,
            sequence=2,
            previous=record_hash(store.get(names.roster_name(1))),
            writers=(*repository.roster.writers, RosterKey(key.writer_id, key.verify_key, "second")),
        )
        sealed = seal_write_key(key, (identity.recipient,), identity.root_private)
        store.put(names.writer_name(key.writer_id), sealed)
        store.put(names.roster_name(2), roster.encode(identity.root_private))
        return key.to_text(identity.root_public)


def other_volume(protected: Protected, root: Path, write_key: str) -> dict[tuple[str, str], Observed]:
    """A second volume, of the second writer: one snapshot whose chunk is attached, then a deletion.

    That one's data key seals nothing.
    """
    root.mkdir()
    truths = {}
    for name in ("file-mArKeR", "deleted-mArKeR"):
        (root / name).write_bytes(b"something else " + MARKER)
    for change in (lambda: None, (root / "deleted-mArKeR").unlink):
        change()
        request = BackupRequest(bytes(root), OTHER, protected.state_dir, workers=0)
        repository = Repository.open(open_store(protected.settings), Credentials(write_key_text=write_key))
        with contextlib.closing(repository):
            outcome = run_backup(repository, protected.settings, request, Silent())
        assert outcome.snapshot is not None
        truths[OTHER, outcome.snapshot.id] = observe(root)
    return truths


# --- how it is damaged


class Damage(NamedTuple):
    """What becomes of some objects; None is deleted. `of` is the one that it is about."""

    of: str
    how: str
    after: dict[str, bytes | None]


def sealed_parts(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each sealed object in one object: its own, and what is attached."""
    position = 0
    while position < len(data):
        *_, length = _HEADER.unpack_from(data, position)
        yield position, position + _HEADER.size + length
        position += _HEADER.size + length
    assert position == len(data)


def sections(data: bytes) -> list[int]:
    """Where sections begin: lines of records; fields of headers, ciphertexts and tags."""
    if not data.startswith(_MAGIC):
        return [0, *(match.end() for match in re.finditer(rb"\n", data))]
    first, *attached = sealed_parts(data)
    begins = [0, 4, 5, 6, 8, 24, 56, _HEADER.size, first[1] - 16, first[1]]
    for begin, end in attached:
        begins += [begin + 8, begin + _HEADER.size, end - 16, end]
    return begins


def flips(data: bytes) -> list[int]:
    """Positions to flip a byte at: all of a small record; else both sides of sections' edges, and others."""
    if len(data) < SMALL:
        return list(range(len(data)))
    edges = {position for begin in sections(data) for position in (begin - 1, begin)}
    found = sorted(position for position in edges if 0 <= position < len(data))
    some = random.Random(len(data))
    return found + [some.randrange(len(data)) for _ in range(FLIPS - len(found))]


def flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


def rounds_of_flips(kept: Kept, chosen: list[str]) -> Iterator[dict[str, bytes | None]]:
    """One flipped byte in each object at a time, until every position of each has had its turn."""
    positions = {name: flips(kept.objects[name]) for name in chosen}
    for number in range(max(map(len, positions.values()))):
        yield {
            name: flipped(kept.objects[name], found[number])
            for name, found in positions.items()
            if number < len(found)
        }


def damages(kept: Kept, name: str) -> Iterator[Damage]:
    """All that can become of one object, but for the full row of flips."""
    yield from changes(kept, name)
    yield from exchanges(kept, name)


def changes(kept: Kept, name: str) -> Iterator[Damage]:
    """What an object may become of itself."""
    data = kept.objects[name]
    yield Damage(name, "first byte flipped", {name: flipped(data, 0)})
    yield Damage(name, "flipped", {name: flipped(data, len(data) // 2)})
    for size in (0, len(data) // 2, len(data) - 1):
        yield Damage(name, f"cut to {size}", {name: data[:size]})
    yield Damage(name, "appended to", {name: data + data[-1:]})


def exchanges(kept: Kept, name: str) -> Iterator[Damage]:
    """It goes, or another of its sort comes in its place."""
    yield Damage(name, "deleted", {name: None})
    alike = kept.of_sort(sort_of(name))
    place = alike.index(name)
    if len(alike) > 1:
        partner = alike[place - 1]
        yield Damage(
            name, f"swapped with {partner}", {name: kept.objects[partner], partner: kept.objects[name]}
        )
    for older in {alike[0], alike[place - 1]} if place else ():
        yield Damage(name, f"replayed {older}", {name: kept.objects[older]})
