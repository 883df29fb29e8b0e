"""What the end-to-end tests share."""

from functools import partial

import pytest

from smsnapd.format.keyslot import Argon2Cost, make_keyslot


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keyslots that open at once: a guess shall cost 0.35 s of CPU, and here every command makes one."""
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
