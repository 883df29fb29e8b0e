"""The least that AWS must allow each role on an S3 repository, as IAM policy documents. Pure: no I/O.

>>> place = place_of("s3://backups/team", "eu-west-1")
>>> policy = role_policy(place, Grant("restorer", volume="nb"))
>>> [statement["Sid"] for statement in policy["Statement"]]
['ListTheRepository', 'ReadKeysAndVolume']

Object names are those of FORMAT.md, section 2. Sources: the service authorization reference for Amazon S3
(actions, resources, condition keys); S3 user guide, "Enforce conditional writes on Amazon S3 buckets"; IAM
user guide, "Condition operators" and "Variables" (`${*}`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from smsnapd.errors import UsageError

Role = Literal["writer", "pruner", "restorer", "auditor"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

Statement = dict[str, Any]
Policy = dict[str, Any]

_SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9!_.*'()=@,+-]{1,255}"
_is_url: Final = re.compile(
    rf"s3://([A-Za-z0-9][A-Za-z0-9._-]{{1,254}})(?:/({_SEGMENT}(?:/{_SEGMENT})*))?/?"
).fullmatch
_is_key: Final = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]+").fullmatch
_is_principal: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(?:role|user)/[\w+=,.@/-]+", re.A).fullmatch

_PARTITIONS: Final = (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov"), ("eusc-", "aws-eusc"))

# A request that would overwrite says neither "only if it is absent" nor "only if it is what I saw". Parts of
# a multipart upload cannot say it; the request that makes an object of them can (s3:ObjectCreationOperation).
_CREATES: Final = {"Bool": {"s3:ObjectCreationOperation": "true"}}
_ADDS: Final = {"Null": {"s3:if-none-match": "false"}}
_REPLACES: Final = {"Null": {"s3:if-match": "false"}}
_NOT_ADDS: Final = {"Null": {"s3:if-none-match": "true"}, **_CREATES}
_UNCONDITIONAL: Final = {"Null": {"s3:if-none-match": "true", "s3:if-match": "true"}, **_CREATES}


class Place(NamedTuple):
    """Where a repository lies. `base` is put before names: "" or the URL's prefix with a slash behind it."""

    bucket: str
    base: str
    partition: str

    @property
    def bucket_arn(self) -> str:
        """The ARN of the bucket."""
        return f"arn:{self.partition}:s3:::{self.bucket}"

    def objects(self, *names: str) -> list[str]:
        """The ARNs of objects; `names` may have the wildcard `*`."""
        return [f"{self.bucket_arn}/{self.literal_base}{name}" for name in names]

    @property
    def literal_base(self) -> str:
        """`base` for a policy, where a `*` of the URL means just that."""
        return self.base.replace("*", "${*}")


@dataclass(frozen=True)
class Grant:
    """What is asked for. `volume` "" stands for all of them.

    `kms_key` is the ARN of the key that the bucket encrypts with, or "". `versions` adds the old versions of
    objects: reading them, and a pruner deletes them too. `lock` adds setting and extending retention, never
    ending it. `init` lets a writer make the repository.
    """

    role: Role
    volume: str = ""
    kms_key: str = ""
    versions: bool = False
    lock: bool = False
    init: bool = False

    @property
    def changes(self) -> bool:
        """Whether the role puts objects."""
        return self.role in ("writer", "pruner")


def place_of(url: str, region: str) -> Place:
    """The place of the repository at `url`; `region` ("" if not known) tells the partition.

    Raises `UsageError` if it is not in S3.
    """
    if not url.startswith("s3:"):
        why = "the repository is not in S3, and IAM governs nothing else"
        raise UsageError("make an IAM policy", why, "name one that is: --repository s3://bucket/prefix")
    match = _is_url(url)
    if match is None:
        raise UsageError(
            "make an IAM policy", "the URL has no valid bucket or prefix", "give s3://bucket/prefix"
        )
    return Place(match[1], f"{match[2]}/" if match[2] else "", partition_of(region))


def partition_of(region: str) -> str:
    """The part of AWS that a region belongs to (AWS General Reference, Amazon Resource Names)."""
    return next((name for start, name in _PARTITIONS if region.startswith(start)), "aws")


