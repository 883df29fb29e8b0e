"""Every object damaged in every way: `check` names it, and no restore passes damage off as whole.

Beside it: ends that were cut off, old and foreign objects, a volume that is gone.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from smsnapd.engine.check import CheckRequest, run_check
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.errors import DamageError, NoRepositoryError, WrongKeyError
from smsnapd.format import names
from tests.fault.objects.every_object import (
    OTHER,
    SECOND_PASSPHRASE,
    SMALL,
    SORTS,
    Damage,
    Kept,
    changes,
    damages,
    exchanges,
    flipped,
    flips,
    make_protected,
    rounds_of_flips,
    sort_of,
)
from tests.property.observed import Observed, observe
from tests.property.protected import PASSPHRASE, VOLUME

pytestmark = [pytest.mark.root, pytest.mark.slow]


# --- every byte


@pytest.mark.parametrize("sort", ["keyslot", "lease"])
def test_every_flipped_byte_of_small_records_is_found(kept: Kept, sort: str) -> None:
    chosen = [name for name in kept.of_sort(sort) if VOLUME not in name]
    assert all(len(kept.objects[name]) < SMALL for name in chosen)
    request = CheckRequest(OTHER, None, None, kept.protected.state_dir)
    with kept.protected.repository() as repository:
        for changed in rounds_of_flips(kept, chosen):
            with kept.after(changed):
                report = run_check(repository, kept.protected.settings, request, Silent())
            assert {item.object for item in report.findings} == changed.keys()


def test_every_flipped_byte_of_the_repository_record_is_damage(kept: Kept) -> None:
    data = kept.objects[names.REPOSITORY]
    assert len(data) < SMALL
    for position in flips(data):
        with kept.after({names.REPOSITORY: flipped(data, position)}):
            for key in (
                {"recovery_key": kept.protected.recovery_key},
                {"write_key_text": kept.protected.write_key_text},
                {"passphrase": PASSPHRASE},
            ):
                with pytest.raises(DamageError, match="repository"):
                    kept.open(**key)


def test_flipped_bytes_of_rosters_are_damage(kept: Kept) -> None:
    for name in kept.of_sort("roster"):
        for position in flips(kept.objects[name]):
            with kept.after({name: flipped(kept.objects[name], position)}):
                for key in ({"recovery_key": kept.protected.recovery_key}, {"passphrase": PASSPHRASE}):
                    with pytest.raises(DamageError, match=name):
                        kept.open(**key)
                with pytest.raises(DamageError, match=name):
                    kept.open(write_key_text=kept.protected.write_key_text)


@pytest.mark.parametrize("write_key", [False, True], ids=["identity", "write-key"])
@pytest.mark.parametrize("sort", ["datakey", "chunk", "catalog", "manifest", "writer"])
def test_flipped_bytes_are_found_in_each_object(kept: Kept, sort: str, write_key: bool) -> None:
    """In all of a sort at once, and each is named. The first write key does not open the other volume."""
    chosen = [name for name in kept.of_sort(sort) if not (write_key and f"/{OTHER}/" in name)]
    assert len(chosen) > 1
    volume = VOLUME if write_key else None
    for changed in rounds_of_flips(kept, chosen):
        with kept.after(changed):
            found = kept.found(volume=volume, write_key=write_key)
        assert changed.keys() <= found.keys()


def test_keyslots_that_are_damaged_are_no_wrong_passphrases(kept: Kept) -> None:
    first, second = kept.of_sort("keyslot")
    if json.loads(kept.objects[first].split(b"\n")[1])["label"] == "second":
        first, second = second, first
    damaged: dict[str, bytes | None] = {name: flipped(kept.objects[name], 200) for name in (first, second)}
    for changed in (damaged, dict.fromkeys(damaged)):
        with kept.after(changed), pytest.raises(DamageError, match=r"keyslot|keys/slots"):
            kept.open(passphrase=PASSPHRASE)
    for slot, passphrase in ((first, SECOND_PASSPHRASE), (second, PASSPHRASE)):
        with kept.after({slot: damaged[slot]}):
            kept.open(passphrase=passphrase).close()
    with pytest.raises(WrongKeyError):
        kept.open(passphrase="neither")


# --- every object


@pytest.mark.parametrize("sort", SORTS)
def test_what_happens_to_an_object_is_found(kept: Kept, sort: str) -> None:
    chosen = kept.of_sort(sort)
    opens = sort not in ("repository", "roster")
    for alike in zip(*(changes(kept, name) for name in chosen), strict=True):
        for some in [alike] if opens else [[damage] for damage in alike]:
            changed = {name: data for damage in some for name, data in damage.after.items()}
            with kept.after(changed):
                assert changed.keys() <= kept.found().keys(), some[0].how
    for damage in (damage for name in chosen for damage in exchanges(kept, name)):
        with kept.after(damage.after):
            found = kept.found()
        if damage.after[damage.of] is None:
            assert is_named_as_missing(kept, damage.of, found), (damage.of, found)
        else:
            named = damage.after.keys() & found.keys()
            assert named == damage.after.keys() or (named and not opens), damage


def is_named_as_missing(kept: Kept, name: str, found: dict[str, str]) -> bool:
    sort = sort_of(name)
    if sort == "manifest":  # nobody can know its name; its sequence number shows, or its id
        parsed = names.ManifestName.parse(name)
        assert parsed is not None
        problem = found[names.manifests_prefix(parsed.volume)]
        return problem == f"manifest {parsed.sequence} is missing" or parsed.snapshot in problem
    if sort == "keyslot":  # one of two is anybody's to take away: nothing lists them
        return found == {}
    if name == names.REPOSITORY:
        return "`repository` record is missing" in "".join(found.values())
    if name == names.roster_name(1):
        return f"the object {name} is missing" in found.values()
    if name == names.roster_name(2):  # what it granted is believed no more
        return any("has not granted" in problem for problem in found.values())
    return name in found


@pytest.mark.parametrize("sort", SORTS)
def test_what_happens_to_an_object_is_never_restored_as_if_it_were_whole(
    kept: Kept, sort: str, target: Path
) -> None:
    """A restore that needs the object fails, or says what is damaged; one that does not is right."""
    for name in kept.of_sort(sort):
        for damage in damages(kept, name):
            if damage.after[name] is None and name.endswith(f"-{kept.reader(name)[1]}"):
                continue  # this recovery point is not listed any more
            with kept.after(damage.after):
                check_restore(kept, damage, target)


def check_restore(kept: Kept, damage: Damage, target: Path) -> None:
    reader = kept.reader(damage.of)
    fails = bool(damage.after.keys() & kept.needs[reader])
    truth = kept.truths[reader]
    lost: Collection[bytes] | None = None
    try:
        outcome = kept.restore(target, *reader)
    except DamageError:
        assert fails, damage
    else:
        lost = {issue.path for issue in outcome.not_restored}
        assert outcome.damaged == len(lost)
        assert bool(lost) == fails, damage
    if target.exists():
        check_written(target, truth, lost)
        shutil.rmtree(target)


def check_written(target: Path, truth: Observed, lost: Collection[bytes] | None) -> None:
    """All that is there is true, and with what is `lost` (None: it was broken off) it is all."""
    written = observe(target)
    ours = {path for path in written if b".smsnap-" in path}
    assert lost is None or not ours
    for path in written.keys() - ours:
        if lost is None and stat.S_ISDIR(written[path].kind):  # its times come last
            assert stat.S_ISDIR(truth[path].kind)
        else:
            assert replace(written[path], group=()) == replace(truth[path], group=()), path
    assert lost is None or written.keys() == truth.keys() - set(lost)


def test_damage_takes_with_it_no_more_than_it_holds(kept: Kept, target: Path) -> None:
    """Without one chunk, or one data key, or the other volume's writer: the rest is restored."""
    needed = kept.needs[VOLUME, kept.latest]
    losses = []
    for name in (name for name in needed if sort_of(name) in ("chunk", "datakey")):
        with kept.after({name: None}):
            outcome = kept.restore(target, VOLUME, kept.latest)
        lost = {issue.path for issue in outcome.not_restored}
        assert lost
        assert all(name in issue.reason for issue in outcome.not_restored)
        check_written(target, kept.truths[VOLUME, kept.latest], lost)
        shutil.rmtree(target)
        losses.append(lost)
    assert {b"large-mArKeR"} in losses
    with kept.after({kept.of_sort("writer")[1]: b"", kept.of_sort("datakey")[-1]: None}):
        assert kept.restore(target, VOLUME, kept.latest).not_restored == ()


