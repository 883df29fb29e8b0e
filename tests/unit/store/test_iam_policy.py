"""The policies as documents: form, size, what they name and come to; and the judge that tests rely on."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from smsnapd.cli.doctor.policy import policy_line
from smsnapd.errors import UsageError
from smsnapd.format import names
from smsnapd.store import StoreSettings
from smsnapd.store.iam_policy import ROLES, Grant, Place, Role, bucket_policy, place_of, role_policy
from smsnapd.store.s3 import open_s3
from tests.policies import Call, Caller, Policy, allows

TOP = Path(__file__).parents[3]
KEY = "arn:aws:kms:eu-west-1:123456789012:key/0f6a1e7c-1111-2222-3333-444455556666"
PLACE = place_of("s3://backups/team/a", "eu-west-1")
LONGEST = Place("b" * 63, "p" * 150 + "/", "aws-us-gov")
FLAGS = (False, True)
GRANTS = [
    Grant(role, volume, key, versions, lock, init)
    for role, volume, key, versions, lock, init in itertools.product(
        ROLES, ("", "analysis-nb"), ("", KEY), FLAGS, FLAGS, FLAGS
    )
    if not (versions and role == "writer")
    and not (init and role != "writer")
    and not (lock and role in ("restorer", "auditor"))
]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def actions(policy: Policy, effect: str = "Allow") -> set[str]:
    found = (item for item in policy["Statement"] if item["Effect"] == effect)
    return {action for statement in found for action in listed(statement["Action"])}


def size(policy: Policy) -> int:
    """As IAM counts: without white space (IAM user guide, "IAM and AWS STS quotas")."""
    return len(re.sub(r"\s", "", json.dumps(policy)))


def call(method: str, key: str, query: dict[str, str] | None = None, **headers: str) -> Call:
    return Call(method, "backups", key, query or {}, {k.replace("_", "-"): v for k, v in headers.items()})


def statements(policy: Policy) -> dict[str, dict[str, Any]]:
    return {item["Sid"]: item for item in policy["Statement"]}


# --- documents


@pytest.mark.parametrize("grant", GRANTS, ids=str)
def test_every_policy_is_one_that_iam_takes(grant: Grant) -> None:
    policy = role_policy(PLACE, grant)
    assert policy.keys() == {"Version", "Statement"} and policy["Version"] == "2012-10-17"
    sids = [statement["Sid"] for statement in policy["Statement"]]
    assert len(set(sids)) == len(sids) and all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids)
    for statement in policy["Statement"]:
        assert {"Sid", "Effect", "Action", "Resource"} <= statement.keys() <= {*statement, "Condition"}
        for arn in listed(statement["Resource"]):
            assert arn == KEY or arn == PLACE.bucket_arn or arn.startswith(f"{PLACE.bucket_arn}/team/a/")
    assert "*" not in "".join(actions(policy)) and "s3:BypassGovernanceRetention" not in actions(policy)


@pytest.mark.parametrize("grant", GRANTS, ids=str)
def test_sizes(grant: Grant) -> None:
    """A role may have 10,240 characters of inline policies, all together; a managed policy 6,144."""
    assert size(role_policy(PLACE, grant)) < 2700
    assert size(role_policy(LONGEST, grant)) < 6144


def test_only_a_pruner_deletes_and_versions_only_if_that_is_asked_for() -> None:
    removing = {"s3:DeleteObject", "s3:DeleteObjectVersion"}
    found = {grant: actions(role_policy(PLACE, grant)) & removing for grant in GRANTS}
    assert {grant.role for grant, some in found.items() if some} == {"pruner"}
    assert all(("s3:DeleteObjectVersion" in some) == grant.versions for grant, some in found.items() if some)


def test_who_reads_changes_nothing() -> None:
    for grant in GRANTS:
        if grant.role in ("restorer", "auditor"):
            allowed = actions(role_policy(PLACE, grant))
            assert {action.split(":")[1][:3] for action in allowed} <= {"Get", "Lis", "Dec"}, grant


def test_the_key_is_used_by_way_of_s3_alone() -> None:
    for role in ROLES:
        used = statements(role_policy(PLACE, Grant(role, "nb", KEY)))["UseTheKey"]
        assert used["Resource"] == KEY
        assert used["Condition"] == {"StringLike": {"kms:ViaService": "s3.eu-west-1.amazonaws.*"}}
        writes = role in ("writer", "pruner")
        assert listed(used["Action"]) == [*(["kms:GenerateDataKey"] if writes else []), "kms:Decrypt"]


@pytest.mark.parametrize("alias", ["arn:aws:kms:eu-west-1:123456789012:alias/backups", "alias/x", "0f6a1e7c"])
def test_a_key_that_a_policy_cannot_name(alias: str) -> None:
    with pytest.raises(UsageError, match="describe-key"):
        role_policy(PLACE, Grant("writer", "nb", alias))


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("eu-west-1", "aws"),
        ("", "aws"),
        ("cn-north-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("eusc-de-east-1", "aws-eusc"),
    ],
)
def test_partitions(region: str, partition: str) -> None:
    policy = role_policy(place_of("s3://backups/p", region), Grant("pruner", "nb"))
    assert all(f'"arn:{partition}:s3:::backups' in json.dumps(item) for item in policy["Statement"])
    assert json.loads(policy_line("s3:GetObject", "s3://backups/p", region))["Resource"].startswith(
        f"arn:{partition}:"
    )


@pytest.mark.parametrize(
    "grant",
    [
        Grant("writer", versions=True),
        Grant("restorer", lock=True),
        Grant("auditor", lock=True),
        *(Grant(role, init=True) for role in ROLES if role != "writer"),
    ],
)
def test_what_does_not_go_together(grant: Grant) -> None:
    with pytest.raises(UsageError):
        role_policy(PLACE, grant)


@pytest.mark.parametrize(
    "url",
    [
        "s3://backups",
        "s3://backups/",
        "s3://backups/p",
        "s3://backups/a/b/",
        "s3://backups/it's*(1)",
        "s3://b",
        "s3://backups//x",
        "s3://backups/../x",
        "s3://backups/a b",
        "s3://backups/a?b",
        "s3://-x/y",
        "s3:backups",
    ],
)
def test_a_policy_is_made_for_what_the_store_opens(url: str) -> None:
    """The same grammar, though this one must not import the SDK."""
    try:
        store = open_s3(StoreSettings(url, "eu-west-1"))
    except UsageError:
        with pytest.raises(UsageError, match="s3://bucket/prefix"):
            place_of(url, "")
    else:
        place = place_of(url, "")
        assert (place.bucket, place.base) == (store._bucket, store._base)


@pytest.mark.parametrize("url", ["file:///srv/backups", "memory://x", "/srv/backups"])
def test_a_directory_has_no_policy(url: str) -> None:
    with pytest.raises(UsageError, match="not in S3"):
        place_of(url, "eu-west-1")


# --- what they come to, by the judge


def test_a_star_of_the_url_is_no_wildcard() -> None:
    policy = role_policy(place_of("s3://backups/a*", ""), Grant("writer", "nb"))
    assert allows(policy, call=call("GET", "a*/volumes/nb/chunks/00/x"))
    assert allows(policy, call=call("GET", "", {"list-type": "2", "prefix": "a*/keys/"}))
    assert not allows(policy, call=call("GET", "a-other/volumes/nb/chunks/00/x"))
    assert not allows(policy, call=call("GET", "", {"list-type": "2", "prefix": "a-other/keys/"}))


def test_a_bucket_that_is_all_repository() -> None:
    policy = role_policy(place_of("s3://backups", ""), Grant("writer", "nb"))
    assert allows(policy, call=call("GET", "repository"))
    assert allows(policy, call=call("GET", "", {"list-type": "2"}))
    assert allows(policy, call=call("PUT", "volumes/nb/manifests/x", if_none_match="*"))
    assert not allows(policy, call=call("PUT", "volumes/nb2/manifests/x", if_none_match="*"))


@pytest.mark.parametrize("role", ["writer", "pruner"])
def test_every_object_of_the_format_can_be_added_once_and_the_lease_replaced(role: Role) -> None:
    policy = role_policy(place_of("s3://backups/p", ""), Grant(role, "nb"))
    lease = names.lease_name("nb")
    manifest = names.ManifestName("nb", 1, 1, 0, "full", "0" * 16).object_name()
    added = [
        manifest,
        names.chunk_name("nb", bytes(32), bytes(16)),
        names.catalog_name("nb", bytes(32), bytes(16)),
        names.data_key_name("nb", bytes(16)),
        names.data_key_name("nb", bytes(16), 2),
        "volumes/nb/garbage/0000000001",
    ]
    for name in (*added, lease):
        assert allows(policy, call=call("PUT", f"p/{name}", if_none_match="*"))
        assert not allows(policy, call=call("PUT", f"p/{name}"))
    for name in added:
        assert not allows(policy, call=call("PUT", f"p/{name}", if_match='"e"'))
    assert allows(policy, call=call("PUT", f"p/{lease}", if_match='"e"'))


EVERYTHING = {
    "Statement": [
        {
            "Sid": "All",
            "Effect": "Allow",
            "Action": "s3:*",
            "Resource": ["arn:aws:s3:::*", "arn:aws:s3:::*/*"],
        }
    ]
}


def test_what_a_writer_may_not_no_other_policy_of_its_role_brings_in() -> None:
    """SageMaker's own policies for notebooks allow putting and deleting in all or many buckets."""
    policy = role_policy(place_of("s3://backups/p", ""), Grant("writer", "nb"))
    refused = [
        call("DELETE", "p/volumes/nb/chunks/00/x"),
        call("DELETE", "p/volumes/other/chunks/00/x", {"versionId": "v"}),
        call("DELETE", "p/repository"),
        call("PUT", "p/volumes/other/manifests/x"),
        call("PUT", "p/volumes/nb/manifests/x", if_match='"e"'),
        call("PUT", "p/repository"),
        call("PUT", "p/volumes/nb/lease"),
        call("POST", "p/volumes/nb/manifests/x", {"uploadId": "u"}),
        call("PUT", "p/volumes/nb/manifests/x", x_amz_copy_source="backups/p/volumes/nb/manifests/y"),
        call("PUT", "p/x", {"retention": ""}, x_amz_bypass_governance_retention="true"),
    ]
    for one in refused:
        assert allows(EVERYTHING, call=one) and not allows(EVERYTHING, policy, call=one), one
    for one in (call("PUT", "elsewhere/x"), call("DELETE", "elsewhere/x"), call("GET", "p/volumes/other/x")):
        assert allows(EVERYTHING, policy, call=one), one


