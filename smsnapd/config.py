"""From TOML to a frozen `Config`: what is protected, where it goes, how and when.

>>> load(None, Overrides(), environment={}).backup.mode      # no file: the defaults
'tar'

The command line beats the environment, which beats the file. No secret is ever in a `Config`, only
the names of files that hold one.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smsnapd.errors import ConfigError

LOCAL_FILE = "smsnapd.toml"
SYSTEM_FILE = Path("/etc/smsnapd/config.toml")
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""What a volume may be called (FORMAT.md, section 2)."""

_DURATION = re.compile(r"([0-9]+)\s*([smhdw])")
_RATE = re.compile(r"([0-9]+)\s*(kB|KB|MB|GB)(?:/s)?")
_RATE_BYTES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_STORAGE_CLASSES = ("", "STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR")
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_T = TypeVar("_T")


class _Place(NamedTuple):
    """Where a value stands, for messages and for paths that are relative to the file."""

    source: str
    key: str
    base: Path
    home: Path

    def wrong(self, expected: str, value: object, hint: str = "") -> ConfigError:
        return ConfigError(f"use {self.key} of {self.source}", f"it must be {expected}, not {value!r}", hint)

    def path(self, text: str) -> Path:
        """`~` and relative paths made absolute; nothing is resolved and nothing need exist."""
        if text == "~" or text.startswith("~/"):
            text = str(self.home) + text[1:]
        return Path(os.path.normpath(self.base / text))


_Parse = Callable[[_Place, Any], Any]


def _text(place: _Place, value: Any) -> str:
    if not isinstance(value, str):
        raise place.wrong("text in quotes", value)
    return value


def _path(place: _Place, value: Any) -> Path | None:
    text = _text(place, value)
    return place.path(text) if text else None


def _flag(place: _Place, value: Any) -> bool:
    if not isinstance(value, bool):
        raise place.wrong("true or false", value)
    return value


