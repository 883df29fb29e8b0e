"""The command line against S3: what a person sees when the network, the bucket or the credentials fail."""

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from smsnapd.store import StoreSettings
from tests.e2e.transcript import Notebook, one_line
from tests.servers import S3Server

KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)


def settings(endpoint: str) -> str:
    return f'region = "us-east-1"\nendpoint_url = "{endpoint}"\npath_style = true'


@pytest.fixture
def at(tmp_path: Path) -> Callable[..., Notebook]:
    """`at(endpoint, "s3://bucket/prefix")`: a notebook whose repository is there."""

    def make(endpoint: str, url: str = "s3://test-bucket/some/prefix") -> Notebook:
        return Notebook(tmp_path, url=url, more=settings(endpoint))

    return make


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers everything as S3 does when a session token has expired."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(EXPIRED)))
        self.end_headers()
        self.wfile.write(EXPIRED)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def expired() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.server
def test_the_story_on_a_real_server(at, seaweed: S3Server) -> None:
    seaweed.make_bucket("cli-story")
    notebook = at(seaweed.endpoint, "s3://cli-story/p")
    (notebook.volume / "a").write_bytes(bytes(range(256)) * 50_000)
    notebook.well("init", **KEYS)
    notebook.well("backup", **KEYS)
    (notebook.volume / "b").write_text("b")
    notebook.well("backup", **KEYS)
    assert [item["kind"] for item in notebook.well("snapshots", "--json", **KEYS).json] == [
        "full",
        "incremental",
    ]
    notebook.well("restore", "--target", "t", **KEYS)
    assert (notebook.place / "t" / "a").read_bytes() == (notebook.volume / "a").read_bytes()
    notebook.well("check", "--read-data", **KEYS)


@pytest.mark.server
def test_missing_bucket(at, seaweed: S3Server) -> None:
    notebook = at(seaweed.endpoint, "s3://no-such-bucket/p")
    one_line(notebook.say("snapshots", **KEYS), 1, "no-such-bucket", "bucket")
    one_line(notebook.say("init", **KEYS), 1, "no-such-bucket", "bucket")


@pytest.mark.server
def test_wrong_credentials(at, seaweed: S3Server) -> None:
    seaweed.make_bucket("cli-wrong")
    notebook = at(seaweed.endpoint, "s3://cli-wrong/p")
    said = notebook.say("snapshots", **{**KEYS, "AWS_SECRET_ACCESS_KEY": "not the secret"})
    one_line(said, 1, "secret key")
    assert "not the secret" not in said.err


@pytest.mark.server
def test_missing_repository_in_a_bucket(at, seaweed: S3Server) -> None:
    seaweed.make_bucket("cli-empty")
    one_line(
        at(seaweed.endpoint, "s3://cli-empty/p").say("snapshots", **KEYS),
        10,
        "s3://cli-empty/p",
        "smsnap init",
    )


def test_expired_credentials(at, expired: str) -> None:
    said = at(expired).say("snapshots", **KEYS, AWS_SESSION_TOKEN="old token")
    one_line(said, 1, "expired")
    assert "old token" not in said.err


def test_no_credentials(at, expired: str) -> None:
    one_line(at(expired).say("snapshots"), 1, "credentials")


def test_unreachable(at, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, so that it gives up after two attempts instead of eight."""
    from smsnapd.cli.main import main

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        notebook = at(f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.chdir(notebook.place)
        monkeypatch.setattr("smsnapd.cli.session.StoreSettings", partial(StoreSettings, attempts=2))
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        status = main(["-c", "smsnapd.toml", "snapshots"])
    err = capfd.readouterr().err.splitlines()
    assert status == 1
    assert len(err) == 2 and "s3://test-bucket/some/prefix" in err[0] and "network" in err[1]


def test_an_export_to_s3_comes_back_by_an_import(
    at: Callable[..., Notebook], s3_settings: Callable[..., StoreSettings], seaweed: S3Server
) -> None:
    bucket = s3_settings(seaweed).url
    notebook = at(seaweed.endpoint, f"{bucket}/repository")
    well = partial(notebook.well, **KEYS)
    (notebook.place / "secret").write_text("article\n")
    (notebook.volume / "big").write_bytes(os.urandom(20_000_000))
    well("init")
    well("backup")
    seal = ("--openssl-passphrase-file", "secret")
    well("export", "latest", "--output", f"{bucket}/out.enc", "--format", "openssl", *seal)
    said = notebook.say("export", "latest", "--output", f"{bucket}/out.enc", **KEYS)
    one_line(said, 2, "out.enc", "exists", "--overwrite")
    well("export", "latest", "--output", f"{bucket}/out.enc", "--overwrite", "--format", "openssl", *seal)
    one_line(notebook.say("export", "latest", "--output", f"{bucket}/", **KEYS), 2, "names no object")
    one_line(notebook.say("export", "latest", "--output", "s3://no-such-bucket-x/k", **KEYS), 1, "bucket")
    said = well("import", f"{bucket}/out.enc", *seal, "--json")
    assert said.json["source"] == f"{bucket}/out.enc" and said.json["wrapping"] == ["openssl", "gzip"]
    well("restore", "--target", "back")
    assert (notebook.place / "back/big").read_bytes() == (notebook.volume / "big").read_bytes()
    one_line(notebook.say("import", f"{bucket}/none", **KEYS), 2, "no such object")


def test_a_copy_to_another_account(
    at: Callable[..., Notebook], s3_settings: Callable[..., StoreSettings], seaweed: S3Server
) -> None:
    """Its credentials are those of another profile; what is not said of its server is as it is here."""
    bucket = s3_settings(seaweed).url
    notebook = at(seaweed.endpoint, f"{bucket}/here")
    keys = f"aws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
    (notebook.place / "credentials").write_text(f"[there]\n{keys}[wrong]\n{keys.replace('test', 'wrong')}")
    both = {**KEYS, "AWS_SHARED_CREDENTIALS_FILE": str(notebook.place / "credentials")}
    (notebook.volume / "file").write_text("content")
    for arguments in (("init",), ("backup",), ("--repository", f"{bucket}/there", "init")):
        notebook.well(*arguments, **both)
    copy = (
        "copy",
        "--to",
        f"{bucket}/there",
        "--to-endpoint-url",
        seaweed.endpoint,
        "--to-region",
        "us-east-1",
    )
    one_line(notebook.say(*copy, "--to-profile", "wrong", **both), 1, "access key")
    one_line(notebook.say(*copy, "--to-profile", "none", **both), 1, "profile")
    (volume,) = notebook.well(*copy, "--to-profile", "there", "--json", **both).json["volumes"]
    assert len(volume["copied"]) == 1
    notebook.well("--repository", f"{bucket}/there", "restore", "--target", "back", **both)
    assert (notebook.place / "back/file").read_text() == "content"