def test_parts_may_come_without_a_condition_and_the_object_of_them_may_not() -> None:
    policy = role_policy(place_of("s3://backups/p", ""), Grant("writer", "nb"))
    key = "p/volumes/nb/chunks/00/x"
    assert allows(policy, call=call("POST", key, {"uploads": ""}))
    assert allows(policy, call=call("PUT", key, {"uploadId": "u", "partNumber": "1"}))
    assert allows(policy, call=call("DELETE", key, {"uploadId": "u"}))
    assert allows(policy, call=call("POST", key, {"uploadId": "u"}, if_none_match="*"))
    assert not allows(policy, call=call("POST", key, {"uploadId": "u"}))
    assert not allows(policy, call=call("POST", "p/volumes/b/chunks/00/x", {"uploads": ""}))


def test_retention_is_set_if_that_is_asked_for_and_never_ended() -> None:
    key, place = "p/volumes/nb/chunks/00/x", place_of("s3://backups/p", "")
    locked = call("PUT", key, if_none_match="*", x_amz_object_lock_mode="GOVERNANCE")
    extended = call("PUT", key, {"retention": ""})
    ended = call("PUT", key, {"retention": ""}, x_amz_bypass_governance_retention="true")
    for role in ("writer", "pruner"):
        without, with_lock = (role_policy(place, Grant(role, "nb", lock=lock)) for lock in FLAGS)
        assert allows(with_lock, call=locked) and allows(with_lock, call=extended)
        assert not allows(without, call=locked) and not allows(without, call=extended)
        assert not allows(with_lock, call=ended) and not allows(with_lock, EVERYTHING, call=ended)
        for name, may in (("repository", True), ("keys/slots/x", True), ("volumes/b/chunks/00/x", False)):
            assert allows(with_lock, call=call("PUT", f"p/{name}", {"retention": ""})) is may


