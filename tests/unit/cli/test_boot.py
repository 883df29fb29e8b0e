"""What a notebook's start brings back to a new volume, and when it does not."""

import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.cli.boot import Boot
from smsnapd.cli.firststart import FILE, FirstStart, holds_files, recorded
from smsnapd.cli.options import Options
from smsnapd.cli.repository_setting import _basic_string, set_repository
from smsnapd.cli.session import Session
from smsnapd.config import Overrides, load
from smsnapd.errors import SmsnapError, StoreError, UsageError
from smsnapd.instance import InstanceError, notebook_tags
from tests.servers import S3Server

ARN = "arn:aws:sagemaker:eu-west-1:123456789012:notebook-instance/"


class Volume:
    """A new notebook's volume and its starts; `tags` is None where the API cannot be reached."""

    def __init__(self, root: Path, name: str, url: str) -> None:
        self.root = root
        self.place = root / ".smsnapd"
        self.place.mkdir(parents=True)
        self.name, self.url = name, url
        self.tags: dict[str, str] | None = {}
        self.told = ""
        self.pauses: list[float] = []
        self.stopped = 0
        self.configure()

    def configure(self, at_start: str = "") -> None:
        (self.place / "smsnapd.toml").write_text(
            f'[volume]\npath = ".."\nname = "{self.name}"\n[repository]\nurl = "{self.url}"\n'
            f'[encryption]\npassphrase_file = "{self.root.parent / "passphrase"}"\n'
            f'[state]\ndir = "state"\n[restore]\nat_start = "{at_start}"\n'
        )

    def start(self) -> int:
        """The exit status of the restore at one start."""
        session = Session(Options(config=str(self.place / "smsnapd.toml")))
        boot = Boot(session, self.told, pause=self.pauses.append)
        boot.session()
        return boot.restore(self._stop)

    def _stop(self) -> None:
        self.stopped += 1

    def files(self) -> dict[str, str]:
        paths = (path for path in self.root.rglob("*") if path.is_file() and self.place not in path.parents)
        return {str(path.relative_to(self.root)): path.read_text() for path in paths}

    @property
    def record(self) -> FirstStart:
        found = recorded(self.place)
        assert found is not None
        return found


@pytest.fixture
def old(configured: Any, tmp_path: Path) -> Callable[[str], None]:
    """`old("text")`: the volume `nb` holds one file of this text, and is backed up."""

    def back_up(text: str) -> None:
        (tmp_path / "volume/a.txt").write_text(text)
        assert configured("backup").status == 0

    back_up("first")
    return back_up


@pytest.fixture
def new(old: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Volume]:
    """`new("name")`: the volume of a notebook that was just made."""

    def make(name: str) -> Volume:
        volume = Volume(tmp_path / f"new-{name}", name, (tmp_path / "repo").as_uri())

        def tags(metadata: Path) -> dict[str, str]:
            if volume.tags is None:
                raise InstanceError("read the notebook's tags", "no way to the API")
            return volume.tags

        monkeypatch.setattr("smsnapd.cli.boot.notebook_tags", tags)
        return volume

    return make


def test_a_new_volume_is_filled_once(new) -> None:
    volume = new("nb")
    (volume.root / "lost+found").mkdir()
    volume.configure(at_start="latest")
    assert volume.start() == 0 and volume.files() == {"a.txt": "first"} and volume.stopped == 1
    assert volume.record.done.startswith("restored 1 files")
    (volume.root / "a.txt").unlink()
    assert volume.start() == 0 and volume.files() == {} and volume.stopped == 1


def test_nothing_is_restored_unless_told(new) -> None:
    volume = new("nb")
    assert volume.start() == 0 and volume.files() == {} and not volume.stopped
    volume.tags = {"smsnap-restore": "latest"}
    assert volume.start() == 0 and volume.files() == {"a.txt": "first"}


