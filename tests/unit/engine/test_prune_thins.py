"""Prunes that let recovery points go: what stays restores as before, from less."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import smsnapd.recover as recover_script
from smsnapd.engine.history import History
from smsnapd.engine.prune import rewriting
from smsnapd.engine.prune.moving import Live
from smsnapd.engine.retention import Policy
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.format import names
from smsnapd.format.keys import parse_write_key
from smsnapd.format.manifest import StoodFor
from smsnapd.format.manifest_object import encode_manifest
from smsnapd.format.names import ManifestName
from smsnapd.repository.keyring import Keyring
from smsnapd.repository.tags import Tagged, put_tag
from tests.fault.faulty import Call, FaultyStore
from tests.property.observed import differences, observe
from tests.property.protected import TAR, VOLUME
from tests.property.pruned import Pruned

NEWEST = Policy(hourly=1)
"""The newest alone: and the one before it, which waits for its turn."""


@pytest.fixture
def pruned(tmp_path: Path) -> Pruned:
    return Pruned.create(tmp_path)


def edits(root: Path, number: int) -> None:
    """A directory that is a file now and then, files that come and go, one that changes, hard links."""
    (root / "always").write_bytes(b"%d" % number * 3000)
    (root / f"once-{number}").write_bytes(os.urandom(2000))
    (root / f"once-{number - 2}").unlink(missing_ok=True)
    place = root / "turns"
    if number % 3 == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.write_bytes(b"file")
    elif number % 3 == 1:
        place.unlink(missing_ok=True)
        place.mkdir()
        (place / f"in-{number}").write_bytes(b"inside")
    else:
        place.mkdir(exist_ok=True)
        (place / f"too-{number}").write_bytes(b"inside too")
    if number % 4 == 0:
        (root / f"link-{number}").hardlink_to(root / "always")


def grow(pruned: Pruned, count: int, *, attach: bool = True, full_at: int = 0) -> None:
    start = names_of(pruned)[-1].sequence if pruned.moments else 0
    for number in range(start, start + count):
        edits(pruned.root, number)
        pruned.settle()
        assert pruned.backup(attach=attach, full=number == full_at and number > 0)


def names_of(pruned: Pruned) -> list[ManifestName]:
    with pruned.protected.repository() as repository:
        return list(History.load(repository, VOLUME).names)


@pytest.mark.parametrize("attach", [True, False])
def test_all_but_the_newest_go(pruned: Pruned, tmp_path: Path, attach: bool) -> None:
    grow(pruned, 9, attach=attach)
    before = names_of(pruned)
    done = pruned.thin(NEWEST)
    assert (done.removed, done.points) == (7, 2)
    left = names_of(pruned)
    assert left == [before[7]._replace(generation=before[7].generation + 1, kind="full", first=1), before[8]]
    pruned.verify(tmp_path)
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    assert len([name for name in pruned.objects() if "/manifests/" in name]) == 2
    pruned.verify(tmp_path)
    grow(pruned, 3, attach=attach)
    assert pruned.thin(NEWEST).removed == 3
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)
    pruned.protected.lose_state()
    grow(pruned, 1)
    pruned.verify(tmp_path)


@pytest.mark.parametrize("full_at", [0, 5])
def test_some_in_the_middle_stay(pruned: Pruned, tmp_path: Path, full_at: int) -> None:
    """By tags here, so that it is told which."""
    grow(pruned, 10, full_at=full_at)
    kept = [names_of(pruned)[row].snapshot for row in (2, 5, 8, 9)]
    with pruned.protected.repository() as repository:
        for snapshot in kept[:3]:
            put_tag(repository, VOLUME, Tagged(snapshot, "stays"), repository.write_key, is_set=True)
    assert pruned.thin(NEWEST).removed == 6
    left = names_of(pruned)
    assert [(name.begins, name.sequence) for name in left] == [(1, 3), (4, 6), (7, 9), (10, 10)]
    assert [name.snapshot for name in left] == kept
    kinds = ["full", "incremental" if not full_at else "full", "incremental", "incremental"]
    assert [name.kind for name in left] == kinds
    assert len(pruned.moments) == 4
    pruned.verify(tmp_path)
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    # Folded again, of what was folded.
    with pruned.protected.repository() as repository:
        put_tag(repository, VOLUME, Tagged(kept[1], "stays"), repository.write_key, is_set=False)
    assert pruned.thin(NEWEST).removed == 1
    assert [(name.begins, name.sequence) for name in names_of(pruned)] == [(1, 3), (4, 9), (10, 10)]
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)
    pruned.protected.lose_state()
    grow(pruned, 1)
    pruned.verify(tmp_path)


def test_a_dry_run_says_what_goes_and_changes_nothing(pruned: Pruned) -> None:
    grow(pruned, 8, attach=False)
    before = dict(pruned.store._objects)
    dry = pruned.prune(policy=NEWEST, dry_run=True)
    assert pruned.store._objects == before
    real = pruned.thin(NEWEST)
    assert (dry.removed, dry.points, dry.listed) == (real.removed, real.points, real.listed)
    assert dry.removed == 6 and dry.listed.objects > 12


def test_what_was_overwritten_and_is_gone_is_not_used_again(pruned: Pruned, tmp_path: Path) -> None:
    """A chunk of a recovery point that went is nobody's, whatever the local index once knew of it."""
    place = pruned.root / "large"
    for content in (b"old", b"new", b"newer", b"newest"):
        place.write_bytes(content * 200_000)
        pruned.backup()
    pruned.thin(NEWEST)
    pruned.sweep_all()
    place.write_bytes(b"old" * 200_000)
    pruned.backup()
    place.write_bytes(b"new" * 200_000)
    pruned.backup()
    pruned.verify(tmp_path)


