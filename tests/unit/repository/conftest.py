"""Keyslots that open at once."""

from __future__ import annotations

from functools import partial

import pytest

from smsnapd.format.keyslot import Argon2Cost, make_keyslot


@pytest.fixture(autouse=True)
def _cheap_keyslots(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