def test_a_volume_with_files_is_left_alone_for_good(new) -> None:
    volume = new("nb")
    volume.configure(at_start="latest")
    (volume.root / "deep/er").mkdir(parents=True)
    (volume.root / "deep/er/mine.txt").write_text("mine")
    assert volume.start() == 0 and not volume.record.new
    shutil.rmtree(volume.root / "deep")
    assert volume.start() == 0 and volume.files() == {}


def test_a_volume_that_came_into_use_before_it_was_told(new) -> None:
    volume = new("nb")
    assert volume.start() == 0 and volume.record.new
    (volume.root / "mine.txt").write_text("mine")
    volume.tags = {"smsnap-restore": "latest"}
    assert volume.start() == 0 and volume.files() == {"mine.txt": "mine"}


def test_what_on_create_noted_counts_and_files_that_are_there_stay(new, old) -> None:
    volume = new("nb")
    (volume.place / "new").touch()
    old("second")  # after the volume was new: not what it is to be filled with
    (volume.root / "a.txt").write_text("laid there by the instance")
    (volume.root / "cloned").write_text("too")
    volume.told = "latest"
    assert volume.start() == 0
    assert volume.files() == {"a.txt": "laid there by the instance", "cloned": "too"}
    assert volume.record.done.endswith("1 were there and left as they were")
    assert not (volume.place / "new").exists()


def test_latest_is_what_was_latest_when_the_volume_was_new(new, old) -> None:
    volume = new("nb")
    volume.start()
    old("backed up from the new volume, or from elsewhere")
    volume.tags = {"smsnap-restore": "nb@latest"}
    assert volume.start() == 0 and volume.files() == {"a.txt": "first"}


@pytest.mark.parametrize(
    ("tags", "told", "configured_so", "found"),
    [
        ({"smsnap-restore": "nb@latest"}, "never", "never", True),
        ({"smsnap-restore": "never"}, "nb@latest", "nb@latest", False),
        ({"other": "tag"}, "nb@latest", "never", True),
        ({}, "never", "nb@latest", False),
        ({}, "", "nb@latest", True),
        (None, "", "nb@now", True),
        (None, "nb@0s ago", "", True),
    ],
)
def test_the_closest_to_the_notebook_counts(new, tags, told, configured_so, found) -> None:
    volume = new("other")
    volume.tags, volume.told = tags, told
    volume.configure(at_start=configured_so)
    assert volume.start() == 0 and bool(volume.files()) == found


def test_a_time_is_counted_from_when_the_volume_was_new(new, old) -> None:
    between = f"{time.time():.6f}"
    old("second")
    volume = new("nb")
    volume.told = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(float(between))) + f".{between[-6:]}+00:00"
    assert volume.start() == 0 and volume.files() == {"a.txt": "first"}


def test_a_restore_that_was_cut_off_goes_on_with_the_same_recovery_point(new, old, monkeypatch) -> None:
    volume = new("nb")
    volume.configure(at_start="latest")
    with monkeypatch.context() as patch:
        patch.setattr("smsnapd.engine.restore.run._Restore._link_jobs", power_off)
        with pytest.raises(PowerOff):
            volume.start()
    assert volume.record.is_under_way and volume.record.snapshot
    old("second")
    volume.tags = {"smsnap-restore": "never"}  # too late
    (volume.root / "mine.txt").write_text("mine")
    assert volume.start() == 0 and volume.files() == {"a.txt": "first", "mine.txt": "mine"}
    assert not volume.record.is_under_way


class PowerOff(BaseException):
    pass


def power_off(*_: object) -> None:
    raise PowerOff


