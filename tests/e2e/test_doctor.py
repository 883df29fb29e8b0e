"""`smsnap doctor` as a person types it: on a machine that is well, and on one ill in many ways."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from smsnapd.cli.doctor.patient import Patient
from tests.e2e.daemon import SCHEDULE, Daemon, eventually
from tests.e2e.transcript import Notebook, Said
from tests.fault.proxy import Answer, Delay, FaultProxy
from tests.servers import S3Server

KEYS = {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
RIGHTS = ("list", "read", "create", "replace", "delete")


class Examined(Notebook):
    """A notebook whose daemon, if there is one, is its own."""

    def doctor(self, *arguments: str, **environment: str) -> Said:
        run = self.place / "run"
        run.mkdir(exist_ok=True)
        return self.say("doctor", *arguments, RUNTIME_DIRECTORY=str(run), **environment)

    def verdicts(self, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit status, and the worst finding of each check."""
        said = self.doctor("--json", **environment)
        assert "Traceback" not in said.err
        order = ("skipped", "ok", "warn", "fail")
        worst: dict[str, dict[str, Any]] = {}
        for found in said.json["checks"]:
            assert set(found) == {"subject", "check", "verdict", "told", "mend"}
            assert found["told"] and (found["verdict"] not in ("warn", "fail") or found["mend"])
            known = worst.setdefault(found["check"], found)
            if order.index(found["verdict"]) > order.index(known["verdict"]):
                worst[found["check"]] = found
        assert said.json["ok"] == (said.status == 0)
        assert said.json["ok"] == all(found["verdict"] != "fail" for found in worst.values())
        return said.status, worst


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, found in checks.items() if found["verdict"] == "fail"}


@pytest.fixture
def notebook(tmp_path: Path) -> Examined:
    """With a directory repository and one recovery point in it."""
    made = Examined(tmp_path)
    (made.volume / "a").write_text("a")
    made.well("init")
    made.well("backup")
    return made


@pytest.fixture
def proxy(seaweed: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.endpoint) as running:
        yield running


def on_s3(place: Path, endpoint: str, bucket: str) -> Examined:
    more = f'region = "us-east-1"\nendpoint_url = "{endpoint}"\npath_style = true'
    return Examined(place, url=f"s3://{bucket}/some/prefix", more=more)


@pytest.fixture
def s3(tmp_path: Path, seaweed: S3Server, proxy: FaultProxy) -> Examined:
    """With a repository on SeaweedFS, behind the proxy, and one recovery point in it."""
    bucket = f"doctor-{uuid.uuid4().hex}"
    seaweed.make_bucket(bucket)
    made = on_s3(tmp_path, proxy.endpoint, bucket)
    (made.volume / "a").write_text("a")
    made.well("init", **KEYS)
    made.well("backup", **KEYS)
    return made


# --- a directory


def test_a_machine_that_is_well(notebook: Examined) -> None:
    before = notebook.objects(), sorted(notebook.place.rglob("*"))
    said = notebook.doctor()
    assert said.status == 0 and not said.err
    lines = said.text.splitlines()
    assert lines[-1].startswith("0 to be mended")
    assert any(line.startswith("✓ repository    contents     this machine can read back") for line in lines)
    assert any(line.startswith("✓ repository    lease        free") for line in lines)
    assert any(line.startswith("· account       identity") for line in lines)
    assert {line[0] for line in lines[:-1]} <= set("✓!· ")
    (notebook.place / "run").rmdir()
    assert (notebook.objects(), sorted(notebook.place.rglob("*"))) == before


def test_quiet_tells_only_what_is_to_be_mended(notebook: Examined) -> None:
    said = notebook.doctor("-q")
    assert {line[0] for line in said.text.splitlines()} <= set("! ")
    (notebook.place / "passphrase").write_text("wrong\n")
    assert {line[0] for line in notebook.doctor("-q").text.splitlines()} == set("✗! ")


def test_without_signs_where_the_terminal_has_none(notebook: Examined) -> None:
    said = notebook.say_alone(
        "doctor", LC_ALL="C", PYTHONIOENCODING="ascii", RUNTIME_DIRECTORY=str(notebook.place)
    )
    assert said.status == 0 and said.text.isascii()
    assert "ok   machine" in said.text and "skip account" in said.text


def test_before_there_is_a_repository(tmp_path: Path) -> None:
    notebook = Examined(tmp_path)
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"opens"}
    assert "smsnap init" in checks["opens"]["mend"]
    assert [checks[name]["verdict"] for name in RIGHTS] == ["ok", "skipped", "skipped", "skipped", "ok"]
    assert not notebook.repo.exists()