def test_a_reader_that_listed_before_reads_for_as_long_as_the_grace(pruned: Pruned, tmp_path: Path) -> None:
    grow(pruned, 6)
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        pruned.thin(NEWEST)
        pruned.passes(71)
        pruned.prune()
        assert all(history.record(name).name == name for name in history.names)
        assert len(history.chain(history.names[-1].snapshot)) == 6
        pruned.passes(3)
        pruned.prune()
        late = History(repository, VOLUME, _listed_as(history))
        with pytest.raises(DamageError, match="missing") as raised:
            late.chain(history.names[-1].snapshot)
    assert "prune" in str(raised.value.hint)


def _listed_as(history: History) -> object:
    from smsnapd.repository.manifests import Listed

    return Listed(history.names, ())


def test_expected_heads_and_gaps(pruned: Pruned) -> None:
    """What went by policy is no damage; what is missing beyond that is."""
    grow(pruned, 6)
    pruned.thin(NEWEST)
    pruned.sweep_all()
    assert pruned.protected.check().findings == ()
    newest = names_of(pruned)[-1]
    grow(pruned, 3)
    gone = names_of(pruned)[2]
    pruned.store.delete(gone.object_name())
    findings = pruned.protected.check().findings
    assert any("manifest 7 is missing" in found.problem for found in findings)
    with pytest.raises(DamageError):
        pruned.prune(policy=NEWEST)
    assert newest.snapshot in {name.snapshot for name in names_of(pruned)}


def test_a_restore_of_every_point_agrees_with_gnu_tar(pruned: Pruned, tmp_path: Path) -> None:
    grow(pruned, 8)
    pruned.thin(NEWEST)
    for number, (snapshot, moment) in enumerate(pruned.moments.items()):
        pruned.protected.extract(tmp_path / f"extracted-{number}", snapshot)
        assert differences(moment, observe(tmp_path / f"extracted-{number}")) == []


def test_damage_keeps_what_it_is_in_from_going(pruned: Pruned) -> None:
    grow(pruned, 5, attach=False)
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        segment = history.record(history.names[1]).manifest.catalog[0]
    name = names.catalog_name(VOLUME, segment.name_hash, segment.key_id)
    data = pruned.store.get(name)
    pruned.store._objects[name] = data[:-1] + bytes((data[-1] ^ 1,))
    done = pruned.thin(NEWEST)
    assert done.removed == 0 and len(names_of(pruned)) == 5
    ((refused, why),) = done.refused
    assert refused == history.names[3].object_name() and "not what was stored" in why


