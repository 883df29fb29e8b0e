"""What a prune asks of stores: dropping uploads that nobody finished, and its story on a real S3 server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import Amount, PruneRequest, VolumePruned, run_prune
from smsnapd.engine.retention import Policy
from smsnapd.errors import DeniedError, ObjectMissingError, StoreError
from smsnapd.format import names
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import Store, StoreSettings, open_store
from smsnapd.store.iam_policy import Grant, place_of, role_policy
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store
from smsnapd.store.s3_uploads import abandon_uploads
from tests.fault.faulty import Crash, Fault, FaultyStore
from tests.fault.proxy import Answer
from tests.policies import Guard
from tests.property.protected import VOLUME, Protected, comes_back
from tests.property.pruned import GRACE_S, puts_manifest
from tests.servers import S3Server

BELOW = "volumes/nb/"


def test_where_nothing_is_left_nothing_is_dropped(store: Store) -> None:
    assert store.abandon_uploads(BELOW, time.time() + 1000) == 0
    store.put("volumes/nb/chunks/one", b"content")
    assert store.abandon_uploads(BELOW, time.time() + 1000) == 0
    assert store.get("volumes/nb/chunks/one") == b"content"


def test_deleting_can_be_tried_below_a_prefix(store: Store) -> None:
    store.put("volumes/nb/chunks/one", b"content")
    store.try_delete(BELOW)
    assert [info.name for info in store.list("")] == ["volumes/nb/chunks/one"]


def test_old_leftovers_of_a_directory_are_removed(tmp_path: Path) -> None:
    store = open_store(StoreSettings((tmp_path / "objects").as_uri()))
    store.put("one", b"content")
    now_s = time.time()
    for name, age_s in (("0" * 24, 100), ("1" * 24, 5000), ("lock", 5000), ("somebody's", 5000)):
        place = tmp_path / "objects" / "tmp" / name
        place.write_bytes(b"x")
        os.utime(place, (now_s - age_s, now_s - age_s))
    assert store.abandon_uploads(BELOW, now_s - 1000) == 1
    assert {path.name for path in (tmp_path / "objects" / "tmp").iterdir()} == {
        "0" * 24,
        "lock",
        "somebody's",
    }
    store.close()


@pytest.mark.server
def test_old_uploads_below_the_prefix_are_aborted(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(seaweed, prefix="team")
    bucket = settings.url.split("/")[2]
    client = seaweed.client()
    ours, others = "team/volumes/nb/chunks/x", {"team/volumes/nb2/x", "team/volumes/other/x", "else/x"}
    for key in (ours, f"{ours}-more", *others):
        started = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(Bucket=bucket, Key=key, UploadId=started["UploadId"], PartNumber=1, Body=b"part")
    store = open_store(settings)
    assert store.abandon_uploads(BELOW, store.now() - 3600) == 0
    assert store.abandon_uploads(BELOW, store.now() + 3600) == 2
    left = {upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert left == others
    store.close()
    client.close()


@pytest.mark.server
def test_a_prune_aborts_uploads_that_somebody_left(
    seaweed: S3Server,
    s3_settings: Callable[..., StoreSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those older than the grace; and this program has made none. To moto all are of 2010."""
    settings = s3_settings(seaweed, prefix="team")
    (tmp_path / "volume").mkdir()
    protected = Protected.create(tmp_path / "volume", tmp_path / "state", settings)
    (protected.root / "large").write_bytes(os.urandom(20_000_000))
    protected.backup()
    bucket, key = settings.url.split("/")[2], f"team/volumes/{VOLUME}/chunks/00/left"
    client = seaweed.client()
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    client.create_multipart_upload(Bucket=bucket, Key=key)
    assert prune(protected, write_key=False).uploads == 0
    now = S3Store.now
    monkeypatch.setattr(S3Store, "now", lambda self: now(self) + GRACE_S + 60)
    assert prune(protected, write_key=False).uploads == 1
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    client.close()


