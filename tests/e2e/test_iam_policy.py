"""The printed policies against a real server that keeps to them: what each role needs works, no more does.

The server is SeaweedFS behind `Guard`, which judges every request as AWS would. moto, which knows actions and
resources of policies and no conditions, is a second opinion.
"""

import contextlib
import dataclasses
import json
import random
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from smsnapd.errors import ConflictError, StoreError
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import StoreSettings
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store
from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook, one_line
from tests.policies import Call, Caller, Guard, Policy, allows_need
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server, ServerMissingError, moto

pytestmark = pytest.mark.server

KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
BUCKET, BASE = "iam-policy", "team/p/"
URL = f"s3://{BUCKET}/team/p"
PRUNER = Caller("arn:aws:iam::123456789012:role/pruner")
LARGE = random.Random(1).randbytes(1_500_000)
EVERYTHING: Policy = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


def settings(endpoint: str) -> str:
    return f'region = "us-east-1"\nendpoint_url = "{endpoint}"\npath_style = true\n'


class Story:
    """A repository with two volumes, made by those who may; `nb` is the notebook that policies are for."""

    def __init__(self, place: Path, guard: Guard) -> None:
        self.guard = guard
        self.nb = Notebook(place / "nb", URL, settings(guard.endpoint))
        self.calls: list[tuple[Policy, Call]] = []
        """What was asked of the server by someone whom a policy held, and that policy."""

    def policy(self, *arguments: str) -> Policy:
        """What the verb prints for `nb`."""
        self.guard.hold()
        said = self.nb.well("iam-policy", *arguments)
        assert not self.guard.verdicts.calls, "it must ask nobody"
        printed: Policy = said.json
        return printed

    @contextlib.contextmanager
    def held_to(self, policy: Policy) -> Iterator[None]:
        """The product's requests in here are all allowed by the policy."""
        verdicts = self.guard.hold(policy)
        yield
        assert verdicts.calls and not verdicts.refused
        self.calls += [(policy, call) for call in verdicts.calls]
        self.guard.hold()

    def well(self, role: str, *arguments: str) -> Any:
        """A verb that succeeds, and asks nothing that its policy refuses."""
        with self.held_to(self.policy(role)):
            return self.nb.well(*arguments, **KEYS)

    def keys(self, kind: str, volume: str = "nb") -> list[str]:
        """The keys of objects of a volume, straight from the server."""
        self.guard.hold()
        client = client_at(self.guard.endpoint)
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{BASE}volumes/{volume}/{kind}")["Contents"]
        client.close()
        return [item["Key"] for item in found]


