"""Two writers of one chain, each a real process: one commits at a time, and one that slept loses nothing.

On a directory, and on a real S3 server. What anybody reported is listed and comes back; what was fenced is
no recovery point; and whoever was overtaken says so.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from smsnapd.engine.check import CheckRequest, run_check
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.restore.run import RestoreRequest, run_restore
from smsnapd.errors import ConflictError, LockedError, ObjectMissingError
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.repository import Credentials, Repository
from smsnapd.repository.lease import LEASE_S
from smsnapd.store import StoreSettings, open_store
from tests.e2e.transcript import Notebook
from tests.fault.writer import Child, Reported, Stop, Stopping, Writer, calls_of
from tests.servers import S3Server
from tests.unit.engine.test_backup_races import At

LONG = bool(os.environ.get("SMSNAP_LONG"))
SHORT_S = 1.5
RUNS = 2


@pytest.fixture(autouse=True)
def _cheap_keyslots(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)


@dataclass
class Ground:
    """A repository, and whatever writes to it."""

    place: Path
    settings: StoreSettings
    recovery_key: str
    write_key_text: str

    def writer(self, name: str, volume: str, lease_s: float = LEASE_S) -> Writer:
        """A writer to `volume` that has a directory of its own, as on a machine of its own."""
        return Writer(self.place / volume / name, volume, self.settings, self.write_key_text, lease_s)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Repository]:
        store = open_store(self.settings)
        yield Repository.open(store, Credentials(recovery_key=self.recovery_key))
        store.close()

    def restored(self, repository: Repository, history: History, snapshot: str) -> str:
        """What was in the volume's file at a recovery point."""
        target = self.place / "restored" / snapshot
        target.parent.mkdir(exist_ok=True)
        request = RestoreRequest(bytes(target), workers=0)
        found = history.find(snapshot)
        assert run_restore(repository, self.settings, history, found, request, Silent()).not_restored == ()
        return (target / "file").read_text()

    def verify(self, volume: str, *everyone: Reported) -> History:
        """All that was reported is a recovery point, and every recovery point comes back."""
        reported = {name: content for one in everyone for name, content in one.snapshots.items()}
        with self.opened() as repository:
            history = History.load(repository, volume)
            listed = [snapshot.id for snapshot in history.snapshots]
            assert history.damaged == ()
            assert not {name.snapshot for name in history.fenced} & {*listed, *reported}
            for snapshot in listed:
                content = self.restored(repository, history, snapshot)
                assert content == reported.get(snapshot, content)
        assert set(reported) <= set(listed)
        return history

    def check(self) -> None:
        """Nothing that is not as it was written, in any volume."""
        request = CheckRequest(None, (1, 1), None, self.place / "no-state")
        with self.opened() as repository:
            assert run_check(repository, self.settings, request, Silent()).findings == ()


GROUNDS = ["directory", pytest.param("seaweed", marks=pytest.mark.server)]
LOCKED = pytest.param("locked", marks=pytest.mark.server)
"""SeaweedFS with Object Lock."""


@pytest.fixture(params=GROUNDS)
def ground(request: pytest.FixtureRequest, place: Path, s3_settings: Callable[..., StoreSettings]) -> Ground:
    settings = StoreSettings((place / "repository").as_uri())
    if request.param == "seaweed":
        server: S3Server = request.getfixturevalue("seaweed")
        settings = s3_settings(server, "ready", f"two/{uuid.uuid4().hex}")
    elif request.param == "locked":
        settings = _locked(request.getfixturevalue("seaweed"), s3_settings)
    store = open_store(settings)
    created = Repository.create(store, "a passphrase that nobody needs")
    store.close()
    return Ground(place, settings, created.recovery_key, created.write_key_text)


def _locked(server: S3Server, s3_settings: Callable[..., StoreSettings]) -> StoreSettings:
    """A new bucket with Object Lock, in which everything is locked that may be."""
    bucket = f"locked-{uuid.uuid4().hex}"
    with contextlib.closing(server.client()) as client:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    return s3_settings(server, bucket, "two", object_lock="COMPLIANCE", object_lock_days=1)


# --- asleep, past the lease


