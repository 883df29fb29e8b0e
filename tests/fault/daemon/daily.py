"""A notebook on a disk of its own, with a daemon and somebody at work: what the trials share."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smsnapd.engine.history import History
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings, open_store
from tests.e2e.daemon import Daemon, eventually
from tests.e2e.transcript import PASSPHRASE, Notebook
from tests.fault.daemon.oracle import Judgement, judge
from tests.fault.daemon.workload import Workload
from tests.unit.volume.ext4 import loop_ext4

SCHEDULE = '[schedule]\nquiet = "1s"\nincremental = "1s"\nfull = ""\ncheck = ""\n'
AT_FULL_LENGTH = os.environ.get("SMSNAP_LONG") == "1"

PROGRAM = """
import sys
from smsnapd.volume.watch import Watcher
Watcher.__init__.__kwdefaults__.update({defaults!r})
from smsnapd.daemon.main import main
sys.exit(main(["-v"]))
"""


class DailyWork(Notebook):
    """A notebook whose volume is a directory on a disk of its own; `environment` goes with every command."""

    def __init__(self, place: Path, disk: Path, kind: str, url: str = "", more: str = "") -> None:
        self.kind = kind
        self.environment: dict[str, str] = {}
        self.disk = disk
        super().__init__(place, url, more)
        self.volume.rmdir()
        self.volume = disk / "volume"
        self.volume.mkdir()

    def configure(self, more: str = "", encryption: str = 'passphrase_file = "passphrase"') -> None:
        super().configure(more, encryption)
        file = self.place / "smsnapd.toml"
        text = file.read_text().replace('path = "volume"', f'path = "{self.disk / "volume"}"')
        file.write_text(text.replace('name = "nb"', f'name = "nb"\nwatch = "{self.kind}"'))

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return super()._environment({**self.environment, **more})


class Trial:
    """The notebook, its daemon, and the work."""

    def __init__(self, notebook: DailyWork, seed: int) -> None:
        notebook.well("init")
        self.notebook = notebook
        self.daemon = Daemon(notebook)
        self.work = Workload(os.fsencode(notebook.volume), os.fsencode(notebook.disk / "beside"), seed)

    def watch_with(self, **defaults: Any) -> None:
        """Start the daemon's watcher with other settings than its own: no configuration has them."""
        self.daemon.command = [sys.executable, "-W", "error", "-c", PROGRAM.format(defaults=defaults)]

    @property
    def status(self) -> dict[str, Any]:
        """What the daemon last wrote."""
        found: dict[str, Any] = json.loads((self.daemon.run / "status.json").read_text())
        return found

    def settle(self) -> dict[str, Any]:
        """Wait until the last recovery point is of after now, and nothing is pending; the status then."""

        def settled() -> dict[str, Any] | None:
            found = self.status
            return found if found["state"] == "idle" and found["last_error"] is None else None

        self.daemon.say("backup")
        return eventually(settled, "peace")

    def judge(self, settings: StoreSettings | None = None, store: Store | None = None) -> Judgement:
        """Every recovery point, restored."""
        settings = settings or StoreSettings(self.notebook.url)
        return judge(
            store or open_store(settings),
            settings,
            Credentials(passphrase=PASSPHRASE),
            "nb",
            self.work.model,
            self.notebook.place,
        )

    def methods(self) -> list[str]:
        """How each recovery point knows that it is complete."""
        store = open_store(StoreSettings(self.notebook.url))
        with contextlib.closing(Repository.open(store, Credentials(passphrase=PASSPHRASE))) as repository:
            history = History.load(repository, "nb")
            return [history.record(name).manifest.completeness.method for name in history.names]

    def close(self) -> None:
        self.work.close()
        self.daemon.close()


@contextlib.contextmanager
def trial(
    place: Path, kind: str, seed: int, url: str = "", more: str = "", **environment: str
) -> Iterator[Trial]:
    """A trial on a new disk. What is wrong afterwards can be looked at in `place`."""
    with loop_ext4(place, "disk", size="1G") as disk:
        notebook = DailyWork(place, disk, kind, url, more + "\n" + SCHEDULE)
        notebook.environment.update(environment)
        made = Trial(notebook, seed)
        try:
            yield made
        finally:
            made.close()
            shutil.rmtree(disk / "beside", ignore_errors=True)


def rest(chance: random.Random, longest_s: float) -> None:
    """Any moment is right."""
    time.sleep(chance.random() * longest_s)
