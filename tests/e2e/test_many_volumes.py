"""A bucket with thousands of recovery points of many volumes: what a verb asks depends on its chain alone.

`SMSNAP_LONG=1`: 100 volumes of 100 recovery points each.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import StoreSettings
from tests.e2e.transcript import Notebook
from tests.fault.proxy import FaultProxy, Request
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

LONG = "SMSNAP_LONG" in os.environ
VOLUMES, POINTS = (100, 100) if LONG else (40, 30)
CHAIN = 100 if LONG else 8
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


def is_list(request: Request) -> bool:
    return "list-type=2" in request.path


@dataclass
class Bucket:
    """A notebook with a chain of its own, before a server that counts."""

    server: S3Server
    proxy: FaultProxy
    settings: StoreSettings
    notebook: Notebook
    times: list[str]

    def ask(self, *arguments: str) -> tuple[Any, list[Request]]:
        """What a verb says, and what it asked of the server."""
        before = len(self.proxy.seen)
        said = self.notebook.well("--json", *arguments, **KEYS)
        return said.json, self.proxy.seen[before:]

    def crowd(self) -> None:
        """The manifests of many other volumes, as names go; nobody has a reason to open them."""
        bucket, _, prefix = self.settings.url.removeprefix("s3://").partition("/")
        with closing(self.server.client()) as client, ThreadPoolExecutor(8) as threads:
            mine = f"{prefix}/volumes/nb/manifests/"
            (key, *_) = sorted(
                o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix=mine)["Contents"]
            )
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            first = key.removeprefix(mine)

            def put(number: int) -> None:
                volume, sequence = divmod(number, POINTS)
                name = f"{sequence + 1:010}{first[10:-16]}{number:016x}"
                other = f"{prefix}/volumes/other-{volume}/manifests/{name}"
                client.put_object(Bucket=bucket, Key=other, Body=body)

            list(threads.map(put, range(VOLUMES * POINTS)))


@pytest.fixture(params=["seaweed", "moto_s3"] if LONG else ["seaweed"])
def bucket(
    request: pytest.FixtureRequest,
    s3_settings: Callable[..., StoreSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bucket]:
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)
    server: S3Server = request.getfixturevalue(request.param)
    settings = s3_settings(server, prefix=f"p/{uuid.uuid4().hex}")
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(server.endpoint))
        more = f'region = "us-east-1"\nendpoint_url = "{proxy.endpoint}"\npath_style = true\n'
        notebook = Notebook(tmp_path / "notebook", settings.url, more)
        made = Bucket(server, proxy, settings, notebook, [])
        notebook.well("init", **KEYS)
        for number in range(CHAIN):
            (notebook.volume / "file").write_text(f"content {number}")
            said, _ = made.ask("backup")
            made.times.append(said["time"])
        yield made


def test_requests_go_by_the_chain_and_not_by_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    at = bucket.times[4]
    verbs: list[tuple[str, ...]] = [
        ("snapshots", "--volume", "nb"),
        ("snapshots",),
        ("restore", "--target", "TARGET", "--at", at),
        ("restore", "--volume", "nb", "--target", "TARGET", "--at", at),
        ("restore", "--target", "TARGET", "--snapshot", f"nb@{at}"),
        ("check", "--volume", "nb"),
        ("backup",),
    ]

    def run(verb: tuple[str, ...]) -> list[Request]:
        said, asked = bucket.ask(*(word.replace("TARGET", f"back-{uuid.uuid4().hex}") for word in verb))
        if verb[0] == "snapshots":
            assert len(said) == CHAIN
        return asked

    alone = [run(verb) for verb in verbs]
    bucket.crowd()
    crowded = [run(verb) for verb in verbs]
    for verb, before, after in zip(verbs, alone, crowded, strict=True):
        more = Counter(request.path for request in after) - Counter(request.path for request in before)
        assert len(after) == len(before), f"{verb} asked more: {list(more)}"
        assert sum(map(is_list, after)) <= 8, verb
        assert not [request.path for request in after if "other-" in request.path], verb
    restored = next(iter(sorted(bucket.notebook.place.glob("back-*"))))
    assert (restored / "file").read_text() == "content 4"

    _check_that_all_volumes_are_one_listing(bucket)


def _check_that_all_volumes_are_one_listing(bucket: Bucket) -> None:
    said = bucket.notebook.say("--volume", "none", "snapshots", **KEYS)
    assert said.status == 2 and "other-1, " in said.err
    before = len(bucket.proxy.seen)
    bucket.notebook.say("--volume", "none", "snapshots", **KEYS)
    lists = [request.path for request in bucket.proxy.seen[before:] if is_list(request)]
    assert len([path for path in lists if "delimiter" in path]) == 2, "of none, and of all volumes"
    assert len(lists) <= 5
