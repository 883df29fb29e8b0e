"""Fixtures that several directories share: S3 servers, fresh stores, and no silent skips in CI."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from smsnapd.store import Store, StoreSettings, open_store
from tests.servers import S3Server, ServerMissingError, moto, seaweedfs

MARKERS = (
    "root: needs root (owners, devices, trusted attributes)",
    "loop: needs loop devices and mkfs.ext4",
    "server: needs an S3 server on this machine",
    "slow: takes more than a few seconds",
)


# How long an example takes is the business of the machine: by default more than 0.2 s are an error.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if settings.get_current_profile_name() == "default":  # hypothesis has one of its own for CI, as patient
    settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI everything is there, so a skip is a failure. An expected failure also counts as skipped."""
    if (
        not report.skipped
        or hasattr(report, "wasxfail")
        or os.environ.get("CI", "").lower() not in ("true", "1")
    ):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, which is a failure in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[Any]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, one for each worker of a parallel run."""
    try:
        with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
            yield server
    except ServerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def moto_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto, one for each worker of a parallel run."""
    try:
        with moto(tmp_path_factory.mktemp("moto")) as server:
            yield server
    except ServerMissingError as error:
        pytest.skip(str(error))


@cache
def sdk_data() -> Any:
    """The SDK's description of S3. Shared, since reading it takes 0.1 s a client."""
    from botocore.loaders import create_loader

    return create_loader()


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoreSettings]:
    """`s3_settings(server, bucket=…, prefix=…, **settings)`: settings of a store on `server`.

    Without `bucket` a new one is made. The credentials are in the environment, this machine's own are not.
    """

    def make(server: S3Server, bucket: str = "", prefix: str = "", **more: Any) -> StoreSettings:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        if not bucket:
            bucket = f"test-{uuid.uuid4().hex}"
            server.make_bucket(bucket)
        url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        return StoreSettings(url, server.region, server.endpoint, path_style=True, **more)

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: sdk_data())
    return make


@pytest.fixture(
    params=[
        "memory",
        "directory",
        pytest.param("seaweed", marks=pytest.mark.server),
        pytest.param("moto_s3", marks=pytest.mark.server),
    ]
)
def store_settings(request: pytest.FixtureRequest) -> StoreSettings:
    """Settings of an empty store, of every kind in turn; open it as often as you like."""
    if request.param == "memory":
        return StoreSettings(f"memory://{uuid.uuid4().hex}")
    if request.param == "directory":
        return StoreSettings((request.getfixturevalue("tmp_path") / "objects").as_uri())
    # A new prefix in a shared bucket: SeaweedFS takes 0.2 s for the first put in a new one.
    server: S3Server = request.getfixturevalue(request.param)
    make: Callable[..., StoreSettings] = request.getfixturevalue("s3_settings")
    return make(server, "ready", f"shared/{uuid.uuid4().hex}")


@pytest.fixture
def store(store_settings: StoreSettings) -> Iterator[Store]:
    """An empty store, of every kind in turn."""
    opened = open_store(store_settings)
    yield opened
    opened.close()