def role_policy(place: Place, grant: Grant) -> Policy:
    """The identity policy of a role; raises `UsageError` if what is asked for does not go together."""
    _check(grant)
    statements = [_list(place, grant), _read(place, grant)]
    if grant.changes:
        statements += _changes(place, grant)
    if grant.role == "pruner":
        statements += _removals(place, grant)
    if grant.changes:
        statements += [*_no_overwriting(place), _no_removal(place, grant)]
    if grant.role == "auditor":
        chunks = place.objects("volumes/*/chunks/*")
        statements.append(_statement("DenyReadingChunks", "Deny", _reading(versions=True), chunks))
    if grant.kms_key:
        statements.append(_key(grant))
    return _policy(statements)


def bucket_policy(place: Place, principals: Sequence[str] = (), *, versions: bool = False) -> Policy:
    """What holds for everybody, whatever else they are allowed: no overwriting, no deleting, no plain HTTP.

    Only `principals`, ARNs of IAM roles and users, may delete, and old versions only with `versions`. Grants
    nothing. Raises `UsageError` for an ARN that no request would ever bear.
    """
    _check_principals(principals)
    everything = [place.bucket_arn, *place.objects("*")]
    plain = {"Bool": {"aws:SecureTransport": "false"}}
    statements = [_statement("DenyPlainHttp", "Deny", ["s3:*"], everything, plain), *_no_overwriting(place)]
    removals = ["s3:DeleteObject", *(["s3:DeleteObjectVersion"] if versions else [])]
    others = {"ArnNotEquals": {"aws:PrincipalArn": _one_or_all(list(principals))}} if principals else {}
    statements.append(_statement("DenyDeleting", "Deny", removals, place.objects("*"), others))
    if not versions:
        withheld = ["s3:DeleteObjectVersion"]
        statements.append(_statement("DenyDeletingVersions", "Deny", withheld, place.objects("*")))
    return _policy([{**statement, "Principal": "*"} for statement in statements])


# --- statements


def _list(place: Place, grant: Grant) -> Statement:
    """Listing, of the whole repository: `check` and the daemon count all of it, names are no secret.

    A prefix in the condition also decides whether a GET of an object that is not there is answered with 404
    or 403: S3 takes the object's key for the prefix then.
    """
    actions = ["s3:ListBucket", *(["s3:ListBucketVersions"] if grant.versions else [])]
    below = {"StringLike": {"s3:prefix": f"{place.literal_base}*"}} if place.base else {}
    return _statement("ListTheRepository", "Allow", actions, [place.bucket_arn], below)


def _read(place: Place, grant: Grant) -> Statement:
    resources = place.objects("repository", "keys/*", _of_volume(grant, "*"))
    return _statement("ReadKeysAndVolume", "Allow", _reading(versions=grant.versions), resources)


def _reading(*, versions: bool) -> list[str]:
    return ["s3:GetObject", *(["s3:GetObjectVersion"] if versions else [])]


def _changes(place: Place, grant: Grant) -> list[Statement]:
    """Adding objects, and replacing the one that may be: the lease."""
    put, all_of_it = ["s3:PutObject"], place.objects(_of_volume(grant, "*"))
    parts = {"Bool": {"s3:ObjectCreationOperation": "false"}}
    statements = [
        _statement("AddObjects", "Allow", put, all_of_it, _ADDS),
        _statement("ReplaceTheLease", "Allow", put, place.objects(_of_volume(grant, "lease")), _REPLACES),
        _statement("AddPartsOfObjects", "Allow", put, all_of_it, parts),
        _statement("AbandonParts", "Allow", ["s3:AbortMultipartUpload"], all_of_it),
    ]
    if grant.lock:
        statements.append(_locking(place, all_of_it))
    if grant.init:
        statements.append(
            _statement("MakeTheRepository", "Allow", put, place.objects("repository", "keys/*"), _ADDS)
        )
    return statements


