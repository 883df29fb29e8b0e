"""The judge of recovery points: each path must come back as it was at some moment of the point's own look."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.restore.run import RestoreRequest, run_restore
from smsnapd.errors import DamageError
from smsnapd.format.manifest import Manifest
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings
from tests.fault.daemon.model import Inode, Model, Window
from tests.fault.daemon.seen import Seen, see_below

_MOST_TOLD = 30


class Looked(NamedTuple):
    """A recovery point: the moment that it stands for, in seconds of the wall clock, and how it looked."""

    begin_s: float
    method: str


@dataclass
class Judgement:
    """What was found: the points that were looked at, how many paths, and what is wrong with them."""

    points: list[Looked] = field(default_factory=list)
    paths: int = 0
    missed: int = 0
    wrong: list[str] = field(default_factory=list)

    def count(self, method: str) -> int:
        """How many points looked so."""
        return sum(point.method == method for point in self.points)

    def __str__(self) -> str:
        counted = Counter(point.method for point in self.points)
        methods = ", ".join(f"{count} by {method}" for method, count in sorted(counted.items()))
        return f"{len(self.points)} points ({methods}), {self.paths} paths, {self.missed} named as missed"


def judge(
    store: Store, settings: StoreSettings, credentials: Credentials, volume: str, model: Model, place: Path
) -> Judgement:
    """Restore every recovery point to `place`, one after the other, and hold it against the model.

    AssertionError with what is wrong, and when it was how.
    """
    found = Judgement()
    repository = Repository.open(store, credentials)
    try:
        history = History.load(repository, volume)
        assert not history.damaged and not history.fenced
        for before, after in pairwise(history.names):
            assert after.sequence == before.sequence + 1, "a gap in the chain"
        present = model.present(name.time_us * 1000 for name in history.names)
        for name, there in zip(history.names, present, strict=True):
            target = place / "point"
            request = RestoreRequest(os.fsencode(target))
            try:
                restored = run_restore(
                    repository, settings, history, history.find(name.snapshot), request, Silent()
                )
            except DamageError as error:
                found.wrong.append(f"{history.record(name).manifest.completeness.method} {name}: {error}")
                continue
            assert not restored.not_restored, restored.not_restored
            _Point(history.record(name).manifest, model, found).judge(os.fsencode(target), there)
            shutil.rmtree(target)
    finally:
        repository.close()
    text = "\n".join([*found.wrong[:_MOST_TOLD], f"{len(found.wrong)} wrong in {found}"])
    assert not found.wrong, text
    return found


class _Point:
    """One recovery point."""

    def __init__(self, manifest: Manifest, model: Model, found: Judgement) -> None:
        name, how = manifest.name, manifest.completeness
        self._name = f"{name.kind} {name.sequence} by {how.method}"
        self._model = model
        self._found = found
        self._manifest = manifest
        self._missed = {issue.path for issue in how.incomplete}
        self._window = Window(name.time_us * 1000, manifest.finished_us * 1000 + 1000, how.method == "events")
        found.points.append(Looked(name.time_us / 1e6, how.method))
        found.missed += len(self._missed)

    def judge(self, target: bytes, there: set[bytes]) -> None:
        """`there` are the paths that were there when the point's look began: others may be missing."""
        seen, numbers = see_below(target)
        groups: dict[int, list[bytes]] = {}
        for path in seen:
            groups.setdefault(numbers[path], []).append(path)
        for names in groups.values():
            if not self._missed.isdisjoint(names):
                self._missed.update(names)
        for path in seen.keys() | there:
            if path not in self._missed:
                self._judge_path(path, seen.get(path))
        self._judge_groups(seen, numbers, groups)
        files = sum(look.kind == 0o100000 for look in seen.values())
        counted = self._manifest.statistics
        if (counted.files, counted.entries) != (files, len(seen)):
            self._say(f"has {files} files of {len(seen)} and says {counted.files} of {counted.entries}")

    def _judge_path(self, path: bytes, seen: Seen | None) -> None:
        self._found.paths += 1
        possible = self._model.possible(path, self._window)
        if seen is None:
            if None not in possible:
                self._say(f"{path!r} is missing", path)
        elif not any(inode is not None and inode.explains(seen, self._window) for inode in possible):
            self._say(f"{path!r} was never so: {_brief(seen)}", path)

    def _judge_groups(
        self, seen: dict[bytes, Seen], numbers: dict[bytes, int], groups: dict[int, list[bytes]]
    ) -> None:
        """Names that came back as one file must have been one; and those that were all the time must be."""
        stable: dict[Inode, bytes] = {}
        for path in seen:
            possible = self._model.possible(path, self._window)
            names = groups[numbers[path]]
            if len(names) > 1 and path not in self._missed:
                first = set(self._model.possible(names[0], self._window)) - {None}
                if first.isdisjoint(possible):
                    self._say(f"{path!r} and {names[0]!r} were never one file", path, names[0])
            if len(possible) == 1 and possible[0] is not None and path not in self._missed:
                other = stable.setdefault(possible[0], path)
                if numbers[other] != numbers[path]:
                    self._say(f"{path!r} and {other!r} are one file", path, other)

    def _say(self, what: str, *paths: bytes) -> None:
        begin_ns, end_ns, _ = self._window
        lines = [f"{self._name} of {begin_ns}, {(end_ns - begin_ns) / 1e6:.1f} ms: {what}"]
        for path in paths:
            for naming in self._model.names.get(path, [])[-12:]:
                at = f"    {path!r}: {_ms(naming.begin_ns, begin_ns)} to {_ms(naming.done_ns, begin_ns)}"
                lines.append(f"{at} names {id(naming.inode) if naming.inode else None}")
            for inode in self._model.possible(path, self._window):
                for moment in inode.during(self._window) if inode is not None else ():
                    when = f"{_ms(moment.begin_ns, begin_ns)} to {_ms(moment.done_ns, begin_ns)}"
                    lines.append(f"      {id(inode)} {when}: {_brief(moment.seen)}")
        self._found.wrong.append("\n".join(lines[:40]))


def _ms(when_ns: int, begin_ns: int) -> str:
    """A time by the point's begin."""
    return f"{(when_ns - begin_ns) / 1e6:+.3f} ms" if when_ns else "ever"


def _brief(seen: Seen) -> str:
    pages = [page.hex()[:6] for page in seen.content[1][:6]]
    return f"{seen.kind:o} {seen.mode:o} {seen.mtime_ns} {seen.content[0]} {pages} {seen.target!r}"
