"""The lifecycle scripts on real systemd machines whose root volume is thrown away, and whose volume stays."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from smsnapd.cli.comparison import Description, describe, differences
from smsnapd.repository import Repository
from smsnapd.store import StoreSettings, open_store
from tests.e2e.container import MARKS, Container, booted, eventually, fresh_root, workplace
from tests.e2e.transcript import PASSPHRASE
from tests.e2e.wheelhouse import make_wheelhouse
from tests.servers import S3Server

SCRIPTS = Path(__file__).parents[2] / "systemd" / "lifecycle"
VOLUME = Path("/home/ec2-user/SageMaker")
SETUP = Path("/opt/setup")
REPOSITORY = Path("/opt/repository")
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
REAL_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
LIBRARY = Path(sysconfig.get_path("stdlib"))
SYSTEM_LIBRARY = Path("/usr/lib", PYTHON)
"""Where that Python's modules are for a copy of it in /usr/bin."""

ACCOUNT = "123456789012"
BARE = ("env", "-i", "-C", "/", "/bin/bash")

pytestmark = [*MARKS, pytest.mark.loop, pytest.mark.server]

CONFIG = f"""
[volume]
path = "{VOLUME}"
exclude = ["lost+found", "/.smsnapd"]
[encryption]
passphrase_file = "passphrase"
[state]
dir = "state"
[schedule]
quiet = "1s"
full = ""
check = ""
"""
WITH_URL = f'{CONFIG}[repository]\nurl = "{REPOSITORY.as_uri()}"\n'
FROM_S3 = {"WHEELHOUSE": "s3://bucket/all/", "CONFIGURATION": "s3://bucket/configuration/"}
FROM_SETUP = {"WHEELHOUSE": f"{SETUP}/wheels", "CONFIGURATION": f"{SETUP}/configuration/"}
BROKEN = [
    ({"CONFIGURATION": "/nowhere/smsnapd.toml"}, "there is no configuration"),
    ({"CONFIGURATION": "s3://bucket/smsnapd.toml"}, "there is no aws command"),
    ({"CONFIGURATION": f"{SETUP}/configuration/"}, "there is nothing to install smsnapd from"),
    ({"WHEELHOUSE": "/nowhere"}, "there are no wheels in /nowhere"),
    (
        {"PACKAGE": "smsnapd==0", "WHEELHOUSE": f"{SETUP}/wheels"},
        "smsnapd could not be installed with any Python",
    ),
]
AWS = f"""#!/bin/sh
[ "$1 $2" = "s3 cp" ] && shift 2
[ "$1" = --recursive ] && shift && every=.
[ "$1" = --only-show-errors ] && shift && cp -r "{SETUP}/${{1#s3://bucket/}}$every" "$2"
"""
"""What of the AWS CLI the scripts use, for a bucket that is a directory."""

DNF = f"""#!/bin/sh
echo "$*" >>/opt/setup/dnf-said
cp {SETUP}/{PYTHON} /usr/bin/{PYTHON}
"""


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheelhouse(tmp_path_factory.mktemp("wheelhouse"))


