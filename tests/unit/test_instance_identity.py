"""Who this machine is to AWS: by moto's STS, by an STS that refuses, and by none."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from pathlib import Path

import pytest

from smsnapd.instance import (
    Caller,
    IdentityUnknownError,
    InstanceError,
    SdkSetup,
    caller_identity,
    sdk_setup,
)
from tests.fault.proxy import BlackHole, FaultProxy
from tests.servers import S3Server


@pytest.fixture(autouse=True)
def no_aws_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testaccess")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret123")


def test_what_the_sdk_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sdk_setup() == SdkSetup("", "")
    (tmp_path / "AWS_CONFIG_FILE").write_text("[default]\nregion = eu-north-1\n")
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(
        "[default]\naws_access_key_id = x\naws_secret_access_key = y\n"
    )
    assert sdk_setup() == SdkSetup("shared-credentials-file", "eu-north-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    assert sdk_setup().credentials == "env"


def test_a_profile_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InstanceError, match="nobody") as caught:
        sdk_setup()
    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.server
def test_sts_says_who_we_are(moto_s3: S3Server, signed_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto_s3.endpoint)
    caller = caller_identity("eu-west-1")
    assert isinstance(caller, Caller)
    assert caller.account == "123456789012" and caller.arn.startswith("arn:aws:sts::123456789012:")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as STS does when it refuses (Query API, "Common errors"); "" is a page of others."""

    status, code, asked = 403, "", 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        error = f"<Error><Type>Sender</Type><Code>{self.code}</Code><Message>because</Message></Error>"
        body = f"<ErrorResponse>{error}</ErrorResponse>" if self.code else "<html>Log in to the hotel</html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "InvalidClientTokenId", InstanceError),
        (403, "ExpiredToken", InstanceError),
        (403, "AccessDenied", IdentityUnknownError),
        (503, "ServiceUnavailable", IdentityUnknownError),
        (403, "", IdentityUnknownError),
    ],
)
def test_refusals_of_sts(
    signed_in: None, monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type[Exception]
) -> None:
    handler = type("Planned", (Refusing,), {"status": status, "code": code})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(InstanceError) as caught:
            caller_identity("eu-west-1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert type(caught.value) is kind and caught.value.hint
    assert caught.value.why == (f"{code}: because" if code else "the answer was not one of STS")
    assert handler.asked == 1
    assert "testsecret123" not in str(caught.value)


def test_an_sts_that_never_answers(signed_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a VPC where packets to it are dropped. One try: what was swallowed once is not asked again."""
    with FaultProxy("http://127.0.0.1:9") as proxy:
        proxy.plan("POST", BlackHole(), BlackHole())
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.endpoint)
        with pytest.raises(IdentityUnknownError):
            caller_identity("eu-west-1", timeout_s=0.3)
        assert proxy.count("POST") == 1


def test_no_way_to_sts(signed_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(IdentityUnknownError):
            caller_identity("eu-west-1")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    with pytest.raises(InstanceError, match="no AWS credentials"):
        caller_identity("eu-west-1")
