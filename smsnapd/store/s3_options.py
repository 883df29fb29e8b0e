"""What is added to requests: a checksum, and as configured storage class, encryption at rest, who pays."""

from __future__ import annotations

import base64
import zlib
from typing import Any

from smsnapd.store.base import Buffer, StoreSettings
from smsnapd.store.names import is_chunk


def put_options(settings: StoreSettings, name: str, data: Buffer) -> dict[str, str]:
    """Arguments of PutObject for the object `name` with the bytes `data`.

    The storage class is for chunks alone: cheaper ones bill small objects as 128 KB, and for a month or
    longer, and a lease is replaced every few minutes.
    """
    options: dict[str, str] = {}
    if settings.checksums == "when_supported":
        # Our own CRC32 in a header: the SDK's would come as a trailer over TLS, which means aws-chunked
        # framing, copies and 16 KiB sends: twice the CPU time.
        options["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    if settings.storage_class and is_chunk(name):
        options["StorageClass"] = settings.storage_class
    if settings.sse:
        options["ServerSideEncryption"] = settings.sse
    if settings.kms_key:
        options["SSEKMSKeyId"] = settings.kms_key
    return options


def pay_for_requests(client: Any) -> None:
    """Have an S3 client of the SDK say with every request that whoever asks pays for it."""

    def add(params: Any, **_: object) -> None:
        params["headers"]["x-amz-request-payer"] = "requester"

    client.meta.events.register("before-call.s3", add)