@pytest.mark.parametrize("swept", [False, True])
def test_the_recovery_script_brings_back_what_was_thinned(
    pruned: Pruned, tmp_path: Path, swept: bool
) -> None:
    grow(pruned, 7)
    with pruned.protected.repository() as repository:
        for row in (2, 4):
            tagged = Tagged(names_of(pruned)[row].snapshot, "stays")
            put_tag(repository, VOLUME, tagged, repository.write_key, is_set=True)
    pruned.thin(NEWEST)
    if swept:
        pruned.sweep_all()
    place = tmp_path / "copy"
    for info in pruned.store.list(""):
        (place / info.name).parent.mkdir(parents=True, exist_ok=True)
        (place / info.name).write_bytes(pruned.store.get(info.name))
    environment = {**os.environ, "SMSNAP_RECOVERY_KEY": pruned.protected.recovery_key}

    def recover(*arguments: str) -> bytes:
        command = [sys.executable, recover_script.__file__, str(place), *arguments]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    listed = [line.split()[0] for line in recover("--list").decode().splitlines()]
    assert listed == [name.snapshot for name in names_of(pruned)] == list(pruned.moments)
    for snapshot, moment in pruned.moments.items():
        target = tmp_path / snapshot
        target.mkdir()
        command = [*TAR, "-f", "-", "-C", target]
        subprocess.run(command, input=recover("--snapshot", snapshot), check=True)
        assert differences(moment, observe(target)) == []


def test_what_was_thinned_outlives_the_key_that_signed_it_and_nothing_else_of_that_does(
    pruned: Pruned, tmp_path: Path
) -> None:
    grow(pruned, 6)
    with pruned.protected.repository() as repository:
        for row in (1, 3):
            tagged = Tagged(names_of(pruned)[row].snapshot, "stays")
            put_tag(repository, VOLUME, tagged, repository.write_key, is_set=True)
    pruned.thin(NEWEST)
    pruned.sweep_all()
    with pruned.protected.repository() as repository:
        stolen = repository.write_key
        (key,) = Keyring(repository).rotate_writers().keys.values()
    text = key.to_text(parse_write_key(pruned.protected.write_key_text)[1])
    pruned.protected = replace(pruned.protected, write_key_text=text)
    before = names_of(pruned)
    assert [(name.begins, name.sequence) for name in before] == [(1, 2), (3, 4), (5, 5), (6, 6)]
    pruned.verify(tmp_path)
    # A replacement that the old key signs afterwards is nobody's.
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        manifest = history.record(before[2]).manifest
        name = before[2]._replace(generation=before[2].generation + 1, first=1, kind="full")
        forged = replace(
            manifest,
            name=name,
            parent=None,
            chunks=(),
            catalog=(),
            stands_for=tuple(StoodFor(item.sequence, history.record(item).hash) for item in before[:3]),
        )
        pruned.store.put(name.object_name(), encode_manifest(forged, stolen))
        assert names_of(pruned) == before
    findings = pruned.protected.check().findings
    assert [found.object for found in findings] == [name.object_name()]
    pruned.store.delete(name.object_name())
    grow(pruned, 3)
    pruned.thin(NEWEST, write_key=False)
    pruned.sweep_all(write_key=False)
    pruned.verify(tmp_path)


# --- chunks written anew


def scatter(pruned: Pruned, count: int, *, keep: int) -> None:
    """Many files in one chunk, of which few stay."""
    for number in range(count):
        (pruned.root / f"many-{number:03}").write_bytes(os.urandom(9000))
    pruned.backup(attach=False)
    for number in range(count):
        if number % keep:
            (pruned.root / f"many-{number:03}").unlink()
    pruned.backup(attach=False)


