"""Objects in an S3 bucket, below a prefix. The only place of the store, with `s3_client`, that knows the SDK.

Create-only puts are `If-None-Match: *`, replacements are `If-Match`: atomic on the server. The SDK's own
retries are off: here it is known which answer of a repeated put means success.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from smsnapd.errors import (
    ConflictError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    UsageError,
)
from smsnapd.store.activity import uploading
from smsnapd.store.base import Buffer, ObjectInfo, StoreSettings
from smsnapd.store.counting import count_requests
from smsnapd.store.names import check_name, check_prefix, is_name
from smsnapd.store.pacing import download_pacer_for, pacer_for
from smsnapd.store.retry import Backoff
from smsnapd.store.s3_answers import (
    EXPIRED,
    NO_ETAG,
    TIMED_REFUSALS,
    Answer,
    asks_for_fewer,
    date_in,
    one_line,
    refusal,
)
from smsnapd.store.s3_body import prepare_puts, request_body
from smsnapd.store.s3_client import MAX_CONNECTIONS, Clients, new_client
from smsnapd.store.s3_download import read_answer
from smsnapd.store.s3_listing import KeyOrder, Page
from smsnapd.store.s3_locks import Locks, lock_options, sum_retentions
from smsnapd.store.s3_objects import PlainObjects
from smsnapd.store.s3_options import pay_for_requests, put_options
from smsnapd.store.s3_stock import Stocked, stock
from smsnapd.store.s3_uploads import abandon_uploads
from smsnapd.store.s3_versions import PastStore
from smsnapd.store.throttle import Throttle

_SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9!_.*'()=@,+-]{1,255}"
_is_url: Final = re.compile(
    rf"s3://([A-Za-z0-9][A-Za-z0-9._-]{{1,254}})(?:/({_SEGMENT}(?:/{_SEGMENT})*))?/?"
).fullmatch
_NETWORK: Final = "check the network, the proxy and endpoint_url; in a VPC, the S3 gateway endpoint"
_SDK_ERRORS: Final = (sdk.ClientError, sdk.BotoCoreError, ResponseParserError, HTTPError)


def open_s3(settings: StoreSettings, backoff: Backoff | None = None) -> S3Store:
    """The store at `s3://bucket/prefix`; raises `UsageError` if the URL is another.

    `backoff` is by default one of `settings.attempts`.
    """
    match = _is_url(settings.url)
    if match is None:
        # The URL is not repeated: people put keys there.
        raise UsageError("open an s3:// URL", "it has no valid bucket or prefix", "give s3://bucket/prefix")
    base = f"{match[2]}/" if match[2] else ""
    return S3Store(settings, match[1], base, backoff or Backoff(settings.attempts))


class S3Store:
    """A `Store` in `bucket`; `base` ("" or ending with "/") is put before names. Versions are ETags.

    The client is made at first use, once in a process. `page_keys` is how many keys to ask for at once.
    """

    def __init__(
        self, settings: StoreSettings, bucket: str, base: str, backoff: Backoff, page_keys: int = 1000
    ) -> None:
        self.url = f"s3://{bucket}/{base}".rstrip("/")
        self._settings = settings
        self._bucket = bucket
        self._base = base
        self._backoff = backoff
        self._page_keys = page_keys
        self._pacer = pacer_for(settings)
        self._reading = download_pacer_for(settings)
        self._throttle = Throttle(MAX_CONNECTIONS)
        self._clients = Clients(self._new_client)
        self._order = KeyOrder(self._page, bucket)
        self._locks = Locks(self._call, bucket, settings.object_lock)

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def get(self, name: str) -> bytes:
        """The whole object, its length and checksum compared."""
        return self.get_versioned(name)[0]

    def put(self, name: str, data: Buffer) -> None:
        """Create the object, or find it there with the same bytes (after a lost answer, say)."""
        check_name("store", name)

        def attempt() -> None:
            try:
                self._put("store", name, data, IfNoneMatch="*")
            except ConflictError as error:
                self._accept_same(name, data, error)

        self._backoff.run(attempt)

    def get_versioned(self, name: str) -> tuple[bytes, str]:
        """The whole object and its ETag."""
        check_name("read", name)
        return self._backoff.run(lambda: self._get(name))

    def replace(self, name: str, data: Buffer, version: str | None) -> str:
        """Put `data` if the object is at `version` still.

        If an answer was lost, the refusal of the next attempt may be our own doing: then the object having
        the bytes of `data` counts as success, so these should be unique to the writer.
        """
        check_name("replace", name)
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        in_doubt = False

        def attempt() -> str:
            nonlocal in_doubt
            try:
                return self._put("replace", name, data, **condition)
            except (ConflictError, ObjectMissingError) as error:
                return self._own_version(name, data, error, in_doubt)
            except StoreError as error:
                in_doubt = in_doubt or error.transient
                raise

        return self._backoff.run(attempt)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose names begin with `prefix`, sorted, one page in memory at a time."""
        check_prefix(prefix)
        for key, size in self._order.keys(self._base + prefix):
            name = key[len(self._base) :]
            if is_name(name):
                yield ObjectInfo(name, size)

    def children(self, prefix: str) -> tuple[str, ...]:
        """One LIST for each thousand of them."""
        check_prefix(prefix)
        found = (key[len(self._base) :] for key, _ in self._order.level(self._base + prefix))
        return tuple(name for name in found if is_name(name.removesuffix("/")))

    def delete(self, name: str) -> None:
        """Remove the object, if there is one (in a versioned bucket: add a delete marker)."""
        check_name("delete", name)
        with contextlib.suppress(ObjectMissingError):
            self._delete(self._base + name)

    def locked_until(self, name: str) -> float:
        """As the object's head says it, to whoever may see that (s3:GetObjectRetention); one HEAD."""
        check_name("ask about", name)
        return self._locks.until(self._base + name)

    def lock(self, name: str, until_s: float) -> None:
        """Set or extend the retention of the object's newest version."""
        check_name("lock", name)
        self._locks.extend(self._base + name, until_s)

    def can_lock(self) -> bool:
        """Whether the bucket has Object Lock. `DeniedError` if that may not be known."""
        return self._locks.is_possible()

    def try_delete(self, below: str = "") -> None:
        """Ask to delete an object that is not there.

        `If-Match` keeps a versioned bucket from adding a delete marker for it; servers that do not know it
        there pass it over, and what a name of 128 random bits refers to cannot be lost.
        """
        with contextlib.suppress(ObjectMissingError, ConflictError):
            self._delete(f"{self._base}{below}{os.urandom(16).hex()}", IfMatch=NO_ETAG)

    def abandon_uploads(self, below: str, before_s: float) -> int:
        """Abort multipart uploads; ours are single puts, so these are somebody else's."""
        return abandon_uploads(self._call, self._bucket, self._base + below, before_s)

    def at(self, moment_s: float) -> PastStore:
        """What was here at `moment_s`, seconds since the epoch, if the bucket keeps versions."""
        return PastStore(self, self._call, self._bucket, self._base, moment_s, self._reading, self._page_keys)

    def stock(self) -> Iterator[Stocked]:
        """All that lies here as S3 bills it, somebody else's objects too, in no certain order."""
        return stock(self._call, self._bucket, self._base)

    def objects(self) -> PlainObjects:
        """The bucket's objects as those of other tools, whatever their keys."""
        return PlainObjects(self._call, self._bucket, self._settings)

    def now(self) -> float:
        """What `Date` an answer of the server bears, to the second: that to a small listing.

        A refusal tells it as well, and that of a clock that is far off is one.
        """
        what = f"learn the time of {self.url}"
        return date_in(self._backoff.run(lambda: self._headers(what)), what)

    def bucket_region(self) -> str:
        """The region that the bucket lies in, "" if the server does not say."""
        what = f"learn the region of s3://{self._bucket}"
        return self._backoff.run(lambda: self._headers(what)).get("x-amz-bucket-region", "")

    def barrier(self) -> None:
        """S3 answers a put when the object is durable: nothing to wait for."""

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._clients.close()
        for pacer in filter(None, (self._pacer, self._reading)):
            pacer.close()

    def _delete(self, key: str, **condition: str) -> None:
        arguments = {"Bucket": self._bucket, "Key": key, **condition}
        what = f"delete s3://{self._bucket}/{key}"
        self._call(what, "s3:DeleteObject", lambda client: client.delete_object(**arguments))

    def _call(self, what: str, permission: str, use: Callable[[Any], Any]) -> Any:
        """What `use` returns, which is given the client; tried again as often as is useful."""

        def attempt() -> Any:
            with self._translating(what, permission) as client:
                return use(client)

        return self._backoff.run(attempt)

    def _put(self, doing: str, name: str, data: Buffer, **condition: str) -> str:
        """One PUT; returns the ETag. `ConflictError` if the condition did not hold."""
        key = self._base + name
        settings = self._settings
        extra = {**put_options(settings, name, data), **lock_options(settings, name, data), **condition}
        with self._translating(f"{doing} s3://{self._bucket}/{key}", "s3:PutObject") as client:
            response = client.put_object(
                Bucket=self._bucket, Key=key, Body=request_body(data, self._pacer), **extra
            )
        uploading.mark()
        return str(response["ETag"])

    def _get(self, name: str) -> tuple[bytes, str]:
        """One GET: content and ETag."""
        key = self._base + name
        what = f"read s3://{self._bucket}/{key}"
        with self._translating(what, "s3:GetObject") as client:
            response = client.get_object(Bucket=self._bucket, Key=key)
            return read_answer(response, what, self._reading), str(response["ETag"])

    def _accept_same(self, name: str, data: Buffer, error: ConflictError) -> None:
        try:
            content, _ = self._get(name)
        except ObjectMissingError as missing:
            why = "it existed, and was deleted a moment later"
            raise StoreError(error.what, why, transient=True) from missing
        if content != data:
            raise ObjectExistsError(error.what, "it exists and has other bytes") from error

    def _own_version(self, name: str, data: Buffer, error: StoreError, in_doubt: bool) -> str:
        """The version of the object if an earlier attempt of ours made it; else the conflict."""
        conflict = ConflictError(error.what, "somebody else changed it")
        if not in_doubt:
            raise conflict from error
        try:
            content, version = self._get(name)
        except ObjectMissingError:
            raise conflict from error
        if content != data:
            raise conflict from error
        return version

    def _page(self, prefix: str, **more: str | int) -> Page:
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": self._page_keys, **more}

        what = f"list s3://{self._bucket}/{prefix}"
        answer = self._call(what, "s3:ListBucket", lambda client: client.list_objects_v2(**arguments))
        keys = [(entry["Key"], entry["Size"]) for entry in answer.get("Contents", ())]
        prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
        token = answer["NextContinuationToken"] if answer["IsTruncated"] else None
        return Page(keys, prefixes, token)

    def _headers(self, what: str) -> dict[str, str]:
        """The headers of an answer that whoever reads and writes here may ask for; names in lower case."""
        with self._translating(what, "s3:ListBucket") as client:
            try:
                answer = client.list_objects_v2(Bucket=self._bucket, Prefix=self._base, MaxKeys=1)
            except sdk.ClientError as error:
                code, answer = error.response.get("Error", {}).get("Code"), error.response
                if code == "404":  # S3 says what is not there
                    raise StoreError(what, "what answers is not S3", "check endpoint_url") from error
                if code not in TIMED_REFUSALS:
                    raise
        headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
        return headers

    def _client(self) -> Any:
        return self._clients.current()

    def _new_client(self) -> Any:
        client = new_client(self._settings, self.url)
        count_requests(client)
        if self._settings.request_payer:
            pay_for_requests(client)
        prepare_puts(client, self._pacer)
        sum_retentions(client)
        return client

    @contextlib.contextmanager
    def _translating(self, what: str, permission: str) -> Iterator[Any]:
        """One request, or a few in a row, by the client that is given: when it is its turn.

        The SDK's exceptions are translated. After an answer that the credentials have expired they are read
        anew, and the request may be made again.
        """
        client = None
        with self._throttle.turn() as turn:
            try:
                client = self._client()
                yield client
            except _SDK_ERRORS as error:
                answer = _answer_in(error) if isinstance(error, sdk.ClientError) else None
                if answer is not None and asks_for_fewer(answer):
                    turn.refuse()
                if answer is not None and answer.code in EXPIRED and self._clients.renew(client):
                    raise StoreError(what, "the credentials have expired", transient=True) from error
                raise _translated(error, what, permission) from error
            except RuntimeError as error:
                # botocore.credentials raises this itself when refreshed credentials have expired already.
                hint = "check the role of the instance, and its clock"
                raise StoreError(what, one_line(str(error)), hint, transient=True) from error


