"""Months of a notebook that holds a write key alone, which is rotated again and again while all is thinned.

What is kept restores with the identity; who was removed, and every key that was, opens and commits nothing.
With SMSNAP_LONG=1 a year.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.retention import Policy
from smsnapd.errors import WrongKeyError
from smsnapd.format.keys import Identity, parse_write_key
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.keyring import Keyring, Rotated
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.property.pruned import HOUR_S, Pruned
from tests.property.test_year import Year

DAYS = 365 if "SMSNAP_LONG" in os.environ else 45
ROTATED_EVERY = 9
POLICY = Policy(keep_within_s=2 * 86400.0, daily=7, weekly=8, monthly=12)


@pytest.fixture
def year(monkeypatch: pytest.MonkeyPatch) -> Iterator[Year]:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_mount() else None) as directory:
        made = Year(Pruned.create(Path(directory)), random.Random(11))
        while len(made.tree) < 60:
            made.write(*made.fresh())
        yield made


class Keys:
    """What the owner does now and then, and what every key that was must not be good for any more."""

    def __init__(self, year: Year) -> None:
        self._pruned = year.pruned
        self._escrow = Identity.generate()
        self._is_in = False
        self.former: list[str] = []

    def _ring(self) -> Keyring:
        credentials = Credentials(recovery_key=self._pruned.protected.recovery_key)
        return Keyring(Repository.open(self._pruned.store, credentials))

    def change(self, number: int) -> None:
        """By turns: a rotation, an escrow that comes, and one that goes."""
        ring = self._ring()
        if number % 3 == 1:
            ring.add_recipient(self._escrow.recipient, "escrow")
            self._is_in = True
        elif number % 3 == 2:
            self._take(ring.remove_recipient(self._escrow.recipient.id))
            self._is_in = False
        else:
            self._take(ring.rotate_writers())

    def _take(self, rotated: Rotated) -> None:
        protected = self._pruned.protected
        self.former.append(protected.write_key_text)
        ((key,), root) = rotated.keys.values(), parse_write_key(protected.write_key_text)[1]
        protected.write_key_text = key.to_text(root)

    def must_hold(self) -> None:
        for text in self.former:
            with pytest.raises(WrongKeyError, match="was revoked"):
                _ = Repository.open(self._pruned.store, Credentials(write_key_text=text)).write_key
        root = self._ring()._repository.root_public.hex()
        credentials = Credentials(recovery_key=self._escrow.recovery_key(), root=root)
        try:
            Repository.open(self._pruned.store, credentials)
        except WrongKeyError:
            assert not self._is_in
        else:
            assert self._is_in


def cut_off(year: Year) -> None:
    """The notebook dies in a run, and the next one goes on."""
    dying = FaultyStore(year.pruned.store, {year.rng.randrange(4, 14): Fault.CRASH})
    with suppress(Crash):
        year.backup(store=dying)


def test_months_with_the_write_key_alone(year: Year) -> None:
    keys = Keys(year)
    for day in range(DAYS):
        for _ in range(2):
            year.pruned.now_s += 12 * HOUR_S
            year.change(5)
            if year.rng.random() < 0.1:
                cut_off(year)
            year.backup(full=year.rng.random() < 0.02)
        if day % ROTATED_EVERY == ROTATED_EVERY - 1:
            keys.change(day // ROTATED_EVERY)
            keys.must_hold()
        prune(year)
    assert len(keys.former) >= 2
    report = year.pruned.protected.check(store=year.pruned.store)
    assert report.findings == () and report.opened
    assert year.pruned.protected.check(store=year.pruned.store, write_key=True).findings == ()
    for snapshot in year.moments:
        year.lists(snapshot)
        year.restores(snapshot)


def prune(year: Year) -> None:
    """The daily prune of the daemon, with its write key."""
    done = year.pruned.prune(policy=POLICY, state_dir=None)
    assert done.error is None
    with year.pruned.protected.repository() as repository:
        there = {name.snapshot for name in year.history(repository).names}
    # A run that died behind its commit has made a point that nobody was told of: it may be there.
    year.moments = {snapshot: tree for snapshot, tree in year.moments.items() if snapshot in there}
    assert year.moments
