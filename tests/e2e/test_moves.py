"""The README's ways to move, run as they are written there: by a shell, against a real S3 server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smsnapd
from tests.servers import S3Server, ServerMissingError, seaweedfs

pytestmark = [pytest.mark.server, pytest.mark.root]
README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.split("\n## Move\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of its own, which has the README's buckets."""
    try:
        with seaweedfs(tmp_path_factory.mktemp("moves")) as found:
            for bucket in ("your-bucket", "other-bucket"):
                found.make_bucket(bucket)
            yield found
    except ServerMissingError as error:
        pytest.skip(str(error))


class Machine:
    """A notebook with a home, a volume in it, and `smsnap` and `aws` in its path."""

    def __init__(self, place: Path, server: S3Server, name: str, repository: str) -> None:
        self.home = place / name
        self.volume = self.home / "SageMaker"
        self.volume.mkdir(parents=True)
        self.server = server
        self.configure("smsnapd.toml", name, f"s3://your-bucket/{repository}")
        self.configure("other.toml", name, f"s3://other-bucket/{repository}")
        (self.home / "passphrase").touch(0o600)
        (self.home / "passphrase").write_text("correct horse\n")
        (self.home / "secret").write_text("the article's\n")
        tools = self.home / "bin"
        tools.mkdir()
        aws = Path(sys.executable).with_name("aws")
        for tool, command in {
            "smsnap": f"{sys.executable} -m smsnapd.cli.main",
            "aws": f"{aws} --cli-read-timeout 5 --endpoint-url {server.endpoint}",
        }.items():
            (tools / tool).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (tools / tool).chmod(0o755)

    def configure(self, file: str, name: str, url: str) -> None:
        (self.home / file).write_text(
            f'[volume]\npath = "SageMaker"\nname = "{name}"\n'
            f'[repository]\nurl = "{url}"\nregion = "us-east-1"\n'
            f'endpoint_url = "{self.server.endpoint}"\npath_style = true\n'
            f'[encryption]\npassphrase_file = "passphrase"\n[state]\ndir = "state-{Path(file).stem}"\n'
        )

    def run(self, script: str) -> str:
        """Run lines of the README; every one of them must succeed."""
        environment = {
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "PYTHONPATH": str(Path(smsnapd.__file__).parents[1]),
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout


def block(beginning: str) -> str:
    """The README's block whose last command begins so."""
    (found,) = [
        text for text in BLOCKS if text.splitlines()[-1].startswith(beginning) or text.startswith(beginning)
    ]
    return found


def fill(volume: Path, owner: int) -> None:
    (volume / "d").mkdir()
    (volume / "d/train.ipynb").write_text("{}")
    (volume / "data.bin").write_bytes(os.urandom(600_000))
    for path in (volume, *volume.rglob("*")):
        os.chown(path, owner, owner)


def rsync(one: Path, other: Path, *options: str) -> str:
    command = ["rsync", "-rnci", "--delete", *options, f"{one}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == 6


def test_from_a_notebook_to_a_new_one(tmp_path: Path, server: S3Server) -> None:
    old, new = (Machine(tmp_path, server, name, "one") for name in ("old-notebook", "new-notebook"))
    fill(old.volume, 500)
    old.run("smsnap init")
    old.run(block("smsnap backup"))
    new.run(block("smsnap snapshots"))
    assert rsync(old.volume, new.volume, "-t") == ""
    assert (new.volume / "d/train.ipynb").stat().st_uid == 1000


def test_from_the_articles_backups(tmp_path: Path, server: S3Server) -> None:
    old, new = (Machine(tmp_path, server, name, "two") for name in ("old-notebook", "new-notebook"))
    fill(old.volume, 1000)
    old.run(block("tar -C"))
    new.run("smsnap init")
    new.run(block("smsnap import s3://your-bucket/backup.tar.gz.enc"))
    assert rsync(old.volume, new.volume, "-a") == ""


def test_from_the_samples(tmp_path: Path, server: S3Server) -> None:
    old, new = (Machine(tmp_path, server, name, "three") for name in ("old-notebook", "new-notebook"))
    fill(old.volume, 1000)
    old.run("aws s3 sync ~/SageMaker/ s3://your-bucket/old-notebook_2026-01-31-09-00-00/")
    new.run("smsnap init")
    new.run(block("smsnap import s3://your-bucket/old-notebook_2026"))
    assert rsync(old.volume, new.volume) == ""


def test_to_another_account_and_the_table(tmp_path: Path, server: S3Server) -> None:
    old, new = (Machine(tmp_path, server, name, "backups") for name in ("old-notebook", "new-notebook"))
    fill(old.volume, 1000)
    old.run("smsnap init; smsnap backup")
    old.run(block("smsnap -c other.toml init"))
    rows = [re.findall(r"`([^`]+)`", row) for row in SECTION.splitlines() if re.match(r"\| [13] ", row)]
    for row in rows:
        out, into = (command for command in row if command.startswith(("smsnap export", "smsnap import")))
        old.run(out)
        old.run(f"{into} --volume imported-{len(row)}-{rows.index(row)}")
        old.run(f"smsnap restore --volume imported-{len(row)}-{rows.index(row)} --target back")
        assert rsync(old.volume, old.home / "back", "-a") == ""
        shutil.rmtree(old.home / "back")
    new.run("smsnap -c other.toml restore --volume old-notebook --target back")
    assert rsync(old.volume, new.home / "back", "-a") == ""
