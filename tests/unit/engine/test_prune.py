"""A prune from its front door: what it lists, deletes, refuses and says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import Amount, PruneRequest, marking, run_prune
from smsnapd.errors import (
    DamageError,
    DeniedError,
    KeptError,
    LockedError,
    SmsnapError,
    StoreError,
    UsageError,
)
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, seal
from smsnapd.format.garbage import GarbageHead, GarbageList, encode_garbage
from smsnapd.format.keys import WriteKey
from smsnapd.format.manifest_object import encode_manifest
from smsnapd.format.names import GarbageName, ManifestName
from smsnapd.format.roster import Head
from smsnapd.repository import Repository
from smsnapd.repository.clock import StoreClock
from smsnapd.repository.garbage import garbage_names, load_garbage
from tests.fault.faulty import Call, Fault, FaultyStore
from tests.fault.objects.every_object import add_writer
from tests.fault.test_hostile import put_roster
from tests.property.protected import VOLUME
from tests.property.pruned import GRACE_S, Pruned


@pytest.fixture
def pruned(tmp_path: Path) -> Pruned:
    """Two recovery points, and behind them what a run left that died: a chunk, a catalog, a data key."""
    made = Pruned.create(tmp_path)
    for number in range(2):
        (made.root / "file").write_bytes(b"%d" % number * 4000)
        made.backup()
    (made.root / "file").write_bytes(b"never committed" * 400)
    made.settle()
    made.cut_off()
    return made


def garbage_of(pruned: Pruned) -> set[str]:
    return pruned.objects() - pruned.needed() - pruned.lists()


class Denying(FaultyStore):
    """Refuses to delete what `refuses` says, as policies do; or keeps it, as locks do."""

    def __init__(
        self, pruned: Pruned, refuses: Callable[[str], bool], error: type[StoreError] = DeniedError
    ) -> None:
        super().__init__(pruned.store)
        self._refuses = refuses
        self._error = error

    def delete(self, name: str) -> None:
        if self._refuses(name):
            raise self._error(f"delete {name}", "planned")
        super().delete(name)

    def try_delete(self, below: str = "") -> None:
        if self._error is DeniedError and self._refuses(below):
            raise DeniedError("delete", "planned")


# --- what becomes of garbage


def test_garbage_is_listed_and_after_the_grace_deleted(pruned: Pruned) -> None:
    garbage = garbage_of(pruned)
    amount = Amount(3, sum(len(pruned.store.get(name)) for name in garbage))
    assert {names.parse_disposable(name).__class__.__name__ for name in garbage} == {
        "ChunkName",
        "CatalogName",
        "DataKeyName",
    }
    first = pruned.prune()
    assert (first.listed, first.deleted, first.waiting) == (amount, Amount(), amount)
    assert first.waiting_until_us == int((pruned.now_s + GRACE_S) * 1e6)
    assert first.marked and first.may_delete and not (first.notes or first.refused)
    assert len(pruned.lists()) == 1
    pruned.passes(72)
    again = pruned.prune()
    assert (again.listed, again.deleted, again.waiting) == (Amount(), Amount(), amount)
    assert garbage_of(pruned) == garbage
    pruned.passes(0.01)
    last = pruned.prune()
    assert (last.listed, last.deleted, last.waiting) == (Amount(), amount, Amount())
    assert last.waiting_until_us is None
    assert garbage_of(pruned) == set() and len(pruned.lists()) == 1
    pruned.passes(73)
    pruned.prune()
    assert pruned.lists() == set()


def test_a_dry_run_says_it_all_and_changes_nothing(pruned: Pruned) -> None:
    def tried() -> None:
        before = dict(pruned.store._objects)
        dry = pruned.prune(dry_run=True)
        assert pruned.store._objects == before
        real = pruned.prune()
        assert (dry.listed, dry.deleted, dry.waiting) == (real.listed, real.deleted, real.waiting)
        assert dry.may_delete

    tried()
    pruned.passes(73)
    (pruned.root / "file").write_bytes(b"more" * 3000)
    pruned.cut_off()
    tried()


def test_the_clock_of_this_machine_is_no_matter(pruned: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned.prune()
    monkeypatch.setattr("time.time", lambda: pruned.now_s + 10**7)
    monkeypatch.setattr("time.time_ns", lambda: int(pruned.now_s + 10**7) * 10**9)
    assert pruned.prune().deleted == Amount()
    monkeypatch.setattr("time.time", lambda: 1.0)
    pruned.passes(73)
    assert pruned.prune().deleted.objects == 3


def test_a_list_that_came_from_a_clock_far_ahead_is_made_anew(pruned: Pruned) -> None:
    pruned.passes(10_000)
    pruned.prune()
    (ahead,) = pruned.lists()
    pruned.passes(-10_000)
    assert pruned.prune().listed.objects == 3
    assert ahead not in pruned.lists() and len(pruned.lists()) == 1
    pruned.passes(73)
    assert pruned.prune().deleted.objects == 3


def test_there_are_as_many_lists_as_it_takes(pruned: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "OBJECTS_OF_A_LIST", 2)
    assert pruned.prune().listed.objects == 3
    assert len(pruned.lists()) == 2
    pruned.passes(73)
    assert pruned.prune().deleted.objects == 3
    assert garbage_of(pruned) == set()


def test_what_is_referred_to_again_stays(pruned: Pruned) -> None:
    """A list names objects of a recovery point: nothing happens to them."""
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        head = history.record(history.names[-1])
        needed = sorted(name for name in pruned.needed() if not name.endswith(head.name.snapshot))
        name = GarbageName(VOLUME, int(pruned.now_s * 1e6), "0" * 16)
        garbage = GarbageList(repository.id, name, 9, GarbageHead(head.name, head.hash), "x", tuple(needed))
        pruned.store.put(name.object_name(), encode_garbage(garbage, repository.write_key))
    pruned.passes(73)
    assert pruned.prune().deleted == Amount()
    assert pruned.needed() <= pruned.objects()


def test_names_that_nobody_knows_and_other_volumes_are_left_alone(pruned: Pruned, tmp_path: Path) -> None:
    strange = {
        f"volumes/{VOLUME}/chunks/ab/short",
        f"volumes/{VOLUME}/later/what-a-later-version-has",
        f"volumes/{VOLUME}/garbage/no-list",
        f"volumes/other/chunks/00/{'00' * 32}-{'00' * 16}",
    }
    for name in strange:
        pruned.store.put(name, b"strange")
    pruned.prune()
    pruned.passes(73)
    pruned.prune()
    assert strange <= {info.name for info in pruned.store.list("")}


def test_what_is_committed_while_it_looks_is_not_listed(pruned: Pruned) -> None:
    """The lease is not held then; what is new is read again under it."""
    committed: list[object] = []

    def plan(call: Call) -> None:
        if call.method == "list" and call.name == names.volume_prefix(VOLUME) and len(committed) < 2:
            committed.append(None)  # the first one only sees whether there is such a volume
            if len(committed) == 2:
                (pruned.root / "meanwhile").write_bytes(b"meanwhile" * 900)
                pruned.backup()

    assert pruned.prune(FaultyStore(pruned.store, plan)).listed.objects == 3
    with pruned.protected.repository() as repository:
        assert listed_objects(pruned, repository).isdisjoint(pruned.needed())


def listed_objects(pruned: Pruned, repository: Repository) -> set[str]:
    loaded = [load_garbage(repository, name) for name in garbage_names(repository, VOLUME)]
    return {name for one in loaded if one is not None for name in one.garbage.objects}


# --- who may


def test_who_may_not_delete_lists_and_says_who_must_sweep(pruned: Pruned) -> None:
    denying = Denying(pruned, lambda name: True)
    first = pruned.prune(denying)
    assert first.listed.objects == 3 and not first.may_delete
    (note,) = first.notes
    assert "smsnap prune" in note and "iam-policy pruner" in note
    assert pruned.prune(denying, dry_run=True).may_delete is False
    pruned.passes(73)
    second = pruned.prune(denying)
    assert (second.deleted, second.waiting.objects, second.may_delete) == (Amount(), 3, False)
    third = pruned.prune(write_key=False, state_dir=None)
    assert third.deleted.objects == 3 and third.may_delete
    assert garbage_of(pruned) == set()


def test_rights_that_end_in_the_middle_leave_the_rest_for_the_next(pruned: Pruned) -> None:
    pruned.prune()
    pruned.passes(73)
    cut = pruned.prune(Denying(pruned, lambda name: "/keys/" in name))
    assert (cut.deleted.objects, cut.waiting.objects, cut.may_delete) == (2, 1, False)
    assert pruned.prune().deleted.objects == 1


def test_what_the_store_keeps_is_counted_and_deleted_when_it_lets_go(pruned: Pruned) -> None:
    """A chunk that is locked keeps its data key, and its list."""
    pruned.prune()
    pruned.passes(200)
    held = pruned.prune(Denying(pruned, lambda name: "/chunks/" in name, KeptError))
    assert (held.deleted.objects, held.kept, held.waiting.objects) == (1, 1, 2)
    assert {names.parse_disposable(name).__class__.__name__ for name in garbage_of(pruned)} == {
        "ChunkName",
        "DataKeyName",
    }
    assert pruned.lists()
    assert pruned.prune().deleted.objects == 2
    assert pruned.lists() == set()


def test_another_writer_has_the_lease(pruned: Pruned) -> None:
    """What is on lists is deleted all the same: no writer uses it. New garbage is for that writer to list."""
    pruned.prune()
    pruned.passes(73)
    (pruned.root / "file").write_bytes(b"more" * 3000)
    pruned.cut_off()
    with pruned.protected.repository(write_key=True) as repository:
        tenure = Tenure(repository, VOLUME)
        tenure.begin()
        outcome = pruned.prune()
        assert not outcome.marked and outcome.deleted.objects == 3 and outcome.listed == Amount()
        assert "another writer" in outcome.notes[0]
        tenure.release()
    assert pruned.prune().listed.objects == 3


def test_a_list_is_sealed_for_who_writes_to_the_volume(tmp_path: Path) -> None:
    """A pruner elsewhere holds the identity, the writer a write key alone, and it must read the list."""
    made = Pruned.create(tmp_path)
    made.protected = replace(made.protected, write_key_text=add_writer(made.protected))
    for content in (b"one", b"other"):
        (made.root / "file").write_bytes(content * 999)
        made.backup()
    (made.root / "file").write_bytes(b"never committed" * 400)
    made.cut_off()
    assert made.prune(write_key=False).listed.objects == 3
    with made.protected.repository(write_key=True) as repository:
        assert listed_objects(made, repository) == garbage_of(made)
    made.passes(73)
    assert made.prune().deleted.objects == 3


def test_a_list_of_another_writer_alone_is_left_alone(pruned: Pruned) -> None:
    add_writer(pruned.protected)
    with pruned.protected.repository() as repository:
        name = GarbageName(VOLUME, int(pruned.now_s * 1e6), "0" * 16)
        garbage = GarbageList(repository.id, name, 9, None, "x", tuple(sorted(garbage_of(pruned))))
        other = next(key.id for key in repository.roster.writers if key.id != repository.writer_id)
        data = encode_garbage(garbage, repository.write_key_of(other))
    pruned.store.put(name.object_name(), data)
    pruned.passes(73)
    outcome = pruned.prune()
    assert outcome.deleted == Amount() and outcome.listed.objects == 3
    assert name.object_name() in outcome.notes[0]
    assert pruned.protected.check(store=pruned.store, write_key=True, read_data=None).findings == ()


# --- lists that are not to be believed


def flipped(pruned: Pruned, name: str) -> None:
    data = bytearray(pruned.store.get(name))
    data[1000] ^= 1
    pruned.store._objects[name] = bytes(data)


def signed_by_a_stranger(pruned: Pruned, name: str) -> None:
    """Sealed right, by one who has got hold of the catalog key and was never granted."""
    with pruned.protected.repository() as repository:
        stranger = WriteKey.generate(repository.id)
        garbage = GarbageList(
            repository.id, parsed(name), 9, None, "x", tuple(sorted(garbage_of(pruned) | pruned.needed()))
        )
        pruned.store._objects[name] = encode_garbage(garbage, stranger)


def signed_by_nobody(pruned: Pruned, name: str) -> None:
    with pruned.protected.repository() as repository:
        key = repository.write_key
        context = Context(repository.id, VOLUME, name)
        content = bytes(64) + b'{"format":1}'
        pruned.store._objects[name] = seal(
            ObjectType.GARBAGE, key.catalog_key, key.writer_id, context, content
        )


def parsed(name: str) -> GarbageName:
    found = GarbageName.parse(name)
    assert found is not None
    return found


@pytest.mark.parametrize("spoil", [flipped, signed_by_a_stranger, signed_by_nobody])
def test_nothing_is_deleted_by_a_list_that_is_damaged_or_forged(
    pruned: Pruned, spoil: Callable[[Pruned, str], None]
) -> None:
    pruned.prune()
    (name,) = pruned.lists()
    spoil(pruned, name)
    pruned.passes(200)
    before = garbage_of(pruned)
    outcome = pruned.prune()
    assert [refused for refused, _ in outcome.refused] == [name]
    assert outcome.deleted == Amount() and outcome.listed.objects == 3
    assert garbage_of(pruned) == before and name in pruned.lists()
    (finding,) = pruned.protected.check(store=pruned.store).findings
    assert finding.object == name
    pruned.passes(73)
    assert pruned.prune().deleted.objects == 3


def test_a_list_moved_to_another_time_is_forged(pruned: Pruned) -> None:
    pruned.prune()
    (name,) = pruned.lists()
    earlier = parsed(name)._replace(time_us=int((pruned.now_s - 100 * 3600) * 1e6)).object_name()
    pruned.store.put(earlier, pruned.store.get(name))
    outcome = pruned.prune()
    assert [refused for refused, _ in outcome.refused] == [earlier]
    assert outcome.deleted == Amount()


def test_a_chunk_of_a_journal_is_not_used_whose_data_key_goes(tmp_path: Path) -> None:
    """A run slept through its lease, and put a chunk while what it had put before was swept."""
    pruned = Pruned.create(tmp_path)
    (pruned.root / "file").write_bytes(b"first" * 4000)
    pruned.backup()
    (pruned.root / "file").write_bytes(b"never committed" * 400)
    pruned.settle()
    before = pruned.objects()
    pruned.cut_off(fault=Fault.PERMANENT)
    late = {name: pruned.store._objects.pop(name) for name in pruned.objects() - before if "/chunks/" in name}
    pruned.prune()
    pruned.passes(73)

    def plan(call: Call) -> None:
        if call.method == "delete" and "/keys/" in call.name and late:
            pruned.store._objects.update(late)
            late.clear()
            assert pruned.backup()

    assert late
    pruned.prune(FaultyStore(pruned.store, plan))
    assert not late
    pruned.verify(tmp_path)


def test_a_writer_heeds_what_it_cannot_read(pruned: Pruned, tmp_path: Path) -> None:
    """With a damaged list about, nothing of the journal is used: it may be on it."""
    pruned.prune()
    (name,) = pruned.lists()
    flipped(pruned, name)
    for number in range(40):
        (pruned.root / f"file-{number}").write_bytes(b"%d" % number * 100)
    pruned.cut_off(fault=Fault.PERMANENT)
    left = {name for name in garbage_of(pruned) if "/chunks/" in name}
    pruned.backup()
    assert len(left) > 1 and left.isdisjoint(pruned.needed())
    pruned.store.delete(name)
    pruned.verify(tmp_path)


def catalog_of(pruned: Pruned) -> tuple[list[str], list[str]]:
    """The names of the newest manifest's segments: objects of their own, and attached ones."""
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        refs = history.record(history.names[-1]).manifest.catalog
        own = [names.catalog_name(VOLUME, ref.name_hash, ref.key_id) for ref in refs if not ref.manifest]
        attached = [names.catalog_name(VOLUME, ref.name_hash, ref.key_id) for ref in refs if ref.manifest]
    return own, attached


