"""What is garbage and what becomes of it, by names alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.engine.prune import plan as plan_module
from smsnapd.engine.prune.plan import LINGER_S, Fate, Needs, Plan, Prints, Standing, referred_by, standing
from smsnapd.format import names
from smsnapd.format.names import GarbageName, ManifestName
from tests.unit.format.test_manifest import MANIFEST, ref
from tests.unit.format.test_prune_garbage import LIST

VOLUME = "home"
HOUR_S = 3600.0
GRACE_S = 72 * HOUR_S


def chunk(label: int, key: bytes) -> str:
    return names.chunk_name(VOLUME, ref(label).name_hash, key)


K, L = b"k" * 16, b"l" * 16
CHUNK, OTHER = chunk(1, K), chunk(2, K)
KEY = names.data_key_name(VOLUME, K)


class Seen:
    """A plan, asked in the order of names."""

    def __init__(
        self, present: list[str], *, needs: Needs | None = None, waiting: Any = (), ripe: Any = ()
    ) -> None:
        prints = Prints(), Prints()
        prints[0].add(waiting)
        prints[1].add(ripe)
        self.plan = Plan(needs or Needs(), *prints)
        self.fates = {name: self.plan.fate(name, item(name), 4096) for name in sorted(present)}

    def doomed(self, name: str) -> bool:
        return self.plan.doomed(name, item(name))


def item(name: str) -> names.Disposable:
    found = names.parse_disposable(name)
    assert found is not None
    return found


def needed(*manifests: Any, fenced: tuple[ManifestName, ...] = ()) -> Needs:
    needs = Needs()
    needs.exist([one.name for one in manifests], fenced)
    for one in manifests:
        needs.add(referred_by(one))
    return needs


def manifest(*chunks: Any, catalog: tuple[Any, ...] = (), sequence: int = 5) -> Any:
    return replace(
        MANIFEST,
        name=MANIFEST.name._replace(volume=VOLUME, sequence=sequence),
        chunks=chunks,
        catalog=catalog,
    )


def test_what_a_manifest_names_is_needed_and_all_else_is_new() -> None:
    one = manifest(ref(1, K), catalog=(ref(9, b"w" * 16),))
    catalog = names.catalog_name(VOLUME, ref(9).name_hash, b"w" * 16)
    orphan = names.catalog_name(VOLUME, ref(9).name_hash, b"v" * 16)
    seen = Seen(
        [
            *(
                CHUNK,
                OTHER,
                chunk(1, L),
                KEY,
                names.data_key_name(VOLUME, K, 2),
                names.data_key_name(VOLUME, L),
            ),
            *(catalog, orphan, one.name.object_name(), one.name._replace(generation=1).object_name()),
        ],
        needs=needed(one),
    )
    new = {name for name, fate in seen.fates.items() if fate is Fate.NEW}
    assert new == {
        *(OTHER, chunk(1, L), names.data_key_name(VOLUME, L), orphan),
        one.name._replace(generation=1).object_name(),
    }
    assert {fate for name, fate in seen.fates.items() if name not in new} == {Fate.NEEDED}


def test_what_is_attached_to_a_manifest_that_stays_need_not_be_an_object() -> None:
    host = manifest(sequence=4).name
    one = manifest(ref(1, K, manifest=host.object_name(), offset=0))
    needs = Needs()
    needs.exist([host, one.name], ())
    needs.add(referred_by(one))
    seen = Seen([CHUNK, KEY, host.object_name()], needs=needs)
    assert seen.fates == {CHUNK: Fate.NEW, KEY: Fate.NEEDED, host.object_name(): Fate.NEEDED}
    assert needs.wanted() == set()


def test_what_is_attached_to_another_must_become_one_and_then_that_may_go() -> None:
    host = MANIFEST.name._replace(volume=VOLUME, sequence=4, generation=1)
    one = manifest(ref(1, K, manifest=host.object_name(), offset=0))
    present = [CHUNK, KEY, host.object_name()]
    needs = needed(one, fenced=(host,))
    assert set(Seen(present, needs=needs).fates.values()) == {Fate.NEEDED}
    assert needs.wanted_of(host.object_name()) == needs.wanted() == {CHUNK}
    needs.release(host.object_name())
    assert needs.wanted() == set()
    freed = {CHUNK: Fate.NEEDED, KEY: Fate.NEEDED, host.object_name(): Fate.NEW}
    assert Seen(present, needs=needs).fates == freed
    needs.add(referred_by(one))
    assert Seen(present, needs=needs).fates == freed
    needs.add(referred_by(manifest(ref(2, K, manifest=host.object_name(), offset=4096))))
    assert needs.wanted_of(host.object_name()) == {CHUNK, OTHER}
    seen = Seen(present[:2], needs=needed(one))
    assert seen.fates == {CHUNK: Fate.NEEDED, KEY: Fate.NEEDED}


def test_garbage_waits_for_its_grace_and_is_doomed_then() -> None:
    assert Seen([CHUNK], waiting=[CHUNK]).fates == {CHUNK: Fate.WAITING}
    seen = Seen([CHUNK, OTHER], ripe=[CHUNK])
    assert seen.fates == {CHUNK: Fate.RIPE, OTHER: Fate.NEW}
    assert seen.doomed(CHUNK) and not seen.doomed(OTHER)
    assert not Seen([], ripe=[CHUNK]).doomed(CHUNK)
    assert not Seen([CHUNK], ripe=[CHUNK], needs=needed(manifest(ref(1, K)))).doomed(CHUNK)
    assert seen.plan.deleted(CHUNK, item(CHUNK)) == 4096
    assert not seen.doomed(CHUNK)


def test_what_was_needed_after_all_is_not_doomed() -> None:
    needs = Needs()
    seen = Seen([CHUNK], ripe=[CHUNK], needs=needs)
    assert seen.doomed(CHUNK)
    needs.add(referred_by(manifest(ref(1, K))))
    assert not seen.doomed(CHUNK)


def test_a_data_key_goes_with_the_last_chunk_that_names_it() -> None:
    seen = Seen([CHUNK, OTHER, KEY], ripe=[CHUNK, OTHER, KEY])
    assert seen.fates[KEY] is Fate.RIPE
    for name in (CHUNK, OTHER):
        assert not seen.doomed(KEY)
        seen.plan.deleted(name, item(name))
    assert seen.doomed(KEY)
    seen = Seen([CHUNK, OTHER, KEY], ripe=[CHUNK, KEY], waiting=[OTHER])
    assert seen.fates[KEY] is Fate.NEW
    assert not seen.doomed(KEY)
    assert Seen([CHUNK, KEY], ripe=[KEY], waiting=[CHUNK, KEY]).fates[KEY] is Fate.WAITING


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_fingerprints_that_are_all_the_same_cost_garbage_and_nothing_else(
    present: set[int], need: set[int], ripe: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_print_of", lambda name: 7)
        needs = needed(manifest(*(ref(label, K) for label in need)))
        seen = Seen(
            [chunk(label, K) for label in present], needs=needs, ripe=[chunk(label, K) for label in ripe]
        )
        assert not any(seen.doomed(chunk(label, K)) for label in need)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_fingerprint", lambda one, other: 7)
        needs = needed(manifest(*(ref(label, K) for label in need)))
        seen = Seen([chunk(label, K) for label in present], needs=needs)
        assert not need or set(seen.fates.values()) <= {Fate.NEEDED}


def stands(age_s: float, *, is_revoked: bool = False, grace_s: float = GRACE_S) -> Standing:
    now_s = 1_800_000_000.0
    name = GarbageName(VOLUME, int((now_s - age_s) * 1e6), "0" * 16)
    return standing(replace(LIST, name=name), is_revoked=is_revoked, now_s=now_s, grace_s=grace_s)


def test_a_list_stands_by_its_own_time() -> None:
    assert stands(0) is stands(GRACE_S) is stands(-GRACE_S) is Standing.WAITING
    assert stands(GRACE_S + 1) is stands(2 * GRACE_S) is Standing.RIPE
    assert stands(2 * GRACE_S + 1) is Standing.SPENT
    assert stands(-GRACE_S - 1) is Standing.VOID
    assert stands(GRACE_S + 1, is_revoked=True) is Standing.VOID
    assert stands(1, grace_s=0) is stands(LINGER_S, grace_s=0) is Standing.RIPE
    assert stands(LINGER_S + 1, grace_s=0) is Standing.SPENT
