from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smsnapd.volume.scan import Excludes
from smsnapd.volume.watch import Watcher
from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.walk import Walker
from tests.unit.volume.ext4 import loop_ext4
from tests.unit.volume.watched import KINDS, PATIENCE_S, machine_wide, news, sysctl, watching

pytestmark = [pytest.mark.root, pytest.mark.loop]

LIMITED = """
import json, os, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from smsnapd.volume.watch import Watcher
open("/proc/sys/user/max_inotify_watches", "w").write("100")
root = os.fsencode(sys.argv[1])
watcher = Watcher(poll_interval_s=0.2)
watcher.start(root, "inotify")
hints = watcher.wait(60) and watcher.take()
covered = [hints.covers(b"d%d/x" % i) for i in range(200)]
first = [gap.reason for gap in watcher.gaps], watcher.is_healthy, watcher.unwatched, watcher.kind
open("/proc/sys/user/max_inotify_watches", "w").write("10000")
while not watcher.is_healthy:
    watcher.wait(60)
while watcher.catch_up(60) and watcher.take():
    pass
for i in range(200):
    os.close(os.open(b"%s/d%d/x/file" % (root, i), os.O_CREAT))
assert watcher.catch_up(60)
later = watcher.take()
watcher.stop()
told = sum(later.covers(b"d%d/x" % i) for i in range(200))
print(json.dumps([*first, sum(covered), told]))
"""


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        with loop_ext4(Path(name), "volume") as point:
            yield point


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def break_emitter(watcher: Watcher) -> Any:
    """Have it fail at its next event; the emitter as it was."""
    emitter = emitter_of(watcher)
    emitter._check = lambda *_: 1 / 0
    return emitter


def make_directories(root: Path) -> None:
    for number in range(200):
        (root / f"d{number}" / "x").mkdir(parents=True)


def emitter_of(watcher: Watcher) -> Any:
    assert watcher._observer is not None
    return watcher._observer.emitter


def wait_until_healthy(watcher: Watcher) -> None:
    for _ in range(int(PATIENCE_S * 50)):
        if watcher.is_healthy:
            return
        threading.Event().wait(0.02)
    pytest.fail("it did not recover")


