"""Object Lock on real servers: what is put is locked, what is needed stays so, the rest goes in time."""

from __future__ import annotations

import json
import math
import os
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError

from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import PruneRequest, VolumePruned, run_prune
from smsnapd.errors import ObjectMissingError, StoreError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings, open_store
from smsnapd.store.iam_policy import Grant, place_of, role_policy
from smsnapd.store.s3 import S3Store, open_s3
from tests.e2e.daemon import eventually
from tests.e2e.transcript import Notebook
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.fault.proxy import FaultProxy
from tests.policies import Guard
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected
from tests.property.pruned import GRACE_S, puts_manifest
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.server

DAY_S = 86400.0
DAYS = 30
CHUNK = "volumes/nb/chunks/ab/1"
LASTING = ["repository", "keys/slots/1", CHUNK, "volumes/nb/manifests/1", "volumes/nb/keys/1"]
PASSING = ["volumes/nb/lease", "volumes/nb/garbage/1"]


class Bucket(NamedTuple):
    """A bucket with Object Lock, and how to look at it with somebody else's eyes."""

    server: S3Server
    settings: StoreSettings

    @property
    def name(self) -> str:
        return self.settings.url.split("/")[2]

    def head(self, name: str) -> Any:
        prefix = self.settings.url.split("/", 3)[3]
        with closing(self.server.client()) as client:
            return client.head_object(Bucket=self.name, Key=f"{prefix}/{name}")

    def left_s(self, name: str, now_s: float) -> float:
        """How long the object is locked yet; 0 if it is not."""
        until = self.head(name).get("ObjectLockRetainUntilDate")
        return 0.0 if until is None else until.timestamp() - now_s


