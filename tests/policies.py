"""A judge of IAM policies: which S3 actions a request needs, and whether policies allow them.

Sources: S3 user guide, "Required permissions for Amazon S3 API operations"; service authorization reference,
"Condition keys for Amazon S3"; IAM user guide, "Policy evaluation logic" and "Condition operators". It knows
what this project's requests and the attacks of its tests are made of, and stops at everything else.

`Guard` stands before a real server, as AWS's own would, and refuses what policies do not allow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fault.proxy import Answer, Fault, FaultProxy, Request

Policy = Mapping[str, Any]
Context = Mapping[str, str]

_BUCKET: Final = {
    ("GET", "policy"): "s3:GetBucketPolicy",
    ("PUT", "policy"): "s3:PutBucketPolicy",
    ("DELETE", "policy"): "s3:DeleteBucketPolicy",
    ("PUT", "lifecycle"): "s3:PutLifecycleConfiguration",
    ("PUT", "versioning"): "s3:PutBucketVersioning",
    ("GET", "versioning"): "s3:GetBucketVersioning",
    ("GET", "object-lock"): "s3:GetBucketObjectLockConfiguration",
    ("GET", "location"): "s3:GetBucketLocation",
    ("GET", "versions"): "s3:ListBucketVersions",
    ("GET", "uploads"): "s3:ListBucketMultipartUploads",
    ("GET", "list-type"): "s3:ListBucket",
    ("HEAD", ""): "s3:ListBucket",
    ("DELETE", ""): "s3:DeleteBucket",
}
_OBJECT: Final = {
    ("GET", "acl"): "s3:GetObjectAcl",
    ("PUT", "acl"): "s3:PutObjectAcl",
    ("GET", "tagging"): "s3:GetObjectTagging",
    ("PUT", "tagging"): "s3:PutObjectTagging",
    ("GET", "retention"): "s3:GetObjectRetention",
    ("PUT", "retention"): "s3:PutObjectRetention",
    ("PUT", "legal-hold"): "s3:PutObjectLegalHold",
    ("GET", "versionId"): "s3:GetObjectVersion",
    ("HEAD", "versionId"): "s3:GetObjectVersion",
    ("DELETE", "versionId"): "s3:DeleteObjectVersion",
    ("GET", "uploadId"): "s3:ListMultipartUploadParts",
    ("DELETE", "uploadId"): "s3:AbortMultipartUpload",
    ("POST", "uploads"): "s3:PutObject",
    ("POST", "uploadId"): "s3:PutObject",
    ("PUT", "uploadId"): "s3:PutObject",
    ("GET", ""): "s3:GetObject",
    ("HEAD", ""): "s3:GetObject",
    ("PUT", ""): "s3:PutObject",
    ("DELETE", ""): "s3:DeleteObject",
}
_PUT_HEADERS: Final = {
    "x-amz-acl": "s3:PutObjectAcl",
    "x-amz-grant-full-control": "s3:PutObjectAcl",
    "x-amz-tagging": "s3:PutObjectTagging",
    "x-amz-object-lock-mode": "s3:PutObjectRetention",
    "x-amz-object-lock-legal-hold": "s3:PutObjectLegalHold",
}


class Need(NamedTuple):
    """One thing that a request needs: an action on a resource, and what conditions are held against."""

    action: str
    resource: str
    context: Context


class Call(NamedTuple):
    """A request to S3, the bucket in its path. `query` and `headers` in lower case as far as names go."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @classmethod
    def of(cls, request: Request) -> Call:
        """What the proxy saw, understood."""
        parts = urlsplit(request.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(request.method, unquote(bucket), unquote(key), query, request.headers)

    def needs(self, partition: str = "aws") -> list[Need]:
        """Everything that must be allowed for this; AssertionError for a request that is not known here."""
        bucket = f"arn:{partition}:s3:::{self.bucket}"
        if not self.key:
            return [Need(self._known(_BUCKET), bucket, self._context())]
        actions = [self._known(_OBJECT)]
        if actions == ["s3:PutObject"]:
            actions += [needed for name, needed in _PUT_HEADERS.items() if name in self.headers]
        if self.method == "DELETE" and self.headers.get("if-match", "*") != "*":
            actions.append("s3:GetObject")
        if self.headers.get("x-amz-bypass-governance-retention", "").lower() == "true":
            actions.append("s3:BypassGovernanceRetention")
        needs = [Need(action, f"{bucket}/{self.key}", self._context()) for action in actions]
        if source := unquote(self.headers.get("x-amz-copy-source", "")).lstrip("/"):
            needs.append(Need("s3:GetObject", f"arn:{partition}:s3:::{source}", {}))
        return needs

    def _known(self, actions: Mapping[tuple[str, str], str]) -> str:
        found = [name for name in self.query if (self.method, name) in actions]
        action = actions.get((self.method, found[0] if found else ""))
        assert action is not None and len(found) <= 1, f"teach this what {self} needs"
        return action

    def _context(self) -> Context:
        context = {
            f"s3:{name}": self.headers[name] for name in ("if-match", "if-none-match") if name in self.headers
        }
        if not self.key:
            context |= {
                f"s3:{name}": self.query[name] for name in ("prefix", "delimiter") if name in self.query
            }
            context.setdefault("s3:prefix", "")
        if self.key and self.method in ("PUT", "POST"):
            is_part = "partNumber" in self.query or "uploads" in self.query
            context["s3:ObjectCreationOperation"] = "false" if is_part else "true"
        return context

    def seeing(self) -> Need:
        """What a GET needs besides to be told that an absent object is absent, and not that it is denied.

        S3 takes the key for the prefix of a listing then.
        """
        return Need("s3:ListBucket", f"arn:aws:s3:::{self.bucket}", {"s3:prefix": self.key})


@dataclass(frozen=True)
class Caller:
    """Who asks, and how."""

    arn: str = "arn:aws:iam::123456789012:role/anybody"
    secure: bool = True

    def context(self) -> Context:
        """The condition keys that are in every request."""
        return {"aws:PrincipalArn": self.arn, "aws:SecureTransport": "true" if self.secure else "false"}


def allows(policy: Policy, *others: Policy, call: Call, caller: Caller = Caller()) -> bool:
    """Whether identity policies together allow a request, and no bucket policy among them denies it."""
    return all(_allowed((policy, *others), need, caller) for need in call.needs())


def allows_need(policy: Policy, need: Need, caller: Caller = Caller()) -> bool:
    """Whether a policy allows one thing."""
    return _allowed((policy,), need, caller)


def _allowed(policies: Sequence[Policy], need: Need, caller: Caller) -> bool:
    """An explicit denial wins, and what nobody allows is denied."""
    effects = {
        statement["Effect"]
        for policy in policies
        for statement in policy["Statement"]
        if _applies(statement, need, {**need.context, **caller.context()})
    }
    return effects == {"Allow"}


def _applies(statement: Mapping[str, Any], need: Need, context: Context) -> bool:
    unknown = statement.keys() - {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    assert not unknown, f"teach this what {unknown} means"
    assert statement.get("Principal", "*") == "*"
    return (
        any(_like(pattern, need.action, re.IGNORECASE) for pattern in _list(statement["Action"]))
        and any(_like(pattern, need.resource) for pattern in _list(statement["Resource"]))
        and all(
            _OPERATORS[operator](context.get(key), _list(expected))
            for operator, keys in statement.get("Condition", {}).items()
            for key, expected in keys.items()
        )
    )


def _null(value: str | None, expected: list[str]) -> bool:
    return ("true" if value is None else "false") in expected


def _like_any(value: str | None, expected: list[str]) -> bool:
    return value is not None and any(_like(pattern, value) for pattern in expected)


def _bool(value: str | None, expected: list[str]) -> bool:
    return value is not None and value.lower() in expected


# A key that is not there matches nothing, and so everything that is negated.
_OPERATORS: Final[dict[str, Callable[[str | None, list[str]], bool]]] = {
    "Null": _null,
    "Bool": _bool,
    "StringEquals": lambda value, expected: value is not None and value in expected,
    "StringLike": _like_any,
    "ArnLike": _like_any,
    "ArnEquals": _like_any,
    "ArnNotLike": lambda value, expected: not _like_any(value, expected),
    "ArnNotEquals": lambda value, expected: not _like_any(value, expected),
}


def _like(pattern: str, text: str, flags: int = 0) -> bool:
    """`*` is any text, slashes too, `?` one character; `${*}`, `${?}` and `${$}` are those characters."""
    pieces = re.split(r"(\$\{[*?$]\}|[*?])", pattern)
    wild = {"*": ".*", "?": "."}
    expression = "".join(
        wild.get(piece) or re.escape(piece[2] if re.fullmatch(r"\$\{.\}", piece) else piece)
        for piece in pieces
    )
    return re.fullmatch(expression, text, flags | re.DOTALL) is not None


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass
class Verdicts:
    """What came by, and what was refused of it."""

    calls: list[Call] = field(default_factory=list)
    refused: list[Call] = field(default_factory=list)

    def summary(self) -> Iterator[str]:
        """`action key` of each, with the parts of names that vary left out."""
        for call in self.calls:
            what = call.key or f"?prefix={call.query.get('prefix', '')}"
            condition = next(
                (f" {name}" for name in ("if-none-match", "if-match") if name in call.headers), ""
            )
            yield f"{call.needs()[0].action}{condition} {re.sub(r'[0-9a-f]{16,}', '…', what)}"


class Guard(FaultProxy):
    """A proxy before a server with which everything is allowed, that holds requests to policies.

    `hold(policies)` begins anew: what comes is judged by these (none: everything is allowed), and noted.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self._policies: tuple[Policy, ...] = ()
        self._caller = Caller()
        self.verdicts = Verdicts()

    def hold(self, *policies: Policy, caller: Caller = Caller()) -> Verdicts:
        """From now on these hold, for this caller; returns what will be noted."""
        self._policies, self._caller = policies, caller
        self.verdicts = Verdicts()
        return self.verdicts

    def befalls(self, request: Request) -> Fault | None:
        """A refusal, as S3 words it, of what is not allowed."""
        call = Call.of(request)
        self.verdicts.calls.append(call)
        if not self._policies or allows(*self._policies, call=call, caller=self._caller):
            return super().befalls(request)
        self.verdicts.refused.append(call)
        return Answer(403, "AccessDenied", "no policy allows it")
