"""Changing the keys: who opens what then, at every moment at which a change may be cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.lookback.browse import open_file
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError, KeptError, SmsnapError, UsageError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.keys import Identity, WriteKey, data_key_info, parse_write_key, write_key_info
from smsnapd.format.keyslot import Argon2Cost, make_keyslot, open_keyslot
from smsnapd.format.record import DataKeyRecord, Keyslot, WriterKey
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.keyring import Keyring
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.memory import MemoryStore
from tests.fault.faulty import WRITES, Call, Crash, Fault, FaultyStore
from tests.fault.small import Objects, objects_of, store_of
from tests.property.protected import PASSPHRASE, VOLUME, Protected

ESCROW = Identity.generate()
CONTENTS = {b"first": b"first\n" * 900, b"second": b"second\n" * 900}
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
Change = Callable[[Keyring], object]


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Protected:
    """A full and an incremental, each with a data key of its own."""
    place = tmp_path_factory.mktemp("keyring")
    (place / "volume").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smsnapd.repository.access.make_keyslot", partial(make_keyslot, cost=CHEAP))
        made = Protected.create(place / "volume", place / "state", StoreSettings((place / "repo").as_uri()))
    for name, content in CONTENTS.items():
        (place / "volume" / name.decode()).write_bytes(content)
        made.backup(workers=0)
    return made


@pytest.fixture(scope="module")
def alone(protected: Protected) -> Objects:
    """Its objects, with nobody but the owner."""
    return objects_of(protected.settings)


@pytest.fixture(scope="module")
def shared(protected: Protected, alone: Objects) -> Objects:
    """And with the escrow as a second recipient."""
    store = store_of(alone)
    Keyring(owner(protected, store)).add_recipient(ESCROW.recipient, "escrow")
    return found(store)


def owner(protected: Protected, store: MemoryStore | FaultyStore) -> Repository:
    return Repository.open(store, Credentials(recovery_key=protected.recovery_key))


def escrow(protected: Protected, store: MemoryStore) -> Repository:
    root = Identity.from_recovery_key(protected.recovery_key).root_public.hex()
    return Repository.open(store, Credentials(recovery_key=ESCROW.recovery_key(), root=root))


def daemon(protected: Protected, store: MemoryStore, write_key: WriteKey | None = None) -> Repository:
    text = protected.write_key_text
    if write_key is not None:
        text = write_key.to_text(parse_write_key(text)[1])
    return Repository.open(store, Credentials(write_key_text=text))


def found(store: MemoryStore) -> Objects:
    return {info.name: store.get(info.name) for info in store.list("")}


def reads_all(repository: Repository) -> bool:
    history = History.load(repository, VOLUME)
    tree = SnapshotTree(repository, history.chain(history.find("latest").id))
    for name, content in CONTENTS.items():
        assert b"".join(open_file(tree, name)) == content
    return True


def opens(open_it: Callable[[], Repository]) -> bool:
    """Whether somebody opens it: then also everything in it."""
    try:
        repository = open_it()
    except WrongKeyError:
        return False
    return reads_all(repository)


def unsealed_by(store: MemoryStore, identity: Identity, protected: Protected) -> list[str]:
    """What an identity can unseal of all that lies there, roster or no roster."""
    repository = owner(protected, store)
    could = []
    for name, data in found(store).items():
        writer, key = names.parse_writer_name(name), names.parse_data_key_name(name)
        if writer is not None:
            record = WriterKey.decode(data, writer, repository.id, repository.root_public)
            sealed, info = record.sealed, write_key_info(repository.id, writer.writer_id)
        elif key is not None:
            sealed = DataKeyRecord.decode(data, key, repository.id, repository.verify_key_of).sealed
            info = data_key_info(repository.id, key.key_id, key.volume)
        else:
            continue
        for item in sealed:
            with suppress(DamageError):
                identity.unseal(item.sealed, info)
                could.append(name)
    return could


def is_in_force(protected: Protected, store: MemoryStore, write_key: WriteKey | None = None) -> bool:
    try:
        return bool(daemon(protected, store, write_key).write_key)
    except WrongKeyError:
        return False


# --- recipients


def test_a_recipient_opens_everything_with_the_root_pinned_and_nothing_without(
    protected: Protected, alone: Objects, shared: Objects
) -> None:
    assert not opens(lambda: escrow(protected, store_of(alone)))
    assert opens(lambda: escrow(protected, store_of(shared)))
    with pytest.raises(WrongKeyError, match="belongs to another repository"):
        Repository.open(store_of(shared), Credentials(recovery_key=ESCROW.recovery_key()))
    with pytest.raises(WrongKeyError, match="only who made the repository may"):
        Keyring(escrow(protected, store_of(shared)))
    with pytest.raises(WrongKeyError, match="only who made the repository may"):
        Keyring(daemon(protected, store_of(shared)))


def test_what_comes_later_is_sealed_for_the_recipient_too(protected: Protected, shared: Objects) -> None:
    store = store_of(shared)
    key = daemon(protected, store).new_data_key(VOLUME)
    assert escrow(protected, store).data_key(VOLUME, key.id).secret == key.secret


def test_a_daemon_that_was_open_heeds_the_change_with_its_next_data_key(
    protected: Protected, alone: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(alone)
    running = daemon(protected, store)
    Keyring(owner(protected, store)).add_recipient(ESCROW.recipient, "escrow")
    monkeypatch.setattr("smsnapd.repository.access.FRESH_S", -1.0)
    key = running.new_data_key(VOLUME)
    assert escrow(protected, store).data_key(VOLUME, key.id).secret == key.secret
    Keyring(owner(protected, store)).rotate_writers()
    with pytest.raises(WrongKeyError, match="was revoked"):
        running.new_data_key(VOLUME)


def test_a_data_key_that_was_made_meanwhile_is_sealed_by_the_next_change(
    protected: Protected, alone: Objects
) -> None:
    store = store_of(alone)
    running = daemon(protected, store)
    Keyring(owner(protected, store)).add_recipient(ESCROW.recipient, "escrow")
    key = running.new_data_key(VOLUME)  # by the roster of a moment ago
    with pytest.raises(WrongKeyError):
        escrow(protected, store).data_key(VOLUME, key.id)
    Keyring(owner(protected, store)).settle()
    assert escrow(protected, store).data_key(VOLUME, key.id).secret == key.secret


def test_a_recipient_that_was_removed_opens_nothing_that_lies_there(
    protected: Protected, shared: Objects
) -> None:
    store = store_of(shared)
    later = daemon(protected, store).new_data_key(VOLUME)
    rotated = Keyring(owner(protected, store)).remove_recipient(ESCROW.recipient.id)
    assert not opens(lambda: escrow(protected, store))
    assert unsealed_by(store, ESCROW, protected) == []
    assert opens(lambda: owner(protected, store))
    assert owner(protected, store).data_key(VOLUME, later.id).secret == later.secret
    assert not is_in_force(protected, store)
    (new,) = rotated.keys.values()
    assert is_in_force(protected, store, new)


def test_the_owner_stays(protected: Protected, shared: Objects) -> None:
    keyring = Keyring(owner(protected, store_of(shared)))
    with pytest.raises(UsageError, match="root hangs on it"):
        keyring.remove_recipient(Identity.from_recovery_key(protected.recovery_key).recipient.id)


# --- write keys


def test_after_a_rotation_the_new_key_reads_the_past_and_the_old_one_writes_no_more(
    protected: Protected, alone: Objects
) -> None:
    store = store_of(alone)
    (second,) = Keyring(owner(protected, store)).rotate_writers().keys.values()
    (third,) = Keyring(owner(protected, store)).rotate_writers().keys.values()
    for write_key in (None, second):
        with pytest.raises(WrongKeyError, match="was revoked"):
            _ = daemon(protected, store, write_key).write_key
    repository = daemon(protected, store, third)
    assert [item.sequence for item in History.load(repository, VOLUME).snapshots] == [1, 2]
    with pytest.raises(WrongKeyError, match="another one"):
        daemon(protected, store, second).write_key_of(third.writer_id)
    assert opens(lambda: owner(protected, store))


def test_a_writer_that_is_revoked_has_no_follower(protected: Protected, alone: Objects) -> None:
    store = store_of(alone)
    Keyring(owner(protected, store)).revoke_writer(owner(protected, store).writer_id)
    assert not is_in_force(protected, store)
    assert len(owner(protected, store).roster.writers) == 1
    with pytest.raises(UsageError, match="no such writer is in force"):
        Keyring(owner(protected, store)).revoke_writer(bytes(16))


def test_two_who_change_the_keys_at_once(protected: Protected, alone: Objects) -> None:
    store = store_of(alone)
    first, second = Keyring(owner(protected, store)), Keyring(owner(protected, store))
    first.add_recipient(ESCROW.recipient, "escrow")
    with pytest.raises(SmsnapError, match="somebody else has changed them"):
        second.rotate_writers()
    second.rotate_writers()
    assert opens(lambda: escrow(protected, store))


# --- cut off at every call


CHANGES: dict[str, tuple[str, Change, set[str], set[str]]] = {
    "add": (
        "alone",
        lambda ring: ring.add_recipient(ESCROW.recipient, "escrow"),
        {"owner", "write key"},
        {"owner", "write key", "escrow"},
    ),
    "remove": (
        "shared",
        lambda ring: ring.remove_recipient(ESCROW.recipient.id),
        {"owner", "write key", "escrow"},
        {"owner"},
    ),
    "rotate": (
        "shared",
        lambda ring: ring.rotate_writers(),
        {"owner", "write key", "escrow"},
        {"owner", "escrow"},
    ),
}


def test_who_puts_keys_in_order_takes_nothing_that_came_into_force_meanwhile(
    protected: Protected, shared: Objects
) -> None:
    """It knew no roster behind the seals that another change had put; by now there is one."""
    store = store_of(shared)
    made = [daemon(protected, store).new_data_key(VOLUME).id for _ in range(3)]
    while (
        made[-1].hex()
        < max(info.name for info in store.list(names.data_keys_prefix(VOLUME))).split("/")[-1][:32]
    ):
        made.append(daemon(protected, store).new_data_key(VOLUME).id)
    key_id = made[-1]  # the last that is read
    sealed_again = names.data_key_name(VOLUME, key_id, 3)
    removed: list[Call] = []

    def plan(call: Call) -> None:
        if call.name == sealed_again and call.method == "get" and not removed:
            removed.append(call)
            Keyring(owner(protected, store)).remove_recipient(ESCROW.recipient.id)

    dying = FaultyStore(store, lambda call: Fault.CRASH if call.name == names.roster_name(3) else None)
    with suppress(Crash):  # all is sealed anew by then
        Keyring(owner(protected, dying)).remove_recipient(ESCROW.recipient.id)
    with pytest.raises(SmsnapError, match="somebody else has changed them"):
        Keyring(owner(protected, FaultyStore(store, plan))).settle()
    assert removed
    assert owner(protected, store).data_key(VOLUME, key_id).id == key_id


def holders(protected: Protected, store: MemoryStore) -> set[str]:
    """Who opens it, and whose write key is in force."""
    who = {
        "owner": opens(lambda: owner(protected, store)),
        "escrow": opens(lambda: escrow(protected, store)),
        "write key": is_in_force(protected, store),
    }
    return {name for name, may in who.items() if may}


def cut_off(protected: Protected, objects: Objects, change: Change) -> Iterator[MemoryStore]:
    """The store as each call leaves it at which the change was cut off, before and after it was done."""
    counting = FaultyStore(store_of(objects))
    change(Keyring(owner(protected, counting)))
    for call in counting.calls:
        for fault in (Fault.CRASH, Fault.CRASH_AFTER) if call.method in WRITES else (Fault.CRASH,):
            store = store_of(objects)
            faulty = FaultyStore(store, {call.number: fault})
            with pytest.raises(Crash):
                change(Keyring(owner(protected, faulty)))
            yield store


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_cut_off_has_happened_or_has_not(
    protected: Protected, request: pytest.FixtureRequest, name: str
) -> None:
    stage, change, before, after = CHANGES[name]
    objects: Objects = request.getfixturevalue(stage)
    rosters = len([item for item in objects if item.startswith(names.ROSTERS_PREFIX)])
    seen = set()
    for store in cut_off(protected, objects, change):
        happened = names.roster_name(rosters + 1) in found(store)
        seen.add(happened)
        assert holders(protected, store) == (after if happened else before)
        with suppress(UsageError):
            change(Keyring(owner(protected, store)))
        assert holders(protected, store) == after
        if "escrow" not in after:
            assert unsealed_by(store, ESCROW, protected) == []
    assert seen == {True, False}


def test_what_a_change_that_never_happened_has_sealed_is_taken_away(
    protected: Protected, alone: Objects
) -> None:
    """Somebody else is added after the first was not: nothing is left that is sealed for the first."""
    other = Identity.generate()
    store = store_of(alone)
    faulty = FaultyStore(
        store,
        lambda call: Fault.CRASH if call.name == names.roster_name(2) and call.method == "put" else None,
    )
    with pytest.raises(Crash):
        Keyring(owner(protected, faulty)).add_recipient(ESCROW.recipient, "escrow")
    assert unsealed_by(store, ESCROW, protected) != []
    Keyring(owner(protected, store)).add_recipient(other.recipient, "other")
    assert unsealed_by(store, ESCROW, protected) == []
    assert len(unsealed_by(store, other, protected)) == 3


# --- keyslots


def slot_of(protected: Protected, store: MemoryStore | FaultyStore, passphrase: str) -> str:
    return Repository.open(store, Credentials(passphrase=passphrase)).slot


def passphrases(store: MemoryStore) -> set[str]:
    """Which of them open."""
    found = set()
    for passphrase in (PASSPHRASE, "another"):
        with suppress(WrongKeyError):
            Repository.open(store, Credentials(passphrase=passphrase)).close()
            found.add(passphrase)
    return found


@pytest.mark.parametrize("keeps_first", [True, False], ids=["add", "replace"])
def test_a_passphrase_is_added_or_replaced_at_every_call(
    protected: Protected, alone: Objects, keeps_first: bool
) -> None:
    def change(keyring: Keyring) -> object:
        if keeps_first:
            return keyring.add_passphrase("another", "x", CHEAP)
        if PASSPHRASE not in passphrases(keyring._store):  # type: ignore[arg-type]
            return None
        return keyring.replace_slot(slot_of(protected, keyring._store, PASSPHRASE), "another", CHEAP)  # type: ignore[arg-type]

    seen = set()
    for store in cut_off(protected, alone, change):
        seen.add(frozenset(passphrases(store)))
        with suppress(UsageError):
            change(Keyring(owner(protected, store)))
        assert passphrases(store) == {"another", *([PASSPHRASE] if keeps_first else [])}
        assert len(list(store.list(names.KEYSLOTS_PREFIX))) == (2 if keeps_first else 1)
    assert frozenset() not in seen and frozenset({PASSPHRASE}) in seen


def test_the_last_keyslot_stays_and_a_new_one_costs_as_it_should(
    protected: Protected, alone: Objects
) -> None:
    store = store_of(alone)
    keyring, first = Keyring(owner(protected, store)), slot_of(protected, store_of(alone), PASSPHRASE)
    with pytest.raises(UsageError, match="the last one"):
        keyring.remove_slot(first)
    weak = keyring.add_passphrase("another", "weak", CHEAP)
    strong = keyring.replace_slot(weak, "another", Argon2Cost(memory_kib=128, iterations=1, lanes=1))
    assert strong != weak and passphrases(store) == {PASSPHRASE, "another"}
    assert keyring.replace_slot(strong, "another", CHEAP) == strong  # it is as good already


def test_what_the_store_keeps_is_told(
    protected: Protected, shared: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    """Object Lock: a removed recipient's old seals stay for a while; all else is as it should be."""

    class Keeping(MemoryStore):
        def delete(self, name: str) -> None:
            raise KeptError(f"delete {name}", "it is locked")

    store = Keeping("kept")
    for name, data in shared.items():
        store.put(name, data)
    Keyring(owner(protected, store)).remove_recipient(ESCROW.recipient.id)
    assert not opens(lambda: escrow(protected, store)) and opens(lambda: owner(protected, store))
    assert "still sealed for who was removed: it is locked" in caplog.text


