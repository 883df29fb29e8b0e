"""Configuration: from TOML, environment and command line to a frozen Config, or one clear error."""

import os
import tomllib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path

import pytest

from smsnapd.config import Config, Overrides, default_state_dir, load
from smsnapd.errors import ConfigError

NOTHING = Overrides()
SAMPLE = Path(__file__).parents[2] / "config" / "smsnapd.toml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def read(tmp_path: Path, home: Path):
    """Load a configuration of this text, with nothing of the machine in it."""

    def read(text: str, overrides: Overrides = NOTHING, **environment: str) -> Config:
        (tmp_path / "smsnapd.toml").write_text(text)
        return load(None, overrides, environment=environment, directory=tmp_path, home=home, root=False)

    return read


def refused(read, text: str, **environment: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **environment)
    return caught.value


def test_defaults_without_a_file(tmp_path: Path, home: Path) -> None:
    config = load(None, Overrides(), environment={}, directory=tmp_path, home=home, root=False)
    assert config.source is None
    assert (config.volume.path, config.volume.name, config.volume.exclude) == (None, "", ())
    assert (config.backup.mode, config.backup.consistency, config.backup.compression_level) == (
        "tar",
        "",
        1,
    )
    assert config.schedule.incremental == timedelta(minutes=5)
    assert config.retention.grace == timedelta(hours=72)
    assert config.retention.keep_within == timedelta(days=2)
    assert config.repository.checksums == "when_supported"
    assert config.state.dir == home / ".local/state/smsnapd"


def test_a_whole_file(read, tmp_path: Path) -> None:
    config = read(
        """
        [volume]
        path = "/home/ec2-user/SageMaker"
        name = "analysis-nb"
        exclude = ["lost+found", ".cache"]
        [repository]
        url = "s3://bucket/prefix"
        region = "eu-west-1"
        endpoint_url = "http://127.0.0.1:1"
        path_style = true
        checksums = "when_required"
        ca_bundle = "ca.pem"
        [encryption]
        passphrase_file = "secret"
        recipients = ["ab"]
        [backup]
        consistency = "read-only"
        compression_level = -5
        [schedule]
        full = ""
        quiet = "90s"
        [retention]
        keep_within = "1w"
        daily = 0
        [state]
        dir = "~/state"
        """
    )
    assert config.volume.path == Path("/home/ec2-user/SageMaker")
    assert config.volume.exclude == ("lost+found", ".cache")
    assert config.repository.path_style is True
    assert config.repository.ca_bundle == tmp_path / "ca.pem"
    assert config.encryption.passphrase_file == tmp_path / "secret"
    assert config.encryption.recipients == ("ab",)
    assert config.backup.compression_level == -5
    assert config.schedule.full == ""
    assert config.schedule.quiet == timedelta(seconds=90)
    assert config.retention.keep_within == timedelta(days=7)
    assert config.state.dir == tmp_path / "home/state"
    assert config.source == tmp_path / "smsnapd.toml"
    with pytest.raises(FrozenInstanceError):
        config.volume = None  # type: ignore[misc,assignment]


def test_the_sample_file_names_every_key_with_its_default(tmp_path: Path, home: Path) -> None:
    """Taken out of their comments, the sample's defaults load and are the defaults."""
    lines = []
    for line in SAMPLE.read_text().splitlines():
        commented = line.startswith("# ") and " = " in line.split("#")[1] and '"s3' not in line
        lines.append(line.removeprefix("# ") if commented else line)
    document = tomllib.loads("\n".join(lines))
    named = {section: set(table) for section, table in document.items()}
    sections = {item.name: item for item in fields(Config) if item.name != "source"}
    assert named == {name: {key.name for key in fields(item.default)} for name, item in sections.items()}
    (tmp_path / "all.toml").write_text("\n".join(lines))
    loaded = load("all.toml", Overrides(), environment={}, directory=tmp_path, home=home, root=False)
    for section in ("backup", "schedule", "retention"):
        assert getattr(loaded, section) == getattr(Config(), section)
    plain = load(str(SAMPLE), Overrides(), environment={}, directory=tmp_path, home=home, root=False)
    assert plain.repository.url == "s3://your-bucket/your-prefix"