@pytest.fixture(params=["seaweed", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def _cheap_keyslots(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)


@pytest.fixture
def bucket(server: S3Server, s3_settings: Callable[..., StoreSettings]) -> Bucket:
    name = f"locked-{uuid.uuid4().hex}"
    with closing(server.client()) as client:
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    more = {"object_lock": "GOVERNANCE", "object_lock_days": DAYS}
    return Bucket(server, s3_settings(server, name, "team/p", **more))


@pytest.fixture
def locking(bucket: Bucket) -> Iterator[S3Store]:
    with closing(open_s3(bucket.settings)) as store:
        yield store


# --- the store


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_what_lasts_is_locked_when_it_is_put(bucket: Bucket, mode: str, checksums: str) -> None:
    with closing(open_s3(replace(bucket.settings, object_lock=mode, checksums=checksums))) as store:
        for name in LASTING:
            store.put(name, name.encode())
            store.put(name, name.encode())
            assert bucket.head(name)["ObjectLockMode"] == mode
            assert abs(bucket.left_s(name, store.now()) - DAYS * DAY_S) < 60
            assert abs(store.locked_until(name) - store.now() - DAYS * DAY_S) < 60
            assert store.get(name) == name.encode()
        version = store.replace(PASSING[0], b"1", None)
        store.replace(PASSING[0], b"2", version)
        store.put(PASSING[1], b"x")
        assert [store.locked_until(name) for name in PASSING] == [0.0, 0.0]


def test_a_lock_is_extended_and_never_shortened(bucket: Bucket, locking: S3Store) -> None:
    locking.put(CHUNK, b"x")
    now_s = locking.now()
    locking.lock(CHUNK, now_s + 40 * DAY_S)
    assert abs(bucket.left_s(CHUNK, now_s) - 40 * DAY_S) < 2
    locking.lock(CHUNK, now_s + 35 * DAY_S)
    assert abs(bucket.left_s(CHUNK, now_s) - 40 * DAY_S) < 2
    with closing(open_s3(replace(bucket.settings, object_lock="COMPLIANCE"))) as other:
        other.lock(CHUNK, now_s + 50 * DAY_S)
    assert bucket.head(CHUNK)["ObjectLockMode"] == "GOVERNANCE"
    assert abs(bucket.left_s(CHUNK, now_s) - 50 * DAY_S) < 2


def test_what_extends_a_lock_bears_both_sums(bucket: Bucket) -> None:
    with FaultProxy(bucket.server.endpoint) as proxy:
        with closing(open_s3(replace(bucket.settings, endpoint_url=proxy.endpoint))) as store:
            store.put(CHUNK, b"x")
            store.lock(CHUNK, store.now() + 40 * DAY_S)
        (request,) = (request for request in proxy.seen if request.path.endswith("retention"))
    assert {"content-md5", "x-amz-checksum-crc32"} <= set(request.headers)


def test_one_that_is_not_locked_is_locked(bucket: Bucket, locking: S3Store) -> None:
    with closing(open_s3(replace(bucket.settings, object_lock=""))) as plain:
        plain.put(CHUNK, b"x")
        assert plain.locked_until(CHUNK) == 0.0
        with pytest.raises(StoreError, match="no Object Lock is configured"):
            plain.lock(CHUNK, plain.now() + DAY_S)
    locking.lock(CHUNK, locking.now() + DAY_S)
    assert bucket.head(CHUNK)["ObjectLockMode"] == "GOVERNANCE"


def test_a_legal_hold_has_no_end(bucket: Bucket, locking: S3Store) -> None:
    locking.put(CHUNK, b"x")
    with closing(bucket.server.client()) as client:
        key = f"team/p/{CHUNK}"
        client.put_object_legal_hold(Bucket=bucket.name, Key=key, LegalHold={"Status": "ON"})
    assert locking.locked_until(CHUNK) == math.inf


def test_what_is_not_there_is_missing(locking: S3Store) -> None:
    for call in (locking.locked_until, lambda name: locking.lock(name, 4e9)):
        with pytest.raises(ObjectMissingError):
            call("volumes/nb/chunks/none")


def test_a_bucket_without_locks_refuses_and_says_what_to_do(
    server: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    more = {"object_lock": "GOVERNANCE", "object_lock_days": 1}
    with closing(open_s3(s3_settings(server, prefix="p", **more))) as store:
        assert not store.can_lock()
        with pytest.raises(StoreError) as caught:
            store.put(CHUNK, b"x")
    assert not caught.value.transient
    assert "object_lock" in caught.value.hint


def test_a_bucket_without_versions_is_asked_once(
    server: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(server, prefix="p")
    with FaultProxy(server.endpoint) as proxy:
        with closing(open_s3(replace(settings, endpoint_url=proxy.endpoint))) as store:
            store.put(CHUNK, b"x")
            assert [store.locked_until(CHUNK) for _ in range(3)] == [0.0] * 3
        assert proxy.count("HEAD") == 1


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_other_stores(kind: str, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}" if kind == "memory" else (tmp_path / "objects").as_uri()
    with closing(open_store(StoreSettings(url))) as store:
        store.put("a", b"x")
        assert store.locked_until("a") == 0.0
        if kind == "directory":
            with pytest.raises(StoreError, match="a directory has no locks"):
                store.lock("a", 5.0)
        else:
            store.lock("a", 5.0)
            store.lock("a", 3.0)
            assert store.locked_until("a") == 5.0


# --- a repository


@pytest.fixture
def protected(bucket: Bucket, tmp_path: Path) -> Protected:
    """A full and two incrementals; what is reused is of the first."""
    (tmp_path / "volume").mkdir()
    made = Protected.create(tmp_path / "volume", tmp_path / "state", bucket.settings)
    for number in range(3):
        (made.root / f"file-{number}").write_bytes(random.Random(number).randbytes(20_000))
        made.backup(attach=number > 1)
    return made


def test_an_init_that_was_cut_off_is_no_obstacle(bucket: Bucket) -> None:
    """What it left is locked; it is hidden, and made anew."""
    with closing(open_s3(bucket.settings)) as store:
        last = ("put", names.REPOSITORY)
        dying = FaultyStore(store, lambda call: Fault.CRASH if (call.method, call.name) == last else None)
        with pytest.raises(Crash):
            Repository.create(dying, "a passphrase that nobody needs")
        left = {info.name for info in store.list("keys/")}
        assert len(left) == 3 and all(store.locked_until(name) > store.now() for name in left)
        created = Repository.create(store, "a passphrase that nobody needs")
        Repository.open(store, Credentials(recovery_key=created.recovery_key))


def prune(protected: Protected, store: Store | None = None, **more: Any) -> VolumePruned:
    with protected.repository(store) as repository:
        request = PruneRequest(VOLUME, GRACE_S, state_dir=protected.state_dir, lock_s=DAYS * DAY_S, **more)
        (pruned,) = run_prune(repository, request, Silent()).volumes
    assert pruned.error is None and pruned.lock_error is None
    return pruned


def lasting(store: Store) -> list[str]:
    """All objects but leases and lists."""
    return [info.name for info in store.list("") if not info.name.startswith(tuple(PASSING_OF_VOLUME))]


PASSING_OF_VOLUME = [names.lease_name(VOLUME), names.garbage_prefix(VOLUME)]


def at_day(monkeypatch: pytest.MonkeyPatch, day: float, now: Any = S3Store.now) -> None:
    """The store's clock, as everything here takes it from the store."""
    monkeypatch.setattr(S3Store, "now", lambda self: now(self) + day * DAY_S)


def test_every_object_is_locked_and_no_commit_asks_about_it(bucket: Bucket, protected: Protected) -> None:
    with FaultProxy(bucket.server.endpoint) as proxy:
        settings = replace(bucket.settings, endpoint_url=proxy.endpoint)
        (protected.root / "file-1").write_bytes(b"changed")
        replace(protected, settings=settings).backup()
        asked = [(request.method, request.path) for request in proxy.seen]
    assert not [path for method, path in asked if method == "HEAD" or "retention" in path]
    with closing(open_s3(bucket.settings)) as store:
        found = lasting(store)
        assert {name.split("/")[0] for name in found} == {"keys", "repository", "volumes"}
        assert all(bucket.left_s(name, store.now()) > (DAYS - 1) * DAY_S for name in found)


def test_the_daily_batch_extends_what_is_half_over_and_asks_once(
    bucket: Bucket, protected: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> list[float]:
        with closing(open_s3(bucket.settings)) as store:
            return [bucket.left_s(name, store.now()) / DAY_S for name in needed]

    with protected.repository() as repository:
        needed = lasting(repository.store)
    with FaultProxy(bucket.server.endpoint) as proxy:
        seen = replace(protected, settings=replace(bucket.settings, endpoint_url=proxy.endpoint))
        at_day(monkeypatch, 14)
        assert prune(seen).locks == 0
        asked = proxy.count("HEAD")
        assert asked == len(needed)
        at_day(monkeypatch, 14.5)
        assert prune(seen).locks == 0
        assert proxy.count("HEAD") == asked, "what is known is not asked again"
        at_day(monkeypatch, 15.5)
        assert prune(seen, dry_run=True).locks == len(needed)
        assert prune(seen).locks == len(needed)
        assert prune(seen).locks == 0
        assert all(days > DAYS - 0.1 for days in left())
        protected.lose_state()
        at_day(monkeypatch, 20)
        assert prune(seen).locks == 0
        (path,) = protected.state_dir.glob("*.locks")
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_bytes(b"damaged" * 1000)
        assert prune(seen).locks == 0
        assert sum("retention" in request.path for request in proxy.seen) == len(needed)
    assert all(days > DAYS - 4.6 for days in left())


def test_garbage_that_is_locked_is_counted_and_goes_when_it_may(
    bucket: Bucket, protected: Protected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (protected.root / "file-0").write_bytes(os.urandom(9_000))
    dying = FaultyStore(
        open_store(bucket.settings), lambda call: Fault.CRASH if puts_manifest(call) else None
    )
    with pytest.raises(Crash):
        protected.backup(store=dying, attach=False, workers=0)
    listed = prune(protected).listed.objects
    assert listed == 3
    with protected.repository() as repository:
        before = lasting(repository.store)
    for day in (3.5, 8, 20, 29):
        at_day(monkeypatch, day)
        pruned = prune(protected)
        # A data key is not even tried while a chunk that names it is there.
        assert (pruned.kept, pruned.deleted.objects, pruned.waiting.objects) == (listed - 1, 0, listed), day
        with protected.repository() as repository:
            assert lasting(repository.store) == before
    at_day(monkeypatch, 31)
    pruned = prune(protected)
    assert (pruned.kept, pruned.deleted.objects) == (0, listed)
    protected.backup()
    assert protected.check().findings == ()
    protected.restore(tmp_path / "restored")
    assert differences(observe(protected.root), observe(tmp_path / "restored")) == []


def test_locks_that_may_not_be_extended_are_an_error_and_nothing_else_stops(
    bucket: Bucket, protected: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer's policy from before object_lock was configured; then the one that is printed now."""
    with Guard(bucket.server.endpoint) as guard:
        held = replace(protected, settings=replace(bucket.settings, endpoint_url=guard.endpoint))
        at_day(monkeypatch, 16)
        place = place_of(bucket.settings.url, "us-east-1")
        guard.hold(role_policy(place, Grant("writer", VOLUME)))
        request = PruneRequest(VOLUME, GRACE_S, lock_s=DAYS * DAY_S)
        with held.repository(write_key=True) as repository:
            (pruned,) = run_prune(repository, request, Silent()).volumes
        assert pruned.error is None and pruned.marked
        assert pruned.lock_error is not None and "s3:PutObjectRetention" in pruned.lock_error.hint
        for role in ("writer", "pruner"):
            verdicts = guard.hold(role_policy(place, Grant(role, VOLUME, lock=True)))  # type: ignore[arg-type]
            prune(held)
            (protected.root / "file-2").write_bytes(role.encode() * 1000)
            held.backup()
            assert {call.needs()[0].action for call in verdicts.refused} <= {"s3:DeleteObject"}
        guard.hold()


# --- by the command line

ON_SEAWEED = pytest.mark.parametrize("server", ["seaweed"], indirect=True)


@ON_SEAWEED
def test_the_verbs_know_of_locks(bucket: Bucket, tmp_path: Path) -> None:
    settings = bucket.settings
    more = f'endpoint_url = "{settings.endpoint_url}"\nregion = "us-east-1"\npath_style = true\n'
    lock = 'object_lock = "compliance"\nobject_lock_days = 2\n'
    notebook = Notebook(tmp_path / "notebook", settings.url, more + lock)
    say = partial(notebook.well, AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    (notebook.volume / "file").write_text("content")
    say("init")
    say("backup")
    assert bucket.head("repository")["ObjectLockMode"] == "COMPLIANCE"
    pruned = say("--json", "prune").json["volumes"][0]
    assert pruned["locks_extended"] <= 20
    assert pruned["lock_error"] is None and pruned["kept_by_store"] == 0
    checks = {one["check"]: one for one in say("--json", "doctor").json["checks"]}
    assert checks["locks"]["verdict"] == "ok"
    assert "compliance locks, of 2 days" in checks["locks"]["told"]
    policy = json.dumps(say("iam-policy", "writer").json)
    assert "s3:PutObjectRetention" in policy
    assert "s3:PutObjectRetention" not in json.dumps(say("iam-policy", "restorer").json)


@ON_SEAWEED
def test_what_a_thief_deletes_comes_back(bucket: Bucket, tmp_path: Path) -> None:
    """Somebody with all rights but that to bypass locks deletes every object, and tries each version."""
    settings = bucket.settings
    more = f'endpoint_url = "{settings.endpoint_url}"\nregion = "us-east-1"\npath_style = true\n'
    notebook = Notebook(tmp_path / "notebook", settings.url, more + 'object_lock = "compliance"\n')
    say = partial(notebook.well, AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    (notebook.volume / "file").write_bytes(b"content" * 9000)
    say("init")
    say("backup")
    with closing(bucket.server.client()) as client, closing(open_s3(settings)) as store:
        moment = int(store.now())
        eventually(lambda: store.now() > moment + 1, "the next second")
        versions = client.list_object_versions(Bucket=bucket.name)["Versions"]
        for item in versions:
            client.delete_object(Bucket=bucket.name, Key=item["Key"])
        for item in versions:
            name = item["Key"].removeprefix("team/p/")
            if name != names.lease_name("nb"):
                with pytest.raises(ClientError, match="AccessDenied"):
                    client.delete_object(Bucket=bucket.name, Key=item["Key"], VersionId=item["VersionId"])
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    assert notebook.say("snapshots", **keys).status == 10
    when = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
    say("restore", "--target", "back", "--repository-at", when)
    assert (notebook.place / "back" / "file").read_bytes() == b"content" * 9000


@ON_SEAWEED
def test_doctor_sees_a_bucket_without_locks(
    server: S3Server, s3_settings: Callable[..., StoreSettings], tmp_path: Path
) -> None:
    settings = s3_settings(server, prefix="p")
    more = f'endpoint_url = "{settings.endpoint_url}"\nregion = "us-east-1"\npath_style = true\n'
    notebook = Notebook(tmp_path / "notebook", settings.url, more + 'object_lock = "governance"\n')
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    said = notebook.say("--json", "doctor", **keys)
    (found,) = [one for one in said.json["checks"] if one["check"] == "locks"]
    assert found["verdict"] == "fail" and "put-object-lock-configuration" in found["mend"]
    assert notebook.say("init", **keys).status == 1
