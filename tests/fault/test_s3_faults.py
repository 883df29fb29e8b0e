"""The S3 store through a bad network, and against a server that refuses.

Every call either ends well in spite of the fault, or raises the right error and leaves nothing wrong behind.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from smsnapd.errors import ConflictError, ObjectMissingError, StoreError
from smsnapd.store import ObjectInfo, StoreSettings
from smsnapd.store.retry import Backoff
from smsnapd.store.s3 import S3Store, open_s3
from tests.fault.proxy import (
    Answer,
    BlackHole,
    CutResponse,
    Delay,
    Fault,
    FaultProxy,
    FlipRequest,
    FlipResponse,
    LoseResponse,
    Request,
    ResetRequest,
    Throttle,
)
from tests.servers import S3Server

pytestmark = pytest.mark.server

DATA = random.Random(7).randbytes(3 * 1024 * 1024)
SMALL = DATA[:20_000]


@dataclass
class Rig:
    """A store behind a proxy, one straight to the server, and the waits between attempts."""

    proxy: FaultProxy
    store: S3Store
    direct: S3Store
    settings: StoreSettings
    waits: list[float] = field(default_factory=list)
    while_waiting: Callable[[], object] = lambda: None


Opener = Callable[..., Rig]


@pytest.fixture
def rig(seaweed: S3Server, s3_settings: Callable[..., StoreSettings]) -> Iterator[Opener]:
    """Opens a rig: `rig(attempts=…, certificate=…, **settings)`."""
    opened: list[Rig] = []

    def open_rig(attempts: int = 4, certificate: Path | None = None, **more: Any) -> Rig:
        settings = s3_settings(seaweed, "ready", f"faults/{random.randbytes(8).hex()}")
        proxy = FaultProxy(seaweed.endpoint, certificate)
        proxy.__enter__()
        changed = replace(settings, endpoint_url=proxy.endpoint, attempts=attempts, **more)
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            new.while_waiting()

        backoff = Backoff(attempts, sleep=sleep, jitter=lambda: 1.0)
        new = Rig(proxy, open_s3(changed, backoff), open_s3(settings), changed, waits)
        opened.append(new)
        return new

    yield open_rig
    for one in opened:
        one.store.close()
        one.direct.close()
        one.proxy.__exit__(None, None, None)


def refused(call: Callable[[], object]) -> StoreError:
    """The error that `call` raises; it must be fit for people."""
    with pytest.raises(StoreError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert "testsecret123" not in text
    assert "botocore" not in text
    return caught.value


@pytest.mark.parametrize("data", [SMALL, DATA], ids=["small", "large"])
@pytest.mark.parametrize(
    "fault",
    [
        ResetRequest(0),
        ResetRequest(10_000),
        LoseResponse(),
        FlipRequest(9_999),
        Answer(503, "SlowDown"),
        Answer(500, "InternalError"),
        Answer(502, ""),
        Answer(504, ""),
        Answer(409, "ConditionalRequestConflict"),
        Delay(0.05),
        Throttle(20_000_000),
    ],
    ids=str,
)
def test_put_ends_well(rig: Opener, fault: Fault, data: bytes) -> None:
    one = rig()
    one.proxy.plan("PUT", fault)
    one.store.put("a/one", memoryview(data))
    assert one.direct.get("a/one") == data
    one.store.put("a/one", data)
    retried = not isinstance(fault, Delay | Throttle)
    assert one.waits == ([0.2] if retried else [])


def test_put_that_was_cut_off_leaves_nothing(rig: Opener) -> None:
    one = rig(attempts=1)
    one.proxy.plan("PUT", ResetRequest(1_500_000))
    assert refused(lambda: one.store.put("a/one", DATA)).transient
    assert list(one.direct.list("")) == []


def test_put_gives_up_in_the_end(rig: Opener) -> None:
    one = rig(attempts=4)
    one.proxy.plan("PUT", *[Answer(503, "SlowDown")] * 4)
    error = refused(lambda: one.store.put("a/one", SMALL))
    assert error.transient
    assert "SlowDown" in error.why
    assert "tried 4 times" in error.why
    assert one.waits == [0.2, 0.4, 0.8]
    assert one.proxy.count("PUT") == 4
    one.store.put("a/one", SMALL)


def test_a_black_hole_ends_with_the_timeout(rig: Opener) -> None:
    one = rig(attempts=2, read_timeout_s=0.3)
    one.proxy.plan("PUT", BlackHole(), BlackHole())
    error = refused(lambda: one.store.put("a/one", SMALL))
    assert error.transient
    assert "in time" in error.why
    assert error.hint


def test_a_request_that_fell_into_a_black_hole_is_made_again(rig: Opener) -> None:
    one = rig(attempts=100, read_timeout_s=0.3)  # a busy server may take longer than that, but not each time
    one.direct.put("a/one", SMALL)
    one.proxy.plan("GET", BlackHole())
    assert one.store.get("a/one") == SMALL
    assert one.proxy.count("GET") > 1


def test_lost_put_answer_then_other_bytes(rig: Opener) -> None:
    one = rig()
    one.direct.put("a/one", b"other")
    one.proxy.plan("PUT", LoseResponse())
    error = refused(lambda: one.store.put("a/one", SMALL))
    assert type(error).__name__ == "ObjectExistsError"
    assert one.direct.get("a/one") == b"other"


def test_put_when_the_object_vanishes_between(rig: Opener) -> None:
    one = rig()
    one.direct.put("a/one", b"other")
    one.proxy.plan("GET", Answer(404, "NoSuchKey"))
    one.while_waiting = lambda: one.direct.delete("a/one")
    one.store.put("a/one", SMALL)
    assert one.direct.get("a/one") == SMALL


@pytest.mark.parametrize(
    "fault",
    [
        CutResponse(0),
        CutResponse(1_000_000),
        FlipResponse(2_000_000),
        LoseResponse(),
        Answer(503, "SlowDown"),
        Delay(0.05),
    ],
    ids=str,
)
def test_get_ends_well(rig: Opener, fault: Fault) -> None:
    one = rig()
    one.direct.put("a/one", DATA)
    one.proxy.plan("GET", fault)
    assert one.store.get("a/one") == DATA
    assert one.proxy.count("GET") == (1 if isinstance(fault, Delay) else 2)


@pytest.mark.parametrize("fault", [CutResponse(1_000_000), FlipResponse(2_000_000)], ids=str)
def test_get_never_returns_wrong_bytes(rig: Opener, fault: Fault) -> None:
    one = rig(attempts=1)
    one.direct.put("a/one", DATA)
    one.proxy.plan("GET", fault)
    assert refused(lambda: one.store.get("a/one")).transient


def test_get_of_a_missing_object_is_not_repeated(rig: Opener) -> None:
    one = rig()
    with pytest.raises(ObjectMissingError):
        one.store.get("a/none")
    assert one.proxy.count("GET") == 1


@pytest.mark.parametrize("exists", [False, True])
def test_replace_after_a_lost_answer_knows_its_own(rig: Opener, exists: bool) -> None:
    one = rig()
    version = one.direct.replace("lease", b"before", None) if exists else None
    one.proxy.plan("PUT", LoseResponse())
    version = one.store.replace("lease", b"mine", version)
    assert one.direct.get_versioned("lease") == (b"mine", version)
    one.store.replace("lease", b"mine again", version)


def test_replace_after_a_lost_answer_sees_a_rival(rig: Opener) -> None:
    one = rig()
    one.proxy.plan("PUT", Answer(500, "InternalError"))
    one.while_waiting = lambda: one.direct.replace("lease", b"rival", None)
    with pytest.raises(ConflictError):
        one.store.replace("lease", b"mine", None)
    assert one.direct.get("lease") == b"rival"


def test_replace_with_the_same_bytes_is_a_conflict_without_doubt(rig: Opener) -> None:
    one = rig()
    one.direct.replace("lease", b"mine", None)
    with pytest.raises(ConflictError):
        one.store.replace("lease", b"mine", None)
    with pytest.raises(ConflictError):
        one.store.replace("lease", b"mine", '"0123456789abcdef0123456789abcdef"')


@pytest.mark.parametrize("fault", [LoseResponse(), ResetRequest(0), Answer(503, "SlowDown")], ids=str)
def test_delete_ends_well(rig: Opener, fault: Fault) -> None:
    one = rig()
    one.direct.put("a/one", SMALL)
    one.proxy.plan("DELETE", fault)
    one.store.delete("a/one")
    assert list(one.direct.list("")) == []


@pytest.mark.parametrize("fault", [CutResponse(300), LoseResponse(), Answer(503, "SlowDown")], ids=str)
def test_list_repeats_only_the_page(rig: Opener, fault: Fault) -> None:
    one = rig()
    wanted = [ObjectInfo(f"d/{number:03}", number) for number in range(12)]
    for name, size in wanted:
        one.direct.put(name, b"x" * size)
    base = one.settings.url.removeprefix("s3://ready/") + "/"
    store = S3Store(one.settings, "ready", base, one.store._backoff, page_keys=5)
    assert list(store.list("")) == wanted  # finds out the server's order, once
    before = one.proxy.count("GET")
    assert list(store.list("")) == wanted
    pages = one.proxy.count("GET") - before
    one.proxy.plan("GET", *[Delay(0)] * (pages - 1), fault)
    assert list(store.list("")) == wanted
    assert one.waits == [0.2]
    assert one.proxy.count("GET") == before + 2 * pages + 1
    store.close()


REFUSALS = [
    (403, "AccessDenied", "User: arn:aws:sts::1:x is not authorized", "iam-policy"),
    (403, "AccessDenied", "not authorized to perform: kms:GenerateDataKey", "kms:GenerateDataKey"),
    (400, "KMS.DisabledException", "the key is disabled", "kms:Decrypt"),
    (403, "InvalidAccessKeyId", "The key does not exist", "credentials"),
    (403, "SignatureDoesNotMatch", "The signature we calculated", "secret key"),
    (403, "RequestTimeTooSkewed", "The difference is too large", "clock"),
    (404, "NoSuchBucket", "The specified bucket does not exist", "bucket"),
    (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong", "region"),
    (403, "InvalidObjectState", "The operation is not valid", "restore-object"),
    (501, "NotImplemented", "A header you provided", "conditional writes"),
    (400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- header is required", "checksums"),
    (507, "XMinioStorageFull", "no space", "space"),
    (418, "Unheard", "of", ""),
]


@pytest.mark.parametrize(("status", "code", "message", "hint"), REFUSALS)
def test_a_refusal_is_told_once_with_a_hint(
    rig: Opener, status: int, code: str, message: str, hint: str
) -> None:
    one = rig()
    one.proxy.plan("PUT", Answer(status, code, message))
    error = refused(lambda: one.store.put("a/one", DATA))
    assert not error.transient
    assert code in error.why
    assert hint in error.hint
    assert "s3://ready/faults/" in error.what
    assert error.what.endswith("/a/one")
    assert one.proxy.count("PUT") == 1
    assert one.waits == []


EXPIRED = Answer(400, "ExpiredToken", "The provided token has expired.")


def test_expired_credentials_are_read_anew_once(rig: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    one.proxy.plan("PUT", EXPIRED)
    one.while_waiting = lambda: monkeypatch.delenv("AWS_SESSION_TOKEN")
    one.store.put("a/one", SMALL)
    tokens = [request.headers.get("x-amz-security-token") for request in one.proxy.seen]
    assert tokens == ["old", None]
    assert one.direct.get("a/one") == SMALL
    one.proxy.plan("PUT", EXPIRED)
    error = refused(lambda: one.store.put("a/two", SMALL))
    assert not error.transient and "ExpiredToken" in error.why and "renew" in error.hint
    assert one.proxy.count("PUT") == 3


@pytest.mark.parametrize(("lasts_s", "works"), [(300, True), (-5, False)])
def test_credentials_that_end_are_fetched_again(
    rig: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lasts_s: int, works: bool
) -> None:
    """From the usual chain, here a program; of an instance's role it is the same.

    The SDK takes what lasts for less than ten minutes only until it has others.
    """
    one = rig()
    one.direct.put("before", b"")
    program = tmp_path / "program"
    program.write_text(
        f"""#!{sys.executable}
