"""Manifests that are got several at once: the same history, and the same complaints."""

from __future__ import annotations

import threading

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.lookback.versions import read_versions
from smsnapd.errors import DamageError
from smsnapd.store.memory import open_memory
from tests.fault.faulty import FaultyStore
from tests.property.protected import VOLUME, Protected


@pytest.fixture
def far(protected: Protected) -> Protected:
    """Forty recovery points."""
    for number in range(40):
        (protected.root / f"file-{number % 5}").write_bytes(b"%d" % number)
        protected.backup()
    return protected


def test_it_is_the_same(far: Protected, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    two_at_once = threading.Barrier(2)
    store = open_memory(far.settings.url.removeprefix("memory://"))
    get = store.get

    def noted(name: str) -> bytes:
        thread = threading.current_thread().name
        if thread.startswith("manifests") and thread not in threads:
            threads.add(thread)
            if len(threads) <= 2:
                two_at_once.wait(60)  # in memory one might have got them all before another begins
        return get(name)

    monkeypatch.setattr(store, "get", noted)
    with far.repository(store) as repository:
        history = History.load(repository, VOLUME)
        found, unread = read_versions(repository, history, bool, lambda one, other: False)
        assert unread == [] and sum(map(len, found.values())) == 40
        assert len(history.snapshots) == 40 and history.damaged == ()
        assert len(history.chain(history.names[-1].snapshot)) > 1
    assert len(threads) > 1


def test_what_is_damaged_is_told_by_record(far: Protected) -> None:
    store = open_memory(far.settings.url.removeprefix("memory://"))
    with far.repository(store) as repository:
        names = History.load(repository, VOLUME).names
        store.delete(names[7].object_name())
        again = History.load(repository, VOLUME)
        again.names = names
        again.load_ahead(names)
        with pytest.raises(DamageError, match="the object is missing"):
            again.record(names[7])
        assert again.record(names[8]).name == names[8]


def test_to_search_a_history_is_one_request_a_recovery_point(far: Protected) -> None:
    store = open_memory(far.settings.url.removeprefix("memory://"))
    watched = FaultyStore(store, lambda call: None)
    with far.repository(watched) as repository:
        before = len(watched.calls)
        history = History.load(repository, VOLUME)
        read_versions(repository, history, bool, lambda one, other: False)
        gets = [call.name for call in watched.calls[before:] if call.method == "get"]
    assert len(gets) <= 40 + 2