def test_a_catalog_that_is_on_a_list_is_cut_elsewhere(pruned: Pruned, tmp_path: Path) -> None:
    """Its segments are named by their content alone, and the same run again makes the same content."""
    for number in range(40):
        (pruned.root / f"file-{number}").write_bytes(b"%d" % number * 100)
    pruned.settle()
    pruned.cut_off()
    listed = {name for name in garbage_of(pruned) if "/catalogs/" in name}
    pruned.prune()
    pruned.backup()
    own, attached = catalog_of(pruned)
    assert len(own) == 2 and not attached and listed.isdisjoint(own)
    pruned.verify(tmp_path)
    pruned.sweep_all()
    pruned.verify(tmp_path)


def test_a_segment_of_one_entry_goes_with_the_manifest(pruned: Pruned, tmp_path: Path) -> None:
    listed = {name for name in garbage_of(pruned) if "/catalogs/" in name}
    pruned.prune()
    pruned.backup()
    own, attached = catalog_of(pruned)
    assert not own and set(attached) == listed
    pruned.sweep_all()
    pruned.verify(tmp_path)


def test_a_damaged_list_does_not_take_catalogs_to_pieces(pruned: Pruned) -> None:
    pruned.prune()
    (name,) = pruned.lists()
    flipped(pruned, name)
    for number in range(40):
        (pruned.root / f"file-{number}").write_bytes(b"%d" % number * 100)
    pruned.backup()
    own, attached = catalog_of(pruned)
    assert len(own) == 1 and not attached