def stored_chunks(pruned: Pruned) -> int:
    return sum(info.size for info in pruned.store.list(names.chunks_prefix(VOLUME)))


def live_bytes(pruned: Pruned) -> int:
    """What the recovery points name, of the contents of chunks."""
    live = Live()
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        for name in history.names:
            tree = SnapshotTree(repository, [history.record(name)])
            live.add(tree, tree.layer())
    return live.bytes


def test_mostly_dead_chunks_are_written_anew_with_the_identity_alone(pruned: Pruned, tmp_path: Path) -> None:
    scatter(pruned, 100, keep=10)
    grow(pruned, 3, attach=False)
    done = pruned.thin(NEWEST)
    pruned.sweep_all()
    assert done.sparse.objects >= 1 and done.sparse.bytes > 700_000 and done.rewritten == 0
    assert stored_chunks(pruned) > 5 * live_bytes(pruned)
    rewritten = pruned.thin(NEWEST, write_key=False).rewritten
    assert rewritten == done.sparse.objects
    pruned.verify(tmp_path)
    pruned.sweep_all(write_key=False)
    assert stored_chunks(pruned) < 1.3 * live_bytes(pruned)
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)
    again = pruned.thin(NEWEST, write_key=False)
    assert (again.rewritten, again.sparse.objects) == (0, 0)


@pytest.mark.parametrize("swept", [False, True])
def test_an_index_of_before_is_made_anew(pruned: Pruned, tmp_path: Path, swept: bool) -> None:
    """It names chunks that are of no use any more, and are gone after a while."""
    scatter(pruned, 60, keep=6)
    grow(pruned, 2, attach=False)
    pruned.thin(NEWEST)
    pruned.thin(NEWEST, write_key=False)
    if swept:
        pruned.sweep_all(write_key=False)
    (pruned.root / "many-000").rename(pruned.root / "renamed")
    pruned.backup()
    (pruned.root / "many-006").chmod(0o600)
    pruned.backup(full=True)
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


def test_a_writer_at_work_meanwhile_refers_to_what_it_knew(pruned: Pruned, tmp_path: Path) -> None:
    scatter(pruned, 60, keep=6)
    grow(pruned, 2, attach=False)
    pruned.thin(NEWEST)
    (pruned.root / "many-000").rename(pruned.root / "renamed")

    def plan(call: Call) -> None:
        if call.method == "put" and "/manifests/" in call.name:
            pruned.thin(NEWEST, write_key=False)

    assert pruned.backup(store=FaultyStore(pruned.store, plan), full=True)
    pruned.verify(tmp_path)
    pruned.sweep_all()
    pruned.verify(tmp_path)
    pruned.backup(full=True)
    pruned.sweep_all()
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)


def test_small_chunks_are_gathered(pruned: Pruned, tmp_path: Path) -> None:
    for number in range(12):
        (pruned.root / f"small-{number}").write_bytes(os.urandom(3000))
        pruned.backup()
    pruned.thin(NEWEST)
    pruned.sweep_all()
    before = len(list(pruned.store.list(names.chunks_prefix(VOLUME))))
    assert before >= 10
    assert pruned.thin(NEWEST, write_key=False).rewritten == before - 1  # all but the newest
    pruned.sweep_all(write_key=False)
    assert len(list(pruned.store.list(names.chunks_prefix(VOLUME)))) <= 2
    pruned.verify(tmp_path)


def test_an_index_of_amid_a_rewriting_is_made_anew(pruned: Pruned, tmp_path: Path) -> None:
    """A backup makes its index of manifests of which some are rewritten by then, and some are not."""
    for number in range(12):
        (pruned.root / f"small-{number}").write_bytes(os.urandom(3000))
        pruned.settle()
        pruned.backup()
    replaced: list[str] = []

    def plan(call: Call) -> None:
        if call.method == "put" and "/manifests/" in call.name:
            replaced.append(call.name)
            if len(replaced) == 4:
                (pruned.root / "small-12").write_bytes(b"amid")
                assert pruned.backup()

    store = FaultyStore(pruned.store, plan)
    assert pruned.thin(Policy(keep_within_s=1e9), store, write_key=False).rewritten >= 10
    assert len(replaced) > 8
    pruned.sweep_all()
    pruned.verify(tmp_path)
    (pruned.root / "small-10").rename(pruned.root / "renamed")
    assert pruned.backup()
    assert pruned.backup(full=True)
    pruned.verify(tmp_path)