def test_a_bucket_policy_holds_for_everybody() -> None:
    place = place_of("s3://backups/p", "")
    pruner = Caller("arn:aws:iam::123456789012:role/pruner")
    policy = bucket_policy(place, [pruner.arn])
    assert all(item["Principal"] == "*" and item["Effect"] == "Deny" for item in policy["Statement"])
    assert size(policy) < 20_000

    def may(one: Call, caller: Caller = Caller()) -> bool:  # noqa: B008
        return allows(EVERYTHING, policy, call=one, caller=caller)

    key = "p/volumes/nb/manifests/x"
    for caller in (Caller(), pruner):
        assert may(call("PUT", key, if_none_match="*"), caller) and may(call("GET", key), caller)
        assert may(call("PUT", "p/volumes/nb/lease", if_match='"e"'), caller)
        assert not may(call("PUT", key), caller) and not may(call("PUT", key, if_match='"e"'), caller)
        assert not may(call("PUT", "p/volumes/nb/lease"), caller) and not may(call("PUT", "p/new"), caller)
        assert not may(call("DELETE", key, {"versionId": "v"}), caller)
        assert not may(call("GET", key), Caller(caller.arn, secure=False))
        assert not may(call("GET", "", {"list-type": "2"}), Caller(caller.arn, secure=False))
        assert may(call("DELETE", "elsewhere"), caller) and may(call("PUT", "elsewhere"), caller)
    assert may(call("DELETE", key), pruner) and not may(call("DELETE", key))
    of_versions = bucket_policy(place, [pruner.arn], versions=True)
    removal = call("DELETE", key, {"versionId": "v"})
    assert allows(EVERYTHING, of_versions, call=removal, caller=pruner)
    assert not allows(EVERYTHING, of_versions, call=removal)
    assert not allows(EVERYTHING, bucket_policy(place), call=call("DELETE", key), caller=pruner)


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:sts::123456789012:assumed-role/pruner/session",
        "arn:aws:iam::123456789012:root",
        "arn:aws:iam::123456789012:role/*",
        "arn:aws:iam::12345:role/pruner",
        "pruner",
        "*",
    ],
)
def test_a_principal_that_no_request_bears(arn: str) -> None:
    with pytest.raises(UsageError, match="role"):
        bucket_policy(PLACE, [arn])