def test_lists_of_a_revoked_writer_are_void(pruned: Pruned) -> None:
    pruned.prune()
    (name,) = pruned.lists()
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        put_roster(repository, (Head(VOLUME, history.record(history.names[-1]).hash),))
    notes = pruned.protected.check(store=pruned.store).notes
    assert any(name in note and "revoked" in note for note in notes)
    pruned.passes(73)
    outcome = pruned.prune(write_key=False)
    assert (outcome.deleted, outcome.listed.objects) == (Amount(), 3)
    assert name not in pruned.lists()
    pruned.passes(73)
    assert pruned.prune(write_key=False).deleted.objects == 3


# --- histories that are not whole: then nothing is known of what is needed


def manifests(pruned: Pruned) -> list[str]:
    return [info.name for info in pruned.store.list(names.manifests_prefix(VOLUME))]


def first_is_missing(pruned: Pruned) -> None:
    pruned.store.delete(manifests(pruned)[0])


def one_is_missing(pruned: Pruned) -> None:
    pruned.store.delete(manifests(pruned)[1])


def newest_is_missing(pruned: Pruned) -> None:
    pruned.store.delete(manifests(pruned)[-1])


def one_is_damaged(pruned: Pruned) -> None:
    name = manifests(pruned)[1]
    data = pruned.store._objects[name]
    pruned.store._objects[name] = data[:-1] + bytes((data[-1] ^ 1,))