def test_it_waits_for_a_repository_that_cannot_be_reached(new, monkeypatch, capfdbinary) -> None:
    volume = new("nb")
    volume.configure(at_start="latest")
    failures = [StoreError("list", f"no way {number}", transient=number % 2 == 0) for number in range(6)]
    really = Boot._choose

    def choose(self: Boot, *arguments: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return really(self, *arguments)

    monkeypatch.setattr(Boot, "_choose", choose)
    assert volume.start() == 0 and volume.files() == {"a.txt": "first"}
    assert volume.pauses == [5, 15, 60, 300, 300, 300]
    told = capfdbinary.readouterr()
    assert b"no way 5" in told.err and b"trying again in 300 s" in told.out


def test_what_cannot_be_done_is_told_and_the_next_start_tries_again(new, capfdbinary) -> None:
    volume = new("other")
    volume.tags = {"smsnap-restore": "latest"}
    assert volume.start() == UsageError.exit_status
    assert "nb@latest" in capfdbinary.readouterr().err.decode()
    assert volume.record.failed and not volume.record.is_under_way
    (volume.root / "mine.txt").write_text("mine")
    volume.tags = None
    assert volume.start() == UsageError.exit_status  # as it was told before
    volume.tags = {"smsnap-restore": "nb@latest"}
    assert volume.start() == 0 and volume.files() == {"a.txt": "first", "mine.txt": "mine"}


def test_a_wish_that_was_withdrawn_is_forgotten(new) -> None:
    volume = new("other")
    volume.tags = {"smsnap-restore": "latest"}
    assert volume.start() == UsageError.exit_status
    volume.tags = {}
    assert volume.start() == 0 and not volume.record.wanted and not volume.record.failed


@pytest.mark.parametrize("told", ["latest", "nb@2001-01-01", "nb@no time", "nowhere@latest", "@"])
def test_what_nobody_can_find_is_an_error_of_a_tag(new, told: str) -> None:
    volume = new("other")
    volume.tags = {"smsnap-restore": told}
    assert volume.start() == UsageError.exit_status and volume.record.failed


def test_a_template_may_be_used_before_there_is_a_recovery_point(new, old) -> None:
    volume = new("other")
    volume.configure(at_start="latest")
    assert volume.start() == 0 and volume.record.done == "there was nothing to restore yet"
    early = new("nb")
    (early.place / "new").touch()
    os.utime(early.place / "new", (0, 0))
    early.told = "latest"
    assert early.start() == 0 and early.record.done == "there was nothing to restore yet"


def test_a_wrong_passphrase_leaves_the_volume_to_the_daemon(new, tmp_path: Path) -> None:
    volume = new("nb")
    volume.configure(at_start="latest")
    (tmp_path / "passphrase").write_text("another\n")
    assert volume.start() == 12 and volume.files() == {} and volume.record.failed


def test_what_the_repository_lost_is_named_and_the_rest_is_there(
    new, old, tmp_path: Path, capfdbinary
) -> None:
    (tmp_path / "volume/big.bin").write_bytes(os.urandom(3_000_000))
    old("second")
    old("third")
    (largest,) = sorted((tmp_path / "repo").rglob("*"), key=lambda path: path.stat().st_size)[-1:]
    largest.unlink()
    volume = new("nb")
    volume.configure(at_start="latest")
    assert volume.start() == 3 and volume.files() == {"a.txt": "third"}
    assert "1 could not be restored" in volume.record.done
    assert "not restored: big.bin" in capfdbinary.readouterr().out.decode()


def test_a_record_that_is_none_is_an_error(new) -> None:
    volume = new("nb")
    (volume.place / FILE).write_text("{")
    with pytest.raises(SmsnapError, match=FILE):
        volume.start()


# --- the repository from tags


@pytest.mark.parametrize(
    ("tags", "url"),
    [
        ({"smsnap-repository": "s3://b/p"}, "s3://b/p"),
        ({"ebs-backup-bucket": "b"}, "s3://b/smsnapd"),
        ({"ebs-backup-bucket": "s3://b/"}, "s3://b/smsnapd"),
        ({"smsnap-repository": "s3://b/p", "ebs-backup-bucket": "c"}, "s3://b/p"),
        ({}, ""),
        (None, ""),
    ],
)
def test_a_repository_that_the_tags_name(new, tags: dict[str, str] | None, url: str) -> None:
    volume = new("nb")
    volume.url = ""
    volume.configure()
    (volume.place / "smsnapd.toml").write_text(
        (volume.place / "smsnapd.toml").read_text().replace('url = ""\n', "# mine\n")
    )
    volume.tags = tags
    session = Session(Options(config=str(volume.place / "smsnapd.toml")))
    assert Boot(session).session().config.repository.url == url
    assert "# mine" in (volume.place / "smsnapd.toml").read_text()


def test_a_repository_that_the_configuration_names_stays(new) -> None:
    volume = new("nb")
    volume.tags = {"smsnap-repository": "s3://elsewhere/p"}
    before = (volume.place / "smsnapd.toml").read_bytes()
    volume.start()
    assert (volume.place / "smsnapd.toml").read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# none",
        "[repository]",
        '[repository]  # here\nregion = "x"\n[volume]\nname = "v"',
        '[volume]\nname = "v"\n',
    ],
)
def test_a_url_is_put_where_it_belongs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "smsnapd.toml"
    file.write_text(text)
    before = load(str(file), Overrides(), environment={}, directory=tmp_path, home=tmp_path, root=True)
    set_repository(file, 's3://b/"\\p')
    after = load(str(file), Overrides(), environment={}, directory=tmp_path, home=tmp_path, root=True)
    assert after.repository.url == 's3://b/"\\p'
    assert (after.repository.region, after.volume) == (before.repository.region, before.volume)
    assert file.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text", ['repository.region = "x"', '[repository]\nurl = "s3://b"', "repository = 1", "["]
)
def test_a_url_that_has_no_place_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "smsnapd.toml"
    file.write_text(text)
    with pytest.raises(UsageError):
        set_repository(file, "s3://b/p")
    assert file.read_text() == text and list(tmp_path.iterdir()) == [file]