@pytest.mark.parametrize(
    ("text", "shown", "near"),
    [
        ('[volume]\npth = "/x"', "pth in [volume]", "path"),
        ('[volume]\nexcludes = ["x"]', "excludes in [volume]", "exclude"),
        ('[encryption]\npassfrase_file = "x"', "passfrase_file in [encryption]", "passphrase_file"),
        ('[repo]\nurl = "x"', "[repo]", "repository"),
        ("[schedule]\nzzz = 1", "zzz in [schedule]", ""),
        ('path = "/x"', "[path]", ""),
    ],
)
def test_an_unknown_key_names_the_nearest(read, tmp_path: Path, text: str, shown: str, near: str) -> None:
    error = refused(read, text)
    assert shown in error.what
    assert str(tmp_path / "smsnapd.toml") in error.what
    assert error.hint.startswith("did you mean ") and near in error.hint
    assert error.exit_status == 2


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[volume]\npath = 3", "volume.path", "text"),
        ('[volume]\nexclude = "x"', "volume.exclude", "a list"),
        ("[volume]\nexclude = [1]", "volume.exclude", "a list"),
        ('[volume]\nname = "a/b"', "volume.name", "letters, digits"),
        ('[volume]\nname = "-a"', "volume.name", "letters, digits"),
        (f'[volume]\nname = "{"a" * 64}"', "volume.name", "at most 63"),
        ('[repository]\nurl = "ftp://x"', "repository.url", "s3://bucket/prefix"),
        ('[repository]\nurl = "s3://"', "repository.url", "s3://bucket/prefix"),
        ('[repository]\npath_style = "yes"', "repository.path_style", "true or false"),
        ('[repository]\nchecksums = "never"', "repository.checksums", "when_required"),
        ('[backup]\nmode = "zip"', "backup.mode", '"tar" or "block"'),
        ("[backup]\nmode = []", "backup.mode", '"tar" or "block"'),
        ("[backup]\ncompression_level = 99", "backup.compression_level", "a whole number from"),
        ("[backup]\ncompression_level = true", "backup.compression_level", "a whole number"),
        ("[backup]\ncompression_level = 1.5", "backup.compression_level", "a whole number"),
        ("[schedule]\nincremental = 5", "schedule.incremental", "a duration"),
        ('[schedule]\nincremental = "5"', "schedule.incremental", "a duration"),
        ('[schedule]\nincremental = "5 minutes"', "schedule.incremental", "a duration"),
        ('[schedule]\nincremental = "9999999d"', "schedule.incremental", "a duration"),
        ('[schedule]\nfull = "daily"', "schedule.full", "five cron fields"),
        ("[retention]\nhourly = -1", "retention.hourly", "a whole number from 0"),
    ],
)
def test_a_wrong_value_names_file_key_and_what_is_expected(
    read, tmp_path: Path, text: str, key: str, expected: str
) -> None:
    error = refused(read, text)
    assert key in error.what and str(tmp_path / "smsnapd.toml") in error.what
    assert expected in error.why


def test_a_section_that_is_a_value(read) -> None:
    assert "[volume]" in refused(read, "volume = 3").hint


def test_a_directory_without_scheme_is_shown_as_its_url(read, tmp_path: Path) -> None:
    assert refused(read, '[repository]\nurl = "backups"').hint.endswith(f"file://{tmp_path}/backups")


def test_what_follows_a_strange_scheme_is_not_repeated(read) -> None:
    error = refused(read, '[repository]\nurl = "https://me:secret@host/x"')
    assert "https:" in error.why and "secret" not in str(error)


def test_no_toml_says_where(read) -> None:
    assert "line 2" in refused(read, "[volume]\npath = /unquoted").why


def test_not_utf8(tmp_path: Path, home: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b'[volume]\nname = "\xff"')
    with pytest.raises(ConfigError, match="UTF-8"):
        load("bad.toml", Overrides(), environment={}, directory=tmp_path, home=home)


def test_a_command_is_split_as_a_shell_would(read) -> None:
    text = "[encryption]\npassphrase_command = {}"
    expected = ("pass", "show", "my notebook")
    assert read(text.format("\"pass show 'my notebook'\"")).encryption.passphrase_command == expected
    assert read(text.format('["pass", "show", "my notebook"]')).encryption.passphrase_command == expected
    error = refused(read, text.format('"pass --token=hunter2 \'show"'))
    assert "quotes closed" in error.why and "hunter2" not in str(error)


def test_two_sources_of_a_passphrase(read) -> None:
    error = refused(read, '[encryption]\npassphrase_file = "a"\npassphrase_command = "b"')
    assert "only one" in error.why


def test_locks_are_for_s3(read) -> None:
    locked = '[repository]\nobject_lock = "governance"\n'
    assert read(locked + 'url = "s3://b/p"').repository.object_lock_days == 30
    assert read(locked + 'url = "s3://b/p"\nobject_lock_days = 400').repository.object_lock_days == 400
    error = refused(read, locked + 'url = "file:///backups"')
    assert "only S3 locks" in error.why and "object_lock" in error.hint
    assert "object_lock" in refused(read, locked, SMSNAP_REPOSITORY="file:///backups").what
    assert "from 1 to" in refused(read, "[repository]\nobject_lock_days = 0").why
    assert "compliance" in refused(read, '[repository]\nobject_lock = "GOVERNANCE"').why