def test_directories_beyond_the_limit_of_watches_are_polled_until_there_is_room(root: Path) -> None:
    make_directories(root)
    # In a user namespace of its own the limit is nobody else's, and the machine's cannot be raised.
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", LIMITED, str(root)]
    if subprocess.run([*command[:3], "true"]).returncode != 0:
        pytest.skip("needs user namespaces")
    done = subprocess.run([*command, os.pathsep.join(sys.path)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    gaps, is_healthy, unwatched, kind, covered, told = json.loads(done.stdout)
    assert len(gaps) == 1
    assert f"{unwatched} of 401 directories" in gaps[0]
    assert unwatched == 301
    assert not is_healthy
    assert kind == "inotify"
    assert covered >= 101
    # With room again all are watched.
    assert told == 200


def test_the_limit_of_watches_is_raised_where_that_is_allowed(root: Path) -> None:
    make_directories(root)
    with machine_wide(), sysctl("fs.inotify.max_user_watches", 100) as limit:
        with watching(root, "inotify") as watcher:
            raised = int(limit.read_text())
            assert watcher.unwatched == 0
        while not is_limited(root, limit):
            pass  # a watcher of another test has met the limit meanwhile, and raised it
    assert raised > 401


def is_limited(root: Path, limit: Path) -> bool:
    """Whether a watcher that may not raise the limit meets it, and says so."""
    limit.write_text("100\n")
    with watching(root, "inotify", raise_limits=False, poll_interval_s=3600) as limited:
        if not limited.unwatched and int(limit.read_text()) > 100:
            return False
        while not limited.gaps:
            threading.Event().wait(0.01)
        assert limited.unwatched > 0
        assert not limited.is_healthy
        return True


def test_an_emitter_that_fails_is_replaced_and_everything_looked_at(root: Path, kind: str) -> None:
    with watching(root, kind) as watcher:
        emitter = break_emitter(watcher)
        (root / "file").touch()
        assert watcher.wait(PATIENCE_S)
        wait_until_healthy(watcher)
        assert emitter_of(watcher) is not emitter
        assert watcher.kind == kind
        assert b"" in watcher.take().subtrees
        assert [gap.reason for gap in watcher.gaps] == ["division by zero"]
        (root / "file2").touch()
        assert news(watcher).directories == {b""}


def test_a_reader_that_dies_is_replaced(root: Path) -> None:
    (root / "a").mkdir()
    with watching(root, "inotify") as watcher:
        emitter_of(watcher)._tree._on_name = lambda *_: 1 / 0
        (root / "a" / "file").touch()
        while not watcher.gaps:
            threading.Event().wait(0.01)
        wait_until_healthy(watcher)
        assert "division by zero" in watcher.gaps[0].reason
        (root / "a" / "file2").touch()
        assert news(watcher).covers(b"a")


def test_an_observer_that_dies_is_replaced(root: Path, kind: str) -> None:
    with watching(root, kind) as watcher:
        observer: Any = watcher._observer
        observer.dispatch_events = lambda _: 1 / 0
        (root / "file").touch()
        (root / "file").write_bytes(b"twice, since one event is under way already")
        assert not watcher.catch_up(PATIENCE_S) or watcher.gaps
        wait_until_healthy(watcher)
        (root / "file2").touch()
        assert news(watcher).covers(b"")


def test_what_fails_again_and_again_gives_way(root: Path) -> None:
    with watching(root, "auto") as watcher:
        kinds = [watcher.kind]
        while kinds[-1] != "poll":
            known = len(watcher.gaps)
            break_emitter(watcher)
            (root / "file").write_bytes(b"x")
            while len(watcher.gaps) == known:
                threading.Event().wait(0.01)
            wait_until_healthy(watcher)
            kinds.append(watcher.kind)
        assert kinds == ["fanotify"] * 3 + ["inotify"] * 3 + ["poll"]
        assert len(watcher.gaps) == 6
        assert watcher.take().subtrees == {b""}


def test_a_root_that_is_gone_is_waited_for(root: Path, kind: str) -> None:
    home = root / "home"
    home.mkdir()
    with watching(home, kind) as watcher:
        emitter = emitter_of(watcher)  # it may fail by itself: another test's mounts make it look
        home.rmdir()
        if kind == "fanotify":
            emitter._identity._next_look_s = 0.0
            emitter.on_thread_stop()
        while not watcher.gaps:
            threading.Event().wait(0.01)
        assert not watcher.catch_up(0.01)
        home.mkdir()
        wait_until_healthy(watcher)
        assert watcher.take().subtrees == {b""}
        (home / "file").touch()
        assert news(watcher).directories == {b""}


def test_stopping_while_there_is_no_root_does_not_hang(root: Path, kind: str) -> None:
    home = root / "home"
    home.mkdir()
    with watching(home, kind) as watcher:
        emitter = emitter_of(watcher)
        home.rmdir()
        emitter.fail("no more")
        while watcher._observer is not None:
            threading.Event().wait(0.01)
    assert not watcher.is_healthy


def test_a_poll_loses_no_hint_that_nobody_has_collected(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    with watching(root, "inotify") as watcher:
        tree = emitter_of(watcher)._tree
        with tree._lock:
            above = tree._directories.root.children[b"a"]
            tree._dirty.add(above.children[b"b"])
            tree._walker.polled.add(b"c")
            tree.poll()
            found, _ = tree.collect()
        assert (found.directories, found.subtrees) == ({b"a/b"}, {b"c"})
        (root / "a" / "b" / "file").touch()
        assert news(watcher).directories == {b"a/b"}


def test_a_limit_that_raising_does_not_lift_is_not_raised_without_end(root: Path) -> None:
    make_directories(root)
    asked = []

    def add(path: bytes) -> int:
        asked.append(path)
        if path != os.fsencode(root):
            raise OSError(errno.ENOSPC, "no room")
        return 1

    with machine_wide(), sysctl("fs.inotify.max_user_watches", 10_000) as limit:
        walker = Walker(
            os.fsencode(root), Admission(os.fsencode(root), Excludes()), add, may_raise_limit=True
        )
        walker.walk_all()
        assert int(limit.read_text()) <= 10_000 * 2**4
    assert walker.unwatched == 400
    assert len(walker.polled) == 200


def test_more_polled_subtrees_than_are_worth_it_become_everything(tmp_path: Path) -> None:
    for number in range(1001):
        (tmp_path / f"{number}").mkdir()

    def add(path: bytes) -> int:
        if path != os.fsencode(tmp_path):
            raise OSError(errno.ENOSPC, "no room")
        return 1

    root = os.fsencode(tmp_path)
    walker = Walker(root, Admission(root, Excludes()), add, may_raise_limit=False)
    walker.walk_all()
    assert walker.polled == {b""}
    assert walker.unwatched == 1001
    assert "1001 of 1002 directories" in walker.shortage()