def client_at(endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def guard(seaweed: S3Server) -> Iterator[Guard]:
    seaweed.make_bucket(BUCKET)
    with Guard(seaweed.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def story(guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Two volumes with chunks that are objects; in `nb` also such as lie in manifests."""
    place = tmp_path_factory.mktemp("iam")
    made = Story(place, guard)
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smsnapd.repository.access.make_keyslot", cheap)
        with made.held_to(made.policy("writer", "--init")):
            made.nb.well("init", **KEYS)
    other = Notebook(place / "other", URL, settings(guard.endpoint))
    (other.place / "passphrase").write_text((made.nb.place / "passphrase").read_text())
    (other.volume / "secret").write_bytes(LARGE)
    with made.held_to(made.policy("writer", "--volume", "other")):
        other.well("--volume", "other", "backup", **KEYS)
    (made.nb.volume / "large").write_bytes(LARGE)
    (made.nb.volume / "small").write_text("first")
    made.well("writer", "backup")
    for number in range(2):
        (made.nb.volume / "small").write_text(f"again {number}")
        made.well("writer", "backup")
    yield made


# --- what each role needs


def test_a_writer_backs_up_and_reads_with_a_passphrase(story: Story) -> None:
    for verb in (
        ["snapshots"],
        ["ls", "latest"],
        ["check", "--volume", "nb"],
        ["check", "--read-data", "--volume", "nb"],
        ["key", "list"],
        ["key", "export-write-key", "write-key"],
        ["restore", "--target", "from-writer"],
    ):
        story.well("writer", *verb)
    assert story.well("writer", "snapshots", "--json").json[0]["kind"] == "full"


def test_a_writer_with_a_write_key_alone(story: Story) -> None:
    nb = story.nb
    nb.say("key", "export-write-key", "key-alone", **KEYS)
    nb.configure(settings(story.guard.endpoint), encryption='write_key_file = "key-alone"')
    try:
        (nb.volume / "small").write_text("with the write key")
        for verb in (["backup"], ["backup", "--full"], ["backup", "--full", "--reread"]):
            story.well("writer", *verb)
        story.well("writer", "check", "--volume", "nb")
    finally:
        nb.configure(settings(story.guard.endpoint))


def test_the_doctor_of_a_writer_is_content(story: Story, tmp_path: Path) -> None:
    """Its tries are of what a writer may; that it may not delete is as it should be."""
    fresh = Notebook(tmp_path / "fresh", URL, settings(story.guard.endpoint))
    (fresh.place / "passphrase").write_text((story.nb.place / "passphrase").read_text())
    for notebook, volume, created in ((story.nb, "nb", "ok"), (fresh, "new", "skipped")):
        story.guard.hold(story.policy("writer", "--volume", volume))
        said = notebook.say("--volume", volume, "doctor", "--json", **KEYS)
        found = {item["check"]: item["verdict"] for item in said.json["checks"]}
        assert (found["list"], found["read"], found["replace"], found["delete"]) == ("ok", "ok", "ok", "warn")
        assert found["create"] == created and found["opens"] == "ok"
        refused = {(call.method, call.key) for call in story.guard.verdicts.refused}
        assert {method for method, _ in refused} <= {"DELETE", "PUT"}
        assert {key for method, key in refused if method == "PUT"} <= {f"{BASE}repository"}
        assert (volume == "nb") == (f"{BASE}repository" not in {key for _, key in refused})


def test_the_doctor_of_a_pruner_finds_that_it_may_delete(story: Story) -> None:
    with story.held_to(story.policy("pruner")):
        said = story.nb.say("doctor", "--json", **KEYS)
    found = {item["check"]: item["verdict"] for item in said.json["checks"]}
    assert all(found[name] == "ok" for name in ("list", "read", "create", "replace", "delete"))


def test_the_daemon_is_a_writer(story: Story, tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "daemon", URL, settings(story.guard.endpoint) + SCHEDULE)
    (notebook.place / "passphrase").write_text((story.nb.place / "passphrase").read_text())
    (notebook.volume / "a").write_text("first")
    policy = story.policy("writer", "--volume", "daemon")

    def manifests(verdicts: Any) -> list[Call]:
        return [call for call in verdicts.calls if call.method == "PUT" and "/manifests/" in call.key]

    daemon = Daemon(notebook)
    daemon.environment = {**KEYS, "SMSNAP_VOLUME": "daemon"}
    try:
        with story.held_to(policy):
            verdicts = story.guard.verdicts
            daemon.start()
            eventually(lambda: manifests(verdicts), "a first manifest")
            (notebook.volume / "a").write_text("second")
            eventually(lambda: manifests(verdicts)[1:], "a second")
            assert daemon.end() == 0
    finally:
        daemon.close()


def test_a_restorer_brings_back_and_backs_up_nothing(story: Story) -> None:
    for verb in (
        ["snapshots"],
        ["ls", "latest"],
        ["cat", "latest", "small"],
        ["export", "latest", "--output", "out.tar"],
        ["restore", "--target", "back"],
        ["check", "--read-data", "--volume", "nb"],
    ):
        story.well("restorer", *verb)
    assert (story.nb.place / "back/large").read_bytes() == (story.nb.volume / "large").read_bytes()
    story.guard.hold(story.policy("restorer"))
    said = story.nb.say("backup", **KEYS)
    one_line(said, 1, "access is denied", "s3:PutObject", "iam-policy")


def test_an_auditor_checks_everything_but_contents(story: Story) -> None:
    for verb in (["check", "--volume", "nb"], ["snapshots"], ["ls", "latest"]):
        story.well("auditor", *verb)
    with story.held_to(story.policy("auditor", "--all-volumes")):
        assert story.nb.well("check", "--json", **KEYS).json["ok"]
    story.guard.hold(story.policy("auditor", "--all-volumes"))
    one_line(story.nb.say("check", "--read-data", **KEYS), 1, "/chunks/", "access is denied")
    assert all("/chunks/" in call.key for call in story.guard.verdicts.refused)


def test_a_volume_s_policy_is_of_no_use_for_another(story: Story) -> None:
    story.guard.hold(story.policy("restorer", "--volume", "other"))
    story.nb.well("--volume", "other", "restore", "--target", "others", **KEYS)
    one_line(story.nb.say("cat", "latest", "small", **KEYS), 1, "/volumes/nb/", "access is denied")
    with story.held_to(story.policy("restorer", "--all-volumes")):
        for volume in ("nb", "other"):
            story.nb.well("--volume", volume, "ls", "latest", **KEYS)


def store_at(guard: Guard, page_keys: int = 1000) -> S3Store:
    at = StoreSettings(URL, "us-east-1", guard.endpoint, path_style=True, attempts=1)
    return S3Store(at, BUCKET, BASE, Backoff(1), page_keys)


@pytest.fixture
def with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("with_keys")
@pytest.mark.parametrize("role", ["writer", "pruner", "restorer", "auditor"])
def test_everybody_lists_all_of_it_page_by_page(story: Story, role: str) -> None:
    with story.held_to(story.policy(role)), contextlib.closing(store_at(story.guard, 3)) as store:
        found = [info.name for info in store.list("")]
        assert "repository" in found and any(name.startswith("volumes/other/chunks/") for name in found)
        assert store.now() > 0
        for prefix in ("keys/", "volumes/", "volumes/nb/chunks/", "volumes/nb/manifests/0"):
            assert [name for name in found if name.startswith(prefix)] == [
                info.name for info in store.list(prefix)
            ]


@pytest.mark.usefixtures("with_keys")
def test_a_pruner_does_what_a_writer_does_and_deletes(story: Story) -> None:
    """As `prune` will: what has been named as garbage goes, a replacement manifest comes."""
    (story.nb.volume / "small").write_text("by the pruner")
    story.well("pruner", "backup")
    client = client_at(story.guard.endpoint)
    client.create_multipart_upload(Bucket=BUCKET, Key=f"{BASE}volumes/nb/chunks/00/begun")
    client.close()
    with story.held_to(story.policy("pruner")), contextlib.closing(store_at(story.guard)) as store:
        for name in ("volumes/nb/garbage/x", "volumes/nb/chunks/00/garbage"):
            store.put(name, b"x")
            store.put(name, b"x")
            store.delete(name)
        store.try_delete("volumes/nb/")
        assert store.abandon_uploads("volumes/nb/", store.now() + 60) == 1
    for name in ("repository", "keys/roster/0000000001", "volumes/other/lease"):
        story.guard.hold(story.policy("pruner"))
        with contextlib.closing(store_at(story.guard)) as store, pytest.raises(StoreError, match="denied"):
            store.delete(name)


def test_what_is_absent_is_said_to_be_absent(story: Story) -> None:
    """Who may not list what begins with a key is answered 403 and not 404: a first backup would fail."""
    gets = [(policy, call) for policy, call in story.calls if call.method == "GET" and call.key]
    assert any(call.key.endswith("/lease") for _, call in gets) and len(gets) > 20
    for policy, call in gets:
        assert allows_need(policy, call.seeing()), call


def test_the_policies_have_nothing_that_nobody_uses(story: Story) -> None:
    """Each action that the writer's policy allows is used, but for those of multipart uploads."""
    policy = story.policy("writer")
    used = {
        need.action for by, call in story.calls if by == policy for need in call.needs()
    } | {"s3:AbortMultipartUpload"}  # fmt: skip
    allowed = [item for item in policy["Statement"] if item["Effect"] == "Allow"]
    assert {item["Action"] for item in allowed} == used


# --- what nobody may


def _put(key: str, **more: Any) -> Callable[[Any], object]:
    return lambda client: client.put_object(Bucket=BUCKET, Key=key, Body=b"attack", **more)


def _attacks(story: Story) -> dict[str, Callable[[Any], object]]:
    """Attacks on the repository by one who has a role's credentials; the key is a description."""
    chunk, manifest = story.keys("chunks/")[0], story.keys("manifests/")[0]
    others = story.keys("chunks/", "other")[0]
    lease, others_lease = f"{BASE}volumes/nb/lease", f"{BASE}volumes/other/lease"
    copy = {"Bucket": BUCKET, "Key": manifest}
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": "2026-12-01T00:00:00Z"}
    at = {"Bucket": BUCKET}
    return {
        "delete a chunk": lambda c: c.delete_object(**at, Key=chunk),
        "delete a manifest if it matches": lambda c: c.delete_object(**at, Key=manifest, IfMatch='"e"'),
        "delete a version": lambda c: c.delete_object(**at, Key=chunk, VersionId="1"),
        "delete the lease": lambda c: c.delete_object(**at, Key=lease),
        "delete the repository": lambda c: c.delete_object(**at, Key=f"{BASE}repository"),
        "overwrite a chunk": _put(chunk),
        "overwrite a manifest": _put(manifest),
        "overwrite a manifest that was seen": _put(manifest, IfMatch='"e"'),
        "overwrite the lease unseen": _put(lease),
        "put the lease of another volume": _put(others_lease, IfMatch='"e"'),
        "add to the volume": _put(f"{BASE}volumes/nb/chunks/00/x", IfNoneMatch="*"),
        "replace the lease": _put(lease, IfMatch='"e"'),
        "add to another volume": _put(f"{BASE}volumes/other/manifests/x", IfNoneMatch="*"),
        "add a volume": _put(f"{BASE}volumes/nb2/manifests/x", IfNoneMatch="*"),
        "overwrite the repository": _put(f"{BASE}repository"),
        "add a repository": _put(f"{BASE}repository", IfNoneMatch="*"),
        "add a keyslot": _put(f"{BASE}keys/slots/{'0' * 16}", IfNoneMatch="*"),
        "add a roster": _put(f"{BASE}keys/roster/0000000002", IfNoneMatch="*"),
        "put beside the repository": _put("team/p2/x", IfNoneMatch="*"),
        "make it public": lambda c: c.put_object_acl(**at, Key=chunk, ACL="public-read"),
        "add it public": _put(f"{BASE}volumes/nb/chunks/00/x", IfNoneMatch="*", ACL="public-read"),
        "tag it for a lifecycle": lambda c: c.put_object_tagging(**at, Key=chunk, Tagging={"TagSet": []}),
        "end retention": lambda c: c.put_object_retention(
            **at, Key=chunk, Retention=retention, BypassGovernanceRetention=True
        ),
        "copy over a chunk": lambda c: c.copy_object(**at, Key=chunk, CopySource=copy),
        "read another volume": lambda c: c.get_object(**at, Key=others),
        "look at another volume": lambda c: c.head_object(**at, Key=others),
        "read beside the repository": lambda c: c.get_object(**at, Key="team/p2/x"),
        "read an old version": lambda c: c.get_object(**at, Key=chunk, VersionId="1"),
        "list beside the repository": lambda c: c.list_objects_v2(**at, Prefix="team/p2/"),
        "list the bucket": lambda c: c.list_objects_v2(**at),
        "list versions": lambda c: c.list_object_versions(**at, Prefix=BASE),
        "change the bucket's policy": lambda c: c.put_bucket_policy(**at, Policy="{}"),
        "drop the bucket's policy": lambda c: c.delete_bucket_policy(**at),
        "stop versioning": lambda c: c.put_bucket_versioning(
            **at, VersioningConfiguration={"Status": "Suspended"}
        ),
        "expire everything": lambda c: c.put_bucket_lifecycle_configuration(
            **at,
            LifecycleConfiguration={
                "Rules": [
                    {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
                ]
            },
        ),
        "delete the bucket": lambda c: c.delete_bucket(**at),
        "begin an upload elsewhere": lambda c: c.create_multipart_upload(**at, Key=others),
        "end an upload over a chunk": lambda c: c.complete_multipart_upload(
            **at, Key=chunk, UploadId="u", MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": "e"}]}
        ),
    }


MAY: dict[str, set[str]] = {
    "writer": {"add to the volume", "replace the lease"},
    "pruner": {
        "add to the volume",
        "replace the lease",
        "delete a chunk",
        "delete a manifest if it matches",
        "delete the lease",
    },
    "restorer": set(),
    "auditor": set(),
}


@pytest.mark.parametrize("role", ["writer", "pruner", "restorer", "auditor"])
def test_attacks(story: Story, role: str) -> None:
    attacks = _attacks(story)
    verdicts = story.guard.hold(story.policy(role))
    client = client_at(story.guard.endpoint)
    for name in sorted(attacks.keys() - MAY[role]):
        with pytest.raises(ClientError) as error:
            attacks[name](client)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, name
    client.close()
    assert len(verdicts.refused) == len(verdicts.calls), "none of them has come to the server"


@pytest.mark.usefixtures("with_keys")
def test_the_bucket_s_policy_binds_those_who_may_do_everything(story: Story) -> None:
    printed = story.nb.well("iam-policy", "--bucket-policy", "--principal", PRUNER.arn).json
    story.guard.hold(EVERYTHING, printed)
    (story.nb.volume / "small").write_text("under the bucket's policy")
    story.nb.well("backup", **KEYS)
    story.nb.well("check", **KEYS)
    assert not story.guard.verdicts.refused
    client, chunk = client_at(story.guard.endpoint), story.keys("chunks/")[0]
    story.guard.hold(EVERYTHING, printed)
    for attack in (
        _put(chunk),
        _put(f"{BASE}repository"),
        lambda c: c.delete_object(Bucket=BUCKET, Key=chunk),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attack(client)
    client.close()
    story.guard.hold(EVERYTHING, printed, caller=PRUNER)
    with contextlib.closing(store_at(story.guard)) as store:
        store.put("volumes/nb/chunks/00/garbage", b"x")
        store.delete("volumes/nb/chunks/00/garbage")
        with pytest.raises(ConflictError):
            store.replace("repository", b"x", None)
    assert not story.guard.verdicts.refused


# --- moto's opinion


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto of our own, which from `enforce` on keeps to policies."""
    try:
        with moto(tmp_path_factory.mktemp("strict")) as server:
            yield server
    except ServerMissingError as error:
        pytest.skip(str(error))


def enforce(server: S3Server) -> None:
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server.endpoint}/moto-api/reset-auth", data=b"0", headers=plain)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def without_conditional_denials(policy: Policy) -> Policy:
    """moto takes every condition for fulfilled, so such a denial would be one of everything."""
    kept = [item for item in policy["Statement"] if item["Effect"] == "Allow" or "Condition" not in item]
    return {**policy, "Statement": kept}


def user(server: S3Server, name: str, policy: Policy) -> S3Server:
    """The server, for a new user with this policy alone."""
    iam = boto3.client(
        "iam", endpoint_url=server.endpoint, region_name="us-east-1", aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )  # fmt: skip
    iam.create_user(UserName=name)
    iam.put_user_policy(
        UserName=name, PolicyName="smsnapd", PolicyDocument=json.dumps(without_conditional_denials(policy))
    )
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    return dataclasses.replace(server, access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])


def test_moto_agrees(strict: S3Server, tmp_path: Path) -> None:
    strict.make_bucket(BUCKET)
    nb = Notebook(tmp_path / "nb", URL, settings(strict.endpoint))
    nb.well("init", **KEYS)
    writer = user(strict, "writer", nb.well("iam-policy", "writer").json)
    restorer = user(strict, "restorer", nb.well("iam-policy", "restorer").json)
    enforce(strict)
    (nb.volume / "large").write_bytes(LARGE)
    as_writer = {"AWS_ACCESS_KEY_ID": writer.access_key, "AWS_SECRET_ACCESS_KEY": writer.secret_key}
    as_restorer = {"AWS_ACCESS_KEY_ID": restorer.access_key, "AWS_SECRET_ACCESS_KEY": restorer.secret_key}
    one_line(nb.say("backup", **as_restorer), 1, "access is denied", "s3:PutObject")
    nb.well("backup", **as_writer)
    nb.well("check", "--read-data", **as_writer)
    nb.well("restore", "--target", "back", **as_restorer)
    assert (nb.place / "back/large").read_bytes() == (nb.volume / "large").read_bytes()
    with contextlib.closing(client_at(strict.endpoint, writer.access_key, writer.secret_key)) as client:
        chunk = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{BASE}volumes/nb/chunks/")["Contents"][0][
            "Key"
        ]
        for attack in (
            lambda: client.delete_object(Bucket=BUCKET, Key=chunk),
            lambda: client.put_object(
                Bucket=BUCKET, Key=f"{BASE}volumes/other/lease", Body=b"", IfNoneMatch="*"
            ),
            lambda: client.put_object(Bucket=BUCKET, Key=f"{BASE}repository", Body=b"", IfNoneMatch="*"),
            lambda: client.get_object(Bucket=BUCKET, Key=f"{BASE}volumes/other/chunks/00/x"),
            lambda: client.put_bucket_policy(Bucket=BUCKET, Policy="{}"),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                attack()


# --- the verb


def test_the_verb_says_whose_policy_it_is_and_for_what(tmp_path: Path) -> None:
    nb = Notebook(tmp_path, URL)
    said = nb.well("iam-policy", "writer")
    assert said.err == f"For volume nb of {URL}\n"
    assert nb.well("iam-policy", "writer", "--json").json == said.json
    assert nb.well("-q", "iam-policy", "writer").err == ""
    assert nb.well("iam-policy", "pruner", "--all-volumes").err == f"For all volumes of {URL}\n"


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        ([], "name a role"),
        (["reader"], "reader"),
        (["writer", "--versions"], "versions"),
        (["restorer", "--init"], "--init"),
        (["auditor", "--object-lock"], "--object-lock"),
        (["writer", "--principal", PRUNER.arn], "--bucket-policy"),
        (["writer", "--bucket-policy"], "everybody"),
        (["--bucket-policy", "--all-volumes"], "everybody"),
        (["--bucket-policy", "--principal", "arn:aws:sts::123456789012:assumed-role/x/y"], "role/NAME"),
        (["writer", "--kms-key", "alias/backups"], "describe-key"),
        (["writer", "--repository", "file:///srv/backups"], "not in S3"),
        (["writer", "--volume", "no/name"], "letters"),
    ],
)
def test_what_is_no_use_is_said(tmp_path: Path, arguments: list[str], piece: str) -> None:
    one_line(Notebook(tmp_path, URL).say("iam-policy", *arguments), 2, piece)