def _locking(place: Place, all_of_it: list[str]) -> Statement:
    """Locking, with what nothing opens without; and seeing locks, as HEAD shows them to who may ask.

    One statement, and in it "?e*" for `repository` and `keys/…`: a managed policy may have 6,144 characters.
    """
    actions = ["s3:PutObjectRetention", "s3:GetObjectRetention", "s3:GetObjectLegalHold"]
    resources = [place.bucket_arn, *place.objects("?e*"), *all_of_it]
    return _statement("LockObjects", "Allow", [*actions, "s3:GetBucketObjectLockConfiguration"], resources)


def _removals(place: Place, grant: Grant) -> list[Statement]:
    """Deleting, and finding the parts that uploads left: their listing has no condition for a prefix."""
    actions = ["s3:DeleteObject", *(["s3:DeleteObjectVersion"] if grant.versions else [])]
    return [
        _statement("DeleteObjects", "Allow", actions, place.objects(_of_volume(grant, "*"))),
        _statement("FindParts", "Allow", ["s3:ListBucketMultipartUploads"], [place.bucket_arn]),
    ]


def _no_overwriting(place: Place) -> list[Statement]:
    """Everything but a lease can be put only where nothing is; a lease, only over what was seen or nothing.

    A lease is `volumes/<volume>/lease`: all other names below `volumes/` have a further slash.
    """
    added = place.objects("repository", "keys/*", "volumes/*/*/*")
    return [
        _statement("DenyOverwriting", "Deny", ["s3:PutObject"], added, _NOT_ADDS),
        _statement("DenyBlindWrites", "Deny", ["s3:PutObject"], place.objects("*"), _UNCONDITIONAL),
    ]


def _no_removal(place: Place, grant: Grant) -> Statement:
    """What no other policy of the role may bring in again: SageMaker's own often allow to delete."""
    sid, actions = "DenyBypassingLocks", ["s3:BypassGovernanceRetention"]
    if not grant.versions:
        sid, actions = "DenyDeletingVersions", ["s3:DeleteObjectVersion", *actions]
    if grant.role == "writer":
        sid, actions = "DenyDeleting", ["s3:DeleteObject", *actions]
    return _statement(sid, "Deny", actions, place.objects("*"))


def _key(grant: Grant) -> Statement:
    """Use of the bucket's key by way of S3 alone. The service's domain differs between partitions."""
    match = _is_key(grant.kms_key)
    if match is None:
        why = f"{grant.kms_key!r} is no ARN of a KMS key; a policy cannot name an alias"
        hint = "aws kms describe-key --key-id alias/NAME --query KeyMetadata.Arn"
        raise UsageError("make an IAM policy", why, hint)
    actions = [*(["kms:GenerateDataKey"] if grant.changes else []), "kms:Decrypt"]
    through = {"StringLike": {"kms:ViaService": f"s3.{match[1]}.amazonaws.*"}}
    return _statement("UseTheKey", "Allow", actions, [grant.kms_key], through)


def _of_volume(grant: Grant, name: str) -> str:
    """The name of an object of the volume, or of any."""
    if grant.volume or name != "*":
        return f"volumes/{grant.volume or '*'}/{name}"
    return "volumes/*"


# --- checks and shapes


def _check(grant: Grant) -> None:
    if grant.versions and grant.role == "writer":
        _refuse("a writer needs no old versions of objects", "leave out --versions, or take another role")
    if grant.lock and not grant.changes:
        _refuse(f"a {grant.role} locks nothing", "give --object-lock with writer or pruner")
    if grant.init and grant.role != "writer":
        _refuse(f"a {grant.role} makes no repository", "give --init with writer")


def _check_principals(principals: Sequence[str]) -> None:
    for arn in principals:
        if _is_principal(arn) is None:
            why = f"{arn!r} is no ARN of a role or a user"
            _refuse(why, "give arn:aws:iam::ACCOUNT:role/NAME, for a session too")


def _refuse(why: str, hint: str) -> None:
    raise UsageError("make an IAM policy", why, hint)


def _policy(statements: list[Statement]) -> Policy:
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(
    sid: str, effect: str, actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> Statement:
    statement = {
        "Sid": sid,
        "Effect": effect,
        "Action": _one_or_all(actions),
        "Resource": _one_or_all(resources),
    }
    return {**statement, "Condition": condition} if condition else statement


def _one_or_all(items: list[str]) -> str | list[str]:
    return items[0] if len(items) == 1 else items
