"""`copy`, cut off at every call to either store and run again: every point there restores identical."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.copy.run import CopyOutcome, CopyRequest, run_copy
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.errors import SmsnapError, UsageError
from smsnapd.repository import Repository
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.base import Store
from tests.fault.faulty import Call, Crash, Fault, FaultyStore
from tests.property.observed import Observed, differences, observe
from tests.property.protected import VOLUME, Protected

pytestmark = [pytest.mark.root, pytest.mark.slow]
LARGE = 300_000


@dataclass
class Story:
    """A volume with five recovery points: full, two incrementals, full, incremental."""

    protected: Protected
    moments: dict[str, Observed]


def another(place: Path) -> Protected:
    """Another repository, in memory, of other keys."""
    settings = StoreSettings(f"memory://{uuid.uuid4().hex}")
    created = Repository.create(open_store(settings), None)  # a keyslot takes most of a second
    state = place / f"state-{uuid.uuid4().hex}"
    return Protected(place / "volume", state, settings, created.recovery_key, created.write_key_text)


@pytest.fixture(scope="module")
def story(memory: Path) -> Iterator[Story]:
    place = memory / "copied"
    root = place / "volume"
    (root / "d").mkdir(parents=True)
    protected = another(place)
    moments: dict[str, Observed] = {}

    def backed_up(**request: bool) -> None:
        outcome = protected.backup(write_key=False, **request)
        assert outcome.snapshot is not None
        moments[outcome.snapshot.id] = observe(root)

    (root / "large").write_bytes(os.urandom(LARGE))
    (root / "d/small").write_text("first")
    os.link(root / "d/small", root / "further")
    backed_up()
    (root / "d/new").write_bytes(os.urandom(3000))
    backed_up()
    os.rename(root / "d/new", root / "renamed")
    (root / "d/small").unlink()
    backed_up()
    (root / "more").write_bytes(os.urandom(200_000))
    backed_up(full=True)
    (root / "renamed").write_text("changed")
    backed_up()
    yield Story(protected, moments)


def copied(
    source: Protected,
    there: Protected,
    *,
    stores: tuple[Store | None, Store | None] = (None, None),
    **more: Any,
) -> CopyOutcome:
    """One run, with the write key alone there."""
    request = CopyRequest(**{"volume": VOLUME, "target": VOLUME, "state_dir": there.state_dir, **more})
    with source.repository(stores[0]) as one, there.repository(stores[1], write_key=True) as other:
        return run_copy(one, other, request, Silent())


def ids(protected: Protected) -> list[str]:
    return [snapshot.id for snapshot in protected.snapshots()]


def check_whole(story: Story, target: Protected, place: Path, expected: list[str]) -> None:
    """Everything that is there is whole, and as it was."""
    assert target.check().findings == ()
    assert ids(target) == expected
    for snapshot in expected:
        restored = place / uuid.uuid4().hex
        target.restore(restored, snapshot)
        assert differences(story.moments[snapshot], observe(restored)) == []


def test_a_copy_has_the_same_points(story: Story, place: Path) -> None:
    target = another(place)
    outcome = copied(story.protected, target)
    assert outcome.copied == tuple(story.moments) and outcome.whole == ()
    check_whole(story, target, place, list(story.moments))
    for one, other in zip(story.protected.snapshots(), target.snapshots(), strict=True):
        assert (one.id, one.time_us, one.kind, one.parent, one.files) == (
            other.id, other.time_us, other.kind, other.parent, other.files,
        )  # fmt: skip
    again = copied(story.protected, target)
    assert (again.copied, again.read_bytes, again.stored_bytes) == ((), 0, 0)
    assert again.there == tuple(story.moments)


def contents(protected: Protected) -> set[str]:
    """What is sealed there: nothing of it may be the source's own."""
    return {info.name for info in open_store(protected.settings).list("")}


def test_everything_is_sealed_anew(story: Story, place: Path) -> None:
    target = another(place)
    copied(story.protected, target)
    shared = {
        name
        for name in contents(story.protected) & contents(target)
        if "/chunks/" in name or "/keys/" in name
    }
    assert shared == set()
    with pytest.raises(SmsnapError):
        Repository.open(open_store(target.settings), _keys_of(story.protected))


def _keys_of(protected: Protected):  # type: ignore[no-untyped-def]
    from smsnapd.repository import Credentials

    return Credentials(write_key_text=protected.write_key_text)


def test_later_copies_bring_only_what_is_new(story: Story, place: Path) -> None:
    target = another(place)
    first, *_ = story.moments
    outcome = copied(story.protected, target, wanted=frozenset([first]))
    assert outcome.copied == (first,)
    before = set(contents(target))
    outcome = copied(story.protected, target)
    assert outcome.copied == tuple(story.moments)[1:]
    assert outcome.read_bytes < 280_000  # of which 200,000 are new; the large file is not read again
    chunks = [name for name in contents(target) - before if "/chunks/" in name]
    assert len(chunks) <= 2
    check_whole(story, target, place, list(story.moments))


