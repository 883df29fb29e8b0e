"""A notebook's start: what its tags and its configuration say is to be on the volume before the daemon runs.

The restore comes first, and the daemon after it: nothing that is empty or half restored becomes a recovery
point that looks like the newest state of the volume.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from smsnapd.cli import output
from smsnapd.cli.firststart import FirstStart, first_start, holds_files, record, recorded
from smsnapd.cli.repository_setting import set_repository
from smsnapd.cli.session import Session
from smsnapd.cli.times import Selector, local_text, parse_selector, parse_time
from smsnapd.daemon import protection
from smsnapd.errors import ObjectMissingError, SmsnapError, StoreError, UsageError
from smsnapd.instance import METADATA, InstanceError, notebook_tags
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import History, SnapshotSummary
    from smsnapd.engine.restore.run import RestoreOutcome
    from smsnapd.repository import Repository

TAG_RESTORE = "smsnap-restore"
TAG_REPOSITORY = "smsnap-repository"
TAG_BUCKET = "ebs-backup-bucket"
"""As AWS's own samples for moving a volume name it. It holds a bucket; the prefix there is `smsnapd`."""

LATEST = "latest"
NEVER = "never"
_BY_TAG = "the tag smsnap-restore"
_BY_SCRIPT = "the lifecycle script"
_BY_CONFIGURATION = "[restore] at_start"
_PAUSES_S = (5, 15, 60, 300)
_NAMED = 20
"""Of what could not be restored, so many are named in the log."""


