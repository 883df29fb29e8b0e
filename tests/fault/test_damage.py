"""Every object, damaged in every way: `check` finds it, and no restore writes anything that is not true.

`SMSNAP_LONG=1` flips every byte instead of a sample.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from smsnapd.errors import DamageError, SmsnapError, WrongKeyError
from smsnapd.repository import Credentials, Repository
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.memory import MemoryStore
from tests.property.observed import Observed, differences, observe
from tests.property.protected import PASSPHRASE, VOLUME, Protected

pytestmark = [pytest.mark.root, pytest.mark.slow]
LONG = "SMSNAP_LONG" in os.environ
MARKER = "unmistakable-marker"
Objects = dict[str, bytes]


@dataclass(frozen=True)
class Small:
    """A small repository: its objects, and what each recovery point must give."""

    protected: Protected
    objects: Objects
    moments: dict[str, Observed]

    def without_state(self, place: Path) -> Protected:
        """As on a bare machine."""
        return replace(self.protected, state_dir=place / "no-state")


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory that syncs in no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.ismount("/dev/shm") else None) as directory:
        yield Path(directory)


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def objects_of(settings: StoreSettings) -> Objects:
    store = open_store(settings)
    found = {info.name: store.get(info.name) for info in store.list("")}
    store.close()
    return found


def store_of(objects: Objects) -> MemoryStore:
    store = MemoryStore("altered")
    for name, data in objects.items():
        store.put(name, data)
    return store


def in_a_directory(objects: Objects, directory: Path) -> StoreSettings:
    """For worker processes, which open a store of their own."""
    settings = StoreSettings(directory.as_uri())
    store = open_store(settings)
    for name, data in objects.items():
        store.put(name, data)
    store.close()
    return settings


def story(top: Path, large: bool = False) -> Small:
    """Two fulls and some incrementals; some chunks attached to manifests, some objects of their own."""
    root = top / "volume"
    (root / f"{MARKER}-directory").mkdir(parents=True)
    protected = Protected.create(root, top / "state", StoreSettings((top / "repository").as_uri()))
    moments: dict[str, Observed] = {}

    def commit(**request: bool) -> None:
        outcome = protected.backup(**request)
        assert outcome.snapshot is not None
        moments[outcome.snapshot.id] = observe(root)

    for number in range(5):
        (root / f"{MARKER}-directory" / f"{MARKER}-{number}").write_text(f"{MARKER} content {number}\n" * 300)
    (root / f"{MARKER}-link").symlink_to(f"{MARKER}-target")
    if large:
        (root / "large").write_bytes(b"".join(b"%08d" % number for number in range(3 << 20)))
    commit(attach=False)
    (root / "added").write_text(f"{MARKER} added\n" * 100)
    os.link(root / "added", root / "linked")
    commit()
    (root / f"{MARKER}-directory" / f"{MARKER}-1").write_text("changed")
    commit(attach=False)
    commit(full=True)
    (root / f"{MARKER}-directory" / f"{MARKER}-2").unlink()
    (root / "last").write_text(f"{MARKER} last\n" * 50)
    commit()
    return Small(protected, objects_of(protected.settings), moments)


@pytest.fixture(scope="module")
def small(memory: Path) -> Small:
    return story(memory / "small")


@pytest.fixture(scope="module")
def other(memory: Path) -> Small:
    """The same volume in another repository."""
    return story(memory / "other")


def is_found(small: Small, objects: Objects) -> bool:
    """Whether `check` sees that something is wrong, as damage and nothing else."""
    try:
        return bool(small.protected.check(store=store_of(objects)).findings)
    except DamageError as error:
        assert error.exit_status == 13
        return True


def restore_truly(small: Small, objects: Objects, place: Path) -> int:
    """Restore every recovery point: what is written is true, what is not is named. How many came whole."""
    whole = 0
    for snapshot, truth in small.moments.items():
        target = place / "target"
        try:
            outcome = small.protected.restore(target, snapshot, store=store_of(objects))
        except DamageError:
            pass
        else:
            if outcome.not_restored:
                assert outcome.damaged == len(outcome.not_restored)
            else:
                assert differences(truth, observe(target)) == []
                whole += 1
        if target.exists():
            for path, seen in observe(target).items():
                if b".smsnap-" not in path:
                    assert (seen.kind, seen.content, seen.target) == (
                        truth[path].kind,
                        truth[path].content,
                        truth[path].target,
                    ), path
            shutil.rmtree(target)
    return whole


def kind_of(name: str) -> str:
    """The directory that an object lies in, which says what it is."""
    parts = name.split("/")
    return parts[2] if parts[0] == "volumes" else "/".join(parts[:2])


def needed(name: str) -> bool:
    """Whether a restore with the recovery key needs the object at all."""
    return not name.startswith("keys/slots/") and not name.endswith("/lease")


def test_the_story_is_whole_and_has_everything(small: Small, place: Path) -> None:
    kinds = {kind_of(name) for name in small.objects}
    assert kinds == {
        *("repository", "keys/slots", "keys/roster", "keys/writers"),
        *("lease", "keys", "chunks", "catalogs", "manifests"),
    }
    assert not is_found(small, small.objects)
    assert restore_truly(small, small.objects, place) == len(small.moments) == 5


def positions(data: bytes) -> list[int]:
    """Where to flip: the header, the ends, and here and there."""
    if LONG:
        return list(range(len(data)))
    step = max(1, len(data) // 25)
    return sorted({*range(0, min(64, len(data)), 3), *range(0, len(data), step), len(data) - 1, len(data) - 17})


def test_a_flipped_bit_anywhere_is_found(small: Small) -> None:
    for name, data in small.objects.items():
        for position in positions(data):
            flipped = bytearray(data)
            flipped[position] ^= 1 << position % 8
            assert is_found(small, {**small.objects, name: bytes(flipped)}), (name, position)


def test_a_flipped_bit_is_never_restored(small: Small, place: Path) -> None:
    for name, data in small.objects.items():
        for position in {5, 70, len(data) // 3, len(data) - 10}:
            flipped = bytearray(data)
            flipped[position] ^= 4
            whole = restore_truly(small, {**small.objects, name: bytes(flipped)}, place)
            assert (whole < 5) == needed(name), (name, position)


def alterations(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Shorter, longer, empty, zeroed."""
    for length in (0, 1, 63, 64, 100, len(data) // 2, len(data) - 1):
        yield f"cut to {length}", data[:length]
    yield "longer", data + b"\0"
    yield "longer by itself", data + data
    yield "zeros", bytes(len(data))
    yield "zeros at the end", data[:-500] + bytes(500)


def test_an_object_of_another_length_is_found(small: Small, place: Path) -> None:
    for name, data in small.objects.items():
        for what, altered in alterations(data):
            objects = {**small.objects, name: altered}
            assert is_found(small, objects), (name, what)
        whole = restore_truly(small, {**small.objects, name: data[: len(data) // 2]}, place)
        assert (whole < 5) == needed(name), name


def test_a_missing_object_is_found(small: Small, place: Path) -> None:
    head = max(name for name in small.objects if kind_of(name) == "manifests")
    for name in small.objects:
        objects = {other: data for other, data in small.objects.items() if other != name}
        assert is_found(small, objects), name
        if name != head:
            assert (restore_truly_listed(small, objects, place) < 5) == needed(name), name


def restore_truly_listed(small: Small, objects: Objects, place: Path) -> int:
    """As `restore_truly`, for the recovery points whose manifests are still listed."""
    listed = {name.rpartition("-")[2] for name in objects if kind_of(name) == "manifests"}
    moments = {snapshot: truth for snapshot, truth in small.moments.items() if snapshot in listed}
    return restore_truly(replace(small, moments=moments), objects, place)


def test_swapped_objects_are_found(small: Small, other: Small, place: Path) -> None:
    """Two objects of one kind, one under the name of the other; and each replaced by another repository's."""
    for name, data in small.objects.items():
        alike = [one for one in small.objects if kind_of(one) == kind_of(name) and one > name]
        for one in alike:
            objects = {**small.objects, name: small.objects[one], one: data}
            assert is_found(small, objects), (name, one)
            assert restore_truly(small, objects, place) < 5
        foreign = next(data for one, data in other.objects.items() if kind_of(one) == kind_of(name))
        objects = {**small.objects, name: foreign}
        try:
            assert is_found(small, objects), name
        except WrongKeyError:
            assert name == "repository"
            continue
        restore_truly(small, objects, place)


def test_an_older_object_under_a_newer_name_is_found(small: Small, place: Path) -> None:
    """A replay: the place is right, the bytes were once right, the moment is another."""
    manifests = sorted(name for name in small.objects if kind_of(name) == "manifests")
    for old in manifests:
        for new in manifests:
            if old != new:
                objects = {**small.objects, new: small.objects[old]}
                assert is_found(small, objects), (old, new)
                assert restore_truly(small, objects, place) < 5


def test_an_older_lease_is_found(memory: Path) -> None:
    top = memory / "lease"
    root = top / "volume"
    root.mkdir(parents=True)
    protected = Protected.create(root, top / "state", StoreSettings((top / "repository").as_uri()))
    (root / "file").write_text("one")
    protected.backup()
    lease = f"volumes/{VOLUME}/lease"
    old = objects_of(protected.settings)[lease]
    (root / "file").write_text("two")
    protected.backup()
    objects = objects_of(protected.settings)
    assert protected.check(store=store_of(objects)).findings == ()
    assert [finding.object for finding in protected.check(store=store_of({**objects, lease: old})).findings] == [lease]


# --- the newest end


def cut_end(objects: Objects, count: int) -> Objects:
    """Without the newest manifests."""
    manifests = sorted(name for name in objects if kind_of(name) == "manifests")
    return {name: data for name, data in objects.items() if name not in manifests[-count:]}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_newest_end_that_is_missing_is_found_by_what_is_known_elsewhere(
    small: Small, place: Path, count: int
) -> None:
    store = store_of(cut_end(small.objects, count))
    head = list(small.moments)[-1]
    assert small.protected.check(store=store).findings  # by the local state
    bare = small.without_state(place)
    report = bare.check(store=store)
    assert report.findings == ()
    assert any("--expect-head" in note for note in report.notes)
    assert bare.check(store=store, expect_head=head).findings
    assert bare.check(store=store_of(small.objects), expect_head=head).findings == ()


def test_a_run_after_a_cut_end_says_so_and_goes_on(small: Small, place: Path) -> None:
    shutil.copytree(small.protected.state_dir, place / "state")
    protected = replace(small.protected, state_dir=place / "state")
    store = store_of(cut_end(small.objects, 1))
    outcome = protected.backup(store=store)
    assert any("no longer in the repository" in note for note in outcome.notes)
    protected.restore(place / "restored", store=store)
    assert differences(observe(small.protected.root), observe(place / "restored")) == []


# --- large files


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_piece_of_a_large_file_leaves_no_file(memory: Path, place: Path, workers: int) -> None:
    """The other files come; the large one is named as damaged, and neither it nor a part of it is there."""
    large = story(memory / f"large-{workers}", large=True)
    chunks = {name: data for name, data in large.objects.items() if kind_of(name) == "chunks"}
    without = 0
    for number, (name, data) in enumerate(chunks.items()):
        flipped = data[:3000] + bytes((data[3000] ^ 1,)) + data[3001:]
        altered = in_a_directory({**large.objects, name: flipped}, place / f"altered-{number}")
        target = place / f"target-{number}"
        outcome = replace(large.protected, settings=altered).restore(target, workers=workers)
        assert bool(outcome.not_restored) == bool(outcome.damaged)
        if [issue.path for issue in outcome.not_restored] == [b"large"]:
            without += 1
            assert not (target / "large").exists()
            assert outcome.files > 5
        assert not [path for path in observe(target) if b".smsnap-" in path]
    assert without == 3


# --- what a stranger sees


def test_nothing_stored_shows_a_name_or_content(small: Small) -> None:
    raw = MARKER.encode()
    forms = [raw, raw.hex().encode(), raw[::-1]]
    forms += [base64.b64encode(raw[start:])[:16] for start in range(3)]
    for name, data in small.objects.items():
        for form in forms:
            assert form not in data and form not in name.encode(), name


def padme(length: int) -> int:
    """The length that Padmé gives (Nikitin and others, PETS 2019): at most its upper bits differ."""
    exponent = length.bit_length() - 1
    free = exponent - exponent.bit_length()
    mask = (1 << free) - 1
    return (length + mask) & ~mask


def test_sizes_are_padded(small: Small) -> None:
    for name, data in small.objects.items():
        if data[:4] == b"SMSN":
            sealed = 64 + int.from_bytes(data[56:64], "little")
            assert sealed >= 4096 and sealed == padme(sealed), name
            if kind_of(name) == "manifests":
                continue
            assert len(data) == sealed, name


def test_equal_volumes_give_different_names(small: Small, other: Small) -> None:
    """In two repositories, and in two volumes of one."""
    ours = {name for name in small.objects if kind_of(name) in ("chunks", "catalogs", "manifests")}
    theirs = {name for name in other.objects if kind_of(name) in ("chunks", "catalogs", "manifests")}
    hashes = [{name.rpartition("/")[2].partition("-")[0] for name in names if "/manifests/" not in name} for names in (ours, theirs)]
    assert ours and theirs and not hashes[0] & hashes[1]
    keys = []
    with small.protected.repository() as repository:
        for volume in ("one", "two"):
            volume_keys = repository.volume_keys(volume)
            keys += [volume_keys.chunk_names, volume_keys.catalog_names, volume_keys.boundaries]
    assert len(set(keys)) == 6


# --- opened with a passphrase


def test_a_damaged_keyslot_is_damage_and_a_wrong_passphrase_is_not(small: Small) -> None:
    (slot,) = (name for name in small.objects if name.startswith("keys/slots/"))
    data = small.objects[slot]
    for position in range(0, len(data), 97):
        flipped = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        store = store_of({**small.objects, slot: flipped})
        with pytest.raises(DamageError):
            Repository.open(store, Credentials(passphrase=PASSPHRASE))
    with pytest.raises(WrongKeyError):
        Repository.open(store_of(small.objects), Credentials(passphrase="wrong"))


@pytest.mark.parametrize("write_key", [False, True])
def test_the_records_that_open_a_repository(small: Small, write_key: bool) -> None:
    """Damaged, they are damage, with the recovery key as with the write key; never a wrong key, never a traceback."""
    text = small.protected.write_key_text if write_key else None
    credentials = Credentials(write_key_text=text) if text else Credentials(recovery_key=small.protected.recovery_key)
    for name in ("repository", "keys/roster/0000000001"):
        data = small.objects[name]
        for position in range(0, len(data), 13):
            flipped = data[:position] + bytes((data[position] ^ 2,)) + data[position + 1 :]
            with pytest.raises(SmsnapError) as caught:
                Repository.open(store_of({**small.objects, name: flipped}), credentials)
            assert caught.value.exit_status == 13, (name, position)