def test_what_is_left_out_needs_a_report(read) -> None:
    why = refused(read, "[backup]\nexclude_recreatable = true\nenvironment = false").why
    assert "could not be made again" in why
    assert read("[backup]\nexclude_recreatable = true").backup.exclude_recreatable


def test_freeze_is_for_block(read) -> None:
    assert "block" in refused(read, '[backup]\nconsistency = "freeze"').why
    assert read('[backup]\nconsistency = "freeze"\nmode = "block"').backup.mode == "block"


def test_a_named_file_must_exist(tmp_path: Path, home: Path) -> None:
    for named, environment in (("none.toml", {}), (None, {"SMSNAP_CONFIG": "none.toml"})):
        with pytest.raises(ConfigError) as caught:
            load(named, Overrides(), environment=environment, directory=tmp_path, home=home)
        assert str(tmp_path / "none.toml") in caught.value.what and "no such file" in caught.value.why


def test_the_order_of_files(tmp_path: Path, home: Path) -> None:
    def write(path: Path, name: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'[volume]\nname = "{name}"')

    def name(file: str | None = None, **environment: str) -> str:
        return load(file, Overrides(), environment=environment, directory=tmp_path, home=home).volume.name

    write(home / ".config/smsnapd/config.toml", "home")
    assert name() == "home"
    write(tmp_path / "smsnapd.toml", "here")
    assert name() == "here"
    write(tmp_path / "environment.toml", "environment")
    assert name(SMSNAP_CONFIG="environment.toml") == "environment"
    write(tmp_path / "line.toml", "line")
    assert name("line.toml", SMSNAP_CONFIG="environment.toml") == "line"


def test_command_line_beats_environment_beats_file(read, tmp_path: Path) -> None:
    text = '[volume]\nname = "file"\npath = "file"\n[repository]\nurl = "file:///file"'
    environment = {"SMSNAP_VOLUME": "env", "SMSNAP_PATH": "env", "SMSNAP_REPOSITORY": "file:///env"}
    config = read(text, **environment)
    assert (config.volume.name, config.volume.path) == ("env", tmp_path / "env")
    assert config.repository.url == "file:///env"
    config = read(text, Overrides("s3://line", "line", "line"), **environment)
    assert (config.volume.name, config.volume.path) == ("line", tmp_path / "line")
    assert config.repository.url == "s3://line"


def test_a_passphrase_file_of_the_command_line_replaces_the_command(read, tmp_path: Path) -> None:
    config = read('[encryption]\npassphrase_command = "pass show x"', Overrides(passphrase_file="p"))
    assert config.encryption.passphrase_file == tmp_path / "p"
    assert config.encryption.passphrase_command == ()


def test_values_of_the_environment_are_checked(read) -> None:
    error = refused(read, "", SMSNAP_VOLUME="a/b")
    assert "environment" in error.what


@pytest.mark.parametrize(
    ("environment", "root", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/x:/y", "XDG_STATE_HOME": "/z"}, True, "/var/lib/x"),
        ({}, True, "/var/lib/smsnapd"),
        ({"XDG_STATE_HOME": "/z"}, False, "/z/smsnapd"),
        ({"XDG_STATE_HOME": "relative"}, False, "/home/me/.local/state/smsnapd"),
        ({}, False, "/home/me/.local/state/smsnapd"),
    ],
)
def test_the_state_directory(environment: dict[str, str], root: bool, expected: str) -> None:
    assert default_state_dir(environment, Path("/home/me"), root) == Path(expected)


def of_another_user(path: Path) -> None:
    os.chown(path, 12345, -1)


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("expose", [of_another_user, open_to_all])
def test_what_another_user_left_in_the_current_directory_is_not_obeyed(
    read, tmp_path: Path, expose: Callable[[Path], None]
) -> None:
    text = '[encryption]\npassphrase_command = "/tmp/evil"\n'
    assert read(text).encryption.passphrase_command == ("/tmp/evil",)
    expose(tmp_path / "smsnapd.toml")
    caught = refused(read, text)
    assert "another user" in caught.why and "--config" in caught.hint
    named = str(tmp_path / "smsnapd.toml")
    assert read(text, SMSNAP_CONFIG=named).encryption.passphrase_command == ("/tmp/evil",)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_with_sudo_ones_own_file_is_obeyed(read, tmp_path: Path) -> None:
    read("")
    of_another_user(tmp_path / "smsnapd.toml")
    assert read("", SUDO_UID="12345").source == tmp_path / "smsnapd.toml"
    refused(read, "", SUDO_UID="12346")