@given(st.text(st.characters(codec="utf-8")))
def test_any_url_is_written_as_it_is(url: str) -> None:
    assert tomllib.loads(f"url = {_basic_string(url)}") == {"url": url}


# --- what is new


def test_what_counts_as_a_file(tmp_path: Path) -> None:
    own = tmp_path / ".smsnapd"
    for name in ("lost+found", ".smsnapd/venv", "empty/emptier", "x/.ipynb_checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("lost+found/#1", ".smsnapd/venv/f", "x/.ipynb_checkpoints/n.ipynb", ".smsnap-restore"):
        (tmp_path / name).touch()
    (tmp_path / "x/.smsnap-partial-1").touch()
    assert not holds_files(bytes(tmp_path), [own])
    (tmp_path / "empty/emptier/lost+found").symlink_to("nowhere")
    assert holds_files(bytes(tmp_path), [own])
    assert not holds_files(bytes(tmp_path / "not there"), [own])


# --- the tags


@pytest.mark.server
def test_tags_by_the_api(moto_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", moto_s3.access_key), ("SECRET_ACCESS_KEY", moto_s3.secret_key)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", moto_s3.endpoint)
    tags = {"smsnap-restore": "a@2026-01-01 10:00", "x": ""}
    with closing(boto3.client("sagemaker", region_name="eu-west-1")) as client:
        client.create_notebook_instance(
            NotebookInstanceName="tagged", InstanceType="ml.t3.medium",
            RoleArn="arn:aws:iam::123456789012:role/r",
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )  # fmt: skip
    metadata = tmp_path / "metadata.json"
    assert notebook_tags(metadata) == {}
    metadata.write_text(json.dumps({"ResourceArn": f"{ARN}tagged", "ResourceName": "tagged"}))
    assert notebook_tags(metadata) == tags
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
    with pytest.raises(InstanceError, match="sagemaker:ListTags"):
        notebook_tags(metadata, timeout_s=1)
