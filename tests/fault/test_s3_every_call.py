"""Every request of a backup, a prune and a restore fails once in every way: one run for each (request, way).

The run, or the next one, ends with every reported recovery point restorable and no object wrong. What passes
by itself must not even fail the run. A flipped byte of a listing is left out: S3 has no checksum of one, and
TLS has. `SMSNAP_LONG=1` is all of them, otherwise it is one request for each way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import PruneRequest, run_prune
from smsnapd.errors import SmsnapError, StoreError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.memory import MemoryStore, open_memory
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store, open_s3
from tests.conftest import sdk_data
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.fault.proxy import (
    Answer,
    BlackHole,
    CutResponse,
    FaultProxy,
    FlipRequest,
    FlipResponse,
    LoseResponse,
    Request,
    ResetRequest,
)
from tests.fault.proxy import Fault as NetworkFault
from tests.fault.small import Objects, store_of
from tests.property.observed import Observed, differences, observe
from tests.property.protected import VOLUME, Protected
from tests.property.pruned import GRACE_S, Pruned, puts_manifest
from tests.servers import S3Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

LONG = "SMSNAP_LONG" in os.environ
DAY_S = 86400.0
LOCK_DAYS = 30
PRUNED_AT_S = 31 * DAY_S
"""All locks are over then, and so is the grace: what is needed is locked anew, and what is not deleted."""


@dataclass(frozen=True)
class Way:
    """How a request fails; `passes` by itself, when it is made again. `methods`: those that it can befall."""

    fault: NetworkFault
    passes: bool
    methods: tuple[str, ...] = ("PUT", "GET", "LIST", "HEAD", "DELETE")

    def befalls(self, request: Request) -> bool:
        return ("LIST" if is_list(request) else request.method) in self.methods


def is_list(request: Request) -> bool:
    return request.method == "GET" and ("list-type=2" in request.path or "uploads" in request.path)


KMS = "User is not authorized to perform: kms:GenerateDataKey on the resource"
WAYS = {
    "slow down": Way(Answer(503, "SlowDown"), True),
    "internal error": Way(Answer(500, "InternalError"), True),
    "timeout": Way(BlackHole(), True),
    "reset": Way(ResetRequest(0), True, ("PUT",)),
    "reset amid the body": Way(ResetRequest(100), True, ("PUT",)),
    "lost answer": Way(LoseResponse(), True),
    "truncated": Way(CutResponse(60), True, ("GET", "LIST")),
    "conflict": Way(Answer(409, "ConditionalRequestConflict"), True, ("PUT",)),
    "flipped on the way up": Way(FlipRequest(70), True, ("PUT",)),
    "flipped on the way down": Way(FlipResponse(70), True, ("GET",)),
    "denied": Way(Answer(403, "AccessDenied", "User is not authorized"), False),
    "no bucket": Way(Answer(404, "NoSuchBucket"), False),
    "expired": Way(Answer(400, "ExpiredToken"), True),
    "no key": Way(Answer(403, "AccessDenied", KMS), False, ("PUT", "GET", "HEAD")),
    "disabled key": Way(Answer(400, "KMS.DisabledException"), False, ("PUT", "GET")),
}


class OnceProxy(FaultProxy):
    """The request with one number meets a fault."""

    number = -1
    fault: NetworkFault | None = None

    def arm(self, number: int, fault: NetworkFault | None) -> None:
        """Count anew; the request with this number meets `fault`."""
        self.seen.clear()
        self.number, self.fault = number, fault

    def befalls(self, request: Request) -> NetworkFault | None:
        return self.fault if len(self.seen) == self.number + 1 else None


@dataclass(frozen=True)
class Scene:
    """A chain of three, an edit that is not stored yet, garbage on a list, and what must come back."""

    server: S3Server
    bucket: str
    protected: Protected
    objects: Objects
    moments: dict[str, Observed]
    needed: frozenset[str]
    contents: dict[bytes, str]
    """Hashes of the files of the newest recovery point."""

    @property
    def newest(self) -> Observed:
        return list(self.moments.values())[-1]

    def put_up(self, place: Path) -> Protected:
        """The same repository and local state, elsewhere."""
        prefix = uuid.uuid4().hex
        settings = replace(self.protected.settings, url=f"s3://{self.bucket}/{prefix}")
        with closing(open_s3(replace(settings, object_lock=""))) as store, ThreadPoolExecutor(8) as threads:
            list(threads.map(store.put, *zip(*self.objects.items(), strict=True)))
        shutil.copytree(self.protected.state_dir, place / "state")
        return replace(self.protected, settings=settings, state_dir=place / "state")


@dataclass
class Run:
    """One verb on a scene that was put up anew, through the proxy."""

    scene: Scene
    proxy: OnceProxy
    place: Path
    protected: Protected = field(init=False)
    reported: set[str] = field(default_factory=set)
    is_restored: bool = False

    def __post_init__(self) -> None:
        self.place.mkdir()
        self.protected = self.scene.put_up(self.place)

    def do(self, verb: str, number: int = -1, way: Way | None = None) -> list[Request]:
        """Do it; it may fail, and must not if what befalls it passes. Returns what was asked."""
        reading_s = 5.0 if way is not None and isinstance(way.fault, BlackHole) else 60.0
        settings = replace(
            self.protected.settings, endpoint_url=self.proxy.endpoint, read_timeout_s=reading_s
        )
        self.proxy.arm(number, way and way.fault)
        try:
            with closing(open_s3(settings, Backoff(5, sleep=lambda _: None))) as store:
                getattr(self, verb)(replace(self.protected, settings=settings), store)
        except SmsnapError as error:
            assert way is not None and not way.passes, error
            assert not (isinstance(error, StoreError) and error.transient), error
        return list(self.proxy.seen)

    def backup(self, protected: Protected, store: S3Store) -> None:
        outcome = protected.backup(store=store, workers=0, attach=False)
        if outcome.snapshot is not None:
            self.reported.add(outcome.snapshot.id)

    def prune(self, protected: Protected, store: S3Store) -> None:
        now = store.now
        store.now = lambda: now() + PRUNED_AT_S  # type: ignore[method-assign]
        request = PruneRequest(VOLUME, GRACE_S, state_dir=protected.state_dir, lock_s=LOCK_DAYS * DAY_S)
        with protected.repository(store) as repository:
            (pruned,) = run_prune(repository, request, Silent()).volumes
        if (error := pruned.error or pruned.lock_error) is not None:
            raise error

    def restore(self, protected: Protected, store: S3Store) -> None:
        outcome = protected.restore(self.place / "back", store=store, workers=0)
        if outcome.not_restored:
            raise SmsnapError("restore", outcome.not_restored[0].reason)
        self.is_restored = True

    # --- what holds after each

    def verify(self, verb: str) -> None:
        """Nothing is wrong now; and after the next run, undisturbed, everything is as it must be."""
        self.nothing_half_written()
        if not self.is_restored:
            self.do(verb)
        with closing(open_s3(self.protected.settings)) as store:
            objects = {info.name: store.get(info.name) for info in store.list("")}
        self.objects_are_right(verb, objects)
        memory = store_of(objects)
        assert self.protected.check(store=memory).findings == ()
        self.everything_comes_back(verb, memory)
        shutil.rmtree(self.place)

    def nothing_half_written(self) -> None:
        whole = self.scene.newest
        for path in (self.place / "back").rglob("*"):
            name = bytes(path.relative_to(self.place / "back"))
            if path.is_file() and not path.is_symlink() and name in whole:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == self.scene.contents[name], name

    def objects_are_right(self, verb: str, objects: Objects) -> None:
        lease = names.lease_name(VOLUME)
        for name, data in self.scene.objects.items():
            assert name == lease or objects.get(name, data) == data, name
        gone = set(self.scene.objects) - set(objects)
        assert not gone & self.scene.needed
        assert bool(gone) == (verb == "prune")

    def everything_comes_back(self, verb: str, memory: MemoryStore) -> None:
        with self.protected.repository(memory) as repository:
            listed = [name.snapshot for name in History.load(repository, VOLUME).names]
        assert listed[: len(self.scene.moments)] == list(self.scene.moments)
        assert self.reported <= set(listed)
        assert (len(listed) > len(self.scene.moments)) == (verb == "backup")
        now = observe(self.protected.root)
        for snapshot in listed:
            target = self.place / f"restored-{snapshot}"
            assert self.protected.restore(target, snapshot, store=memory, workers=0).not_restored == ()
            assert differences(self.scene.moments.get(snapshot, now), observe(target)) == []
        if verb == "restore":
            assert differences(self.scene.newest, observe(self.place / "back")) == []


# --- the scene


def make_scene(server: S3Server, place: Path, bucket: str) -> Scene:
    """Small files in chunks that are objects, a chunk in a manifest, and what two runs left that died."""
    root = place / "volume"
    (root / "directory").mkdir(parents=True)
    protected = Protected.create(root, place / "state", StoreSettings(f"memory://{uuid.uuid4().hex}"))
    memory = open_store(protected.settings)
    moments: dict[str, Observed] = {}
    for number in range(3):
        (root / "directory" / f"file-{number}").write_bytes(os.urandom(20_000))
        (root / "file").write_text(f"content {number}")
        outcome = protected.backup(attach=number == 2)
        assert outcome.snapshot is not None
        moments[outcome.snapshot.id] = observe(root)
        dying = FaultyStore(memory, lambda call: Fault.CRASH if puts_manifest(call) else None)
        (root / f"never-{number}").write_bytes(os.urandom(9_000))
        if number:
            with pytest.raises(Crash):
                protected.backup(store=dying, attach=False)
        (root / f"never-{number}").unlink()
    contents = {
        bytes(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }
    pruned = Pruned(protected, open_memory(memory.url.removeprefix("memory://")))
    needed = frozenset(pruned.needed())
    assert pruned.prune().listed.objects > 4
    (root / "file").write_text("not stored yet")
    (root / "directory" / "file-1").unlink()
    (root / "added").write_bytes(os.urandom(30_000))
    objects = {info.name: memory.get(info.name) for info in memory.list("")}
    settings = StoreSettings(f"s3://{bucket}", server.region, server.endpoint, path_style=True)
    settings = replace(settings, object_lock="GOVERNANCE", object_lock_days=LOCK_DAYS)
    here = replace(protected, settings=settings)
    return Scene(server, bucket, here, objects, moments, needed, contents)


@pytest.fixture(scope="module", autouse=True)
def _credentials(seaweed: S3Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setattr("botocore.session.create_loader", lambda *_: sdk_data())
        yield


@pytest.fixture(scope="module")
def scene(seaweed: S3Server, memory: Path) -> Scene:
    bucket = f"locked-{uuid.uuid4().hex}"
    with closing(seaweed.client()) as client:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smsnapd.repository.access.make_keyslot", cheap)
        return make_scene(seaweed, memory / "scene", bucket)


@pytest.fixture(scope="module")
def proxy(seaweed: S3Server) -> Iterator[OnceProxy]:
    with OnceProxy(seaweed.endpoint) as proxy:
        yield proxy


VERBS = ("backup", "prune", "restore")
KINDS = {
    "backup": {"GET", "LIST", "PUT"},
    "prune": {"GET", "LIST", "PUT", "HEAD", "DELETE"},
    "restore": {"GET", "LIST"},
}


@pytest.fixture(scope="module")
def asked(scene: Scene, proxy: OnceProxy, memory: Path) -> dict[str, list[Request]]:
    """What each verb asks of the server when nothing befalls it."""
    made = {}
    for verb in VERBS:
        run = Run(scene, proxy, memory / f"calm-{verb}")
        made[verb] = run.do(verb)
        run.verify(verb)
        kinds = {"LIST" if is_list(request) else request.method for request in made[verb]}
        assert kinds == KINDS[verb]
    return made


PAIRS = [(verb, way) for number, way in enumerate(WAYS) for verb in (VERBS if LONG else [VERBS[number % 3]])]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("verb", "way"), PAIRS)
def test_every_request_fails_once(
    scene: Scene, proxy: OnceProxy, place: Path, asked: dict[str, list[Request]], verb: str, way: str
) -> None:
    fault, requests = WAYS[way], asked[verb]
    befallen = [number for number, request in enumerate(requests) if fault.befalls(request)]
    here = list(WAYS).index(way) * 5 % max(1, len(befallen))
    for number in befallen if LONG else befallen[here : here + 1]:
        run = Run(scene, proxy, place / str(number))
        try:
            run.do(verb, number, fault)
            run.verify(verb)
        except BaseException as error:
            request = requests[number]
            error.add_note(f"request {number} of {verb}: {request.method} {request.path}, {way}")
            raise
