"""Multipart uploads that nobody finished: found, and their parts dropped.

Ours are single requests, so none of them is this program's; but what others left below our prefix costs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from smsnapd.errors import ObjectMissingError

Call = Callable[[str, str, Callable[[Any], Any]], Any]
"""Does something with the SDK's client, as often as is useful; what was being done and the permission that it
needs are for messages. Raises `StoreError`."""


class _Upload(NamedTuple):
    """An upload under way: its key, the id that S3 gave it, when it began (seconds since the epoch)."""

    key: str
    id: str
    began_s: float


def abandon_uploads(call: Call, bucket: str, prefix: str, before_s: float) -> int:
    """Abort the uploads to keys that begin with `prefix` which began before `before_s`; returns how many."""
    what = f"list uploads to s3://{bucket}/{prefix}"
    found = call(what, "s3:ListBucketMultipartUploads", lambda client: _uploads(client, bucket, prefix))
    old = [upload for upload in found if upload.began_s < before_s]
    for upload in old:
        with suppress(ObjectMissingError):  # somebody has finished it, or aborted it, meanwhile
            _abort(call, bucket, upload)
    return len(old)


def _uploads(client: Any, bucket: str, prefix: str) -> list[_Upload]:
    uploads: list[_Upload] = []
    more: dict[str, str] = {}
    while True:
        answer = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix, **more)
        for item in answer.get("Uploads", ()):
            if item["Key"].startswith(prefix):
                uploads.append(_Upload(item["Key"], item["UploadId"], item["Initiated"].timestamp()))
        if not answer.get("IsTruncated"):
            return uploads
        more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _abort(call: Call, bucket: str, upload: _Upload) -> None:
    arguments = {"Bucket": bucket, "Key": upload.key, "UploadId": upload.id}
    what = f"abort an upload to s3://{bucket}/{upload.key}"
    call(what, "s3:AbortMultipartUpload", lambda client: client.abort_multipart_upload(**arguments))