def test_the_sample_is_what_the_verb_prints() -> None:
    sample = json.loads((TOP / "config/iam-policy-writer.json").read_text())
    place = place_of("s3://your-bucket/your-prefix", "eu-west-1")
    assert sample == role_policy(place, Grant("writer", "analysis-nb"))


# --- the judge, held to what AWS documents


def only(effect: str, action: str, resource: str, **condition: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": action, "Resource": resource, "Condition": condition}


def verdict(one: Call, *given: dict[str, Any]) -> bool:
    return allows({"Statement": list(given)}, call=one)


def test_the_judge_knows_denials_wildcards_and_absent_keys() -> None:
    put = call("PUT", "a/b/c")
    everywhere = only("Allow", "s3:*", "*")
    assert verdict(put, everywhere) and not verdict(put)
    assert not verdict(put, everywhere, only("Deny", "S3:PUTobject", "arn:aws:s3:::backups/a/*"))
    assert verdict(put, everywhere, only("Deny", "s3:Put*", "arn:aws:s3:::backups/a/?"))
    assert not verdict(put, everywhere, only("Deny", "s3:Put*", "arn:aws:s3:::backups/?/*/c"))
    for absent in ("StringEquals", "StringLike", "ArnLike", "Bool"):
        assert not verdict(put, only("Allow", "s3:*", "*", **{absent: {"s3:if-match": "*"}}))
    assert verdict(put, only("Allow", "s3:*", "*", ArnNotLike={"s3:if-match": "x"}))
    assert not verdict(put, only("Allow", "s3:*", "*", Null={"s3:if-match": "true"}, Bool={"x": "true"}))
    with pytest.raises(AssertionError, match="teach"):
        verdict(call("PATCH", "a"), everywhere)


def test_the_judge_agrees_with_the_user_guide_on_conditional_writes() -> None:
    """Its examples 1 and 3, as "Enforce conditional writes on Amazon S3 buckets" tells them."""
    first = [
        only("Allow", "s3:PutObject", "arn:aws:s3:::backups/*", Null={"s3:if-none-match": "false"}),
        only("Allow", "s3:PutObject", "arn:aws:s3:::backups/*", Bool={"s3:ObjectCreationOperation": "false"}),
    ]
    assert verdict(call("PUT", "k", if_none_match="*"), *first) and not verdict(call("PUT", "k"), *first)
    assert verdict(call("POST", "k", {"uploads": ""}), *first)
    assert not verdict(call("POST", "k", {"uploadId": "u"}), *first)
    third = [
        only("Allow", "s3:PutObject", "arn:aws:s3:::backups/*"),
        only(
            "Deny", "s3:PutObject", "arn:aws:s3:::backups/*",
            Null={"s3:if-none-match": "true", "s3:if-match": "true"},
            Bool={"s3:ObjectCreationOperation": "true"},
        ),
    ]  # fmt: skip
    assert verdict(call("PUT", "k", if_match='"e"'), *third) and verdict(
        call("PUT", "k", if_none_match="*"), *third
    )
    assert not verdict(call("PUT", "k"), *third)


def test_the_judge_asks_for_every_right_that_a_request_needs() -> None:
    def needed(one: Call) -> list[str]:
        return [need.action.removeprefix("s3:") for need in one.needs()]

    assert needed(call("PUT", "k", x_amz_acl="public-read")) == ["PutObject", "PutObjectAcl"]
    assert needed(call("PUT", "k", x_amz_object_lock_mode="GOVERNANCE")) == [
        "PutObject",
        "PutObjectRetention",
    ]
    assert needed(call("DELETE", "k", if_match='"e"')) == ["DeleteObject", "GetObject"]
    assert needed(call("DELETE", "k", {"versionId": "1"})) == ["DeleteObjectVersion"]
    assert needed(call("PUT", "k", x_amz_copy_source="/backups/z")) == ["PutObject", "GetObject"]
    assert needed(call("GET", "", {"versions": "", "prefix": "x"})) == ["ListBucketVersions"]
