"""A protected volume whose store's clock is ours, prunes of it, and what is needed by another reckoning."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import PruneRequest, VolumePruned, run_prune
from smsnapd.engine.retention import Policy
from smsnapd.errors import StoreError
from smsnapd.format import names
from smsnapd.store import Store, StoreSettings
from smsnapd.store.memory import MemoryStore, open_memory
from tests.fault.faulty import Call, Crash, Fault, FaultyStore
from tests.property.observed import Observed, differences, observe
from tests.property.protected import VOLUME, Protected

HOUR_S = 3600.0
GRACE_S = 72 * HOUR_S
MANIFESTS = names.manifests_prefix(VOLUME)


def puts_manifest(call: Call) -> bool:
    return call.method == "put" and call.name.startswith(MANIFESTS)


@dataclass
class Pruned:
    """The volume; `now_s` is what the store's clock says; `moments` what must be restorable."""

    protected: Protected
    store: MemoryStore
    now_s: float = 1_800_000_000.0
    moments: dict[str, Observed] = field(default_factory=dict)

    @classmethod
    def create(cls, top: Path) -> Pruned:
        (top / "volume").mkdir()
        name = uuid.uuid4().hex
        store = open_memory(name)
        made = cls(Protected.create(top / "volume", top / "state", StoreSettings(f"memory://{name}")), store)
        store._clock = lambda: made.now_s
        return made

    @property
    def root(self) -> Path:
        return self.protected.root

    def passes(self, hours: float) -> None:
        self.now_s += hours * HOUR_S

    def settle(self) -> None:
        """What was written is old enough for one run to store just what the next one would."""
        time.sleep(0.03)

    def backup(self, **more: Any) -> str | None:
        """One run that is reported."""
        outcome = self.protected.backup(**{"attach": False, **more})
        if outcome.snapshot is None:
            return None
        self.moments[outcome.snapshot.id] = observe(self.root)
        return outcome.snapshot.id

    def cut_off(
        self, plan: Callable[[Call], bool] = puts_manifest, fault: Fault = Fault.CRASH, **more: Any
    ) -> None:
        """One run that fails at the call that `plan` picks; by default it dies before its manifest.

        One that does not die keeps a journal of what it has stored.
        """
        dying = FaultyStore(self.store, lambda call: fault if plan(call) else None)
        try:
            self.protected.backup(store=dying, **{"attach": False, **more})
        except (Crash, StoreError):
            return

    def prune(self, store: Store | None = None, *, write_key: bool = True, **more: Any) -> VolumePruned:
        """One prune, by default as the daemon does it; errors are raised."""
        request = PruneRequest(VOLUME, **{"grace_s": GRACE_S, "state_dir": self.protected.state_dir, **more})
        with self.protected.repository(store or self.store, write_key=write_key) as repository:
            (pruned,) = run_prune(repository, request, Silent()).volumes
        if pruned.error is not None:
            raise pruned.error
        return pruned

    def objects(self) -> set[str]:
        """The volume's objects but its lease and its tags."""
        found = {info.name for info in self.store.list(names.volume_prefix(VOLUME))}
        tags = {name for name in found if name.startswith(names.tags_prefix(VOLUME))}
        return found - tags - {names.lease_name(VOLUME)}

    def lists(self) -> set[str]:
        return {name for name in self.objects() if name.startswith(names.garbage_prefix(VOLUME))}

    def needed(self) -> set[str]:
        """What the manifests that count refer to, and the shortcuts to them."""
        found: set[str] = set()
        with self.protected.repository() as repository:
            history = History.load(repository, VOLUME)
            counting = (*history.names, *history.useful_shortcuts)
            hosts = {name.object_name() for name in counting}
            for name in counting:
                manifest = history.record(name).manifest
                found.add(name.object_name())
                for ref in manifest.chunks:
                    found.add(names.data_key_name(VOLUME, ref.key_id))
                tables = (manifest.chunks, names.chunk_name), (manifest.catalog, names.catalog_name)
                for refs, name_of in tables:
                    for ref in refs:
                        own = name_of(VOLUME, ref.name_hash, ref.key_id)
                        found.add(ref.manifest if ref.manifest in hosts else own)
        return found

    def thin(self, policy: Policy, store: Store | None = None, **more: Any) -> VolumePruned:
        """One prune that lets recovery points go; `moments` are those that stay."""
        done = self.prune(store, policy=policy, **more)
        self.forget_gone()
        return done

    def forget_gone(self) -> None:
        """Recovery points that went need not be restorable any more."""
        with self.protected.repository() as repository:
            there = {name.snapshot for name in History.load(repository, VOLUME).names}
        self.moments = {snapshot: seen for snapshot, seen in self.moments.items() if snapshot in there}

    def sweep_all(self, **more: Any) -> None:
        """Mark, wait, sweep, wait: then there is no garbage, and no list of any."""
        self.prune(**more)
        self.passes(73)
        self.prune()
        assert self.objects() - self.lists() == self.needed()
        self.passes(73)
        self.prune()
        assert self.lists() == set()

    def verify(self, place: Path) -> None:
        """Everything that was reported restores, and the repository is whole."""
        assert self.protected.check(store=self.store).findings == ()
        for number, (snapshot, moment) in enumerate(self.moments.items()):
            target = place / f"restored-{number}-{uuid.uuid4().hex[:6]}"
            assert self.protected.restore(target, snapshot).not_restored == ()
            assert differences(moment, observe(target)) == []
