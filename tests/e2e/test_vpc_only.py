"""A notebook in a VPC with a way to S3 and to nothing else: every verb works, and asks nobody else."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from smsnapd import instance
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import StoreSettings
from tests.e2e.transcript import Notebook
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.server

ARN = "arn:aws:sagemaker:eu-west-3:123456789012:notebook-instance/analysis"
VERBS = (
    ["init"],
    ["backup"],
    ["backup"],
    ["snapshots"],
    ["ls", "latest"],
    ["check", "--read-data"],
    ["prune"],
    ["cost"],
    ["restore", "--target", "back"],
    ["iam-policy", "writer"],
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, seaweed: S3Server) -> list[Any]:
    """Whom this process tried to reach that is not S3: there the packets are dropped; here it is told so."""
    allowed = ("127.0.0.1", urlsplit(seaweed.endpoint).port)
    tried: list[Any] = []
    connect = socket.socket.connect

    def only_s3(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[:2] != allowed:
            tried.append(address)
            raise TimeoutError("there is no way there")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_s3)
    return tried


def test_every_verb_works_with_s3_alone(
    seaweed: S3Server,
    s3_settings: Callable[..., StoreSettings],
    elsewhere: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    metadata = tmp_path / "resource-metadata.json"
    metadata.write_text(json.dumps({"ResourceArn": ARN, "ResourceName": "analysis"}))
    monkeypatch.setattr(instance, "METADATA", metadata)
    settings = s3_settings(seaweed, "ready", f"vpc/{uuid.uuid4().hex}")
    more = f'endpoint_url = "{settings.endpoint_url}"\npath_style = true\n'
    notebook = Notebook(tmp_path / "notebook", settings.url, more)
    (notebook.volume / "file").write_text("content")
    for verb in VERBS:
        notebook.well(*verb, AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        assert elsewhere == [], verb
    assert (notebook.place / "back" / "file").read_text() == "content"
