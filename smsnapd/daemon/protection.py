"""What a configuration protects: unpacked for the engine, which never sees a `Config`.

Shared by the daemon and the command line, so that both make the same snapshots.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from smsnapd.config import Config
from smsnapd.daemon import passphrase
from smsnapd.daemon.words import from_words, is_words
from smsnapd.errors import UsageError
from smsnapd.instance import Notebook, default_volume_name, kms_decrypt, read_notebook
from smsnapd.store.base import StoreSettings
from smsnapd.store.pacing import SharedFile, shared_file

if TYPE_CHECKING:
    from smsnapd.engine.backup.request import BackupRequest, EnvironmentRequest
    from smsnapd.engine.retention import Policy
    from smsnapd.repository import Credentials


def volume_name(config: Config, notebook: Notebook | None) -> str:
    """The name under which this machine's volume is backed up."""
    return config.volume.name or default_volume_name(notebook, socket.gethostname())


def store_settings(config: Config, notebook: Notebook | None) -> StoreSettings:
    """Where the repository is; UsageError if nothing says it."""
    repository = config.repository
    if not repository.url:
        hint = "give --repository, set SMSNAP_REPOSITORY, or write [repository] url"
        raise UsageError("find the repository", "no URL is configured", hint)
    is_paced = repository.upload_limit or repository.download_limit
    pace = shared_file(state_dir(config)) if is_paced else SharedFile("")
    return StoreSettings(
        url=repository.url,
        region=repository.region or region_of(repository.url, notebook),
        endpoint_url=repository.endpoint_url,
        path_style=repository.path_style,
        checksums=repository.checksums,
        ca_bundle=str(repository.ca_bundle or ""),
        upload_bytes_s=repository.upload_limit,
        pace_file=pace.path,
        pace_owner=pace.owner,
        download_bytes_s=repository.download_limit,
        storage_class=repository.storage_class,
        sse=repository.sse,
        kms_key=repository.kms_key,
        request_payer=repository.request_payer,
        profile=repository.profile,
        object_lock=repository.object_lock.upper(),
        object_lock_days=repository.object_lock_days,
    )


def region_of(url: str, notebook: Notebook | None) -> str:
    """The region that AWS's own variables name, else the notebook's."""
    if not url.startswith("s3:"):
        return ""
    usual = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return usual or (notebook.region if notebook else "")


def state_dir(config: Config) -> Path:
    """Where the local cache lies."""
    assert config.state.dir is not None  # `load` fills it
    return config.state.dir


def volume_root(config: Config) -> Path:
    """The directory under protection; UsageError if nothing says it."""
    if config.volume.path is None:
        hint = "give --path, set SMSNAP_PATH, or write [volume] path"
        raise UsageError("find the volume", "no path is configured", hint)
    return config.volume.path


def found_credentials(
    config: Config, environment: Mapping[str, str], *, given_file: bool, contents: bool
) -> Credentials | None:
    """What opens the repository without asking anybody; None if nothing names it.

    `given_file` says that the passphrase file is the command line's; `contents` that file contents will be
    read, for which a write key will not do.
    """
    encryption = config.encryption
    explicit = given_file or bool(environment.get("SMSNAP_PASSPHRASE"))
    if encryption.write_key_file and not contents and not explicit:
        text = passphrase.read_write_key(encryption.write_key_file)
        return replace(_pinned(config), write_key_text=text)
    found = passphrase.find_passphrase(given_file, encryption, environment)
    if found is None and encryption.kms_key:
        return replace(_pinned(config), kms_key=encryption.kms_key, unwrap=kms_decrypt)
    return None if found is None else credentials_of(found, config)


def credentials_of(text: str, config: Config) -> Credentials:
    """The credentials that a passphrase makes, or a recovery key in its place, as letters or as words."""
    if is_words(text):
        text = from_words(text)
    if passphrase.is_recovery_key(text):
        return replace(_pinned(config), recovery_key=text)
    return replace(_pinned(config), passphrase=text)


def _pinned(config: Config) -> Credentials:
    """Whom the configuration trusts, and where this machine remembers whom it has seen trusted."""
    from smsnapd.repository import Credentials

    encryption = config.encryption
    return Credentials(recipients=encryption.recipients, root=encryption.root, remembered=state_dir(config))


def exclude_patterns(config: Config) -> tuple[str, ...]:
    """All that a backup leaves out: what is configured, the local state and the repository."""
    places = own_places(volume_root(config), state_dir(config), config.repository.url)
    return config.volume.exclude + places


def backup_request(config: Config, volume: str) -> BackupRequest:
    """What to back up, as configured: an incremental, of which a caller may make something else."""
    from smsnapd.engine.backup.request import BackupRequest

    return BackupRequest(
        root=os.fsencode(volume_root(config)),
        volume=volume,
        exclude=exclude_patterns(config),
        state_dir=state_dir(config),
        mode=config.backup.mode,
        consistency=config.backup.consistency,
        level=config.backup.compression_level,
        grace_s=config.retention.grace.total_seconds(),
        environment=_environment(config),
    )


def retention_policy(config: Config) -> Policy:
    """Which recovery points stay, as configured."""
    from smsnapd.engine.retention import Policy

    retention = config.retention
    return Policy(
        keep_within_s=retention.keep_within.total_seconds(),
        hourly=retention.hourly,
        daily=retention.daily,
        weekly=retention.weekly,
        monthly=retention.monthly,
        yearly=retention.yearly,
    )


def _environment(config: Config) -> EnvironmentRequest | None:
    from smsnapd.engine.backup.request import EnvironmentRequest

    backup = config.backup
    wanted = EnvironmentRequest(leave_out=backup.exclude_recreatable, data_places=data_places(config))
    return wanted if backup.environment else None


def data_places(config: Config) -> tuple[StoreSettings, ...]:
    """Where large files may lie too, reached as the repository's server is; UsageError for no S3 URL."""
    for url in config.backup.data_copies:
        if not re.fullmatch(r"s3://[^/]+(/.*)?", url):
            raise UsageError("use backup.data_copies", "it has no s3:// URL", 'write "s3://bucket/prefix"')
    return tuple(_place(config, url) for url in config.backup.data_copies)


def _place(config: Config, url: str) -> StoreSettings:
    repository = config.repository
    return StoreSettings(
        url=url,
        region=repository.region or region_of(url, read_notebook()),
        endpoint_url=repository.endpoint_url,
        path_style=repository.path_style,
        checksums=repository.checksums,
        ca_bundle=str(repository.ca_bundle or ""),
        request_payer=repository.request_payer,
    )


def own_places(root: Path, state: Path, url: str) -> tuple[str, ...]:
    """Exclude patterns for the local state and the repository, where they lie in the volume itself.

    Writing state must not look like a change of the volume, and a repository that swallows itself
    never ends growing.
    """
    places = [state]
    if url.startswith("file://"):
        places.append(Path(os.fsdecode(unquote_to_bytes(url.removeprefix("file://")))))
    real_root = root.resolve()
    inside = [place.resolve() for place in places if place.resolve().is_relative_to(real_root)]
    if real_root in inside:
        raise UsageError(
            f"back up {root}", "the repository or the local state is the volume itself", "put it elsewhere"
        )
    return tuple("/" + _literal(str(place.relative_to(real_root))) + "/" for place in inside)


def _literal(path: str) -> str:
    """A path as a pattern of gitignore(5) that means just this path."""
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)
