"""Plain objects in a bucket, of whatever keys: those of other tools, and what is handed out to them.

Not part of a repository: keys are anybody's, metadata counts, and sizes are up to S3's own limit.
"""

from __future__ import annotations

import base64
import secrets
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from smsnapd.errors import ConflictError, ObjectExistsError, ObjectMissingError, StoreError
from smsnapd.store.activity import uploading
from smsnapd.store.base import Buffer, StoreSettings
from smsnapd.store.s3_body import request_body
from smsnapd.store.s3_uploads import Call

RANGE_BYTES: Final = 8 * 1024 * 1024
"""What is asked for at once of an object that is read as it streams by."""

PART_MIN: Final = 16 * 1024 * 1024
PARTS_MAX: Final = 10_000
"""Parts that an upload may have (S3 User Guide, "multipart upload limits")."""

_RANGES_AHEAD: Final = 2
_PARTS_AHEAD_BYTES: Final = 64 * 1024 * 1024
_TOKEN: Final = "smsnapd-upload"
"""Metadata that tells an upload of ours whose answer was lost from somebody else's."""


class PlainObject(NamedTuple):
    """An object as it is listed: its key, size in bytes, last change (seconds since the epoch), ETag."""

    key: str
    size: int
    modified_s: float
    etag: str


class PlainObjects:
    """The objects of one bucket. Safe to use from several threads. Everything raises `StoreError`."""

    def __init__(self, call: Call, bucket: str, settings: StoreSettings) -> None:
        """`call` does something with the SDK's client, as often as is useful."""
        self._call = call
        self._bucket = bucket
        self._settings = settings

    def url(self, key: str) -> str:
        """The object's URL, for messages."""
        return f"s3://{self._bucket}/{key}"

    def find(self, key: str) -> PlainObject | None:
        """The object with exactly this key, None if there is none."""
        try:
            answer = self._call(
                f"look at {self.url(key)}",
                "s3:GetObject",
                lambda client: client.head_object(Bucket=self._bucket, Key=key),
            )
        except ObjectMissingError:
            return None
        return PlainObject(key, answer["ContentLength"], answer["LastModified"].timestamp(), answer["ETag"])

    def below(self, prefix: str) -> Iterator[PlainObject]:
        """All objects whose keys begin with `prefix`, in the server's order; a page in memory at a time."""
        arguments = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            answer = self._page(prefix, arguments)
            for item in answer.get("Contents", ()):
                yield PlainObject(item["Key"], item["Size"], item["LastModified"].timestamp(), item["ETag"])
            if not answer["IsTruncated"]:
                return
            arguments = {**arguments, "ContinuationToken": answer["NextContinuationToken"]}

    def folders(self, prefix: str) -> list[str]:
        """What lies between `prefix` and the next slash of keys that begin with it, each once."""
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        found: list[str] = []
        while True:
            answer = self._page(prefix, arguments)
            found += [item["Prefix"] for item in answer.get("CommonPrefixes", ())]
            if not answer["IsTruncated"]:
                return found
            arguments = {**arguments, "ContinuationToken": answer["NextContinuationToken"]}

    def _page(self, prefix: str, arguments: dict[str, str]) -> Any:
        what = f"list {self.url(prefix)}"
        return self._call(what, "s3:ListBucket", lambda client: client.list_objects_v2(**arguments))

    def get(
        self, item: PlainObject, start: int = 0, count: int | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """Bytes of an object from `start`, at most `count`, and its metadata.

        A permanent `StoreError` if it is another object by now.
        """
        arguments = {"Bucket": self._bucket, "Key": item.key, "IfMatch": item.etag}
        end = item.size if count is None else min(item.size, start + count)
        if (start, end) != (0, item.size):
            arguments["Range"] = f"bytes={start}-{end - 1}"
        what = f"read {self.url(item.key)}"
        try:
            found: tuple[bytes, dict[str, str]] = self._call(
                what, "s3:GetObject", lambda client: _read(client, arguments, end - start, what)
            )
            return found
        except ConflictError as error:
            raise StoreError(what, "it was changed while it was read", "run it again") from error

    def open(self, item: PlainObject, start: int = 0) -> RangedReader:
        """The object's bytes from `start` on as a source."""
        return RangedReader(self, item, start)

    def put(self, key: str, data: Buffer, metadata: Mapping[str, str], *, overwrite: bool = False) -> None:
        """Create a small object whole. `ObjectExistsError` if there is one, unless it may be overwritten."""
        token = secrets.token_hex(8)
        arguments = self._arguments(key, metadata, token) | self._unless_there(overwrite)
        if self._settings.checksums == "when_supported":
            arguments["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        what = f"store {self.url(key)}"

        def send(client: Any) -> None:
            client.put_object(Body=request_body(data), **arguments)
            uploading.mark()

        try:
            self._call(what, "s3:PutObject", send)
        except ConflictError as error:
            self._accept_own(key, token, what, error)

    def upload(
        self, key: str, metadata: Mapping[str, str], part_bytes: int, *, overwrite: bool = False
    ) -> MultipartUpload:
        """Begin an object that is written piece by piece; it is there once `commit` has returned."""
        return MultipartUpload(self, key, metadata, part_bytes, overwrite)

    # --- for uploads

    def _arguments(self, key: str, metadata: Mapping[str, str], token: str) -> dict[str, Any]:
        settings = self._settings
        arguments: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": key,
            "Metadata": {**metadata, _TOKEN: token},
        }
        if settings.sse:
            arguments["ServerSideEncryption"] = settings.sse
        if settings.kms_key:
            arguments["SSEKMSKeyId"] = settings.kms_key
        return arguments

    def _unless_there(self, overwrite: bool) -> dict[str, str]:
        return {} if overwrite else {"IfNoneMatch": "*"}

    def _accept_own(self, key: str, token: str, what: str, error: StoreError) -> None:
        """`ObjectExistsError`, unless the object that is there is this upload's: an answer was lost."""
        answer = self._call(
            what, "s3:GetObject", lambda client: client.head_object(Bucket=self._bucket, Key=key)
        )
        if answer["Metadata"].get(_TOKEN) != token:
            hint = "name another, or say --overwrite"
            raise ObjectExistsError(what, "it exists, and nothing is overwritten", hint) from error


def _read(client: Any, arguments: dict[str, str], count: int, what: str) -> tuple[bytes, dict[str, str]]:
    answer = client.get_object(**arguments)
    with answer["Body"] as body:
        data: bytes = body.read()
    if len(data) != count:
        raise StoreError(what, "the answer was cut short", transient=True)
    return data, dict(answer.get("Metadata", {}))


class RangedReader:
    """A `ByteSource` of one object, read in ranges, the next ones already on their way."""

    def __init__(self, objects: PlainObjects, item: PlainObject, start: int) -> None:
        self._objects = objects
        self._item = item
        self._next = start
        self._threads = ThreadPoolExecutor(_RANGES_AHEAD, thread_name_prefix="download")
        self._ahead: deque[Future[tuple[bytes, dict[str, str]]]] = deque()
        self._left = memoryview(b"")

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" only at the end."""
        while not self._left:
            while self._next < self._item.size and len(self._ahead) < _RANGES_AHEAD:
                self._ahead.append(
                    self._threads.submit(self._objects.get, self._item, self._next, RANGE_BYTES)
                )
                self._next += RANGE_BYTES
            if not self._ahead:
                return b""
            self._left = memoryview(self._ahead.popleft().result()[0])
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)

    def close(self) -> None:
        """Stop asking for more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def part_size(total: int) -> int:
    """Bytes of a part, so that as many as an upload may have hold `total` bytes, and some more."""
    most = total + total // 50 + PART_MIN
    return max(PART_MIN, -(-most // (PARTS_MAX - 1)))


class MultipartUpload:
    """An object that becomes one when `commit` returns, and otherwise never. Left without it, it is aborted.

    What fits one part goes up as one request. `ObjectExistsError` at the commit if one of the key has come to
    be there, unless it may be overwritten. For one thread.
    """

    def __init__(
        self, objects: PlainObjects, key: str, metadata: Mapping[str, str], part_bytes: int, overwrite: bool
    ) -> None:
        self._objects = objects
        self._key = key
        self._metadata = metadata
        self._part_bytes = part_bytes
        self._overwrite = overwrite
        self._token = secrets.token_hex(8)
        self._what = f"store {objects.url(key)}"
        self._buffer = bytearray()
        self._id = ""
        self._parts: list[dict[str, Any]] = []
        at_once = max(1, min(4, _PARTS_AHEAD_BYTES // part_bytes))
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="upload")
        self._at_once = at_once
        self._under_way: deque[Future[dict[str, Any]]] = deque()
        self._count = 0

    def __enter__(self) -> MultipartUpload:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._id:
            self._call("s3:AbortMultipartUpload", lambda client: client.abort_multipart_upload(**self._place))

    def write(self, piece: Buffer) -> None:
        """Take a piece of any size."""
        view = memoryview(piece).cast("B")
        while view:
            room = self._part_bytes - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == self._part_bytes:
                self._send_part()

    def commit(self) -> None:
        """Make it an object."""
        if not self._id:
            self._objects.put(self._key, self._buffer, self._metadata, overwrite=self._overwrite)
            return
        if self._buffer:
            self._send_part()
        while self._under_way:
            self._parts.append(self._under_way.popleft().result())
        condition = {} if self._overwrite else {"IfNoneMatch": "*"}
        arguments = {**self._place, "MultipartUpload": {"Parts": self._parts}, **condition}
        try:
            self._call("s3:PutObject", lambda client: client.complete_multipart_upload(**arguments))
        except (ConflictError, ObjectMissingError) as error:
            # The second is what S3 says of an upload that was completed: by us, if an answer was lost.
            self._objects._accept_own(self._key, self._token, self._what, error)
        self._id = ""

    @property
    def _place(self) -> dict[str, str]:
        return {"Bucket": self._objects._bucket, "Key": self._key, "UploadId": self._id}

    def _call(self, permission: str, use: Any) -> Any:
        return self._objects._call(self._what, permission, use)

    def _send_part(self) -> None:
        if not self._id:
            arguments = self._objects._arguments(self._key, self._metadata, self._token)
            self._id = self._call("s3:PutObject", lambda client: client.create_multipart_upload(**arguments))[
                "UploadId"
            ]
        while len(self._under_way) >= self._at_once:
            self._parts.append(self._under_way.popleft().result())
        self._count += 1
        data, self._buffer = self._buffer, bytearray()
        self._under_way.append(self._threads.submit(self._put_part, self._count, data))

    def _put_part(self, number: int, data: bytearray) -> dict[str, Any]:
        def send(client: Any) -> Any:
            answer = client.upload_part(Body=request_body(data), PartNumber=number, **self._place)
            uploading.mark()
            return answer

        answer = self._call("s3:PutObject", send)
        checksums = {name: answer[name] for name in ("ChecksumCRC32",) if answer.get(name)}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}