def test_the_wrong_passphrase(notebook: Examined) -> None:
    (notebook.place / "passphrase").write_text("wrong horse\n")
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"opens"}
    assert "passphrase is wrong" in checks["opens"]["told"] and "recovery key" in checks["opens"]["mend"]
    assert {checks[name]["verdict"] for name in RIGHTS} == {"ok"}
    assert checks["lease"]["verdict"] == "skipped"


def test_a_machine_that_cannot_read_back(notebook: Examined) -> None:
    notebook.well("key", "export-write-key", "write-key")
    notebook.configure(encryption='write_key_file = "write-key"')
    status, checks = notebook.verdicts()
    assert status == 0, checks
    assert checks["contents"]["verdict"] == "ok"
    assert "this machine cannot read back what it stored" in checks["contents"]["told"]
    notebook.configure(encryption='write_key_file = "write-key"\npassphrase_file = "passphrase"')
    status, checks = notebook.verdicts()
    assert (status, checks["contents"]["verdict"]) == (0, "warn")


def test_a_passphrase_for_all_to_read(notebook: Examined) -> None:
    (notebook.place / "passphrase").chmod(0o644)
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"secrets"}
    assert checks["secrets"]["mend"] == f"chmod 600 {notebook.place / 'passphrase'}"


def test_a_configuration_that_is_wrong(notebook: Examined) -> None:
    notebook.configure("[schedule]\nquiet = 7")
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"file"}
    assert "quiet" in checks["file"]["told"]
    assert checks["reach"]["verdict"] == checks["mounted"]["verdict"] == "skipped"
    assert checks["system"]["verdict"] == "ok"
    notebook.configure('[schedule]\nfull = "61 * * * *"')
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"file"}


def test_a_volume_that_is_not_there(notebook: Examined) -> None:
    (notebook.volume / "a").unlink()
    notebook.volume.rmdir()
    status, checks = notebook.verdicts()
    assert status == 1 and "mounted" in failed(checks)
    assert checks["opens"]["verdict"] == "ok"


def test_a_damaged_repository_record(notebook: Examined) -> None:
    (notebook.repo / "repository").write_bytes(b"{}")
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"opens"}
    assert (notebook.repo / "repository").read_bytes() == b"{}"


def test_a_daemon_that_runs(tmp_path: Path) -> None:
    notebook = Examined(tmp_path, more=SCHEDULE)
    notebook.well("init")
    daemon = Daemon(notebook)
    try:
        daemon.start()
        daemon.until("idle")
        checks = eventually(lambda: seen(notebook), "a recovery point")
        assert (
            checks["daemon"]["verdict"] == checks["watcher"]["verdict"] == checks["last"]["verdict"] == "ok"
        )
        assert checks["watcher"]["told"].startswith("the daemon hears from ")
        notebook.configure(SCHEDULE.replace("1s", "oops"))
        daemon.send(1)
        daemon.hears("READY=1", times=2)
        assert failed(notebook.verdicts()[1]) == {"file"}
        notebook.configure(SCHEDULE)
        checks = notebook.verdicts()[1]
        assert checks["daemon"]["verdict"] == "warn" and "not used" in checks["daemon"]["told"]
    finally:
        daemon.close()


def seen(notebook: Examined) -> dict[str, dict[str, Any]] | None:
    """The checks once there is a recovery point and no run is under way."""
    status, checks = notebook.verdicts()
    assert status == 0, checks
    return checks if checks["last"]["verdict"] == "ok" else None


# --- S3


@pytest.mark.server
def test_a_bucket_that_is_well(s3: Examined, seaweed: S3Server) -> None:
    client = seaweed.client()
    bucket = s3.url.split("/")[2]
    before = client.list_object_versions(Bucket=bucket).get("Versions")
    status, checks = s3.verdicts(**KEYS)
    assert status == 0, checks
    assert {checks[name]["verdict"] for name in (*RIGHTS, "reach", "clock", "opens", "lease", "region")} == {
        "ok"
    }
    assert checks["credentials"]["told"].startswith("from the environment")
    assert client.list_object_versions(Bucket=bucket).get("Versions") == before
    client.close()


@pytest.mark.server
def test_a_put_that_is_denied(s3: Examined, proxy: FaultProxy) -> None:
    proxy.plan("PUT", Answer(403, "AccessDenied"), Answer(403, "AccessDenied"))
    status, checks = s3.verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"create", "replace"}
    assert "allow s3:PutObject" in checks["create"]["mend"]


@pytest.mark.server
def test_a_lease_alone_that_is_denied(s3: Examined, proxy: FaultProxy) -> None:
    proxy.plan("PUT", Delay(0.0), Answer(403, "AccessDenied"))
    status, checks = s3.verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"replace"}