# --- an end that was cut off, an old state, another repository's objects


def test_a_newest_end_that_was_cut_off(kept: Kept, tmp_path: Path) -> None:
    """Nothing but memory can tell: this machine's, or a person's."""
    prefix = names.manifests_prefix(VOLUME)
    for count in (1, 3, len(kept.manifests)):
        with kept.after(dict.fromkeys(kept.manifests[-count:])):
            assert kept.latest in kept.found()[prefix]
            assert kept.latest in kept.found(write_key=True, volume=VOLUME)[prefix]
            assert kept.latest in kept.found(expect_head=kept.latest, state_dir=tmp_path)["manifests"]
            report = kept.check(state_dir=tmp_path, volume=VOLUME)
        assert report.findings == ()
        assert any("--expect-head" in note for note in report.notes)
    assert kept.found(expect_head=kept.latest, state_dir=tmp_path) == {}


def test_a_volume_that_is_gone_altogether_is_missed(kept: Kept) -> None:
    (*_, (_, newest)) = kept.truths
    with kept.after(dict.fromkeys(name for name in kept.objects if name.startswith(f"volumes/{OTHER}/"))):
        assert newest in kept.found()[names.manifests_prefix(OTHER)]


def test_an_old_lease_is_found(kept: Kept) -> None:
    name = names.lease_name(VOLUME)
    for write_key in (False, True):
        with kept.after({name: kept.old_lease}):
            assert kept.found(write_key=write_key, volume=VOLUME).keys() == {name}