def test_what_is_named_brings_its_chain(story: Story, place: Path) -> None:
    target = another(place)
    names = list(story.moments)
    assert copied(story.protected, target, wanted=frozenset([names[4]])).copied == tuple(names[3:])
    check_whole(story, target, place, names[3:])
    outcome = copied(story.protected, target)
    assert (outcome.copied, outcome.too_old) == ((), tuple(names[:3]))
    outcome = copied(story.protected, target, target="old", wanted=frozenset([names[1]]))
    assert outcome.copied == tuple(names[:2])


def test_what_has_lost_its_parent_goes_as_a_full(story: Story, place: Path) -> None:
    """As after a fold: what the newest one there is, the source does not list any more."""
    target = another(place)
    names = list(story.moments)
    copied(story.protected, target, wanted=frozenset([names[1]]))
    with story.protected.repository() as source, target.repository(write_key=True) as other:
        history = History.load(source, VOLUME)
        hidden = tuple(name for name in history.names if name.snapshot != names[1])
        history.names = hidden
        from unittest import mock

        chain = History.load(source, VOLUME).chain
        with (
            mock.patch.object(History, "load", side_effect=[history, History.load(other, VOLUME)]),
            mock.patch.object(history, "chain", chain),
        ):
            request = CopyRequest(VOLUME, VOLUME, target.state_dir)
            outcome = run_copy(source, other, request, Silent())
    assert outcome.whole == (names[2],)
    check_whole(story, target, place, names)
    assert [snapshot.kind for snapshot in target.snapshots()] == [
        "full",
        "incremental",
        "full",
        "full",
        "incremental",
    ]


def test_a_chain_that_came_from_elsewhere_is_left_alone(story: Story, place: Path) -> None:
    target = another(place)
    (place / "volume").mkdir()
    (place / "volume/own").write_text("own")
    target.backup()
    with pytest.raises(UsageError, match="did not come from here"):
        copied(story.protected, target)
    copied(story.protected, target, target="other-name")
    with pytest.raises(UsageError, match="same repository"):
        copied(story.protected, story.protected)


def test_a_dry_run_writes_nothing(story: Story, place: Path) -> None:
    target = another(place)
    before = contents(target)
    outcome = copied(story.protected, target, dry_run=True)
    assert outcome.copied == tuple(story.moments) and contents(target) == before


def calls(story: Story, place: Path) -> tuple[list[Call], list[Call]]:
    """Every call to either store of a whole run."""
    target = another(place)
    stores = tuple(FaultyStore(open_store(item.settings)) for item in (story.protected, target))
    copied(story.protected, target, stores=stores)  # type: ignore[arg-type]
    return stores[0].calls, stores[1].calls


def test_what_was_carried_is_not_read_again(story: Story, place: Path) -> None:
    target = another(place)

    def plan(call: Call) -> Fault | None:
        return Fault.PERMANENT if call.method == "put" and "/manifests/" in call.name else None

    with pytest.raises(SmsnapError):
        copied(story.protected, target, stores=(None, FaultyStore(open_store(target.settings), plan)))
    assert ids(target) == []
    outcome = copied(story.protected, target, wanted=frozenset([next(iter(story.moments))]))
    assert outcome.read_bytes < LARGE / 2  # the large chunk is there, and nothing but the journal knows of it
    check_whole(story, target, place, list(story.moments)[:1])


CUTS = [(0, Fault.PERMANENT), (1, Fault.CRASH_AFTER)]
if os.environ.get("SMSNAP_LONG"):
    CUTS += [(1, Fault.LOST), (1, Fault.CRASH)]  # the latter as CRASH_AFTER at the call before


@pytest.mark.parametrize(("side", "fault"), CUTS)
def test_cut_off_at_every_call(story: Story, place: Path, side: int, fault: Fault) -> None:
    names = list(story.moments)
    numbers = range(len(calls(story, place)[side]))
    assert len(numbers) > 10
    for number in numbers:
        target = another(place)
        settings = (story.protected.settings, target.settings)[side]
        faulty = FaultyStore(open_store(settings), {number: fault})
        stores = (faulty, None) if side == 0 else (None, faulty)
        with suppress(Crash, SmsnapError):
            copied(story.protected, target, stores=stores)
        done = ids(target)
        assert done == names[: len(done)]
        assert [*done, *copied(story.protected, target).copied] == names
        assert target.check().findings == ()
        for snapshot in names:
            restored = place / f"{number}-{snapshot}"
            target.restore(restored, snapshot)
            assert differences(story.moments[snapshot], observe(restored)) == []
            shutil.rmtree(restored)
