"""Random histories with crashes and prunes in them: nothing needed is deleted, and all else is in the end."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smsnapd.engine.prune import shortcuts
from smsnapd.engine.retention import Policy
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.repository.tags import Tagged, put_tag, read_tags
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.property.protected import VOLUME
from tests.property.pruned import Pruned

LONG = "SMSNAP_LONG" in os.environ
EXAMPLES = 200 if LONG else 25

EDIT = st.tuples(st.just("edit"), st.integers(0, 2**32))
BACKUP = st.tuples(st.just("backup"), st.integers(0, 7))
CUT_OFF = st.tuples(st.sampled_from(("cut off", "fails")), st.integers(4, 40))
PRUNE = st.tuples(st.just("prune"), st.just(0))
THIN = st.tuples(st.just("thin"), st.integers(0, 15))
THIN_CUT_OFF = st.tuples(st.just("thin cut off"), st.integers(2, 80))
TAG = st.tuples(st.just("tag"), st.integers(0, 99))
PRUNE_CUT_OFF = st.tuples(st.just("prune cut off"), st.integers(2, 40))
HOURS = st.tuples(st.just("hours"), st.sampled_from((1, 30, 71, 73, 200)))
LOSE = st.tuples(st.just("lose state"), st.just(0))
STEPS = st.lists(
    st.one_of(
        *(
            EDIT,
            EDIT,
            EDIT,
            BACKUP,
            BACKUP,
            BACKUP,
            CUT_OFF,
            CUT_OFF,
            PRUNE,
            THIN,
            THIN,
            PRUNE_CUT_OFF,
            THIN_CUT_OFF,
        ),
        *(TAG, HOURS, HOURS, LOSE),
    ),
    min_size=8,
    max_size=30,
)


def edit(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    place = root / f"file-{rng.randrange(6)}"
    if rng.random() < 0.2:
        place.unlink(missing_ok=True)
    else:
        # Of few contents, so that what was garbage comes again.
        place.write_bytes(random.Random(rng.randrange(4)).randbytes(rng.choice((10, 5000, 60_000))))


def take(pruned: Pruned, name: str, number: int) -> None:
    match name:
        case "edit":
            edit(pruned.root, number)
        case "backup":
            pruned.backup(full=number % 4 == 0, attach=number % 2 == 0)
        case "cut off":
            pruned.cut_off(lambda call: call.number == number, full=number % 3 == 0)
        case "fails":
            pruned.cut_off(lambda call: call.number == number, Fault.PERMANENT, full=number % 3 == 0)
        case "prune":
            pruned.prune()
        case "prune cut off":
            with contextlib.suppress(Crash):
                pruned.prune(FaultyStore(pruned.store, {number: Fault.CRASH_AFTER}))
        case "thin":
            thin(pruned, number)
        case "thin cut off":
            with contextlib.suppress(Crash):
                thin(pruned, number % 2, FaultyStore(pruned.store, {number: Fault.CRASH_AFTER}))
            pruned.forget_gone()
        case "tag":
            tag(pruned, number)
        case "hours":
            pruned.passes(number)
        case "lose state":
            pruned.protected.lose_state()


def thin(pruned: Pruned, number: int, store: FaultyStore | None = None) -> None:
    """By a policy that keeps few, with the identity every other time."""
    policy = Policy(hourly=1 + number // 8, daily=number // 4 % 2)
    pruned.thin(policy, store, write_key=number % 2 == 0)


def tag(pruned: Pruned, number: int) -> None:
    """Give a recovery point a tag, or take the one away that it has."""
    if not pruned.moments:
        return
    tagged = Tagged(list(pruned.moments)[number % len(pruned.moments)], "kept")
    with pruned.protected.repository() as repository:
        has = tagged in read_tags(repository, VOLUME)
        put_tag(repository, VOLUME, tagged, repository.write_key, is_set=not has)


@settings(
    max_examples=EXAMPLES,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(steps=STEPS)
def test_nothing_needed_goes_and_all_else_does(steps: list[tuple[str, int]]) -> None:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    memory = Path("/dev/shm")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=memory if memory.is_mount() else None) as directory,
    ):
        patch.setattr("smsnapd.repository.access.make_keyslot", cheap)
        patch.setattr(shortcuts, "SPANS", (3, 9))
        pruned = Pruned.create(Path(directory))
        pruned.cut_off()
        for name, number in steps:
            take(pruned, name, number)
        pruned.passes(1)
        edit(pruned.root, 1)
        pruned.backup()
        pruned.sweep_all()
        assert pruned.objects() == pruned.needed()
        pruned.verify(Path(directory))
        shutil.rmtree(pruned.root)