def junk_fences_one(pruned: Pruned) -> None:
    """Anybody who may put objects can give one a high generation."""
    name = ManifestName.parse(manifests(pruned)[1])
    assert name is not None
    pruned.store.put(name._replace(generation=9_999_999_999).object_name(), os.urandom(5000))


@pytest.mark.parametrize(
    "harm", [first_is_missing, one_is_missing, newest_is_missing, one_is_damaged, junk_fences_one]
)
def test_a_history_that_is_not_whole_is_left_as_it_is(pruned: Pruned, harm: Callable[[Pruned], None]) -> None:
    (pruned.root / "file").write_bytes(b"third" * 999)
    pruned.backup()
    pruned.prune()
    pruned.passes(73)
    harm(pruned)
    before = pruned.objects()
    for more in ({}, {"state_dir": None}, {"dry_run": True}):
        with pytest.raises(DamageError):
            pruned.prune(**more)
    assert pruned.objects() == before


def test_a_newest_end_that_was_cut_off_is_known_from_here_before_there_is_a_list(pruned: Pruned) -> None:
    newest_is_missing(pruned)
    with pytest.raises(DamageError, match="newest end was cut off"):
        pruned.prune()
    assert pruned.lists() == set()


def test_manifests_of_a_revoked_writer_beyond_what_counts_are_no_licence(pruned: Pruned) -> None:
    """They are in nobody's way, and what they refer to goes as any garbage does."""
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        put_roster(repository, (Head(VOLUME, history.record(history.names[0]).hash),))
    pruned.prune(write_key=False)
    assert set(manifests(pruned)[1:]) <= garbage_of(pruned)
    assert manifests(pruned)[0] not in garbage_of(pruned)


