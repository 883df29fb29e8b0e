"""`smsnap restore --remount`: the volume in use, with the venv, configuration and state that run on it.

In a mount namespace of its own, as the machine has one; the volume is mounted from a loop device.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

from smsnapd.store import StoreSettings
from tests.e2e.wheelhouse import with_dependencies
from tests.property.observed import differences, observe
from tests.property.protected import PASSPHRASE, Protected
from tests.unit.engine.images import NEEDS_LOOP, fsck, make_ext4, mounted

CHECKOUT = Path(__file__).parents[2]
S3_ALONE = {"boto3", "botocore", "s3transfer", "jmespath"}

pytestmark = [*NEEDS_LOOP, pytest.mark.slow]


def install(home: Path) -> None:
    """A venv with this program and all that it needs for a repository in a directory."""
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    needed = [text for text in requires("smsnapd") or [] if "extra ==" not in text]
    for name in with_dependencies(needed) - S3_ALONE:
        found = distribution(name)
        for file in found.files or ():
            if file.parts[0] != ".." and file.suffix != ".pyc":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), site / file)
    shutil.copytree(CHECKOUT / "smsnapd", site / "smsnapd", ignore=shutil.ignore_patterns("__pycache__"))
    program = venv / "bin" / "smsnap"
    program.write_text(
        f"#!{venv}/bin/python\nimport sys\nfrom smsnapd.cli.main import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)


class Machine:
    """A volume on a device, mounted at `point` for as long as a script runs; a repository beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.device = place / "device"
        self.point = place / "SageMaker"
        self.stages = place / "run"
        """What the machine has as /run, where the program goes: others have theirs."""
        self.original: object = None

    def prepare(self) -> None:
        """A block full of the volume; then it is worked on, and the program is installed on it."""
        self.stages.mkdir()
        make_ext4(self.device, "256M", "-b", "4096")
        settings = StoreSettings((self.place / "repository").as_uri())
        with mounted(self.device, self.point) as root:
            (root / "work").mkdir()
            (root / "work" / "notes").write_text("as it was\n")
            protected = Protected.create(root, self.place / "state", settings)
            protected.backup(mode="block")
            self.original = observe(root)
            (root / "work" / "notes").write_text("spoilt\n")
            home = root / ".smsnapd"
            (home / "state").mkdir(parents=True)
            install(home)
            (home / "passphrase").write_text(PASSPHRASE)
            (home / "passphrase").chmod(0o600)
            (home / "smsnapd.toml").write_text(
                f'[volume]\npath = "{root}"\nname = "notebook"\n[state]\ndir = "{home}/state"\n'
                f'[repository]\nurl = "{settings.url}"\n[encryption]\npassphrase_file = "passphrase"\n'
            )

    def run(self, before: str = "", after: str = "", options: str = "") -> subprocess.CompletedProcess[str]:
        """Restore from a shell that stands on the volume; `before` and `after` run beside it."""
        script = f"""
            set -u; cd /; mount --make-rprivate /; mount --bind {self.stages} /run
            LOOP=$(losetup -f --show {self.device}); mount "$LOOP" {self.point}
            {before}
            (cd {self.point}/work && ../.smsnapd/venv/bin/smsnap restore --config ../.smsnapd/smsnapd.toml \\
                --device "$LOOP" --remount --destroy {options})
            STATUS=$?
            {after}
            jobs -p | xargs -r kill; wait
            grep -q {self.point} /proc/self/mounts && umount {self.point}
            losetup -d "$LOOP"; exit $STATUS
        """
        command = ["unshare", "--mount", "bash", "-c", script]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, env=environment
        )

    def check_restored(self, place: Path) -> None:
        """The volume is clean, and as it was when its image was taken."""
        fsck(self.device)
        with mounted(self.device, place, "loop,ro") as root:
            assert list(differences(self.original, observe(root))) == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("remount"))
    machine.prepare()
    return machine


@pytest.fixture
def machine(prepared: Machine, tmp_path: Path) -> Machine:
    """The same machine for every test, its device as it was prepared."""
    ours = Machine(prepared.place)
    ours.original = prepared.original
    ours.device = tmp_path / "device"
    subprocess.run(["cp", "--sparse=always", prepared.device, ours.device], check=True)
    return ours


def test_the_volume_that_the_program_runs_from_is_written_and_clean(machine: Machine, tmp_path: Path) -> None:
    said = machine.run(
        # Nothing of the shell may stand on it, for this is the volume that can be unmounted.
        after=f"grep {machine.point} /proc/self/mounts && exit 77; true",
        options="--verify",
    )
    assert said.returncode == 0, said.stderr
    assert "read back" in said.stdout
    assert "restart" in said.stderr
    machine.check_restored(tmp_path / "look")
    assert list(machine.stages.glob("smsnap-departed-*")) == []


def test_a_volume_that_others_stand_on_is_made_read_only(machine: Machine, tmp_path: Path) -> None:
    said = machine.run(
        before=f"(cd {machine.point}/work && exec sleep 1000) & until [ -e /proc/$!/cwd/notes ]; do :; done",
    )
    assert said.returncode == 0, said.stderr
    assert "do not use it before that" in said.stderr
    machine.check_restored(tmp_path / "look")


def test_who_writes_to_it_is_named_and_nothing_has_changed(machine: Machine, tmp_path: Path) -> None:
    notes = f"{machine.point}/work/notes"
    said = machine.run(
        before=f"sleep 1000 >> {notes} & until [ -e /proc/$!/fd/1 ]; do :; done",
        after=f"cat {notes} || exit 78; touch {notes} || exit 79",
    )
    assert said.returncode == 1, said
    assert re.search(r"open for writing: sleep \(process \d+, .*work/notes\)", said.stderr)
    assert "spoilt" in said.stdout
    fsck(machine.device)


def test_a_repository_that_cannot_give_it_back_leaves_the_program_where_it_was(
    machine: Machine, tmp_path: Path
) -> None:
    (chunks,) = machine.place.glob("repository/volumes/*/chunks")
    kept = shutil.copytree(chunks, tmp_path / "chunks")
    for chunk in chunks.glob("*/*"):
        chunk.write_bytes(b"damaged")
    try:
        # The volume is not whole, the program is there still: the same command can be given again.
        again = f"""
            cp -r {kept}/. {chunks}
            cd / && {machine.point}/.smsnapd/venv/bin/smsnap restore --device "$LOOP" --destroy --remount \\
                --config {machine.point}/.smsnapd/smsnapd.toml
            STATUS=$?
        """
        said = machine.run(after=again)
        assert "not what was stored" in said.stderr
        assert said.returncode == 0, said.stderr
        machine.check_restored(tmp_path / "look")
    finally:
        shutil.copytree(kept, chunks, dirs_exist_ok=True)
        for stage in machine.stages.glob("smsnap-departed-*"):
            shutil.rmtree(stage)


def test_it_must_be_meant(machine: Machine) -> None:
    said = machine.run(options="--dry-run")
    assert said.returncode == 2 and "--dry-run" in said.stderr