import datetime, json
end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={lasts_s})
open({str(tmp_path / "called")!r}, "a").write("x")
print(json.dumps({{"Version": 1, "AccessKeyId": {os.environ["AWS_ACCESS_KEY_ID"]!r},
    "SecretAccessKey": {os.environ["AWS_SECRET_ACCESS_KEY"]!r}, "Expiration": end.isoformat()}}))
"""
    )
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if works:
        for number in range(3):
            one.store.put(f"a/{number}", SMALL)
        assert len((tmp_path / "called").read_text()) >= 3
    else:
        error = refused(lambda: one.store.put("a/one", SMALL))
        assert error.transient and "expired" in error.why
        assert one.proxy.count("PUT") == 0


def test_of_many_threads_one_reads_the_credentials_anew(rig: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    first = one.store._client()
    monkeypatch.delenv("AWS_SESSION_TOKEN")

    def is_old(request: Request) -> Fault | None:
        return EXPIRED if request.headers.get("x-amz-security-token") == "old" else None

    monkeypatch.setattr(one.proxy, "befalls", is_old)
    barrier = threading.Barrier(6)

    def put(number: int) -> None:
        barrier.wait()
        one.store.put(f"a/{number}", SMALL)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(put, range(6)))
    assert one.store._client() is not first
    assert len(list(one.direct.list(""))) == 6


def test_a_refused_get_says_what_is_missing(rig: Opener) -> None:
    one = rig()
    one.proxy.plan("GET", Answer(403, "AccessDenied", "Access Denied\n\r<b>"))
    error = refused(lambda: one.store.get("a/one"))
    assert "s3:GetObject" in error.hint
    assert "s3:ListBucket" in error.hint


def test_nobody_listens(rig: Opener, s3_settings: Callable[..., StoreSettings]) -> None:
    one = rig()
    settings = replace(one.settings, endpoint_url="http://127.0.0.1:9", attempts=1)
    store = open_s3(settings)
    error = refused(lambda: store.get("a/one"))
    assert error.transient
    assert "endpoint_url" in error.hint
    store.close()


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "x", "SignatureDoesNotMatch"),
    ],
)
def test_wrong_credentials(
    rig: Opener, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: str
) -> None:
    one = rig()
    monkeypatch.setenv(variable, value)
    error = refused(lambda: one.store.put("a/one", DATA))
    assert not error.transient
    assert code in error.why
    assert one.proxy.count("PUT") == 1


def test_no_credentials(rig: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = refused(lambda: one.store.put("a/one", SMALL))
    assert not error.transient
    assert "AWS_PROFILE" in error.hint


def test_no_such_bucket(rig: Opener) -> None:
    settings = replace(rig().settings, url="s3://no-such-bucket/x")
    store = open_s3(settings)
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: list(store.list("")),
        lambda: store.replace("a", b"", None),
        lambda: store.delete("a"),
    ]
    for call in calls:
        error = refused(call)
        assert not error.transient
        assert not isinstance(error, ObjectMissingError)
        assert "bucket" in error.hint
    store.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that sign themselves, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    day = datetime.timedelta(days=1)
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("data", [SMALL, DATA], ids=["small", "large"])
def test_over_tls_bodies_go_unhashed_and_whole(
    rig: Opener, certificate: Path, checksums: str, data: bytes
) -> None:
    one = rig(certificate=certificate, ca_bundle=str(certificate), checksums=checksums)
    one.store.put("a/one", memoryview(data))
    headers = one.proxy.seen[-1].headers
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert int(headers["content-length"]) == len(data)
    assert ("x-amz-checksum-crc32" in headers) == (checksums == "when_supported")
    assert one.store.get("a/one") == one.direct.get("a/one") == data


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_without_tls_bodies_are_signed(rig: Opener, checksums: str) -> None:
    one = rig(checksums=checksums)
    for number, data in enumerate((SMALL, DATA)):
        one.store.put(f"a/{number}", data)
        headers = one.proxy.seen[-1].headers
        assert len(headers["x-amz-content-sha256"]) == 64
        assert ("x-amz-checksum-crc32" in headers) == (checksums == "when_supported")
        assert one.direct.get(f"a/{number}") == data


def test_an_unknown_certificate_is_no_network_trouble(rig: Opener, certificate: Path) -> None:
    one = rig(certificate=certificate)
    error = refused(lambda: one.store.put("a/one", SMALL))
    assert not error.transient
    assert "ca_bundle" in error.hint
    assert one.waits == []


def test_large_bodies_wait_for_the_server_and_small_ones_do_not(rig: Opener) -> None:
    one = rig()
    one.store.put("a/small", SMALL)
    one.store.put("a/large", DATA)
    small, large = (request.headers for request in one.proxy.seen)
    assert "expect" not in small
    assert large["expect"] == "100-continue"
