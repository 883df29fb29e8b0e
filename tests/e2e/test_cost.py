"""What S3 is asked, told by the verbs, and what it costs; a versioned bucket as it was."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from smsnapd.daemon.totals import RequestTotals, totals_file
from smsnapd.store import StoreSettings, open_store
from smsnapd.store.counting import Requests
from tests.e2e.transcript import Notebook, one_line
from tests.servers import S3Server

pytestmark = pytest.mark.server
KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
HEADER = ["CLASS", "OBJECTS", "STORED", "STORAGE", "PUT", "GET", "READ", "TOTAL"]


class CloudNotebook(Notebook):
    """One whose role has credentials."""

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return super()._environment({**KEYS, **more})


@pytest.fixture
def bucket(moto_s3: S3Server, s3_settings: Callable[..., StoreSettings]) -> StoreSettings:
    settings = s3_settings(moto_s3)
    with closing(moto_s3.client()) as client:
        name = settings.url.removeprefix("s3://")
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return settings


@pytest.fixture
def notebook(bucket: StoreSettings, tmp_path: Path) -> Notebook:
    endpoint = f'region = "us-east-1"\nendpoint_url = "{bucket.endpoint_url}"\npath_style = true'
    more = f'{endpoint}\nstorage_class = "STANDARD_IA"\nsse = "AES256"'
    notebook = CloudNotebook(tmp_path, url=bucket.url, more=more)
    notebook.well("init")
    (notebook.volume / "large").write_bytes(bytes(200_000))
    (notebook.volume / "a").write_text("one")
    return notebook


def test_requests_are_told_and_cost(notebook: Notebook) -> None:
    asked = notebook.well("backup", "--json", "-v").json["requests"]
    assert asked["put"] >= 2 and asked["list"] >= 1 and asked["bytes_up"] > 0
    for verb in (["backup", "--full"], ["restore", "--target", "once"], ["check"]):
        assert "smsnap: asked of S3: " in notebook.well(*verb, "-v").err
        assert "asked of S3" not in notebook.well("check").err
    restored = notebook.well("restore", "--target", "then", "--json").json["requests"]
    assert (restored["put"], restored["delete"]) == (0, 0) and restored["get"] >= 3
    assert restored["bytes_down"] > 0
    checked = notebook.well("check", "--json").json["requests"]
    assert checked["put"] == 0 and checked["list"] >= 1

    bill = notebook.well("cost", "--json").json
    assert (bill["basis"], bill["recovery_points"], bill["currency"]) == ("repository", 2, "USD")
    assert bill["monthly"]["put"] == sum(item["objects"] for item in bill["classes"])
    standard = next(item for item in bill["classes"] if item["class"] == "STANDARD")
    assert standard["billed_bytes"] == standard["bytes"] > 0
    assert bill["total"] == pytest.approx(
        bill["list"] + sum(item["total"] for item in bill["classes"]), abs=1e-5
    )
    said = notebook.well("cost", "--price", "standard.put=1000000", SMSNAP_PASSPHRASE="wrong")
    assert said.text.splitlines()[0].split() == HEADER
    assert "2 recovery points" in said.text and said.text.splitlines()[-1].startswith("about $")
    assert "smsnap: note: prices: aws.amazon.com/s3/pricing, us-east-1, 20" in said.err


def test_what_the_daemon_counted_is_taken_in_proportion(notebook: Notebook) -> None:
    clock = iter((1_795_000_000.0, 1_795_000_000.0 + 73 * 3600))
    file = totals_file(notebook.place / "state", "nb")
    totals = RequestTotals(file, notebook.url, lambda: next(clock))
    totals.take_in(Requests())
    totals.take_in(Requests(put=10, get=20, list=30, head=1))
    totals.close()
    bill = notebook.well("cost", "--json").json
    assert (bill["basis"], bill["since"]) == ("daemon", "2026-11-18T11:06:40.000000Z")
    assert bill["monthly"] == {"put": 100, "get": 210, "list": 300, "bytes_down": 0}
    file.write_bytes(b"{")
    one_line(notebook.say("cost"), 2, "nb.requests.json")


def test_a_directory_costs_nothing(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    one_line(notebook.say("cost"), 2, "not in S3")
    one_line(notebook.say("cost", "--price", "x"), 2, "no such price")
    one_line(notebook.say("snapshots", "--repository-at", "1h ago"), 2, "versioned")


def test_a_repository_that_was_emptied_is_read_as_it_was(notebook: Notebook, bucket: StoreSettings) -> None:
    first = notebook.well("backup", "--json").json
    with closing(open_store(bucket)) as store:
        moment = int(store.now())
        while int(store.now()) <= moment:
            time.sleep(0.05)
        (notebook.volume / "a").write_text("two, after that")
        notebook.well("backup")
        for info in list(store.list("")):
            store.delete(info.name)
    assert notebook.say("snapshots").status == 10
    then = ("--repository-at", f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}Z")
    assert [item["id"] for item in notebook.well("snapshots", *then, "--json").json] == [first["id"]]
    assert notebook.well("ls", "latest", *then).text.split() == ["a", "large"]
    assert notebook.well("cat", "latest", "a", *then).out == b"one"
    report = notebook.well("check", "--read-data", *then, "--json").json
    assert (report["ok"], report["opened"], report["snapshots"]) == (True, True, 1)
    notebook.well("restore", "--target", "back", *then)
    assert (notebook.place / "back" / "a").read_text() == "one"
    assert (notebook.place / "back" / "large").read_bytes() == bytes(200_000)