@dataclass
class Sleeper:
    """A writer that was stopped, and the rival that takes its place."""

    ground: Ground
    volume: str
    stop: Stop

    def fall_asleep(self) -> None:
        """Begin to write; it stops by itself."""
        writer = self.ground.writer("sleeper", self.volume, SHORT_S)
        self._child = Child(
            lambda: writer.live(Stopping(open_store(writer.settings), self.stop), RUNS, "sleeper")
        )

    def wait(self) -> None:
        assert self._child.wait_until_stopped(), f"{self.stop} was never reached"

    def overtaken(self, *, amid: bool) -> History:
        """Another one takes the lease and commits; the sleeper is woken behind that, or right before."""
        rival = self.ground.writer("rival", self.volume)
        store = Stopping(open_store(rival.settings))
        repository = rival.opened(store)
        tenure = rival.tenure(repository)
        while True:
            with contextlib.suppress(LockedError):
                tenure.begin()
                break
            time.sleep(0.1)  # until the lease is over, by the store's clock
        said: list[Reported] = []
        ours = Reported()
        waking = At(commit=lambda: said.append(self._wake())) if amid else Silent()
        ours.snapshots[rival.back_up(tenure, repository, "rival-0", waking)] = "rival-0"
        if not amid:
            said.append(self._wake())
        # It goes on from what it knows: the sleeper has not moved the head.
        ours.snapshots[rival.back_up(tenure, repository, "rival-1")] = "rival-1"
        tenure.release()
        store.wrapped.close()
        return self._verify(said[0], ours)

    def _wake(self) -> Reported:
        self._child.wake()
        result: Reported = self._child.result()
        return result

    def _verify(self, said: Reported, ours: Reported) -> History:
        history = self.ground.verify(self.volume, said, ours)
        assert (len(said.snapshots) == RUNS) == (said.refusal is None)
        if said.refusal is not None:
            assert said.refusal.exit_status == 11
            assert f"another writer on {socket.gethostname()}" in said.refusal.why
            assert "volume.name" in said.refusal.hint and "--take-over" in said.refusal.hint
        return history

    def end(self) -> None:
        self._child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("ground", [*GROUNDS, *([LOCKED] if LONG else [])], indirect=True)
@pytest.mark.parametrize("amid", [False, True], ids=["behind the rival's commit", "amid the rival's run"])
def test_one_that_slept_past_its_lease_at_any_store_call(ground: Ground, amid: bool) -> None:
    calls = calls_of(ground.writer("counted", "counted"), RUNS)
    assert len(calls) > 12
    is_slow = amid and ground.settings.url.startswith("s3:")
    stops = [Stop(number, after) for number in calls for after in ([False] if is_slow else [False, True])]
    sleepers = [Sleeper(ground, f"v{number}", stop) for number, stop in enumerate(stops)]
    with contextlib.ExitStack() as stack:
        for sleeper in sleepers:
            sleeper.fall_asleep()
            stack.callback(sleeper.end)
        for sleeper in sleepers:
            sleeper.wait()
        histories = [sleeper.overtaken(amid=amid) for sleeper in sleepers]
    # Some woke up right before they put a manifest, and did.
    assert any(history.fenced for history in histories)
    ground.check()


# --- both at once


@dataclass
class Turn:
    """A commit that was reported: from when the lease was held until then, by the machine's clock."""

    snapshot: str
    generation: int
    began_s: float
    ended_s: float


def compete(writer: Writer, name: str, commits: int) -> tuple[Reported, list[Turn], list[str]]:
    """Try again and again, as single runs, until so many commits were made; what was refused meanwhile."""
    store = open_store(writer.settings)
    repository = writer.opened(store)
    reported, turns, refusals = Reported(), list[Turn](), list[str]()
    while len(turns) < commits:
        tenure = writer.tenure(repository)
        try:
            tenure.begin()
            began_s, generation = time.monotonic(), tenure.lease.generation
            content = f"{name}-{len(turns)}"
            snapshot = writer.back_up(tenure, repository, content)
            turns.append(Turn(snapshot, generation, began_s, time.monotonic()))
            reported.snapshots[snapshot] = content
        except LockedError as error:
            refusals.append(str(error))
        finally:
            tenure.release()
        time.sleep(random.random() / 50)
    store.close()
    return reported, turns, refusals