@pytest.mark.server
def test_deleting_that_is_denied_is_for_others_to_do(s3: Examined, proxy: FaultProxy) -> None:
    proxy.plan("DELETE", Answer(403, "AccessDenied"))
    status, checks = s3.verdicts(**KEYS)
    assert status == 0 and checks["delete"]["verdict"] == "warn"
    assert "run that elsewhere" in checks["delete"]["mend"]


@pytest.mark.server
@pytest.mark.parametrize(("ahead_s", "verdict"), [(120, "warn"), (-600, "fail")])
def test_a_clock_that_is_wrong(
    s3: Examined, monkeypatch: pytest.MonkeyPatch, ahead_s: int, verdict: str
) -> None:
    monkeypatch.setattr(
        "smsnapd.cli.doctor.verb.Patient", partial(Patient, clock=lambda: time.time() + ahead_s)
    )
    status, checks = s3.verdicts(**KEYS)
    assert checks["clock"]["verdict"] == verdict and "timedatectl" in checks["clock"]["mend"]
    assert ("ahead" if ahead_s > 0 else "behind") in checks["clock"]["told"]
    assert status == (verdict == "fail") and checks["create"]["verdict"] == "ok"


@pytest.mark.server
def test_a_clock_so_wrong_that_the_server_refuses_it(s3: Examined, proxy: FaultProxy) -> None:
    date = "Date: Sun, 09 Sep 2001 01:46:40 GMT"
    proxy.plan("GET", *[Answer(403, "RequestTimeTooSkewed", headers=(date,))] * 20)
    proxy.seen.clear()
    status, checks = s3.verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"clock"}
    assert "days ahead" in checks["clock"]["told"] and "15 minutes" in checks["clock"]["told"]
    assert checks["rights"]["verdict"] == checks["opens"]["verdict"] == "skipped"
    assert len(proxy.seen) == 1


@pytest.mark.server
def test_a_bucket_that_is_none(tmp_path: Path, seaweed: S3Server) -> None:
    status, checks = on_s3(tmp_path, seaweed.endpoint, "no-such-bucket").verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"reach"}
    assert "does not exist" in checks["reach"]["told"]


@pytest.mark.server
def test_the_wrong_secret(s3: Examined) -> None:
    said = s3.doctor(**{**KEYS, "AWS_SECRET_ACCESS_KEY": "not the secret"})
    assert said.status == 1 and "secret key" in said.text
    assert "not the secret" not in said.text + said.err


@pytest.mark.server
def test_aws_says_what_the_policy_lacks_and_where_the_bucket_is(s3: Examined, proxy: FaultProxy) -> None:
    """A server that is taken for AWS's own, since the environment names it and not the configuration."""
    s3.configure('region = "us-east-1"\npath_style = true')
    proxy.plan("GET", Delay(0.0), Answer(403, "AccessDenied", headers=("x-amz-bucket-region: eu-west-3",)))
    proxy.plan("PUT", Answer(403, "AccessDenied"), Answer(403, "AccessDenied"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smsnapd.cli.doctor.patient._AWS_HOSTS", ("127.0.0.1",))
        status, checks = s3.verdicts(
            **KEYS, AWS_ENDPOINT_URL_S3=proxy.endpoint, AWS_ENDPOINT_URL_STS="http://127.0.0.1:9"
        )
    assert status == 1 and failed(checks) == {"create", "replace"}
    assert checks["create"]["mend"].startswith(
        'add to the role\'s policy: {"Effect": "Allow", "Action": "s3:PutObject"'
    )
    assert checks["region"]["verdict"] == "warn" and 'region = "eu-west-3"' in checks["region"]["mend"]
    assert checks["identity"]["verdict"] == "warn"


def test_no_way_to_the_server(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        notebook = on_s3(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}", "bucket")
        status, checks = notebook.verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"reach"}
    assert "could not be connected to" in checks["reach"]["told"] and "network" in checks["reach"]["mend"]
    assert {
        checks[name]["verdict"] for name in ("clock", "rights", "opens", "contents", "lease", "last")
    } == {"skipped"}
    assert checks["mounted"]["verdict"] == checks["state"]["verdict"] == "ok"


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """It accepts and is silent. The time of a check is as it is: all others must be done in theirs."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        notebook = on_s3(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "bucket")
        status, checks = notebook.verdicts(**KEYS)
    assert status == 1 and failed(checks) == {"reach"}
    # Its own time is up first, as a rule, and that of the check where threads have to wait for theirs.
    assert any(words in checks["reach"]["told"] for words in ("did not answer in time", "no answer"))
    assert checks["rights"]["verdict"] == "skipped"


def test_no_credentials(tmp_path: Path) -> None:
    notebook = on_s3(tmp_path, "http://127.0.0.1:9", "bucket")
    status, checks = notebook.verdicts()
    assert status == 1 and failed(checks) == {"credentials"}
    assert checks["reach"]["verdict"] == "skipped"
