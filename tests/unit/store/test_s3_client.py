"""How the S3 client is set up; nothing here reaches a server."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from smsnapd.errors import StoreError
from smsnapd.store import StoreSettings
from smsnapd.store.s3 import open_s3


@pytest.fixture(autouse=True)
def no_aws_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REGION", "DEFAULT_REGION", "PROFILE", "ENDPOINT_URL", "ENDPOINT_URL_S3"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def client_for(**settings: Any) -> Any:
    return open_s3(StoreSettings("s3://bucket/x", **settings))._client()


def signs(client: Any) -> bool:
    return bool(client.meta.config.s3["payload_signing_enabled"])


@pytest.mark.parametrize("endpoint", ["", "https://s3.eu-west-1.amazonaws.com"])
def test_without_a_region_aws_is_refused(endpoint: str) -> None:
    store = open_s3(StoreSettings("s3://bucket/x", endpoint_url=endpoint))
    for call in (lambda: store.get("a"), lambda: list(store.list(""))):
        with pytest.raises(StoreError, match="region") as caught:
            call()
        assert not caught.value.transient
        assert "AWS_REGION" in caught.value.hint


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "eu-central-1")
    assert client_for().meta.region_name == "eu-central-1"
    assert client_for(region="eu-west-3").meta.region_name == "eu-west-3"


def test_the_region_of_the_profile_counts(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nregion = eu-north-1\n")
    assert client_for().meta.region_name == "eu-north-1"


def test_another_server_needs_no_region() -> None:
    client = client_for(endpoint_url="https://s3.example.net")
    assert client.meta.region_name == "us-east-1"
    assert not signs(client)


def test_payloads_are_signed_unless_tls_protects_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not signs(client_for(region="eu-west-1"))
    assert signs(client_for(endpoint_url="HTTP://127.0.0.1:9"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert signs(client_for(region="eu-west-1"))


def test_settings_reach_the_client() -> None:
    client = client_for(
        region="eu-west-1",
        path_style=True,
        checksums="when_required",
        connect_timeout_s=3.0,
        read_timeout_s=4.0,
    )
    config = client.meta.config
    assert config.s3["addressing_style"] == "path"
    assert (config.connect_timeout, config.read_timeout) == (3.0, 4.0)
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_required"
    assert config.retries["total_max_attempts"] == 1
    assert config.max_pool_connections == 16


@pytest.mark.parametrize(
    "settings",
    [
        {"region": "x", "ca_bundle": "/no/such/file"},
        {"region": "x", "endpoint_url": "no url"},
        {"region": "x", "checksums": "never"},
    ],
)
def test_unusable_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(StoreError) as caught:
        client_for(**settings)
    assert not caught.value.transient
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_an_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody"):
        client_for(region="eu-west-1")


def test_each_process_makes_its_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_s3(StoreSettings("s3://bucket/x", region="eu-west-1"))
    first = store._client()
    assert store._client() is first
    monkeypatch.setattr("smsnapd.store.s3.os.getpid", lambda: 1)
    assert store._client() is not first


def test_boto3_is_imported_only_for_s3() -> None:
    code = """if True:
        import sys
        from smsnapd.store import StoreSettings, open_store
        open_store(StoreSettings("memory://x")).put("a", b"")
        open_store(StoreSettings("file:///nowhere"))
        assert "boto3" not in sys.modules and "botocore" not in sys.modules
        open_store(StoreSettings("s3://bucket"))
        assert "boto3" in sys.modules
    """
    root = Path(__file__).parents[3]
    done = run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
