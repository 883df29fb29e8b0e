"""A configuration made ready for the daemon: everything in it that can be wrong has been looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from smsnapd.config import Config, Overrides, load
from smsnapd.daemon import protection
from smsnapd.daemon.pace import Pace
from smsnapd.daemon.schedule import Calendar
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.errors import ConfigError
from smsnapd.instance import read_notebook
from smsnapd.store.base import StoreSettings
from smsnapd.volume.scan import Excludes

if TYPE_CHECKING:
    from smsnapd.repository import Credentials

_ATTEMPTS: Final = 4
"""Tries of one call within a run. The daemon tries whole runs again: a watchdog must not wait for longer."""
_READ_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Plan:
    """What the daemon does, and when."""

    config: Config
    settings: StoreSettings
    request: BackupRequest
    pace: Pace
    excludes: Excludes
    stop_s: float

    def calendars(self) -> tuple[Calendar, Calendar, Calendar]:
        """Those of full backups, of checks and of prunes, counted from now."""
        schedule = self.config.schedule
        return (
            Calendar(schedule.full, "schedule.full"),
            Calendar(schedule.check, "schedule.check"),
            Calendar(schedule.prune, "schedule.prune"),
        )

    def credentials(self, environment: Mapping[str, str]) -> Credentials | None:
        """What opens the repository, read anew; None if nothing names it."""
        return protection.found_credentials(self.config, environment, given_file=False, contents=False)


def load_plan(file: str | None) -> Plan:
    """Read the configuration; UsageError (and ConfigError) if anything in it is wrong.

    Nothing but the configuration and the notebook's metadata is read: neither the volume nor the repository
    need be there.
    """
    config = load(file, Overrides())
    notebook = read_notebook()
    settings = protection.store_settings(config, notebook)
    request = protection.backup_request(config, protection.volume_name(config, notebook))
    schedule = config.schedule
    pace = Pace(
        schedule.quiet.total_seconds(), schedule.incremental.total_seconds(), schedule.rescan.total_seconds()
    )
    plan = Plan(
        config=config,
        settings=replace(settings, attempts=_ATTEMPTS, read_timeout_s=_READ_TIMEOUT_S),
        request=replace(request, root=os.path.abspath(request.root)),
        pace=pace,
        excludes=Excludes(request.exclude),
        stop_s=schedule.stop.total_seconds(),
    )
    plan.calendars()
    _check_metrics_file(plan)
    _check_ping_url(config)
    return plan


def _check_metrics_file(plan: Plan) -> None:
    """ConfigError if it lies where each writing of it would be a change to back up, without end.

    To leave out the file alone would not do: its directory's times move too.
    """
    file = plan.config.telemetry.metrics_file
    root = Path(os.fsdecode(plan.request.root)).resolve()
    if file is None or not file.parent.resolve().is_relative_to(root):
        return
    inside = file.parent.resolve().relative_to(root)
    if not any(plan.excludes.matches(f"{place}/") for place in (inside, *inside.parents) if place.name):
        raise ConfigError(
            f"use telemetry.metrics_file of {plan.config.source}",
            f"{file} is in the volume, and every writing of it would be a change to back up",
            "put it elsewhere, or in a directory that [volume] exclude leaves out",
        )


def _check_ping_url(config: Config) -> None:
    """ConfigError for an address that could never be asked. It is not shown: it holds a token."""
    url = config.telemetry.ping_url
    try:
        pieces = urlsplit(url)
        usable = bool(pieces.hostname) and pieces.port != 0 and pieces.username is None and url.isascii()
    except ValueError:
        usable = False
    if url and not usable:
        raise ConfigError(
            f"use telemetry.ping_url of {config.source}",
            "its host or port cannot be understood, or it has a user name or letters beyond ASCII",
            'write it like "https://example.org/path"',
        )