class Uploads:
    """A client for uploads to keys, a page of one at a time; one of them is gone when it is to be aborted."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)
        self.aborted: list[str] = []

    def list_multipart_uploads(self, Bucket: str, Prefix: str, **more: str) -> dict[str, Any]:  # noqa: N803
        at = self.keys.index(more["KeyMarker"]) + 1 if more else 0
        key, began = self.keys[at], datetime.fromtimestamp(1000 + at, UTC)
        page = {"Uploads": [{"Key": key, "UploadId": f"id-{at}", "Initiated": began}]}
        if at + 1 == len(self.keys):
            return {**page, "IsTruncated": False}
        return {**page, "IsTruncated": True, "NextKeyMarker": key, "NextUploadIdMarker": f"id-{at}"}

    def abort_multipart_upload(self, Bucket: str, Key: str, UploadId: str) -> None:  # noqa: N803
        self.aborted.append(f"{Key} {UploadId}")
        if UploadId == "id-1":
            raise ObjectMissingError("abort", "it is gone")


def test_all_pages_of_uploads_are_looked_at() -> None:
    client = Uploads("p/a", "p/b", "q/c", "p/d", "p/e")
    count = abandon_uploads(lambda what, permission, use: use(client), "bucket", "p/", 1004.0)
    assert client.aborted == ["p/a id-0", "p/b id-1", "p/d id-3"]
    assert count == 3


# --- the story on S3


@pytest.fixture
def guarded(
    seaweed: S3Server, s3_settings: Callable[..., StoreSettings], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Guard, StoreSettings]]:
    """A server that keeps to policies, and a place on it."""
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    settings = s3_settings(seaweed, prefix="team/p")
    with Guard(seaweed.endpoint) as guard:
        yield guard, StoreSettings(settings.url, settings.region, guard.endpoint, path_style=True)


def prune(protected: Protected, *, write_key: bool, **more: Any) -> VolumePruned:
    with protected.repository(write_key=write_key) as repository:
        request = PruneRequest(VOLUME, GRACE_S, **more)
        (pruned,) = run_prune(repository, request, Silent()).volumes
    assert pruned.error is None
    return pruned


@pytest.mark.server
def test_a_writer_lists_and_a_pruner_elsewhere_sweeps(
    guarded: tuple[Guard, StoreSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the least policy for it; the writer never asks for what that refuses, but to delete."""
    guard, settings = guarded
    (tmp_path / "volume").mkdir()
    protected = Protected.create(tmp_path / "volume", tmp_path / "state", settings)
    (protected.root / "file").write_bytes(b"content" * 999)
    protected.backup(attach=False)
    (protected.root / "file").write_bytes(b"never committed" * 999)
    dying = FaultyStore(open_store(settings), lambda call: Fault.CRASH if puts_manifest(call) else None)
    with pytest.raises(Crash):
        protected.backup(store=dying, attach=False, workers=0)
    place = place_of(settings.url, "us-east-1")
    writer, pruner = (role_policy(place, Grant(role, VOLUME)) for role in ("writer", "pruner"))

    verdicts = guard.hold(writer)
    marked = prune(protected, write_key=True)
    assert marked.marked and marked.listed.objects == 3 and not marked.may_delete
    assert {call.needs()[0].action for call in verdicts.refused} == {"s3:DeleteObject"}
    assert "iam-policy pruner" in marked.notes[0]

    now = S3Store.now
    monkeypatch.setattr(S3Store, "now", lambda self: now(self) + GRACE_S + 10)
    guard.hold(writer)
    assert prune(protected, write_key=True).deleted == Amount()
    verdicts = guard.hold(pruner)
    assert prune(protected, write_key=False, dry_run=True).deleted.objects == 3
    swept = prune(protected, write_key=False)
    assert not verdicts.refused
    assert swept.deleted.objects == 3 and swept.may_delete
    guard.hold()
    with protected.repository() as repository:
        left = [info.name for info in repository.store.list(names.volume_prefix(VOLUME))]
    assert sorted(name.split("/")[2] for name in left) == [
        *("catalogs", "chunks", "garbage", "keys", "lease", "manifests"),
    ]
    assert protected.check().findings == ()


@pytest.mark.server
@pytest.mark.parametrize(
    ("answer", "denied"),
    [
        (Answer(403, "AccessDenied", "User is not authorized"), True),
        (Answer(403, "SignatureDoesNotMatch"), False),
        (Answer(403, "AccessDenied", "not authorized to perform: kms:Decrypt"), False),
        (Answer(400, "ExpiredToken"), False),
        (Answer(404, "NoSuchBucket"), False),
    ],
)
def test_what_is_denied_is_told_from_what_is_wrong(
    guarded: tuple[Guard, StoreSettings], answer: Answer, denied: bool
) -> None:
    guard, settings = guarded
    bucket = settings.url.split("/")[2]
    store = S3Store(settings, bucket, "team/p/", Backoff(1))
    guard.plan("DELETE", answer)
    with pytest.raises(StoreError) as caught:
        store.delete("volumes/nb/chunks/one")
    assert isinstance(caught.value, DeniedError) is denied
    store.close()


@pytest.mark.server
def test_a_writer_thins_and_a_pruner_elsewhere_writes_anew_and_sweeps(
    guarded: tuple[Guard, StoreSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the least policy for it; what stays restores all the while."""
    guard, settings = guarded
    (tmp_path / "volume").mkdir()
    protected = Protected.create(tmp_path / "volume", tmp_path / "state", settings)
    for number in range(12):
        (protected.root / f"file-{number}").write_bytes(os.urandom(3000))
        (protected.root / f"file-{number - 3}").unlink(missing_ok=True)
        protected.backup(attach=number % 2 == 0)
    place, policy = place_of(settings.url, "us-east-1"), Policy(hourly=1)
    writer, pruner = (role_policy(place, Grant(role, VOLUME)) for role in ("writer", "pruner"))
    verdicts = guard.hold(writer)
    assert prune(protected, write_key=True, policy=policy).removed == 10
    assert {call.needs()[0].action for call in verdicts.refused} == {"s3:DeleteObject"}
    verdicts = guard.hold(pruner)
    prune(protected, write_key=False, policy=policy)
    now = S3Store.now
    monkeypatch.setattr(S3Store, "now", lambda self: now(self) + GRACE_S + 10)
    assert prune(protected, write_key=False, policy=policy).deleted.objects > 12
    assert not verdicts.refused
    guard.hold()
    assert protected.check().findings == ()
    comes_back(protected)