@pytest.mark.slow
@pytest.mark.parametrize("ground", [*GROUNDS, LOCKED], indirect=True)
def test_of_two_at_once_one_commits_at_a_time(ground: Ground) -> None:
    names = ("one", "two")
    children = [Child(partial(compete, ground.writer(name, "contended"), name, commits=5)) for name in names]
    with contextlib.ExitStack() as stack:
        for child in children:
            stack.callback(child.kill)
        results = [child.result() for child in children]
    turns = sorted((turn for _, own, _ in results for turn in own), key=lambda turn: turn.generation)
    assert len(turns) == len({turn.generation for turn in turns}) == 10
    for before, after in pairwise(turns):
        assert before.ended_s <= after.began_s
    history = ground.verify("contended", *(reported for reported, _, _ in results))
    assert [name.snapshot for name in history.names] == [turn.snapshot for turn in turns]
    assert history.fenced == ()
    for _, _, refusals in results:
        for text in refusals:
            assert "has the lease until" in text or "has had the lease meanwhile" in text


def test_a_machine_that_comes_up_with_the_same_name_is_refused_until_it_takes_over(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, with its exit status; the other one's next run is refused then."""
    settings = ground.settings
    more = "".join(
        f"{key} = {value}\n"
        for key, value in (
            ("endpoint_url", f'"{settings.endpoint_url}"'),
            ("region", f'"{settings.region}"'),
            ("path_style", "true"),
        )
        if settings.endpoint_url
    )
    notebook = Notebook(tmp_path / "notebook", settings.url, more)
    notebook.configure(more, 'write_key_file = "write-key"')
    (notebook.place / "write-key").touch(0o600)
    (notebook.place / "write-key").write_text(ground.write_key_text)
    (notebook.volume / "file").write_text("here")
    say = partial(
        notebook.say_alone, AWS_ACCESS_KEY_ID=S3Server("", 0).access_key,
        AWS_SECRET_ACCESS_KEY=S3Server("", 0).secret_key, RUNTIME_DIRECTORY=str(tmp_path / "run"),
    )  # fmt: skip
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "there")
        there.setattr("smsnapd.repository.lease._boot_id", lambda: "another-boot")
        writer = ground.writer("there", "nb")
        store = open_store(settings)
        repository = writer.opened(store)
        tenure = writer.tenure(repository)
        theirs = Reported({writer.back_up(tenure, repository, "there-0"): "there-0"})
    refused = say("--json", "backup")
    assert refused.status == 11
    assert "another writer on there has the lease until" in refused.error["why"], refused.error
    assert "volume.name" in refused.error["hint"] and "smsnap backup --take-over" in refused.error["hint"]
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "there")
        there.setattr("smsnapd.repository.lease._boot_id", lambda: "another-boot")
        theirs.snapshots[writer.back_up(tenure, repository, "there-1")] = "there-1"
        assert say("backup", "--take-over", "--dry-run").status == 2
        taken = say("--json", "backup", "--take-over")
        assert taken.status == 0, taken
        assert "taken over from another writer on there" in taken.err
        with pytest.raises(LockedError, match="has had the lease meanwhile"):
            writer.back_up(tenure, repository, "there-2")
    store.close()
    ours = Reported({taken.json["id"]: "here"})
    history = ground.verify("nb", theirs, ours)
    assert [name.generation for name in history.names] == [1, 1, 2]
    assert [name.sequence for name in history.fenced] == [3]
    ground.check()


def test_replacing_is_atomic_between_processes(place: Path) -> None:
    """In a directory, where flock(2) makes it so; a server is asked for that by the stores' own tests."""
    settings = StoreSettings((place / "repository").as_uri())

    def count(times: int) -> int:
        store, conflicts = open_store(settings), 0
        while times:
            try:
                content, version = store.get_versioned("volumes/nb/lease")
            except ObjectMissingError:
                content, version = b"0", None
            with contextlib.suppress(ConflictError):
                store.replace("volumes/nb/lease", b"%d" % (int(content) + 1), version)
                times -= 1
                continue
            conflicts += 1
        return conflicts

    children = [Child(partial(count, 50)) for _ in range(4)]
    for child in children:
        child.result()
    assert open_store(settings).get("volumes/nb/lease") == b"200"


def test_one_of_this_machine_is_named_by_its_process(ground: Ground) -> None:
    writer = ground.writer("one", "nb")
    store = open_store(ground.settings)
    repository = writer.opened(store)
    tenure = writer.tenure(repository)
    tenure.begin()
    other = replace(writer, place=writer.place.with_name("two"))
    reported: Reported = Child(lambda: other.live(open_store(other.settings), 1, "two")).result()
    assert reported.snapshots == {} and reported.refusal is not None
    assert "(process " in reported.refusal.why and "of this machine) has the lease" in reported.refusal.why
    tenure.release()
    store.close()
