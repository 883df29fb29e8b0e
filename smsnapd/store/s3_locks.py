"""S3 Object Lock: what is put is kept from deletion for a while, and kept longer where that is asked for.

Modes, and who may do what: S3 user guide, "Locking objects with Object Lock". A lock is of a version: who
deletes without naming one hides the object, and whoever reads the bucket as of an earlier time still has it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from smsnapd.errors import StoreError
from smsnapd.store.base import Buffer, StoreSettings
from smsnapd.store.names import is_lasting
from smsnapd.store.s3_uploads import Call

_NEEDS: Final = "s3:GetObject"
_ABSENT: Final = "ObjectLockConfigurationNotFoundError"


def sum_retentions(client: Any) -> None:
    """Have an S3 client of the SDK send Content-MD5 with PutObjectRetention, beside its own checksum.

    The API reference asks for it, and not every server takes another sum in its place.
    """

    def add(params: Any, **_: object) -> None:
        digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
        params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()

    client.meta.events.register("before-call.s3.PutObjectRetention", add)


class _Lock(NamedTuple):
    """How a version is locked: the mode ("" if it is not), and until when, seconds since the epoch."""

    mode: str
    until_s: float


def lock_options(settings: StoreSettings, name: str, data: Buffer) -> dict[str, Any]:
    """Arguments of PutObject that lock the object `name` with the bytes `data`, as configured.

    Leases are replaced all the time, and garbage lists of no use to recovery points: these are not locked.
    S3 takes no lock without Content-MD5 or the name of a checksum (API reference, PutObject).
    """
    if not settings.object_lock or not is_lasting(name):
        return {}
    # By our clock: S3 refuses requests whose clock differs from its own by more than a quarter of an hour.
    until = datetime.fromtimestamp(math.ceil(time.time() + settings.lock_s), UTC)
    options: dict[str, Any] = {
        "ObjectLockMode": settings.object_lock,
        "ObjectLockRetainUntilDate": until,
    }
    if settings.checksums == "when_supported":
        options["ChecksumAlgorithm"] = "CRC32"  # which is there already
    else:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        options["ContentMD5"] = base64.b64encode(digest).decode()
    return options


class Locks:
    """The locks in `bucket`; `mode` is that of new ones, "" if none are to be made. For several threads."""

    def __init__(self, call: Call, bucket: str, mode: str) -> None:
        self._call = call
        self._bucket = bucket
        self._mode = mode
        self._can_be = True

    def until(self, key: str) -> float:
        """Until when the object is locked; 0 if it is not, infinity under a legal hold.

        A bucket without versions has no locks: where an answer shows that, nothing is asked any more, unless
        locks are to be made.
        """
        return self._lock_of(key).until_s if self._can_be else 0.0

    def extend(self, key: str, until_s: float) -> None:
        """Lock the object until then. One that is locked keeps its mode, which cannot be changed in place."""
        what = f"lock s3://{self._bucket}/{key}"
        found = self._lock_of(key)
        if found.until_s >= until_s:
            return
        mode = found.mode or self._mode
        if not mode:
            hint = 'set object_lock = "governance" or "compliance" under [repository]'
            raise StoreError(what, "no Object Lock is configured", hint)
        until = datetime.fromtimestamp(math.ceil(until_s), UTC)
        asked = {"Mode": mode, "RetainUntilDate": until}
        self._call(
            what,
            "s3:PutObjectRetention",
            lambda client: client.put_object_retention(Bucket=self._bucket, Key=key, Retention=asked),
        )

    def is_possible(self) -> bool:
        """Whether the bucket has Object Lock. `DeniedError` if that may not be known."""
        what = f"learn of Object Lock in s3://{self._bucket}"
        answer = self._call(what, "s3:GetBucketObjectLockConfiguration", self._configuration)
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _configuration(self, client: Any) -> Any:
        try:
            return client.get_object_lock_configuration(Bucket=self._bucket)
        except client.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") == _ABSENT:
                return {}
            raise

    def _lock_of(self, key: str) -> _Lock:
        what = f"learn of the lock of s3://{self._bucket}/{key}"
        answer = self._call(what, _NEEDS, lambda client: client.head_object(Bucket=self._bucket, Key=key))
        if "VersionId" not in answer:
            self._can_be = bool(self._mode)
        until = answer.get("ObjectLockRetainUntilDate")
        lock = _Lock(answer.get("ObjectLockMode", ""), until.timestamp() if until else 0.0)
        held = answer.get("ObjectLockLegalHoldStatus") == "ON"
        return _Lock(lock.mode, math.inf) if held else lock