class Boot:
    """One start of a notebook, for the configuration that lies on its volume.

    `told` is what the lifecycle script says of restoring, "" for nothing. `pause` sleeps for seconds.
    """

    def __init__(
        self,
        session: Session,
        told: str = "",
        *,
        metadata: Path = METADATA,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = session
        self._told = told
        self._pause = pause
        self._metadata = metadata
        self._tags: dict[str, str] | None = None
        self._tags_asked = False

    # --- the repository

    def session(self) -> Session:
        """The session, whose configuration names a repository now if the notebook's tags do.

        What a tag says is written into the configuration once, so that later starts need no API.
        """
        config = self._session.config
        if config.repository.url or config.source is None:
            return self._session
        tags = self._read_tags() or {}
        bucket = tags.get(TAG_BUCKET, "").removeprefix("s3://").strip("/")
        url = tags.get(TAG_REPOSITORY, "") or (f"s3://{bucket}/smsnapd" if bucket else "")
        if url:
            set_repository(config.source, url)
            output.line(f"the repository is {url}, as the notebook's tags say; {config.source} says so now")
            self._session = Session(self._session.options)
        return self._session

    def _read_tags(self) -> dict[str, str] | None:
        """The notebook's tags, asked for once; None if they cannot be had."""
        if not self._tags_asked:
            self._tags_asked = True
            try:
                self._tags = notebook_tags(self._metadata)
            except InstanceError as error:
                output.line(f"going on without the notebook's tags: {error}")
        return self._tags

    # --- the restore

    def restore(self, stop_daemon: Callable[[], None]) -> int:
        """Fill a new volume from the repository if that was told; the exit status, 0 if it was not.

        Waits for as long as the repository cannot be reached: without it the daemon could do nothing either.
        Any other failure is told and recorded, and the next start tries again.
        """
        start = self.due()
        if start is None:
            return 0
        stop_daemon()
        try:
            outcome = self._until_reached(start)
        except SmsnapError as error:
            output.complain(error, as_json=False)
            self._record(replace(self._now(start), failed=str(error)))
            output.line("the volume is protected as it is; the next start of the notebook tries again")
            return error.exit_status
        return 3 if outcome is not None and outcome.not_restored else 0

    def due(self) -> FirstStart | None:
        """The record of a restore that is to be begun, or to go on; None if there is nothing to do."""
        found = recorded(self._place)
        start = found or first_start(self._place, self._root)
        told = self._told_now(start, is_first=found is None)
        if told != found:
            self._record(told)
        return told if told.new and told.wanted and not told.done else None

    def _told_now(self, start: FirstStart, *, is_first: bool) -> FirstStart:
        """The record with what is told now, until a recovery point was chosen."""
        if start.done or not start.new:
            return start
        if start.snapshot:
            return replace(start, failed="")
        if not start.wanted and not is_first and holds_files(self._root, (self._place,)):
            return start  # somebody has begun to work there
        wanted, by = self._wish(start)
        if wanted in ("", NEVER):
            return replace(start, wanted="", by="", failed="")
        return replace(start, wanted=wanted, by=by, failed="")

    def _wish(self, start: FirstStart) -> tuple[str, str]:
        """What the volume is to be filled with, and who says so. The closest to this notebook counts."""
        tags = self._read_tags()
        if tags is None and start.by == _BY_TAG:
            return start.wanted, start.by
        if tags and TAG_RESTORE in tags:
            return tags[TAG_RESTORE].strip(), _BY_TAG
        if self._told:
            return self._told.strip(), _BY_SCRIPT
        return self._session.config.restore.at_start.strip(), _BY_CONFIGURATION

    def _until_reached(self, start: FirstStart) -> RestoreOutcome | None:
        output.line(f"restoring {start.wanted} to {os.fsdecode(self._root)}, as {start.by} says")
        pauses = _growing()
        while True:
            try:
                return self._bring_back(start)
            except StoreError as error:
                if isinstance(error, ObjectMissingError):
                    raise
                pause_s = next(pauses)
                output.complain(error, as_json=False)
                output.line(f"trying again in {pause_s:.0f} s; the daemon is not started before")
                self._pause(pause_s)
                start = self._now(start)

    def _bring_back(self, start: FirstStart) -> RestoreOutcome | None:
        """Restore what was chosen before, or choose now; None if there is nothing yet to restore."""
        with self._session.repository(contents=True) as repository:
            chosen = self._choose(repository, start)
            if chosen is None:
                self._finish(start, "there was nothing to restore yet")
                return None
            history, snapshot = chosen
            # From here on this recovery point and no other, whatever is committed meanwhile.
            start = replace(start, volume=history.volume, snapshot=snapshot.id)
            self._record(start)
            outcome = self._run(repository, history, snapshot)
        self._finish(start, _summary(snapshot, outcome))
        for issue in outcome.not_restored[:_NAMED]:
            output.line(f"not restored: {path_text(issue.path)}: {issue.reason}")
        return outcome

    def _choose(self, repository: Repository, start: FirstStart) -> tuple[History, SnapshotSummary] | None:
        """The recovery point that is meant, as of the moment when the volume was new."""
        from smsnapd.engine.history import History

        wanted = parse_selector(start.wanted) if "@" in start.wanted else Selector("", "", start.wanted)
        name = start.volume or wanted.volume or self._session.own_volume
        by_template = start.by != _BY_TAG and not wanted.volume
        if not repository.holds(name):
            if by_template:
                return None
            raise _no_such_volume(name, repository.volumes())
        history = History.load(repository, name)
        if start.snapshot:
            return history, history.find(start.snapshot)
        is_latest = wanted.time.strip() == LATEST
        moment = start.since_us if is_latest else parse_time(wanted.time, start.since_us)
        if by_template and is_latest and not any(item.time_us <= moment for item in history.names):
            return None
        return history, history.at(moment)

    def _run(self, repository: Repository, history: History, snapshot: SnapshotSummary) -> RestoreOutcome:
        from smsnapd.engine.restore.run import RestoreRequest, run_restore

        session = self._session
        output.line(
            f"the recovery point is {snapshot.id} of {snapshot.volume}, {local_text(snapshot.time_us)}:"
            f" {snapshot.files:,} files, {size_text(snapshot.bytes)}"
        )
        output.flush()
        own = (os.fsencode(self._place), os.fsencode(session.state_dir))
        request = RestoreRequest(target=self._root, overwrite="never", keep=own)
        with session.progress() as progress:
            return run_restore(repository, session.settings, history, snapshot, request, progress)

    def _finish(self, start: FirstStart, what: str) -> None:
        self._record(replace(start, done=what))
        output.line(what)

    # --- the record

    @property
    def _root(self) -> bytes:
        return os.fsencode(protection.volume_root(self._session.config))

    @property
    def _place(self) -> Path:
        return place_of(self._session)

    def _now(self, start: FirstStart) -> FirstStart:
        """The record as it stands since `start` was read."""
        return recorded(self._place) or start

    def _record(self, start: FirstStart) -> None:
        record(self._place, start)


def place_of(session: Session) -> Path:
    """Where smsnapd lives on the volume: the directory of the configuration."""
    source = session.config.source
    if source is None:
        raise UsageError("start the notebook", "there is no configuration file", "name one with --config")
    return source.absolute().parent


def _growing() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]


def _no_such_volume(name: str, volumes: list[str]) -> UsageError:
    what = f"restore volume {name}"
    if not volumes:
        return UsageError(what, "the repository holds no backup yet", "remove the tag smsnap-restore")
    hint = (
        f"name another in the tag smsnap-restore, like {volumes[0]}@latest; there are: {', '.join(volumes)}"
    )
    return UsageError(what, "the repository does not hold it", hint)


def _summary(snapshot: SnapshotSummary, outcome: RestoreOutcome) -> str:
    from_where = f"{snapshot.id} of {snapshot.volume}"
    text = f"restored {outcome.files:,} files, {size_text(outcome.bytes)}, from {from_where}"
    if outcome.skipped:
        text += f", {outcome.skipped:,} were there and left as they were"
    if outcome.not_restored:
        text += f", {len(outcome.not_restored):,} could not be restored"
    return text