def test_the_next_backup_mends_an_old_lease(tmp_path: Path) -> None:
    protected = make_protected(tmp_path)
    lease = tmp_path / "repository" / names.lease_name(VOLUME)
    old = b""
    for text in ("one", "two", "three"):
        (protected.root / "file").write_text(text)
        protected.backup(workers=0)
        old = old or lease.read_bytes()
    lease.write_bytes(old)
    (protected.root / "file").write_text("four")
    protected.backup(workers=0)
    assert protected.check().findings == ()
    with protected.repository() as repository:
        generations = [name.generation for name in History.load(repository, VOLUME).names]
    assert generations == sorted(set(generations))


def test_objects_of_another_repository_are_not_taken(
    kept: Kept, twin: dict[str, bytes], target: Path
) -> None:
    for sort in SORTS:
        foreign = next(data for name, data in twin.items() if sort_of(name) == sort)
        name = kept.of_sort(sort)[0]
        with kept.after({name: foreign}):
            if sort == "repository":  # which of the two, key or record, is from elsewhere, nobody can tell
                with pytest.raises(WrongKeyError), kept.protected.repository():
                    pass
                continue
            assert name in kept.found()
            check_restore(kept, Damage(name, "foreign", {name: foreign}), target)


def test_a_repository_without_its_record(kept: Kept) -> None:
    with kept.after({names.REPOSITORY: None}):
        for write_key in (False, True):
            with pytest.raises(DamageError, match="record"), kept.protected.repository(write_key=write_key):
                pass
    with kept.after(dict.fromkeys(kept.objects)), pytest.raises(NoRepositoryError):
        kept.open(passphrase=PASSPHRASE)