def test_a_chain_that_was_forked_is_left_as_it_is(pruned: Pruned) -> None:
    """Two writers slept: what follows follows from a manifest that is fenced."""
    with pruned.protected.repository() as repository:
        history = History.load(repository, VOLUME)
        second = history.record(history.names[1]).manifest
        name = second.name._replace(generation=second.name.generation + 50, snapshot="0" * 16)
        forked = replace(second, name=name)
        (pruned.root / "file").write_bytes(b"third" * 999)
        pruned.backup()
        pruned.store.put(name.object_name(), encode_manifest(forked, repository.write_key))
    with pytest.raises(DamageError, match="does not follow"):
        pruned.prune()


# --- several volumes, and ones that are none


def test_a_volume_that_cannot_be_pruned_does_not_keep_the_others(pruned: Pruned, tmp_path: Path) -> None:
    pruned.store.put(
        f"volumes/aside/manifests/{'0' * 9}1-{'0' * 9}1-20260101T000000000000Z-full-{'0' * 16}", b"x"
    )
    with pruned.protected.repository() as repository:
        report = run_prune(repository, PruneRequest(None, GRACE_S), Silent())
    assert [(one.volume, type(one.error)) for one in report.volumes] == [
        ("aside", DamageError),
        (VOLUME, type(None)),
    ]
    assert report.volumes[1].listed.objects == 3


