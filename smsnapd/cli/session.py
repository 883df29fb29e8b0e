"""What one run of a verb has at hand: configuration, repository, volume, snapshot, progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smsnapd import telemetry
from smsnapd.cli import passphrase
from smsnapd.cli.options import Options
from smsnapd.cli.times import Selector, parse_selector, parse_time
from smsnapd.config import VOLUME_NAME, Config, Overrides, load
from smsnapd.coredumps import forbid_core_dumps
from smsnapd.daemon import protection
from smsnapd.daemon.passphrase import find_passphrase, read_key_file
from smsnapd.errors import UsageError
from smsnapd.instance import read_notebook
from smsnapd.store.base import StoreSettings
from smsnapd.store.counting import Requests, made

if TYPE_CHECKING:
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.engine.lookback.live import LiveVolume
    from smsnapd.engine.lookback.sameness import Judge
    from smsnapd.engine.progress import Progress
    from smsnapd.engine.trees.tree import SnapshotTree
    from smsnapd.instance import Notebook
    from smsnapd.repository import Credentials, Repository

log = logging.getLogger(__name__)


class Session:
    """Made by each verb from the options; reads the configuration once, opens things when asked."""

    def __init__(
        self,
        options: Options,
        *,
        config: Config | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`config` stands in for what the options name, and `environment` may lack a passphrase."""
        forbid_core_dumps()  # from here on there may be keys in memory
        self.options = options
        self._environment = environment
        if config is not None:
            self.config = config
        self._made_before = made.total()
        telemetry.set_up_logging(options.verbosity, sys.stderr)

    @classmethod
    def current(cls) -> Session:
        """The session of the verb that click is running."""
        return cls(click.get_current_context().ensure_object(Options))

    @cached_property
    def config(self) -> Config:
        """The configuration in force."""
        given = self.options
        overrides = Overrides(given.repository, given.path, given.volume, given.passphrase_file)
        return load(given.config, overrides)

    @cached_property
    def _notebook(self) -> Notebook | None:
        return read_notebook()

    @property
    def settings(self) -> StoreSettings:
        """Where the repository is; UsageError if nothing says it."""
        settings = protection.store_settings(self.config, self._notebook)
        at = self.options.repository_at
        return replace(settings, as_of_s=self.moment(at) / 1e6) if at else settings

    @property
    def requests(self) -> Requests:
        """What was asked of S3 so far, by this process and its workers."""
        return made.total() - self._made_before

    @property
    def state_dir(self) -> Path:
        """Where the local cache lies."""
        return protection.state_dir(self.config)

    def new_passphrase(self) -> str:
        """The passphrase of a repository that is about to be made; asked for twice."""
        found = self.found_passphrase()
        return passphrase.ask("make the repository", twice=True) if found is None else found

    def found_passphrase(self) -> str | None:
        """The passphrase that is named, without asking anybody."""
        given = self.options.passphrase_file is not None
        return find_passphrase(given, self.config.encryption, self._environment)

    @contextmanager
    def repository(self, *, contents: bool) -> Iterator[Repository]:
        """The repository, opened for the length of a `with`.

        `contents` says whether file contents will be read; without, a configured write key will do.
        """
        from smsnapd.repository import Repository
        from smsnapd.repository.access import load_repository_record
        from smsnapd.store import open_store

        store = open_store(self.settings)
        try:
            credentials = self.credentials(contents=contents)
            if credentials is None:
                load_repository_record(
                    store
                )  # nobody should type a passphrase for a repository that is not there
                credentials = self._typed()
            if self.options.repository_at:  # rosters that came later are not missed there
                credentials = replace(credentials, remembered=None)
            yield Repository.open(store, credentials)
        finally:
            store.close()

    def credentials(self, *, contents: bool) -> Credentials | None:
        """What opens the repository without asking anybody."""
        if self.options.identity_file is not None:
            return self._identity(self.options.identity_file)
        given = self.options.passphrase_file is not None
        return protection.found_credentials(
            self.config, self._environment, given_file=given, contents=contents
        )

    def _identity(self, file: str) -> Credentials:
        """The recovery key in a file; UsageError if it is none: a passphrase there would be a mistake."""
        text = sys.stdin.read() if file == "-" else read_key_file(Path(file), "identity")
        credentials = protection.credentials_of(text.strip(), self.config)
        if credentials.recovery_key is None:
            hint = "give the file that `smsnap init --identity-out` wrote, or the recovery key in one"
            raise UsageError(f"read the identity from {file}", "there is no recovery key in it", hint)
        return credentials

    def _typed(self) -> Credentials:
        return protection.credentials_of(passphrase.ask("open the repository", twice=False), self.config)

    @property
    def own_volume(self) -> str:
        """The name under which this machine's volume is backed up."""
        return protection.volume_name(self.config, self._notebook)

    @property
    def named_volume(self) -> str:
        """The volume that was named for this run, by option or environment; "" if none was."""
        return self.options.volume or os.environ.get("SMSNAP_VOLUME", "")

    def volume_in(self, repository: Repository) -> str:
        """The volume to look at: the one named, else one's own, else the only one that there is."""
        name = self.named_volume or self.own_volume
        if repository.holds(name):
            return name
        volumes = repository.volumes()
        if len(volumes) == 1 and not self.named_volume:
            return volumes[0]
        raise _no_volume(name, volumes)

    def find(self, repository: Repository, selector: str) -> tuple[History, SnapshotSummary]:
        """The snapshot that a person named, and the history that it is in."""
        wanted = parse_selector(selector)
        history = self._history(repository, wanted)
        return history, history.at(self.moment(wanted.time)) if wanted.time else history.find(wanted.name)

    def find_at(self, repository: Repository, time_text: str) -> tuple[History, SnapshotSummary]:
        """The last recovery point at or before a time as people write it."""
        moment = self.moment(time_text)
        history = self._history(repository, Selector("", "", time_text))
        return history, history.at(moment)

    def history(self, repository: Repository) -> History:
        """The recovery points of the volume to look at."""
        return self._history(repository, Selector("", "", ""))

    def live_volume(self) -> LiveVolume:
        """The volume as it is now, without what no backup has; to be closed."""
        from smsnapd.engine.lookback.live import LiveVolume
        from smsnapd.volume.scan import Excludes

        root = os.fsencode(protection.volume_root(self.config))
        return LiveVolume(root, Excludes(protection.exclude_patterns(self.config)))

    def judge(self, repository: Repository, volume: str) -> Judge:
        """Whether files that were stored anew have the same bytes; without the identity it says no."""
        from smsnapd.engine.trees.reading import Contents

        if repository.identity is None:
            return lambda one, other: False
        return Contents(repository, volume).have_same_bytes

    def _history(self, repository: Repository, wanted: Selector) -> History:
        from smsnapd.engine.history import History

        volume = wanted.volume
        if volume and not (VOLUME_NAME.fullmatch(volume) and repository.holds(volume)):
            raise _no_volume(volume, repository.volumes())
        history = History.load(repository, volume or self.volume_in(repository))
        self._tell_cut_off(repository, history)
        return history

    def _tell_cut_off(self, repository: Repository, history: History) -> None:
        """Say so if the newest recovery point that was made from here is not there any more."""
        from smsnapd.engine.chain.remembered import newest_remembered

        if self.options.repository_at:
            return
        newest = newest_remembered(self.state_dir, repository.repository_id, history.volume, log.info)
        if newest is not None and not history.accounts_for(*newest):
            log.warning(
                "%s: snapshot %s, made from here, is not there: a newest end was cut off; run `smsnap check`",
                history.volume,
                newest[1],
            )

    def moment(self, text: str) -> int:
        """A time as people write it, in microseconds since the epoch."""
        return parse_time(text, time.time_ns() // 1000)

    @contextmanager
    def files(self, repository: Repository, selector: str) -> Iterator[SnapshotTree]:
        """The tree of the snapshot that a person named, for as long as a `with`: its files can be read."""
        from smsnapd.engine.image.files import files_of

        history, found = self.find(repository, selector)
        with (
            self.progress() as progress,
            files_of(repository, self.settings, history.chain(found.id), progress) as tree,
        ):
            yield tree

    def progress(self) -> AbstractContextManager[Progress]:
        """Progress on standard error, for the length of a `with`."""
        options = self.options
        return telemetry.progress_to(sys.stderr, as_json=options.json, quiet=options.quiet)


def _no_volume(name: str, volumes: list[str]) -> UsageError:
    if not volumes:
        return UsageError(
            f"find volume {name}", "the repository holds no backup yet", "make one: smsnap backup"
        )
    hint = f"name one with --volume: {', '.join(volumes)}"
    return UsageError(f"find volume {name}", "the repository does not hold it", hint)
