"""What is examined: configuration, notebook, store, repository, volume, daemon, each made at first use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import urlsplit

from smsnapd.cli.doctor.findings import BlockedError
from smsnapd.daemon import protection
from smsnapd.daemon.runtime import runtime_dir
from smsnapd.errors import SmsnapError
from smsnapd.instance import SdkSetup, read_notebook, sdk_setup
from smsnapd.store import open_store
from smsnapd.store.base import Store, StoreSettings

if TYPE_CHECKING:
    from smsnapd.cli.session import Session
    from smsnapd.config import Config
    from smsnapd.daemon.status import Status
    from smsnapd.instance import Notebook
    from smsnapd.repository import Repository

T = TypeVar("T")

_CONNECT_S: Final = 3.0
_READ_S: Final = 5.0
REFUSED_SKEW_S: Final = 900.0
"""S3 refuses requests from a clock that is further off (S3 API reference, RequestTimeTooSkewed)."""
_AWS_HOSTS: Final = ("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu")


class Part(Generic[T]):
    """Something made once. One check is in charge and tells why it cannot be; the others then stand aside."""

    def __init__(self, make: Callable[[], T], missing: str) -> None:
        self._make = make
        self._missing = missing
        self._is_tried = False
        self.made: list[T] = []
        """It, if it is made."""

    def examine(self) -> T:
        """It, or the error that it is not there for."""
        if not self.made:
            self._is_tried = True
            self.made.append(self._make())
        return self.made[0]

    def use(self) -> T:
        """It, or `BlockedError`: then the check in charge has told why, or never came to its end."""
        if not self.made and self._is_tried:
            raise BlockedError(self._missing)
        try:
            return self.examine()
        except SmsnapError as error:
            raise BlockedError(self._missing) from error


class Patient:
    """This machine's set-up, as a session of the command line sees it. `clock` is this machine's."""

    def __init__(self, session: Session, clock: Callable[[], float] = time.time) -> None:
        self.session = session
        self.clock = clock
        self.config: Part[Config] = Part(lambda: session.config, "the configuration cannot be used")
        self.notebook: Part[Notebook | None] = Part(read_notebook, "the notebook's metadata cannot be used")
        self.settings = Part(self._settings, "no repository is configured")
        self.sdk: Part[SdkSetup] = Part(sdk_setup, "no AWS credentials can be found")
        self.store: Part[Store] = Part(
            lambda: open_store(self.settings.use()), "the repository's URL is wrong"
        )
        self.skew_s = Part(self._skew_s, "the repository does not answer")
        self.repository: Part[Repository | None] = Part(self._repository, "the repository does not open")
        self.root = Part(self._root, "no volume is configured")
        self.daemon: Part[Status | None] = Part(self._daemon, "the daemon cannot be asked")

    def close(self) -> None:
        """Let go of the store."""
        for store in self.store.made:
            store.close()

    @property
    def is_s3(self) -> bool:
        """Whether the repository is in S3."""
        return self.settings.use().url.startswith("s3:")

    @property
    def is_aws(self) -> bool:
        """Whether it is in S3 and that is AWS's own, for all that is configured."""
        if not self.is_s3:
            return False
        endpoint = self.settings.use().endpoint_url
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return not endpoint or (urlsplit(endpoint).hostname or "").endswith(_AWS_HOSTS)

    @property
    def region(self) -> str:
        """The region that requests are signed for; "" if nothing names one."""
        return self.settings.use().region or self.sdk.use().region

    def answering_store(self) -> Store:
        """The store, once it has answered; `BlockedError` if it does not, or refuses all for our clock."""
        if abs(self.skew_s.use()) > REFUSED_SKEW_S and self.is_s3:
            raise BlockedError("the clock is too far off for S3")
        return self.store.use()

    def volume_name(self) -> str:
        """The name under which this machine's volume is backed up."""
        return protection.volume_name(self.config.use(), self.notebook.use())

    def device_of_volume(self) -> int | None:
        """The device that carries the volume; None if there is no volume."""
        try:
            return os.stat(self.root.use()).st_dev
        except (BlockedError, OSError):
            return None

    def _settings(self) -> StoreSettings:
        settings = protection.store_settings(self.config.use(), self.notebook.use())
        # One try, soon; and what is tried here is too small to be held back.
        bounded = replace(settings, attempts=1, connect_timeout_s=_CONNECT_S, read_timeout_s=_READ_S)
        return replace(bounded, upload_bytes_s=0)

    def _skew_s(self) -> float:
        """Seconds that our clock is ahead of the store's: the first that is asked of it."""
        if self.is_s3 and not self.sdk.use().credentials:
            raise BlockedError("there are no AWS credentials")
        if self.is_aws and not self.region:
            raise BlockedError("the region is not known")
        store = self.store.examine()
        before = self.clock()
        theirs = store.now()
        ours = (before + self.clock()) / 2
        # Whole seconds are rounded down.
        return ours - (theirs + 0.5 if theirs == int(theirs) else theirs)

    def _repository(self) -> Repository | None:
        """The repository, opened as the daemon would; None if nothing names what opens it."""
        from smsnapd.repository import Repository

        given = self.session.options.passphrase_file is not None
        store, config = self.answering_store(), self.config.use()
        found = protection.found_credentials(config, os.environ, given_file=given, contents=False)
        return None if found is None else Repository.open(store, found)

    def _root(self) -> bytes:
        return os.fsencode(protection.volume_root(self.config.use()).absolute())

    def _daemon(self) -> Status | None:
        from smsnapd.daemon.asking import ask_status

        return ask_status(runtime_dir(os.environ))


def existing(path: Path) -> Path:
    """The path, or the lowest directory above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def lies_on(path: Path, device: int | None) -> bool:
    """Whether the path, or where it would be made, is on this device."""
    return device is not None and existing(path).stat().st_dev == device