def test_slots_that_are_there_to_cost_are_not_all_tried(
    protected: Protected, alone: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may put objects could have each mistyped passphrase take hours."""
    store = store_of(alone)
    slot = make_keyslot(Identity.generate(), "x", owner(protected, store).id, "bomb", CHEAP)
    for number in range(50):
        bomb = replace(slot, slot=f"{number:016x}", memory_kib=2_097_152, iterations=16)
        store.put(names.keyslot_name(bomb.slot), bomb.encode())
    tried = []

    def counting(slot: Keyslot, passphrase: str) -> Identity:
        tried.append(slot.slot)
        if slot.memory_kib < 1 << 20:
            return open_keyslot(slot, passphrase)
        raise WrongKeyError("open", "it is a bomb")

    monkeypatch.setattr("smsnapd.repository.unlocking.open_keyslot", counting)
    assert passphrases(store) == {PASSPHRASE}
    with pytest.raises(WrongKeyError):
        Repository.open(store, Credentials(passphrase="mistyped"))
    assert len(tried) < 6


# --- the roster that was taken away


def test_a_revocation_that_was_deleted_is_known_to_who_has_seen_it(
    protected: Protected, alone: Objects, tmp_path: Path
) -> None:
    store = store_of(alone)
    seen = Credentials(recovery_key=protected.recovery_key, remembered=tmp_path / "state")
    Keyring(Repository.open(store, seen)).rotate_writers()
    assert oct((next((tmp_path / "state").iterdir())).stat().st_mode)[-3:] == "600"
    Repository.open(store, seen)
    store.delete(names.roster_name(2))
    with pytest.raises(DamageError, match="0000000002: it is missing, and this machine has seen it"):
        Repository.open(store, seen)


def test_another_roster_in_the_place_of_one_that_was_seen(
    protected: Protected, alone: Objects, tmp_path: Path
) -> None:
    """One that the root has signed, too: from a copy of the repository that went another way."""
    store, copy = store_of(alone), store_of(alone)
    seen = Credentials(recovery_key=protected.recovery_key, remembered=tmp_path)
    Keyring(Repository.open(store, seen)).rotate_writers()
    Keyring(owner(protected, copy)).add_recipient(ESCROW.recipient, "escrow")
    store.delete(names.roster_name(2))
    store.put(names.roster_name(2), copy.get(names.roster_name(2)))
    with pytest.raises(DamageError, match="it is another one than this machine has seen"):
        Repository.open(store, seen)


def test_a_manifest_knows_the_roster_of_its_writer(protected: Protected, tmp_path: Path) -> None:
    """On a machine that remembers nothing: points were made since a roster that was taken away."""
    moved = replace(protected, settings=StoreSettings((tmp_path / "repo").as_uri()), state_dir=tmp_path / "s")
    for name, data in objects_of(protected.settings).items():
        with closing(open_store(moved.settings)) as store:
            store.put(name, data)
    with moved.repository() as repository:
        Keyring(repository).add_recipient(ESCROW.recipient, "escrow")
    (protected.root / "third").write_bytes(b"third")
    moved.backup(workers=0)
    with closing(open_store(moved.settings)) as store:
        store.delete(names.roster_name(2))
    report = moved.check(read_data=None)
    assert "0000000002: it is missing, and the writer of" in report.findings[0].problem
    assert any("left of a change that was cut off" in note for note in report.notes)
    with pytest.raises(DamageError, match="is missing, and the writer of"):
        moved.restore(tmp_path / "target")
    (protected.root / "third").unlink()
