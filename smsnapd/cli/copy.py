"""`smsnap copy`: recovery points to another repository."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from smsnapd.cli import output
from smsnapd.cli.options import Options, verb
from smsnapd.cli.session import Session
from smsnapd.config import EncryptionConfig
from smsnapd.errors import UsageError
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.copy.run import CopyOutcome, CopyRequest
    from smsnapd.repository import Repository

INCOMPLETE = 3

EXAMPLES = """
smsnap copy --to s3://other-bucket/backups --to-passphrase-file other-passphrase
smsnap copy --to s3://bucket-abroad/backups --to-config abroad.toml --snapshot latest
smsnap copy --to file:///mnt/disk/backups --volume nb --as old-nb --dry-run
"""
REPORT = """
{"to", "volumes": [{"volume", "as", "copied": [id], "there": [id], "too_old": [id],
              "whole": [id], "read_bytes", "stored_bytes"}], "dry_run"}
"""


@dataclass(frozen=True)
class _Other:
    """What the command line says of the other repository."""

    url: str
    config: str | None
    passphrase_file: str | None
    profile: str | None
    region: str | None
    endpoint_url: str | None


@verb("copy", examples=EXAMPLES, report=REPORT)
@click.option(
    "--to", "url", required=True, metavar="URL", help="The other repository; `smsnap init` makes it."
)
@click.option("--to-config", metavar="FILE", help="Its configuration: how it is reached, what opens it.")
@click.option("--to-passphrase-file", metavar="FILE", help="Its passphrase; default: the same as here.")
@click.option("--to-profile", metavar="NAME", help="The profile in ~/.aws/config that may write there.")
@click.option("--to-region", metavar="REGION", help="The region of its bucket.")
@click.option("--to-endpoint-url", metavar="URL", help="Its S3-compatible server.")
@click.option(
    "--snapshot", "snapshots", multiple=True, metavar="ID", help="Only this one, and what it follows from."
)
@click.option("--as", "target", metavar="NAME", help="What to call the volume there.")
@click.option("--dry-run", is_flag=True, help="Say what would be copied.")
def copy(
    url: str,
    to_config: str | None,
    to_passphrase_file: str | None,
    to_profile: str | None,
    to_region: str | None,
    to_endpoint_url: str | None,
    snapshots: tuple[str, ...],
    target: str | None,
    dry_run: bool,
) -> int:
    """Copy recovery points to another repository: of another region or account, with other keys.

    All volumes are copied, or the one that --volume names, or the snapshots that are named. Everything is
    opened here and sealed anew for the recipients there; ids, times and kinds stay. Cut off, run it again:
    it goes on. Later copies bring what is new. One whose parent is not there any more is copied as a full.

    Exit status 3 means that recovery points were left out, since later ones are there already: copy them
    under another name with --as.
    """
    from smsnapd.engine.copy.run import CopyRequest

    session = Session.current()
    other = _Other(url, to_config, to_passphrase_file, to_profile, to_region, to_endpoint_url)
    there = _session_there(session, other)
    with session.repository(contents=True) as source, there.repository(contents=False) as repository:
        chosen = _chosen(session, source, snapshots)
        if target is not None and len(chosen) > 1:
            why = f"there are {len(chosen)} volumes"
            raise UsageError("copy under another name", why, "name one with --volume")
        done: dict[CopyRequest, CopyOutcome] = {}
        for volume, wanted in chosen.items():
            request = CopyRequest(
                volume, target or volume, session.state_dir, wanted, dry_run, grace_s=_grace_s(there)
            )
            done[request] = _copied(session, source, repository, request)
    _report(session, url, done, dry_run)
    return INCOMPLETE if any(outcome.too_old for outcome in done.values()) else 0


def _grace_s(session: Session) -> float:
    return session.config.retention.grace.total_seconds()


def _session_there(session: Session, other: _Other) -> Session:
    """A session of the other repository. Without a configuration of its own it is reached as this one is.

    Its keys are its own: of what opens this repository only the passphrase is tried there.
    """
    here = session.options
    options = Options(
        config=other.config or here.config,
        repository=other.url,
        passphrase_file=other.passphrase_file or (None if other.config else here.passphrase_file),
        quiet=here.quiet,
        verbose=here.verbose,
    )
    config = Session(options).config
    given = {"profile": other.profile, "region": other.region, "endpoint_url": other.endpoint_url}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = replace(config, repository=replace(config.repository, **changed))
    if other.config is not None:
        without = {name: value for name, value in os.environ.items() if name != "SMSNAP_PASSPHRASE"}
        return Session(options, config=config, environment=without)
    keys = config.encryption
    passphrase = EncryptionConfig(
        passphrase_file=keys.passphrase_file, passphrase_command=keys.passphrase_command
    )
    return Session(options, config=replace(config, encryption=passphrase))


def _chosen(
    session: Session, source: Repository, snapshots: tuple[str, ...]
) -> dict[str, frozenset[str] | None]:
    """The volumes to copy, and of each the ids that were named, None for all."""
    if snapshots:
        found = [session.find(source, snapshot)[1] for snapshot in snapshots]
        return {
            volume: frozenset(item.id for item in found if item.volume == volume)
            for volume in dict.fromkeys(item.volume for item in found)
        }
    if session.named_volume:
        return {session.volume_in(source): None}
    volumes = source.volumes()
    if not volumes:
        raise UsageError("copy", "the repository holds no backup yet", "make one: smsnap backup")
    return dict.fromkeys(volumes)


def _copied(session: Session, source: Repository, target: Repository, request: CopyRequest) -> CopyOutcome:
    from smsnapd.engine.copy.run import run_copy

    with session.progress() as progress:
        return run_copy(source, target, request, progress)


def _report(session: Session, url: str, done: dict[CopyRequest, CopyOutcome], dry_run: bool) -> None:
    if session.options.json:
        volumes = [_volume_object(request, outcome) for request, outcome in done.items()]
        output.document({"to": url, "volumes": volumes, "dry_run": dry_run})
        return
    for request, outcome in done.items():
        if outcome.too_old:
            print(
                f"smsnap: left out {len(outcome.too_old)} recovery points of {request.volume}, from "
                f"{outcome.too_old[0]} on: later ones are there already; copy them with --as NAME",
                file=sys.stderr,
            )
        if not session.options.quiet:
            output.line(_summary(request, outcome))


def _volume_object(request: CopyRequest, outcome: CopyOutcome) -> dict[str, Any]:
    return {"volume": request.volume, "as": request.target, **asdict(outcome)}


def _summary(request: CopyRequest, outcome: CopyOutcome) -> str:
    would = "would copy" if request.dry_run else "copied"
    text = (
        f"{would} {len(outcome.copied)} recovery points of {request.volume} ({len(outcome.there)} are there)"
    )
    if request.dry_run:
        return text
    return f"{text}: read {size_text(outcome.read_bytes)}, stored {size_text(outcome.stored_bytes)}"