def _translated(error: Exception, what: str, permission: str) -> StoreError:
    """The `StoreError` for an exception of the SDK."""
    if isinstance(error, sdk.ClientError):
        return refusal(_answer_in(error), what, permission)
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
        hint = "give the instance a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return StoreError(what, "there are no complete AWS credentials", hint)
    if isinstance(error, sdk.SSLError) and "certificate verify failed" in str(error).lower():
        hint = "set ca_bundle to the certificate authority's file, or mend the server's certificate"
        return StoreError(what, "the server's certificate is not trusted", hint)
    for kinds, why in _TROUBLES:
        if isinstance(error, kinds):
            return StoreError(what, why, _NETWORK, transient=True)
    return StoreError(what, one_line(str(error)), "check the AWS configuration of smsnapd's user")


_TROUBLES: Final[builtins.list[tuple[tuple[type[Exception], ...], str]]] = [
    ((sdk.ConnectTimeoutError,), "the server could not be connected to in time"),
    ((sdk.ReadTimeoutError,), "the server did not answer in time"),
    ((sdk.FlexibleChecksumError, sdk.ChecksumError), "the answer was damaged on its way"),
    ((sdk.IncompleteReadError, sdk.ResponseStreamingError), "the answer was cut short"),
    ((sdk.EndpointConnectionError, sdk.ProxyConnectionError), "the server could not be connected to"),
    ((sdk.ConnectionClosedError,), "the connection was closed before the answer"),
    ((sdk.CredentialRetrievalError, sdk.MetadataRetrievalError), "the AWS credentials could not be fetched"),
    ((ResponseParserError,), "the answer was not S3's"),
    ((sdk.HTTPClientError, sdk.ConnectionError, HTTPError), "the connection failed"),
]


def _answer_in(error: sdk.ClientError) -> Answer:
    """The server's answer that the SDK made an exception of."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    details = error.response.get("Error", {})
    return Answer(status, str(details.get("Code", "")), str(details.get("Message", "")))
