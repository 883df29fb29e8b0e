"""What an error answer of S3 means: transient or not, in plain words, and what to do about it.

Codes from the S3 API reference, "Error responses", and those that S3-compatible servers add.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from smsnapd.errors import ConflictError, DeniedError, ObjectMissingError, StoreError

NO_ETAG: Final = f'"{"0" * 32}"'
"""An ETag in its quotes that no object has."""

EXPIRED: Final = frozenset(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "400"))
"""Codes that say that the credentials were good once. To HEAD there is no code but the status."""

TIMED_REFUSALS: Final = frozenset(("AccessDenied", "RequestTimeTooSkewed", "RequestExpired"))
"""Codes of refusals that S3 itself has written: the time in their `Date` is the server's."""


class Answer(NamedTuple):
    """An error answer: HTTP status, S3's code ("" or the status if it had no body), its message."""

    status: int
    code: str
    message: str


class Meaning(NamedTuple):
    """`why` and `hint` for people, and whether the same call may succeed later by itself."""

    why: str
    hint: str
    transient: bool


_TOO_MANY: Final = frozenset(
    ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "KMS.ThrottlingException")
)
_TRANSIENT_STATUS: Final = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_TRANSIENT: Final = {
    "SlowDown": "the server asks for fewer requests",
    "ServiceUnavailable": "the service is unavailable",
    "Throttling": "the server asks for fewer requests",
    "ThrottlingException": "the server asks for fewer requests",
    "RequestLimitExceeded": "the server asks for fewer requests",
    "KMS.ThrottlingException": "KMS asks for fewer requests",
    "InternalError": "the server had an internal error",
    "RequestTimeout": "the server waited in vain for the rest of the request",
    "IncompleteBody": "the request was cut short on its way",
    "OperationAborted": "another operation on the object is under way",
    "ConditionalRequestConflict": "another operation on the object is under way",
    "BadDigest": "the bytes were damaged on their way to the server",
    "MalformedXML": "the request was damaged on its way to the server",
    "XAmzContentSHA256Mismatch": "the bytes were damaged on their way to the server",
    "XAmzContentChecksumMismatch": "the bytes were damaged on their way to the server",
}

_CREDENTIALS: Final = (
    "check which credentials are in use: the instance's role, AWS_PROFILE or AWS_ACCESS_KEY_ID"
)
_TOKEN: Final = "renew the credentials: log in again, or restart if they come from a file or the environment"
_REGION: Final = "set region in the configuration to the region of the bucket"
_KMS: Final = "allow kms:GenerateDataKey and kms:Decrypt on the bucket's KMS key, and see that it is enabled"
_FULL: Final = "free space on the server or raise its quota"
_PERMANENT: Final = {
    "NoSuchBucket": ("the bucket does not exist", "check the bucket's name in the URL, or create the bucket"),
    "InvalidBucketName": ("that is no bucket name", "check the bucket's name in the URL"),
    "AllAccessDisabled": ("all access to the bucket is disabled", "ask AWS Support about the account"),
    "AccountProblem": ("the AWS account has a problem", "ask AWS Support about the account"),
    "InvalidAccessKeyId": ("the server does not know the access key", _CREDENTIALS),
    "SignatureDoesNotMatch": (
        "the signature is wrong",
        "the secret key is wrong, or a proxy changes requests; check the secret key and endpoint_url",
    ),
    "AuthorizationHeaderMalformed": ("the request was signed for another region", _REGION),
    "PermanentRedirect": ("the bucket lies in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket lies in another region", _REGION),
    "ExpiredToken": ("the credentials have expired", _TOKEN),
    "ExpiredTokenException": ("the credentials have expired", _TOKEN),
    "TokenRefreshRequired": ("the credentials must be renewed", _TOKEN),
    "InvalidToken": ("the session token is not valid", _TOKEN),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock: timedatectl set-ntp true"),
    "RequestExpired": ("this machine's clock is wrong", "set the clock: timedatectl set-ntp true"),
    "InvalidObjectState": (
        "the object is in an archive class",
        "bring it back with aws s3api restore-object, and take the prefix out of lifecycle transitions",
    ),
    "NotImplemented": (
        "the server does not support what was asked",
        "use a server with conditional writes (If-None-Match and If-Match on PutObject)",
    ),
    "QuotaExceeded": ("the server's quota is used up", _FULL),
    "InsufficientStorage": ("the server is full", _FULL),
    "XMinioStorageFull": ("the server is full", _FULL),
    "InvalidRequest": (
        "the server refuses the request",
        'if it asks for a checksum, set checksums = "when_supported"; if it refuses one, "when_required";'
        " with object_lock, the bucket must have Object Lock on",
    ),
    "EntityTooLarge": ("the server refuses an object of this size", "raise its limit to 64 MiB or more"),
}


