"""`smsnap demo`: the whole story, on a throw-away volume and a directory repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import click

from smsnapd.cli import demo_volume, output
from smsnapd.cli.comparison import Description, describe, differences
from smsnapd.cli.options import verb
from smsnapd.errors import SmsnapError

EXAMPLES = """
smsnap demo
smsnap demo --keep               leave the volume and the repository to look at
"""
PASSPHRASE = "correct horse battery staple"


@verb("demo", examples=EXAMPLES)
@click.option("--keep", is_flag=True, help="Leave what was made, and say where.")
def demo(keep: bool) -> int:
    """Show the whole story on a throw-away volume and a directory repository.

    A volume, a full backup, edits, incrementals, the recovery points, two moments restored, each
    compared with what was there: types, modes, owners, times in nanoseconds, extended attributes,
    hard links, holes and contents, and by rsync if that is installed. Exit status 1 if anything
    differs. Nothing outside a temporary directory is touched.
    """
    place = Path(tempfile.mkdtemp(prefix="smsnap-demo-"))
    elsewhere = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SMSNAP_")}
    try:
        return Story(place).tell()
    finally:
        os.environ.update(elsewhere)
        if keep:
            output.line(f"Left in {place}; the passphrase is in {place / 'passphrase'}")
        else:
            shutil.rmtree(place)


class Story:
    """One run of the demo, all of it below `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.volume = place / "volume"
        self.config = place / "smsnapd.toml"
        self.moments: dict[str, dict[bytes, Description]] = {}
        self.snapshots: dict[str, str] = {}
        self.rsync = shutil.which("rsync")
        self.began = time.monotonic()

    def tell(self) -> int:
        """The story; 1 if what came back is not what was there, else 0."""
        self.set_up()
        self.commit("in the beginning")
        self.work("A morning's work", demo_volume.edit_morning)
        self.commit("before the accident")
        self.work("An accident", demo_volume.edit_accident)
        self.commit("after the accident")
        self.work("An evening's work", demo_volume.edit_evening)
        self.commit("in the evening")
        self.heading("The recovery points")
        self.run("snapshots")
        wrong = self.bring_back("before the accident") + self.bring_back("in the evening")
        self.heading("Is all of the repository whole?")
        self.run("check", "--read-data")
        seconds = time.monotonic() - self.began
        output.line()
        output.line(
            f"Two moments restored, {'IDENTICAL' if not wrong else 'NOT THE SAME'}, in {seconds:.0f} s."
        )
        return 1 if wrong else 0

    def set_up(self) -> None:
        """The volume, the configuration, the repository."""
        self.heading("A volume, with one of everything")
        self.volume.mkdir()
        demo_volume.make(self.volume)
        output.line(f"  {self.volume}: {len(describe(self.volume)):,} entries")
        self.heading("A configuration and a repository")
        passphrase = self.place / "passphrase"
        passphrase.touch(0o600)
        passphrase.write_text(PASSPHRASE + "\n")
        self.config.write_text(
            '[volume]\npath = "volume"\nname = "demo"\n\n'
            f'[repository]\nurl = "{(self.place / "repository").as_uri()}"\n\n'
            '[encryption]\npassphrase_file = "passphrase"\n\n[state]\ndir = "state"\n'
        )
        for text in self.config.read_text().splitlines():
            output.line(f"  {text}".rstrip())
        self.run("init")

    def work(self, title: str, edit: Callable[[Path], Sequence[str]]) -> None:
        """Change the volume, and say how."""
        self.heading(title)
        for text in edit(self.volume):
            output.line(f"  {text}")

    def commit(self, moment: str) -> None:
        """Back up, and keep what there was for the comparison."""
        self.run("backup")
        self.moments[moment] = describe(self.volume)
        self.snapshots[moment] = self.newest()
        if self.rsync:
            copy = self.place / "copies" / moment
            copy.parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", "--", self.volume, copy], check=True)

    def newest(self) -> str:
        """The id of the newest recovery point."""
        with redirect_stdout(StringIO()) as captured:
            self.invoke("snapshots", "--json")
        newest: str = json.loads(captured.getvalue())[-1]["id"]
        return newest

    def bring_back(self, moment: str) -> int:
        """Restore a moment and compare; the number of differences."""
        self.heading(f"Restored: {moment}")
        target = self.place / "restored" / moment.replace(" ", "-")
        self.run("restore", "--snapshot", self.snapshots[moment], "--target", str(target))
        wrong = differences(self.moments[moment], describe(target))
        for text in wrong[:20]:
            output.line(f"  DIFFERENT {text}")
        output.line(f"  compared {len(self.moments[moment]):,} entries: {len(wrong)} differences")
        return len(wrong) + self.compare_by_rsync(moment, target)

    def compare_by_rsync(self, moment: str, target: Path) -> int:
        """What rsync would still have to do; the number of its lines."""
        if not self.rsync:
            output.line("  (rsync is not installed: compared without it)")
            return 0
        copy = self.place / "copies" / moment
        options = "-aHAXnci"
        done = subprocess.run(
            [self.rsync, options, "--delete", f"{copy}/", f"{target}/"], capture_output=True, check=False
        )
        lines = (done.stdout + done.stderr).splitlines()
        for text in lines[:20]:
            output.line(f"  rsync: {os.fsdecode(text)!a}")
        output.line(f"  rsync {options} --delete: {len(lines)} differences")
        return len(lines) + (done.returncode != 0)

    def heading(self, text: str) -> None:
        """A line that says what comes."""
        output.line()
        output.line(f"== {text} ({time.monotonic() - self.began:.1f} s)")

    def run(self, *arguments: str) -> None:
        """Show a command, then run it as it would run alone."""
        output.line()
        output.line(f"$ smsnap {' '.join(arguments)}")
        self.invoke(*arguments)

    def invoke(self, *arguments: str) -> None:
        """Run a command of `smsnap` in this process; SmsnapError if it fails."""
        from smsnapd.cli.main import main

        output.flush()
        status = main(["--config", str(self.config), *arguments])
        sys.stderr.flush()
        if status:
            raise SmsnapError(
                f"go on with the demo after smsnap {arguments[0]}", f"its exit status is {status}"
            )
