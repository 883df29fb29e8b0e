"""What lies in a bucket as its bill sees it: every object with its size, storage class and age."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from smsnapd.store.s3_uploads import Call


class Stocked(NamedTuple):
    """An object: its name, size in bytes, storage class, when it was stored (seconds since the epoch)."""

    name: str
    size: int
    storage_class: str
    stored_s: float


def stock(call: Call, bucket: str, base: str) -> Iterator[Stocked]:
    """All objects whose keys begin with `base`, in the server's order; a page in memory at a time."""
    what = f"list s3://{bucket}/{base}"
    more: dict[str, str] = {}
    while True:
        arguments = {"Bucket": bucket, "Prefix": base, **more}
        answer = call(what, "s3:ListBucket", _listing(arguments))
        for entry in answer.get("Contents", ()):
            stored_s = entry["LastModified"].timestamp()
            storage_class = entry.get("StorageClass") or "STANDARD"
            yield Stocked(entry["Key"][len(base) :], entry["Size"], storage_class, stored_s)
        if not answer["IsTruncated"]:
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}


def _listing(arguments: dict[str, str]) -> Callable[[Any], Any]:
    return lambda client: client.list_objects_v2(**arguments)
