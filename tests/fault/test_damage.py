"""Every object, damaged in every way: `check` finds it, and no restore writes anything that is not true.

`SMSNAP_LONG=1` flips every byte instead of a sample.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from smsnapd.errors import DamageError, WrongKeyError
from smsnapd.store import StoreSettings
from tests.fault.small import Objects, Small, in_a_directory, kind_of, objects_of, store_of, story
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected

pytestmark = [pytest.mark.root, pytest.mark.slow]
LONG = "SMSNAP_LONG" in os.environ


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
    return sorted(
        {*range(0, min(64, len(data)), 3), *range(0, len(data), step), len(data) - 1, len(data) - 17}
    )


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
    assert [
        finding.object for finding in protected.check(store=store_of({**objects, lease: old})).findings
    ] == [lease]


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