def _texts(place: _Place, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise place.wrong('a list of texts, like ["one", "two"]', value)
    return tuple(value)


def _choice(*words: str) -> _Parse:
    def parse(place: _Place, value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise place.wrong(" or ".join(f'"{word}"' for word in words), value)
        return value

    return parse


def _number(low: int, high: int) -> _Parse:
    def parse(place: _Place, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise place.wrong(f"a whole number from {low} to {high}", value)
        return value

    return parse


def _duration(place: _Place, value: Any) -> timedelta:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[1]) > 6:
        raise place.wrong('a duration like "5s", "5m", "72h" or "2d"', value)
    return timedelta(seconds=int(match[1]) * _UNIT_S[match[2]])


def _rate(place: _Place, value: Any) -> int:
    """Bytes a second; 0 for no limit."""
    if value == "":
        return 0
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[1]) > 6 or not int(match[1]):
        raise place.wrong('a rate like "500KB/s" or "20MB/s", or "" for no limit', value)
    return int(match[1]) * _RATE_BYTES[match[2]]


def _storage_class(place: _Place, value: Any) -> str:
    """A class of S3 whose objects can be read at once."""
    if value in _ARCHIVES:
        why = "a class that can be read at once"
        raise place.wrong(why, value, "a restore would have to wait for a thaw; the cheapest is GLACIER_IR")
    parsed: str = _choice(*_STORAGE_CLASSES)(place, value)
    return parsed


def _web_address(place: _Place, value: Any) -> str:
    text = _text(place, value)
    if text and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", text):
        raise place.wrong('an address like "https://example.org/path"', "…")  # a token may be in it
    return text


def _cron(place: _Place, value: Any) -> str:
    if not isinstance(value, str) or (value and len(value.split()) != 5):
        raise place.wrong('five cron fields, like "0 3 * * sun", or "" for never', value)
    return value


def _volume_name(place: _Place, value: Any) -> str:
    if not isinstance(value, str) or (value and not VOLUME_NAME.fullmatch(value)):
        raise place.wrong("at most 63 letters, digits, '.', '_' and '-', the first a letter or digit", value)
    return value


def _url(place: _Place, value: Any) -> str:
    text = _text(place, value)
    if not text or re.fullmatch(r"file:///.*|s3://[^/]+(/.*)?", text, re.DOTALL):
        return text
    expected = '"s3://bucket/prefix" or "file:///directory"'
    scheme, separator, _ = text.partition("://")
    if separator:
        raise place.wrong(expected, f"{scheme}://…")  # the rest may hold a password
    raise place.wrong(expected, text, f"for a directory, write file://{place.path(text)}")


def _command(place: _Place, value: Any) -> tuple[str, ...]:
    """A program and its arguments, as a list or as a shell would split a text; no shell runs them."""
    if not isinstance(value, str):
        return _texts(place, value)
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise place.wrong("a command with its quotes closed", "…") from error  # a token may be in it


def _key(parse: _Parse, default: _T) -> _T:
    """A field of a section: how its value is read, and what it is when the file says nothing."""
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class VolumeConfig:
    """What is protected. `name` may be empty: the notebook's name, else the host's, is taken then."""

    path: Path | None = _key(_path, None)
    name: str = _key(_volume_name, "")
    exclude: tuple[str, ...] = _key(_texts, ())
    watch: str = _key(_choice("auto", "fanotify", "inotify", "poll"), "auto")


@dataclass(frozen=True)
class RepositoryConfig:
    """Where it goes. An empty region is the notebook's; an empty endpoint is AWS.

    Limits are in bytes a second, all processes together; 0 is none. `storage_class` is for chunks alone, and
    with `sse` it is S3's: "" leaves them to the bucket. With an `object_lock` everything that recovery points
    need is locked for `object_lock_days`, again and again.
    """

    url: str = _key(_url, "")
    region: str = _key(_text, "")
    endpoint_url: str = _key(_text, "")
    path_style: bool = _key(_flag, False)
    checksums: str = _key(_choice("when_supported", "when_required"), "when_supported")
    ca_bundle: Path | None = _key(_path, None)
    upload_limit: int = _key(_rate, 0)
    download_limit: int = _key(_rate, 0)
    storage_class: str = _key(_storage_class, "")
    sse: str = _key(_choice("", "AES256", "aws:kms"), "")
    kms_key: str = _key(_text, "")
    request_payer: bool = _key(_flag, False)
    profile: str = _key(_text, "")
    object_lock: str = _key(_choice("", "governance", "compliance"), "")
    object_lock_days: int = _key(_number(1, 36_500), 30)


@dataclass(frozen=True)
class EncryptionConfig:
    """Where the passphrase comes from, or the write key of a daemon that cannot read its past.

    `root` and `recipients` pin whom to trust; `kms_key` is the ARN of the KMS key whose keyslot may be used.
    """

    passphrase_file: Path | None = _key(_path, None)
    passphrase_command: tuple[str, ...] = _key(_command, ())
    write_key_file: Path | None = _key(_path, None)
    recipients: tuple[str, ...] = _key(_texts, ())
    root: str = _key(_text, "")
    kms_key: str = _key(_text, "")


@dataclass(frozen=True)
class BackupConfig:
    """How a snapshot is made. zstd's levels: negative ones are quicker and store more.

    `mode` is that of fulls; what comes between them is of files. An empty `consistency` is "live" for tar,
    and "freeze" for block.

    With `environment` a full has a report of what is needed to make the volume's environments again; with
    `exclude_recreatable` what the report alone can rebuild is left out. `data_copies` are S3 URLs.
    """

    mode: str = _key(_choice("tar", "block"), "tar")
    consistency: str = _key(_choice("", "live", "read-only", "freeze"), "")
    compression_level: int = _key(_number(-50, 19), 1)
    environment: bool = _key(_flag, True)
    exclude_recreatable: bool = _key(_flag, False)
    data_copies: tuple[str, ...] = _key(_texts, ())


@dataclass(frozen=True)
class ScheduleConfig:
    """When the daemon works: cron expressions in local time ("" is never) and durations."""

    full: str = _key(_cron, "0 3 * * sun")
    incremental: timedelta = _key(_duration, timedelta(minutes=5))
    quiet: timedelta = _key(_duration, timedelta(seconds=5))
    rescan: timedelta = _key(_duration, timedelta(hours=6))
    check: str = _key(_cron, "0 4 * * sat")
    check_shares: int = _key(_number(0, 100_000), 16)
    prune: str = _key(_cron, "0 5 * * *")
    stop: timedelta = _key(_duration, timedelta(seconds=20))


@dataclass(frozen=True)
class RetentionConfig:
    """Which recovery points stay, and how long garbage waits before it is deleted."""

    keep_within: timedelta = _key(_duration, timedelta(days=2))
    hourly: int = _key(_number(0, 1_000_000), 48)
    daily: int = _key(_number(0, 1_000_000), 14)
    weekly: int = _key(_number(0, 1_000_000), 8)
    monthly: int = _key(_number(0, 1_000_000), 12)
    yearly: int = _key(_number(0, 1_000_000), 0)
    grace: timedelta = _key(_duration, timedelta(hours=72))


@dataclass(frozen=True)
class TelemetryConfig:
    """Who is told how it goes. `metrics_port` 0 is none; `hook` is a program and its arguments."""

    metrics_file: Path | None = _key(_path, None)
    metrics_port: int = _key(_number(0, 65535), 0)
    ping_url: str = _key(_web_address, "")
    hook: tuple[str, ...] = _key(_command, ())


@dataclass(frozen=True)
class RestoreConfig:
    """What lifecycle scripts bring back to a new volume: "latest", a time, or either behind VOLUME@."""

    at_start: str = _key(_text, "")


@dataclass(frozen=True)
class StateConfig:
    """Where the local cache lies; losing it costs one scan."""

    dir: Path | None = _key(_path, None)


@dataclass(frozen=True)
class Config:
    """All of the configuration. `source` is the file it came from, None if there was none."""

    volume: VolumeConfig = VolumeConfig()
    repository: RepositoryConfig = RepositoryConfig()
    encryption: EncryptionConfig = EncryptionConfig()
    backup: BackupConfig = BackupConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    retention: RetentionConfig = RetentionConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    restore: RestoreConfig = RestoreConfig()
    state: StateConfig = StateConfig()
    source: Path | None = None


@dataclass(frozen=True)
class Overrides:
    """What the command line says; None where it says nothing."""

    repository: str | None = None
    path: str | None = None
    volume: str | None = None
    passphrase_file: str | None = None


_SECTIONS: dict[str, type[Any]] = {
    "volume": VolumeConfig,
    "repository": RepositoryConfig,
    "encryption": EncryptionConfig,
    "backup": BackupConfig,
    "schedule": ScheduleConfig,
    "retention": RetentionConfig,
    "telemetry": TelemetryConfig,
    "restore": RestoreConfig,
    "state": StateConfig,
}


def load(
    file: str | None,
    overrides: Overrides,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    home: Path | None = None,
    root: bool | None = None,
) -> Config:
    """The configuration in force; raises `ConfigError` that names file, key and what is expected.

    `file` is that of the command line. The rest is taken from the process where it is None. Nothing
    but the configuration file is opened.
    """
    environment = os.environ if environment is None else environment
    directory = Path.cwd() if directory is None else directory
    home = Path.home() if home is None else home
    source = find_file(file, environment, directory, home)
    happened_on = source == directory / LOCAL_FILE and not (file or environment.get("SMSNAP_CONFIG"))
    config = read_file(source, home, _trusted(environment) if happened_on else None) if source else Config()
    config = _overridden(config, _from_environment(environment), "the environment", directory, home)
    config = _overridden(config, overrides, "the command line", directory, home)
    if config.state.dir is None:
        root = os.geteuid() == 0 if root is None else root
        config = replace(config, state=StateConfig(default_state_dir(environment, home, root)))
    _check_together(config)
    return config


def find_file(file: str | None, environment: Mapping[str, str], directory: Path, home: Path) -> Path | None:
    """The configuration file: one that was named, which must exist, else the first that does."""
    named = file or environment.get("SMSNAP_CONFIG")
    if named:
        return Path(os.path.normpath(directory / Path(named)))
    candidates = (directory / LOCAL_FILE, home / ".config/smsnapd/config.toml", SYSTEM_FILE)
    return next((path for path in candidates if path.exists()), None)


def _trusted(environment: Mapping[str, str]) -> set[int]:
    """Whose files are read without having been named: root's, our own, and those of who called sudo."""
    owners = {0, os.geteuid()}
    caller = environment.get("SUDO_UID", "")
    return owners | {int(caller)} if os.geteuid() == 0 and caller.isdecimal() else owners


def read_file(path: Path, home: Path, owners: Collection[int] | None = None) -> Config:
    """The configuration in one file, without environment and command line.

    It can name a command to run. So, if `owners` is given, it must be owned by one of these users.
    """
    what = f"read the configuration {path}"
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if owners is not None and (status.st_uid not in owners or status.st_mode & stat.S_IWOTH):
                why = "it is in the current directory, and another user has made it or may change it"
                raise ConfigError(what, why, "name it with --config if you trust it, or run this elsewhere")
            document = tomllib.loads(file.read().decode())
    except FileNotFoundError as error:
        raise ConfigError(what, "there is no such file", "name another with --config") from error
    except OSError as error:
        raise ConfigError(what, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(what, f"byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(what, f"it is not TOML: {error}") from error
    sections = {
        name: _section(name, table, str(path), path.parent, home)
        for name, table in document.items()
        if _known(name, _SECTIONS, f"[{name}]", str(path))
    }
    return replace(Config(source=path), **sections)


def default_state_dir(environment: Mapping[str, str], home: Path, root: bool) -> Path:
    """Where systemd says, else the system's place for root and the XDG one for others."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if root:
        return Path("/var/lib/smsnapd")
    xdg = environment.get("XDG_STATE_HOME", "")
    # The XDG base directory specification: relative values are to be ignored.
    return (Path(xdg) if xdg.startswith("/") else home / ".local/state") / "smsnapd"


def _section(name: str, table: Any, source: str, base: Path, home: Path) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(
            f"use {name} of {source}", "it must be a section", f"write [{name}] on a line of its own"
        )
    kind = _SECTIONS[name]
    parsers = {item.name: item.metadata["parse"] for item in fields(kind)}
    values = {}
    for key, value in table.items():
        _known(key, parsers, f"{key} in [{name}]", source)
        values[key] = parsers[key](_Place(source, f"{name}.{key}", base, home), value)
    return kind(**values)


def _known(key: str, names: Mapping[str, object], shown: str, source: str) -> bool:
    if key in names:
        return True
    near = difflib.get_close_matches(key, names, n=1, cutoff=0) or sorted(names)
    raise ConfigError(f"use {shown} of {source}", "there is no such key", f"did you mean {near[0]}?")


def _from_environment(environment: Mapping[str, str]) -> Overrides:
    return Overrides(
        repository=environment.get("SMSNAP_REPOSITORY") or None,
        path=environment.get("SMSNAP_PATH") or None,
        volume=environment.get("SMSNAP_VOLUME") or None,
    )


def _overridden(config: Config, given: Overrides, source: str, directory: Path, home: Path) -> Config:
    """`config` with what was given put in its place, checked like values of a file."""

    def parsed(key: str, parse: _Parse, value: str) -> Any:
        return parse(_Place(source, key, directory, home), value)

    if given.repository is not None:
        url = parsed("the repository", _url, given.repository)
        config = replace(config, repository=replace(config.repository, url=url))
    if given.path is not None:
        path = parsed("the volume's path", _path, given.path)
        config = replace(config, volume=replace(config.volume, path=path))
    if given.volume is not None:
        name = parsed("the volume's name", _volume_name, given.volume)
        config = replace(config, volume=replace(config.volume, name=name))
    if given.passphrase_file is not None:
        file = parsed("the passphrase file", _path, given.passphrase_file)
        config = replace(
            config, encryption=replace(config.encryption, passphrase_file=file, passphrase_command=())
        )
    return config


def _check_together(config: Config) -> None:
    """Refuse values that are right alone and wrong together."""
    source = config.source or "the command line"
    if config.encryption.passphrase_file and config.encryption.passphrase_command:
        raise ConfigError(
            f"use encryption.passphrase_command of {source}",
            "passphrase_file is there too, and only one of them can hold",
            "remove one of the two",
        )
    if config.repository.kms_key and config.repository.sse != "aws:kms":
        raise ConfigError(
            f"use repository.kms_key of {source}",
            'it is for sse = "aws:kms", which is not set',
            'write sse = "aws:kms" as well, or remove the key',
        )
    if config.repository.object_lock and config.repository.url.startswith("file:"):
        raise ConfigError(
            f"use repository.object_lock of {source}",
            "the repository is a directory, and only S3 locks objects",
            "remove object_lock, or name an s3:// repository",
        )
    if config.backup.exclude_recreatable and not config.backup.environment:
        why = "what is left out could not be made again: environment is false"
        raise ConfigError(f"use backup.exclude_recreatable of {source}", why, "remove one of the two")
    if config.backup.mode == "tar" and config.backup.consistency == "freeze":
        raise ConfigError(
            f"use backup.consistency of {source}",
            '"freeze" is for mode "block"',
            'for tar, write "live" or "read-only"',
        )