def meaning(answer: Answer, permission: str) -> Meaning:
    """What `answer` means to a call that needs `permission` ("s3:GetObject")."""
    if answer.code in _TRANSIENT:
        return Meaning(_told(_TRANSIENT[answer.code], answer), "", True)
    if answer.code in _PERMANENT:
        why, hint = _PERMANENT[answer.code]
        return Meaning(_told(why, answer), hint, False)
    # SSE-KMS: codes "KMS.…", or a plain AccessDenied whose message names the KMS action.
    if answer.code.startswith("KMS.") or (answer.status == 403 and "kms:" in answer.message):
        return Meaning(_told("the bucket's KMS key cannot be used", answer), _KMS, False)
    if answer.status in (401, 403):
        return Meaning(_told("access is denied", answer), _permission_hint(permission), False)
    if answer.status in _TRANSIENT_STATUS:
        return Meaning(_told("the server could not answer", answer), "", True)
    return Meaning(_told("the server refuses the request", answer), "", False)


def refusal(answer: Answer, what: str, permission: str) -> StoreError:
    """The error that `answer` is to a call that needs `permission`; `what` was being done."""
    if answer.status == 412:
        return ConflictError(what, "the condition of the request did not hold")
    missing = answer.code in ("NoSuchKey", "NoSuchUpload", "NoSuchVersion")
    if missing or (answer.status == 404 and answer.code in ("404", "", "NotFound")):
        return ObjectMissingError(what, "there is no such object")
    why, hint, transient = meaning(answer, permission)
    if is_denied(answer):
        return DeniedError(what, why, hint)
    return StoreError(what, why, hint, transient=transient)


def asks_for_fewer(answer: Answer) -> bool:
    """Whether there were too many requests for the server: it wants fewer at a time."""
    return answer.status in (429, 503) or answer.code in _TOO_MANY


def is_denied(answer: Answer) -> bool:
    """Whether policies keep who asks from this; wrong credentials, clocks and keys are other matters."""
    known = answer.code in _TRANSIENT or answer.code in _PERMANENT or answer.code.startswith("KMS.")
    return answer.status in (401, 403) and not known and "kms:" not in answer.message


def date_in(headers: Mapping[str, str], what: str) -> float:
    """`Date` (RFC 9110, section 6.6.1) in seconds since the epoch; without one, `StoreError`."""
    text = headers.get("date", "")
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError as error:
        raise StoreError(what, f"the server's answer has no time in it ({one_line(text, 40)!r})") from error


def one_line(text: str, limit: int = 300) -> str:
    """`text` without line breaks and control characters, at most `limit` characters."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _told(why: str, answer: Answer) -> str:
    """`why`, and in the server's words."""
    said = ": ".join(part for part in (answer.code or str(answer.status), one_line(answer.message)) if part)
    return f"{why} ({said.rstrip('.')})"


def _permission_hint(permission: str) -> str:
    hint = f"allow {permission} on the bucket and prefix: see smsnap iam-policy"
    if permission == "s3:GetObject":
        hint += "; without s3:ListBucket, S3 says this of an object that does not exist too"
    return hint
