"""Objects in an S3 bucket, below a prefix. The only place of the store that knows the SDK.

Create-only puts are `If-None-Match: *`, replacements are `If-Match`: atomic on the server. The SDK's own
retries are off: here it is known which answer of a repeated put means success.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import os
import re
import threading
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as sdk
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from smsnapd.errors import ConflictError, ObjectExistsError, ObjectMissingError, StoreError, UsageError
from smsnapd.store.base import Buffer, ObjectInfo, StoreSettings, check_size
from smsnapd.store.names import check_name, check_prefix, is_name
from smsnapd.store.retry import Backoff
from smsnapd.store.s3_answers import Answer, meaning, one_line
from smsnapd.store.s3_body import request_body

MAX_CONNECTIONS: Final = 16

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


class _Page(NamedTuple):
    """A part of a listing: keys and sizes, common prefixes, and the token of the next part or None."""

    keys: list[tuple[str, int]]
    prefixes: list[str]
    token: str | None


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
        self._lock = threading.Lock()
        self._made: tuple[int, Any] | None = None
        self._bytewise: bool | None = None

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
        for key, size in self._keys(self._base + prefix):
            name = key[len(self._base) :]
            if is_name(name):
                yield ObjectInfo(name, size)

    def delete(self, name: str) -> None:
        """Remove the object, if there is one (in a versioned bucket: add a delete marker)."""
        check_name("delete", name)
        key = self._base + name

        def attempt() -> None:
            with self._translating(f"delete s3://{self._bucket}/{key}", "s3:DeleteObject"):
                self._client().delete_object(Bucket=self._bucket, Key=key)

        with contextlib.suppress(ObjectMissingError):
            self._backoff.run(attempt)

    def barrier(self) -> None:
        """S3 answers a put when the object is durable: nothing to wait for."""

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        with self._lock:
            if self._made is not None and self._made[0] == os.getpid():
                self._made[1].close()
            self._made = None

    def _put(self, doing: str, name: str, data: Buffer, **condition: str) -> str:
        """One PUT; returns the ETag. `ConflictError` if the condition did not hold."""
        key = self._base + name
        extra = dict(condition)
        if self._settings.checksums == "when_supported":
            # Our own CRC32 in a header: the SDK's would come as a trailer over TLS, which means aws-chunked
            # framing, copies and 16 KiB sends: twice the CPU time.
            extra["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        with self._translating(f"{doing} s3://{self._bucket}/{key}", "s3:PutObject"):
            response = self._client().put_object(
                Bucket=self._bucket, Key=key, Body=request_body(data), **extra
            )
        return str(response["ETag"])

    def _get(self, name: str) -> tuple[bytes, str]:
        """One GET: content and ETag."""
        key = self._base + name
        what = f"read s3://{self._bucket}/{key}"
        with self._translating(what, "s3:GetObject"):
            response = self._client().get_object(Bucket=self._bucket, Key=key)
            with contextlib.closing(response["Body"]) as body:
                check_size(response.get("ContentLength", 0), what)
                content: bytes = body.read()
        if len(content) != response.get("ContentLength", len(content)):
            raise StoreError(what, "the answer was cut short", transient=True)
        return content, str(response["ETag"])

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

    def _keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Keys and sizes below `prefix`, sorted bytewise whatever the server's order.

        Some servers list directory by directory: `a/x` before `a-b`, which is not bytewise. One page is
        sorted here; of more, a server that does so is asked level by level.
        """
        first = self._page(prefix)
        if first.token is None:
            yield from sorted(first.keys)
        elif self._lists_bytewise(first):
            yield from self._flat(prefix, first)
        else:
            yield from self._level(prefix)

    def _flat(self, prefix: str, page: _Page) -> Iterator[tuple[str, int]]:
        last = ""
        while True:
            for key, size in page.keys:
                if key <= last:
                    raise StoreError(f"list s3://{self._bucket}/{prefix}", "the server lists out of order")
                last = key
                yield key, size
            if page.token is None:
                return
            page = self._page(prefix, ContinuationToken=page.token)

    def _level(self, prefix: str) -> Iterator[tuple[str, int]]:
        page = self._page(prefix, Delimiter="/")
        found = page.keys + [(below, 0) for below in page.prefixes]
        while page.token is not None:
            page = self._page(prefix, Delimiter="/", ContinuationToken=page.token)
            found += page.keys + [(below, 0) for below in page.prefixes]
        for key, size in sorted(found):
            if key.endswith("/") and key != prefix:
                yield from self._level(key)
            else:
                yield key, size

    def _lists_bytewise(self, page: _Page) -> bool:
        """Whether the server's order is bytewise, found out once by asking what follows `directory.~`.

        "." comes just before "/", so bytewise it is the directory itself.
        """
        if self._bytewise is None:
            directory = next((key.rpartition("/")[0] for key, _ in page.keys if "/" in key), "")
            if not directory:
                return False
            parent = directory[: directory.rfind("/") + 1]
            following = self._page(parent, StartAfter=f"{directory}.~", MaxKeys=1).keys
            self._bytewise = any(key.startswith(f"{directory}/") for key, _ in following)
        return self._bytewise

    def _page(self, prefix: str, **more: Any) -> _Page:
        arguments = {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": self._page_keys, **more}

        def attempt() -> _Page:
            with self._translating(f"list s3://{self._bucket}/{prefix}", "s3:ListBucket"):
                answer = self._client().list_objects_v2(**arguments)
            keys = [(entry["Key"], entry["Size"]) for entry in answer.get("Contents", ())]
            prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
            token = answer["NextContinuationToken"] if answer["IsTruncated"] else None
            return _Page(keys, prefixes, token)

        return self._backoff.run(attempt)

    def _client(self) -> Any:
        """This process's client: connections must not be shared across a fork."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), _new_client(self._settings, self.url))
            return self._made[1]

    @contextlib.contextmanager
    def _translating(self, what: str, permission: str) -> Iterator[None]:
        try:
            yield
        except _SDK_ERRORS as error:
            raise _translated(error, what, permission) from error
        except RuntimeError as error:
            # botocore.credentials raises this itself when refreshed credentials have expired already.
            hint = "check the role of the instance, and its clock"
            raise StoreError(what, one_line(str(error)), hint, transient=True) from error


def _new_client(settings: StoreSettings, url: str) -> Any:
    """A client for `settings`; raises a permanent `StoreError` if they cannot be used."""
    what = f"reach {url}"
    if settings.ca_bundle and not os.path.isfile(settings.ca_bundle):
        why = f"there is no file {settings.ca_bundle}"
        raise StoreError(what, why, "set ca_bundle to a file of certificates")
    try:
        session = boto3.session.Session()
        region = _region(settings, session.region_name, what)
        plain = settings.endpoint_url.lower().startswith("http:")
        client = _client_in(session, settings, region, sign_payload=plain)
        if client.meta.endpoint_url.startswith("https:") or settings.endpoint_url:
            return client
        client.close()  # the environment or the profile names a server without TLS
        return _client_in(session, settings, region, sign_payload=True)
    except (sdk.BotoCoreError, ValueError) as error:
        why = one_line(str(error))
        raise StoreError(what, why, "check region, endpoint_url and ~/.aws/config") from error


def _client_in(session: Any, settings: StoreSettings, region: str, *, sign_payload: bool) -> Any:
    """A client; with `sign_payload` every body is hashed for its signature, which only TLS makes needless."""
    config = Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=MAX_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        user_agent_extra="smsnapd",
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        s3={
            "addressing_style": "path" if settings.path_style else "auto",
            "payload_signing_enabled": sign_payload,
        },
    )
    return session.client(
        "s3",
        region_name=region,
        endpoint_url=settings.endpoint_url or None,
        verify=settings.ca_bundle or None,
        config=config,
    )


def _region(settings: StoreSettings, known: str | None, what: str) -> str:
    """The region: configured, or from the environment or profile. Never a guess on AWS.

    Other servers take any; us-east-1 is what they are set to by default.
    """
    region = settings.region or os.environ.get("AWS_REGION") or known
    if region:
        return region
    host = urlsplit(settings.endpoint_url).hostname or "amazonaws.com"
    if host.endswith(("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu")):
        hint = "set region in the configuration, or AWS_REGION"
        raise StoreError(what, "the region of the bucket is not known", hint)
    return "us-east-1"


def _translated(error: Exception, what: str, permission: str) -> StoreError:
    """The `StoreError` for an exception of the SDK."""
    if isinstance(error, sdk.ClientError):
        return _refused(error, what, permission)
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


def _refused(error: sdk.ClientError, what: str, permission: str) -> StoreError:
    """The `StoreError` for an error answer of the server."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    details = error.response.get("Error", {})
    answer = Answer(status, str(details.get("Code", "")), str(details.get("Message", "")))
    if status == 412:
        return ConflictError(what, "the condition of the request did not hold")
    if answer.code == "NoSuchKey" or (status == 404 and answer.code in ("404", "", "NotFound")):
        return ObjectMissingError(what, "there is no such object")
    why, hint, transient = meaning(answer, permission)
    return StoreError(what, why, hint, transient=transient)
