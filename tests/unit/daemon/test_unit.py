"""The systemd unit: every directive against the version that introduced it, and words that need quoting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.cli.install import quoted, unit_text
from smsnapd.errors import UsageError

TEXT = unit_text(Path("/v/bin/smsnapd"), Path("/v/smsnapd.toml"), Path("/home/ec2-user/SageMaker"))

OLDEST, NEWEST = 219, 252
"""Amazon Linux 2 and 2023."""

SINCE = {
    # systemd's NEWS; 1: older than anything that still runs.
    "Unit": {
        "Description": 1, "Documentation": 1, "After": 1, "Wants": 1, "RequiresMountsFor": 201,
        "StartLimitIntervalSec": 230,
    },
    "Service": {
        "Type": 1, "NotifyAccess": 1, "ExecStart": 1, "ExecReload": 1, "Restart": 1, "RestartSec": 1,
        "RestartPreventExitStatus": 189, "StartLimitInterval": 1, "WatchdogSec": 1, "TimeoutStopSec": 188,
        "KillMode": 1, "RuntimeDirectory": 211, "RuntimeDirectoryMode": 211, "RuntimeDirectoryPreserve": 235,
        "UMask": 1, "StandardOutput": 1, "StandardError": 1, "SyslogIdentifier": 1, "Nice": 1,
        "CPUSchedulingPolicy": 1, "IOSchedulingClass": 1, "CPUWeight": 232, "IOWeight": 230,
        "OOMScoreAdjust": 1, "TasksMax": 227, "CapabilityBoundingSet": 1, "NoNewPrivileges": 187,
        "ProtectSystem": 214, "ProtectControlGroups": 232, "ProtectKernelModules": 232,
        "ProtectKernelLogs": 244, "ProtectClock": 245, "ProtectHostname": 242,
        "RestrictAddressFamilies": 211, "RestrictNamespaces": 233, "RestrictRealtime": 231,
        "RestrictSUIDSGID": 242, "LockPersonality": 235, "SystemCallArchitectures": 209,
    },
    "Install": {"WantedBy": 1},
}  # fmt: skip

BEYOND_OLDEST = {
    # What 219 does not know, and why the service is right without it.
    "StartLimitIntervalSec": "StartLimitInterval in [Service] says the same",
    "RuntimeDirectoryPreserve": "the status of a stopped daemon is gone then",
    "CPUWeight": "Nice is there", "IOWeight": "IOSchedulingClass is there", "TasksMax": "a limit",
    "ProtectControlGroups": "a restriction", "ProtectKernelModules": "a restriction",
    "ProtectKernelLogs": "a restriction", "ProtectClock": "a restriction", "ProtectHostname": "a restriction",
    "RestrictNamespaces": "a restriction", "RestrictRealtime": "a restriction",
    "RestrictSUIDSGID": "a restriction", "LockPersonality": "a restriction",
}  # fmt: skip

VALUES_AT_219 = {
    # Directives whose values have grown over time, and what 219 understands.
    "Type": {"simple", "forking", "oneshot", "dbus", "notify", "idle"},
    "ProtectSystem": {"yes", "no", "full"},
    "KillMode": {"control-group", "mixed", "process", "none"},
    "Restart": {"no", "always", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort"},
    "StandardError": {"inherit", "null", "tty", "journal", "syslog", "kmsg", "socket"},
    "StandardOutput": {"inherit", "null", "tty", "journal", "syslog", "kmsg", "socket"},
    "IOSchedulingClass": {"none", "realtime", "best-effort", "idle"},
    "CPUSchedulingPolicy": {"other", "batch", "idle", "fifo", "rr"},
}


def directives() -> Iterator[tuple[str, str, str]]:
    section = ""
    for line in TEXT.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield section, name, value


def test_every_directive_is_known_and_where_it_belongs() -> None:
    for section, name, _ in directives():
        assert SINCE[section][name] <= NEWEST, name


def test_what_the_oldest_does_not_know_is_not_needed_there() -> None:
    newer = {name for section, name, _ in directives() if SINCE[section][name] > OLDEST}
    assert newer == set(BEYOND_OLDEST)


def test_values_are_such_as_the_oldest_understands() -> None:
    found = {name: value for _, name, value in directives()}
    for name, known in VALUES_AT_219.items():
        assert found[name] in known, name


def test_what_the_service_rests_on() -> None:
    found = {name: value for _, name, value in directives()}
    assert found["Type"] == "notify" and int(found["WatchdogSec"]) > 0 and found["Restart"] == "on-failure"
    assert found["ExecStart"] == "/v/bin/smsnapd --config /v/smsnapd.toml"
    assert found["RequiresMountsFor"] == "/home/ec2-user/SageMaker"
    assert found["RestartPreventExitStatus"] == str(UsageError.exit_status)
    assert "@" not in TEXT.replace("<@", "").partition("[Unit]")[2]


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/a/b-c_d.e", "/a/b-c_d.e"),
        ("/a b", '"/a b"'),
        ("/100%", "/100%%"),
        ("/$HOME", '"/$$HOME"'),
        ('/a"b\\c', '"/a\\"b\\\\c"'),
        ("/a;b", '"/a;b"'),
        ("/ä", "/ä"),
    ],
)
def test_quoting(path: str, word: str) -> None:
    assert quoted(path, is_command=True) == word


def test_a_dollar_is_only_doubled_in_commands() -> None:
    assert quoted("/$x", is_command=False) == '"/$x"'


def test_a_line_feed_cannot_smuggle_in_a_directive() -> None:
    with pytest.raises(UsageError):
        quoted("/a\nExecStartPre=/bin/evil", is_command=True)