@dataclass
class Account:
    """What outlives every instance: a repository, a wheelhouse, and the volumes."""

    work: Path
    wheelhouse: Path
    starts: int = 0

    def new_volume(self, stack: ExitStack, name: str) -> Path:
        """An ext4 of its own, mounted outside, with nothing in it but lost+found."""
        image, place = self.work / f"{name}.img", self.work / name
        image.touch()
        os.truncate(image, 1 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        stack.callback(subprocess.run, ["umount", "-l", place], check=True)
        return place

    @contextmanager
    def started(self, volume: Path, name: str, *options: str, **settings: str) -> Iterator["Instance"]:
        """An instance with this volume and a root volume as new; its lifecycle scripts have not yet run."""
        self.starts += 1
        with fresh_root(self.work, f"start-{self.starts}") as root:
            furnish(root, name)
            binds = [
                (LIBRARY, SYSTEM_LIBRARY),
                (volume, VOLUME),
                (self.wheelhouse, SETUP / "wheels"),
                (self.work / "repository", REPOSITORY),
            ]
            (root / "root/on-create").write_text((SCRIPTS / "on-create").read_text())
            (root / "root/on-start").write_text(with_settings(settings))
            with booted(root, binds, *options) as container:
                yield Instance(container, volume)


@dataclass
class Instance:
    container: Container
    volume: Path

    def script(self, name: str) -> None:
        """Run it as SageMaker does; whatever happens it ends well."""
        done = self.container.run(*BARE, f"/root/{name}")
        assert done.returncode == 0, done

    def log(self) -> str:
        path = self.volume / ".smsnapd/boot.log"
        log = path.read_text() if path.exists() else "no log"
        return log + self.container.inside("journalctl", "--no-pager", "-n", "80")

    def says(self, text: str) -> None:
        eventually(
            lambda: text in (self.volume / ".smsnapd/boot.log").read_text(), f"'{text}' in the log", self.log
        )

    def rests(self) -> None:
        """Wait until nothing of the scripts runs any more."""
        running = ("systemctl", "list-units", "--plain", "--no-legend", "smsnapd-boot-*")
        eventually(lambda: not self.container.inside(*running), "the background's end", self.log)
        self.container.inside("flock", f"{VOLUME}/.smsnapd/boot.lock", "true")  # it may have had no unit

    def is_protected(self) -> None:
        eventually(self.container.is_active, "the daemon", self.log)

    def smsnap(self, *arguments: str) -> str:
        """As a person types it: from the path, with no configuration named."""
        return self.container.inside("/usr/local/bin/smsnap", *arguments)

    def holds(self, name: str, content: str) -> None:
        eventually(lambda: self.smsnap("cat", "latest", name) == content, f"{name} in a snapshot", self.log)


@pytest.fixture(scope="module")
def account(wheelhouse: Path) -> Iterator[Account]:
    with workplace("3g") as work:
        store = open_store(StoreSettings((work / "repository").as_uri()))
        Repository.create(store, PASSPHRASE)
        store.close()
        yield Account(work, wheelhouse)


def furnish(root: Path, name: str) -> None:
    """An instance's root volume: SageMaker's metadata, a dnf, no Python that could run smsnapd."""
    (root / str(VOLUME)[1:]).mkdir(parents=True)
    for directory in (SETUP / "wheels", SETUP / "configuration", REPOSITORY, Path("/opt/ml/metadata")):
        (root / str(directory)[1:]).mkdir(parents=True)
    setup = root / str(SETUP)[1:]
    shutil.copy(REAL_PYTHON, setup / PYTHON)
    (root / str(SYSTEM_LIBRARY)[1:]).mkdir(exist_ok=True)
    for directory in (root / "usr/bin", root / "usr/local/bin"):
        for found in (*directory.glob("python3.1[1-3]"), *directory.glob("aws")):
            found.unlink()
    put_program(root / "usr/bin/dnf", DNF)
    (setup / "configuration/smsnapd.toml").write_text(WITH_URL)
    (setup / "configuration/passphrase").write_text(PASSPHRASE + "\n")
    arn = f"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:notebook-instance/{name}"
    metadata = root / "opt/ml/metadata/resource-metadata.json"
    metadata.write_text(json.dumps({"ResourceArn": arn, "ResourceName": name}))


def with_settings(settings: dict[str, str]) -> str:
    """on-start with settings as a person edits them."""
    text = (SCRIPTS / "on-start").read_text()
    for name, value in settings.items():
        assert f'\n{name}=""\n' in text
        text = text.replace(f'\n{name}=""\n', f'\n{name}="{value}"\n')
    return text


def lies_on(volume: Path) -> dict[bytes, Description]:
    """What a person has there."""
    own = (b".smsnapd", b"lost+found")
    return {path: found for path, found in describe(volume).items() if path and not path.startswith(own)}


def test_a_notebook_outlives_its_root_volume_and_fills_another(account: Account, moto_s3: S3Server) -> None:
    # It is one story, since each start takes the time that it takes.
    with ExitStack() as stack:
        volume = account.new_volume(stack, "volume")
        (volume / "cloned").mkdir()
        (volume / "cloned/README").write_text("laid there by the instance\n")
        with account.started(
            volume, "old-nb", "--private-network", RESTORE="latest", **FROM_SETUP
        ) as instance:
            put_python(instance.container.root)
            instance.script("on-create")
            instance.script("on-start")
            instance.is_protected()
            is_created(instance)
        (volume / "work.txt").write_text("while it was off\n")
        with account.started(volume, "old-nb", "--private-network") as instance:
            instance.script("on-start")
            instance.is_protected()
            goes_on(instance)
        expected = lies_on(volume)

        other = account.new_volume(stack, "other-volume")
        tags = {"smsnap-restore": "old-nb@latest", "smsnap-repository": REPOSITORY.as_uri()}
        tag_notebook(moto_s3, "new-nb", tags)
        with account.started(other, "new-nb", **FROM_S3) as instance:
            fill_bucket(instance.container.root, account.wheelhouse)
            lend_credentials(instance.container, moto_s3)
            instance.script("on-start")
            instance.is_protected()
            assert differences(expected, lies_on(other)) == []
            is_restored_once(instance)
            is_built_anew(instance)


def is_created(instance: Instance) -> None:
    """All is on the volume, root's, with secrets for root alone; a person finds smsnap, and it backs up."""
    instance.holds("cloned/README", "laid there by the instance")
    instance.says("there was nothing to restore yet")
    place = instance.volume / ".smsnapd"
    modes = {
        path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in (place, *place.iterdir())
    }
    assert modes[".smsnapd"] == modes["venv"] == (0, 0o755)
    assert modes["smsnapd.toml"] == modes["passphrase"] == (0, 0o600)
    assert instance.container.run("systemctl", "is-enabled", "smsnapd").returncode == 0
    assert not (instance.container.root / "opt/setup/dnf-said").exists()
    (instance.volume / "work.txt").write_text("work\n")
    instance.holds("work.txt", "work")


def goes_on(instance: Instance) -> None:
    """The Python that the venv needs came back, and the chain goes on where it was cut off."""
    assert (instance.container.root / "opt/setup/dnf-said").read_text() == f"-y -q install {PYTHON}\n"
    instance.holds("work.txt", "while it was off")
    snapshots = json.loads(instance.smsnap("snapshots", "--json"))
    assert [item["parent"] for item in snapshots] == [None, *(item["id"] for item in snapshots[:-1])]
    assert [item["kind"] for item in snapshots] == ["full"] + ["incremental"] * (len(snapshots) - 1)
    assert json.loads(instance.smsnap("check", "--read-data", "--json"))["ok"]
    assert instance.smsnap("status").startswith("old-nb:")

    # A configuration that cannot be used is told, and harms nothing that runs.
    started = instance.container.show("ExecMainStartTimestampMonotonic")
    config = instance.volume / ".smsnapd/smsnapd.toml"
    config.write_text("[volume\n")
    instance.script("on-start")
    instance.says("it is not TOML")
    config.write_text(WITH_URL)
    instance.rests()
    instance.script("on-start")
    instance.says("unchanged: /etc/systemd/system/smsnapd.service")
    assert instance.container.show("ExecMainStartTimestampMonotonic") == started


def is_restored_once(instance: Instance) -> None:
    """The daemon came after the restore, so no snapshot is of less; and no file is brought back again."""
    lines = (instance.volume / ".smsnapd/boot.log").read_text()
    assert 0 < lines.index("restored 2 files") < lines.index("installed: /etc/systemd")
    assert REPOSITORY.as_uri() in (instance.volume / ".smsnapd/smsnapd.toml").read_text()
    (instance.volume / "work.txt").unlink()
    (instance.volume / "later.txt").write_text("later\n")
    instance.holds("later.txt", "later")
    snapshots = json.loads(instance.smsnap("snapshots", "--json"))
    assert {item["volume"] for item in snapshots} == {"new-nb"} and snapshots[0]["files"] == 2
    instance.rests()
    instance.script("on-start")
    instance.says("unchanged: /etc/systemd/system/smsnapd.service")
    assert not (instance.volume / "work.txt").exists()


def test_a_start_that_can_do_nothing_says_why_and_lets_the_notebook_start(account: Account) -> None:
    with ExitStack() as stack:
        volume = account.new_volume(stack, "broken")
        with account.started(volume, "nb", "--private-network") as instance:
            for settings, why in BROKEN:
                (instance.container.root / "root/on-start").write_text(with_settings(settings))
                instance.script("on-start")
                instance.says(why)
                instance.rests()
            (instance.container.root / "usr/bin/systemd-run").unlink()
            (volume / ".smsnapd/boot.log").unlink()
            instance.script("on-start")
            instance.says("systemd-run failed: starting in the background without it")
            instance.says(BROKEN[-1][1])
            instance.rests()

            shutil.rmtree(volume / ".smsnapd")
            (volume / ".smsnapd").mkdir()
            os.chown(volume / ".smsnapd", 1000, 1000)
            assert "is not root's" in instance.container.inside(*BARE, "/root/on-start")
            assert not any((volume / ".smsnapd").iterdir())
            os.chown(volume / ".smsnapd", 0, 0)
            subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
            instance.script("on-start")
            eventually(lambda: "cannot write to" in instance.log(), "that it is read-only", instance.log)
            instance.container.inside("umount", str(VOLUME))
            assert "is not mounted" in instance.container.inside(*BARE, "/root/on-start")
            assert not instance.container.is_active()


def is_built_anew(instance: Instance) -> None:
    """The venv's Python is gone for good: smsnapd is installed again, from what is kept on the volume."""
    place = instance.volume / ".smsnapd"
    assert f"home = {VOLUME}/.smsnapd/python/bin\n" in (place / "venv/pyvenv.cfg").read_text()
    before = json.loads(instance.smsnap("snapshots", "--json"))
    shutil.rmtree(place / "python")
    assert instance.smsnap("snapshots", "--json") == ""
    (instance.container.root / "usr/local/bin/aws").unlink()
    instance.rests()
    instance.script("on-start")
    instance.says("there are no wheels in s3://bucket/all/, or it cannot be reached")
    instance.rests()
    assert json.loads(instance.smsnap("snapshots", "--json"))[: len(before)] == before
    assert not (place / "venv.old").exists()


def fill_bucket(root: Path, wheelhouse: Path) -> None:
    """Wheels and a Python that stands alone, and a configuration without a repository, to be fetched."""
    place = root / str(SETUP)[1:]
    put_program(root / "usr/local/bin/aws", AWS)
    shutil.copytree(wheelhouse, place / "all")
    with tarfile.open(place / "all/cpython-x-install_only.tar.gz", "w:gz", compresslevel=1) as tarball:
        tarball.add(REAL_PYTHON, f"python/bin/{PYTHON}")
        for name, target in ((f"lib/{PYTHON}", SYSTEM_LIBRARY), ("bin/python3", PYTHON)):
            link = tarfile.TarInfo(f"python/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, str(target)
            tarball.addfile(link)
    (place / "configuration/smsnapd.toml").write_text(CONFIG)


def put_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def put_python(root: Path) -> None:
    """As an image has it, or somebody had dnf install it."""
    shutil.copy(root / str(SETUP / PYTHON)[1:], root / "usr/bin" / PYTHON)


def tag_notebook(server: S3Server, name: str, tags: dict[str, str]) -> None:
    """Make the notebook known to SageMaker's API, with these tags."""
    client = boto3.client(
        "sagemaker", endpoint_url=server.endpoint, region_name="eu-west-1",
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
    )  # fmt: skip
    with closing(client):
        client.create_notebook_instance(
            NotebookInstanceName=name, InstanceType="ml.t3.medium",
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/service-role/notebooks",
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )  # fmt: skip


def lend_credentials(container: Container, server: S3Server) -> None:
    """What an instance has from its metadata service, and the way to the API."""
    container.inside(
        "systemctl", "set-environment", f"AWS_ENDPOINT_URL_SAGEMAKER={server.endpoint}",
        f"AWS_ACCESS_KEY_ID={server.access_key}", f"AWS_SECRET_ACCESS_KEY={server.secret_key}",
    )  # fmt: skip