def test_a_fold_of_what_was_written_anew_meanwhile_is_left(
    pruned: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the new chunks away from an index that was made of them."""
    monkeypatch.setattr(rewriting, "CHUNK_TARGET", 4096)
    for number in range(12):
        (pruned.root / f"small-{number}").write_bytes(os.urandom(3000))
        pruned.settle()
        pruned.backup()
    with pruned.protected.repository() as repository:
        stays = Tagged(names_of(pruned)[9].snapshot, "stays")
        put_tag(repository, VOLUME, stays, repository.write_key, is_set=True)
    rewritten: list[int] = []

    def plan(call: Call) -> None:
        if call.method == "get" and "/manifests/" in call.name and not rewritten:
            rewritten.append(0)
            rewritten[0] = pruned.thin(Policy(keep_within_s=1e9), write_key=False).rewritten
            (pruned.root / "small-12").write_bytes(b"amid")
            assert pruned.backup()

    pruned.thin(NEWEST, FaultyStore(pruned.store, plan))
    assert rewritten[0] >= 10
    pruned.sweep_all()
    pruned.verify(tmp_path)
    assert pruned.backup(full=True)
    pruned.verify(tmp_path)


def test_a_rewriting_that_slept_for_longer_than_the_grace_replaces_nothing(
    pruned: Pruned, tmp_path: Path
) -> None:
    """What it has written was garbage to another prune meanwhile, and is gone."""
    for number in range(12):
        (pruned.root / f"small-{number}").write_bytes(os.urandom(3000))
        pruned.settle()
        pruned.backup()
    awake: list[Call] = []

    def plan(call: Call) -> None:
        if call.method == "put" and "/chunks/" in call.name:
            awake.append(call)
        if call.method == "list" and call.name == names.manifests_prefix(VOLUME) and awake:
            awake.clear()
            pruned.prune()
            pruned.passes(73)
            assert pruned.prune().deleted.objects

    pruned.thin(Policy(keep_within_s=1e9), FaultyStore(pruned.store, plan), write_key=False)
    assert not awake
    pruned.verify(tmp_path)


def test_the_next_full_leaves_mostly_dead_chunks(pruned: Pruned, tmp_path: Path) -> None:
    """With the write key alone: it reads what lives in them from the volume, into new ones."""
    scatter(pruned, 100, keep=10)
    (pruned.root / "many-000").chmod(0o600)
    (pruned.root / "again").hardlink_to(pruned.root / "many-010")
    grow(pruned, 3, attach=False)
    done = pruned.thin(NEWEST)
    assert done.sparse.objects >= 1 and stored_chunks(pruned) > 5 * live_bytes(pruned)
    pruned.backup(full=True)
    grow(pruned, 2)
    pruned.thin(NEWEST)
    pruned.sweep_all()
    assert stored_chunks(pruned) < 1.3 * live_bytes(pruned)
    assert pruned.objects() == pruned.needed()
    pruned.verify(tmp_path)
    before = stored_chunks(pruned)
    pruned.backup(full=True)
    assert stored_chunks(pruned) < before * 1.1  # once is enough
    pruned.verify(tmp_path)


def test_who_may_not_write_beside_the_index_prunes_all_the_same(pruned: Pruned, tmp_path: Path) -> None:
    scatter(pruned, 60, keep=10)
    grow(pruned, 3, attach=False)
    nowhere = tmp_path / "file"
    nowhere.write_bytes(b"no directory")
    done = pruned.prune(policy=NEWEST, state_dir=nowhere)
    assert done.removed > 1 and any("not remembered" in note for note in done.notes)