def test_a_volume_that_is_not_there_is_not_made(pruned: Pruned) -> None:
    before = dict(pruned.store._objects)
    with pruned.protected.repository() as repository:
        for name in ("nobodys", "no/name"):
            with pytest.raises(UsageError):
                run_prune(repository, PruneRequest(name, GRACE_S), Silent())
    assert pruned.store._objects == before


def test_a_volume_of_garbage_alone(tmp_path: Path) -> None:
    """A first backup that never came to its end."""
    made = Pruned.create(tmp_path)
    (made.root / "file").write_bytes(b"content" * 999)
    made.cut_off()
    assert made.prune().listed.objects == 3
    made.passes(73)
    assert made.prune().deleted.objects == 3


# --- runs that last


def test_a_run_that_outlasts_half_the_grace_looks_again_and_commits(
    pruned: Pruned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(StoreClock, "now", StoreClock.ask)
    lasting = FaultyStore(pruned.store, lambda call: passing(pruned, call, 40))
    (pruned.root / "file").write_bytes(b"lasting" * 999)
    pruned.backup(store=lasting)
    again = [call for call in lasting.calls if call.name == names.garbage_prefix(VOLUME)]
    assert len(again) == 2  # for its catalog, and before the commit
    pruned.verify(tmp_path)


def passing(pruned: Pruned, call: Call, hours: float) -> None:
    if call.method == "put" and "/catalogs/" in call.name:
        pruned.passes(hours)


@pytest.mark.parametrize("swept", [False, True])
def test_a_run_that_outlasts_half_the_grace_does_not_commit_what_was_taken_for_garbage(
    pruned: Pruned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, swept: bool
) -> None:
    """It was stopped for days; its clocks know."""
    monkeypatch.setattr(StoreClock, "now", StoreClock.ask)

    def plan(call: Call) -> None:
        if call.method == "put" and "/catalogs/" in call.name:
            pruned.passes(40)
            pruned.prune()
            if swept:
                pruned.passes(73)
                pruned.prune()

    (pruned.root / "file").write_bytes(b"lasting" * 999)
    with pytest.raises(SmsnapError, match="taken for garbage") as caught:
        pruned.backup(store=FaultyStore(pruned.store, plan))
    assert "run it again" in caught.value.hint and not isinstance(caught.value, LockedError)
    assert len(pruned.protected.snapshots()) == 2
    pruned.backup()
    pruned.sweep_all()
    pruned.verify(tmp_path)


def test_a_short_run_asks_nothing_more(pruned: Pruned) -> None:
    store = FaultyStore(pruned.store)
    (pruned.root / "file").write_bytes(b"short" * 999)
    pruned.backup(store=store, attach=True)
    assert not [call for call in store.calls if call.name.startswith(names.garbage_prefix(VOLUME))]


# --- beside it


def test_a_restore_beside_it_is_none_the_wiser(pruned: Pruned, tmp_path: Path) -> None:
    pruned.prune()
    pruned.passes(73)
    pruned.protected.restore(
        tmp_path / "restored", store=FaultyStore(pruned.store, lambda call: pruned.prune() and None)
    )
    assert (tmp_path / "restored" / "file").read_bytes() == b"1" * 4000


def test_its_requests_are_few(pruned: Pruned) -> None:
    """One listing of everything; of a chain a GET each; the lease is held for a moment."""
    pruned.prune()
    store = FaultyStore(pruned.store)
    pruned.prune(store)
    calls = [(call.method, call.name) for call in store.calls]
    assert sum(method == "get" for method, name in calls if "/manifests/" in name) == 2
    assert calls.count(("list", names.volume_prefix(VOLUME))) == 1
    taken, given = [number for number, (method, _) in enumerate(calls) if method == "replace"]
    assert given - taken == 2  # a listing of manifests between them
