"""What the checks of `smsnap doctor` make of a machine that is not quite right."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smsnapd.cli.doctor import (
    account,
    configuration,
    environment,
    images,
    machine,
    repository,
    service,
    volume,
)
from smsnapd.cli.doctor.findings import BlockedError, Judged
from smsnapd.cli.doctor.patient import REFUSED_SKEW_S, Part, Patient
from smsnapd.cli.options import Options
from smsnapd.cli.session import Session
from smsnapd.daemon.asking import NotAllowedError
from smsnapd.daemon.status import Failure, Pending, Point, RepositoryStatus, Status, WatcherStatus, utc_text
from smsnapd.errors import StoreError, VolumeError
from smsnapd.format.record import Lease
from smsnapd.instance import Caller, IdentityUnknownError, InstanceError, Notebook, SdkSetup
from smsnapd.repository.lease import Holder
from smsnapd.store.memory import MemoryStore
from smsnapd.store.rights import Right
from smsnapd.volume.mounts import Mount

NOTEBOOK = Notebook("analysis-nb", "eu-west-1", "123456789012")
NOW = 1_800_000_000.0

MakePatient = Callable[..., Patient]


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePatient:
    """`patient('[section]…', notebook=…, sdk=…)`: a set-up with this configuration, in an S3 bucket."""
    for name in [name for name in os.environ if name.startswith(("SMSNAP_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    (tmp_path / "volume").mkdir()

    def make(
        more: str = "", *, url: str = "s3://bucket/p", volume: str = "", repository: str = "", **parts: Any
    ) -> Patient:
        file = tmp_path / "smsnapd.toml"
        file.write_text(
            f'[volume]\npath = "volume"\nname = "nb"\n{volume}\n[state]\ndir = "state"\n'
            f'[repository]\nurl = "{url}"\n{repository}\n{more}\n'
        )
        made = Patient(Session(Options(config=str(file))), clock=lambda: NOW)
        known = {"notebook": None, "sdk": SdkSetup("env", ""), "daemon": None, **parts}
        for name, value in known.items():
            setattr(made, name, Part(_raiser(value), f"no {name}"))
        return made

    return make


def _raiser(value: Any) -> Callable[[], Any]:
    def make() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    return make


def only(judged: Iterable[Judged]) -> Judged:
    (one,) = judged
    return one


# --- machine, configuration


def test_what_reports_need_is_looked_for(patient: MakePatient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(environment.environment(patient())).verdict == "ok"
    assert only(environment.environment(patient("[backup]\nenvironment = false"))).verdict == "skipped"
    leaving = patient("[backup]\nexclude_recreatable = true")
    assert only(environment.environment(leaving)).verdict == "ok"
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [judged.verdict for judged in environment.environment(leaving)] == ["warn", "warn"]


def test_the_system_is_told_and_any_is_taken(patient: MakePatient, tmp_path: Path) -> None:
    assert only(machine.system(patient())).verdict == "ok"
    file = tmp_path / "os-release"
    file.write_text('NAME="Amazon Linux"\nPRETTY_NAME="Amazon Linux 2023.6"\n')
    assert machine._distribution(file) == "Amazon Linux 2023.6"
    file.write_text("NAME=Something\n")
    assert machine._distribution(file) == "Something"
    assert machine._distribution(tmp_path / "none") == "an unknown Linux"


def test_python_on_a_notebook_must_lie_on_the_volume(
    patient: MakePatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(machine.python(patient())).verdict == "ok"
    assert only(machine.python(patient(notebook=NOTEBOOK))).verdict == "ok"  # all of this is one file system
    monkeypatch.setattr("sys.prefix", "/proc/self")
    assert only(machine.python(patient())).verdict == "ok"
    lost = only(machine.python(patient(notebook=NOTEBOOK)))
    assert lost.verdict == "warn" and "reset at every start" in lost.told
    assert ".smsnapd/venv/bin/pip install smsnapd" in lost.mend


def test_python_that_is_too_old(patient: MakePatient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 9, 20))
    assert only(machine.python(patient())).verdict == "fail"


def test_a_configuration_that_others_may_change(patient: MakePatient, tmp_path: Path) -> None:
    examined = patient()
    assert only(configuration.file(examined)).verdict == "ok"
    for mode in (0o664, 0o646):
        (tmp_path / "smsnapd.toml").chmod(mode)
        found = only(configuration.file(examined))
        assert (found.verdict, found.mend) == ("fail", f"chmod go-w {tmp_path}/smsnapd.toml")


def test_no_configuration_file(patient: MakePatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "volume")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("smsnapd.config.SYSTEM_FILE", tmp_path / "none")
    examined = patient()
    examined.session = Session(Options())
    examined.config = Part(lambda: examined.session.config, "no config")
    assert only(configuration.file(examined)).verdict == "warn"


def test_secrets_are_their_owners_alone(patient: MakePatient, tmp_path: Path) -> None:
    examined = patient('[encryption]\nwrite_key_file = "write-key"\npassphrase_file = "passphrase"')
    (tmp_path / "write-key").touch(0o600)
    (tmp_path / "passphrase").touch()
    (tmp_path / "passphrase").chmod(0o640)
    key, passphrase = configuration.secrets(examined)
    assert key.verdict == "ok"
    assert (passphrase.verdict, passphrase.mend) == ("fail", f"chmod 600 {tmp_path}/passphrase")
    (tmp_path / "write-key").unlink()
    assert next(iter(configuration.secrets(examined))).verdict == "fail"


def test_no_secret_at_all(patient: MakePatient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(configuration.secrets(patient())).verdict == "warn"
    monkeypatch.setenv("SMSNAP_PASSPHRASE", "hunter2")
    found = list(configuration.secrets(patient()))
    assert [one.verdict for one in found] == ["ok", "warn"]
    assert not any("hunter2" in part for one in found for part in one)
    command = patient('[encryption]\npassphrase_command = ["pass", "show", "hunter2"]')
    assert not any("hunter2" in part for one in configuration.secrets(command) for part in one)


# --- account


@pytest.mark.parametrize(
    ("repository", "environment", "notebook", "profile", "verdict", "told"),
    [
        (
            'region = "eu-west-3"',
            {"AWS_REGION": "x"},
            NOTEBOOK,
            "y",
            "ok",
            "eu-west-3, from the configuration",
        ),
        ("", {"AWS_REGION": "eu-north-1"}, NOTEBOOK, "y", "ok", "eu-north-1, from $AWS_REGION"),
        ("", {"AWS_DEFAULT_REGION": "eu-north-1"}, None, "", "ok", "eu-north-1, from $AWS_DEFAULT_REGION"),
        ("", {}, NOTEBOOK, "y", "ok", "eu-west-1, from the notebook's ARN"),
        ("", {}, None, "ca-west-1", "ok", "ca-west-1, from ~/.aws/config"),
        ("", {}, None, "", "fail", "not known"),
        ('endpoint_url = "https://s3.eu-west-1.amazonaws.com"', {}, None, "", "fail", "not known"),
        ('endpoint_url = "http://127.0.0.1:1"', {}, None, "", "ok", "none is configured"),
        ("", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, None, "", "ok", "none is configured"),
    ],
)
def test_regions(
    patient: MakePatient,
    monkeypatch: pytest.MonkeyPatch,
    repository: str,
    environment: dict[str, str],
    notebook: Notebook | None,
    profile: str,
    verdict: str,
    told: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    examined = patient(repository=repository, notebook=notebook, sdk=SdkSetup("env", profile))
    found = only(account.region(examined))
    assert found.verdict == verdict and told in found.told
    assert bool(found.mend) == (verdict == "fail")


def test_the_source_of_credentials(patient: MakePatient) -> None:
    assert only(account.credentials(patient(sdk=SdkSetup("iam-role", "")))).told == "from the instance's role"
    assert only(account.credentials(patient(sdk=SdkSetup("new-way", "")))).told == "from new-way"
    assert only(account.credentials(patient(sdk=SdkSetup("", "")))).verdict == "fail"
    assert only(account.credentials(patient(url="file:///srv/x"))).verdict == "skipped"


@pytest.mark.parametrize(
    ("answer", "verdict", "told"),
    [
        (Caller("1", "arn:aws:sts::1:assumed-role/nb/SageMaker"), "ok", "assumed-role/nb"),
        (IdentityUnknownError("ask STS", "it does not answer", "never mind"), "warn", "does not answer"),
    ],
)
def test_an_identity_that_cannot_be_had_is_no_failure(
    patient: MakePatient, monkeypatch: pytest.MonkeyPatch, answer: Any, verdict: str, told: str
) -> None:
    monkeypatch.setattr(account, "caller_identity", lambda region: _raiser(answer)())
    found = only(account.identity(patient(notebook=NOTEBOOK)))
    assert found.verdict == verdict and told in found.told


def test_credentials_that_sts_refuses_are_one(patient: MakePatient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "caller_identity", lambda region: _raiser(InstanceError("a", "b", "c"))())
    with pytest.raises(InstanceError):
        list(account.identity(patient(notebook=NOTEBOOK)))


def test_sts_is_not_asked_where_it_makes_no_sense(
    patient: MakePatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "caller_identity", lambda region: pytest.fail("it was asked"))
    for examined in (
        patient(url="file:///srv/x"),
        patient(repository='endpoint_url = "http://127.0.0.1:1"'),
        patient(sdk=SdkSetup("", "eu-west-1")),
        patient(),
    ):
        assert only(account.identity(examined)).verdict == "skipped"


# --- repository


@pytest.mark.parametrize(
    ("skew_s", "verdict", "told"),
    [
        (0.9, "ok", "agrees"),
        (-30.0, "ok", "30 s behind"),
        (61.0, "warn", "61 s ahead of"),
        (-299.0, "warn", "5 min behind"),
        (301.0, "fail", "5 min ahead of"),
        (-86400.0, "fail", "24 h behind"),
    ],
)
def test_clocks(patient: MakePatient, skew_s: float, verdict: str, told: str) -> None:
    found = only(repository.clock(patient(skew_s=skew_s)))
    assert found.verdict == verdict and told in found.told
    assert bool(found.mend) == (verdict != "ok")


def test_a_clock_that_s3_refuses_ends_the_other_questions(patient: MakePatient) -> None:
    far = REFUSED_SKEW_S + 1
    with pytest.raises(BlockedError, match="clock"):
        patient(skew_s=-far, store=MemoryStore("m")).answering_store()
    assert patient(skew_s=far, store=MemoryStore("m"), url="file:///srv/x").answering_store()


@pytest.mark.parametrize(("at", "skew_s"), [(NOW, -0.5), (NOW - 100.0, 99.5), (NOW + 0.25, -0.25)])
def test_the_skew_reckons_with_whole_seconds(patient: MakePatient, at: float, skew_s: float) -> None:
    examined = patient(store=MemoryStore("m", clock=lambda: at), url="file:///srv/x")
    assert examined.skew_s.examine() == skew_s


def test_the_store_is_not_asked_without_credentials_or_region(patient: MakePatient) -> None:
    for sdk in (SdkSetup("", "eu-west-1"), SdkSetup("env", "")):
        with pytest.raises(BlockedError):
            patient(sdk=sdk, store=StoreError("x", "asked")).skew_s.examine()


REFUSED = StoreError("store x", "access is denied", "allow s3:PutObject on the bucket and prefix: see it")


@pytest.mark.parametrize(
    ("right", "verdict", "piece"),
    [
        (Right("list", "allowed"), "ok", "listed"),
        (Right("create", "refused", REFUSED), "fail", '"Resource": "arn:aws:s3:::bucket/p/*"'),
        (Right("delete", "refused", REFUSED), "warn", "prune"),
        (Right("delete", "untried", StoreError("x", "busy", transient=True)), "warn", "prune"),
        (Right("create", "untried", StoreError("x", "busy", "wait", transient=True)), "fail", "wait"),
        (Right("create", "ignored"), "fail", "conditional writes"),
        (Right("create", "untried"), "skipped", "no repository yet"),
    ],
)
def test_rights(patient: MakePatient, right: Right, verdict: str, piece: str) -> None:
    found = repository._right(patient(notebook=NOTEBOOK), right)
    assert found.verdict == verdict and piece in found.told + found.mend
    assert found.check == right.name


def held_by(holder: str, seconds: float = 60.0) -> Lease:
    return Lease(b"r" * 16, "nb", 3, holder, int((NOW + seconds) * 1e6))


def test_leases() -> None:
    me = Holder.this_process()
    elsewhere = f"other-host {'0' * 8} 1 2 3 token"
    cases = [
        (held_by(""), "ok", "free"),
        (held_by(elsewhere, -1), "ok", "free"),
        (held_by(elsewhere), "warn", "other-host"),
        (held_by(f"h {me.boot} {me.pid_space} {os.getppid()} 1 t"), "ok", "no more"),
        (held_by(f"h {me.boot} another 4321 1 t"), "ok", "process 4321"),
        (held_by("garbage"), "warn", "garbage"),
    ]
    for record, verdict, told in cases:
        found = repository._lease(record, NOW)
        assert found.verdict == verdict and told in found.told, record


def test_the_room_of_a_directory(
    patient: MakePatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = patient(url=(tmp_path / "far" / "repo").as_uri())
    for free, verdict in ((10 * 2**30, "ok"), (2**29, "warn"), (2**20, "fail")):
        usage = SimpleNamespace(total=20 * 2**30, free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        first, same_disk = repository.room(examined)
        assert first.verdict == verdict
        assert first.mend == ("" if verdict == "ok" else f"free space there: df -h {tmp_path}")
        assert same_disk.verdict == "warn" and "destroys both" in same_disk.told
    assert only(repository.room(patient())).verdict == "skipped"


@pytest.mark.parametrize(("limit", "verdict"), [("", "ok"), ("20MB/s", "ok"), ("100KB/s", "warn")])
def test_upload_limits(patient: MakePatient, limit: str, verdict: str) -> None:
    assert only(repository.upload(patient(repository=f'upload_limit = "{limit}"'))).verdict == verdict


# --- volume


def mount(point: bytes, fs_type: str, *options: str) -> Mount:
    return Mount("8:1", b"/dev/x", point, b"/", fs_type, options, (), "")


@pytest.mark.parametrize(
    ("found", "notebook", "verdict", "piece"),
    [
        (
            mount(b"/home/ec2-user/SageMaker", "ext4", "rw"),
            NOTEBOOK,
            "ok",
            "ext4 of /dev/x, mounted at /home",
        ),
        (mount(b"/", "xfs", "rw"), None, "ok", "xfs"),
        (mount(b"/", "xfs", "rw"), NOTEBOOK, "fail", "reset at every start"),
        (mount(b"/data", "nfs4", "rw"), None, "warn", "other machines"),
        (mount(b"/data", "ext4", "ro", "relatime"), None, "ok", "read-only"),
    ],
)
def test_what_the_volume_is_on(
    patient: MakePatient,
    monkeypatch: pytest.MonkeyPatch,
    found: Mount,
    notebook: Notebook | None,
    verdict: str,
    piece: str,
) -> None:
    monkeypatch.setattr(volume, "find_mount", lambda _: found)
    told = only(volume.mounted(patient(notebook=notebook)))
    assert told.verdict == verdict and piece in told.told


def test_a_volume_that_is_none(patient: MakePatient, tmp_path: Path) -> None:
    examined = patient(root=os.fsencode(tmp_path / "smsnapd.toml"))
    assert only(volume.mounted(examined)).verdict == "fail"
    with pytest.raises(VolumeError):
        list(volume.mounted(patient(root=b"/no/such/place")))


class Refused:
    def __init__(self, root: bytes, *, unlimited_queue: bool) -> None:
        raise PermissionError(1, "Operation not permitted")


@pytest.fixture
def no_fanotify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smsnapd.volume.watch.prospects.FanotifyGroup", Refused)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, bool], None]:
    """`limit(watches, may be raised)`"""

    def put(watches: int, raisable: bool) -> None:
        file = tmp_path / "max_user_watches"
        file.write_text(f"{watches}\n")
        monkeypatch.setattr("smsnapd.volume.watch.limits.MAX_USER_WATCHES", file)
        access = os.access
        monkeypatch.setattr("os.access", lambda path, mode: raisable if path == file else access(path, mode))

    return put


@pytest.mark.parametrize(
    ("watches", "raisable", "verdict", "piece"),
    [
        (100, False, "ok", "inotify: 41 directories"),
        (50, False, "warn", "max_user_watches=128"),
        (50, True, "ok", "the daemon raises"),
    ],
)
def test_inotify_limits_against_directories(
    patient: MakePatient,
    tmp_path: Path,
    no_fanotify: None,
    limit: Callable[[int, bool], None],
    watches: int,
    raisable: bool,
    verdict: str,
    piece: str,
) -> None:
    for number in range(20):
        (tmp_path / "volume" / f"d{number}" / "below").mkdir(parents=True)
        (tmp_path / "volume" / f"f{number}").touch()
    (tmp_path / "volume" / ".cache" / "left" / "out").mkdir(parents=True)
    limit(watches, raisable)
    found = only(volume.watcher(patient(volume='exclude = [".cache"]')))
    assert found.verdict == verdict and piece in found.told + found.mend, found
    assert "fanotify: Operation not permitted" in found.told


def test_counting_ends_in_time(tmp_path: Path) -> None:
    from smsnapd.volume.scan import Excludes
    from smsnapd.volume.watch.prospects import count_directories

    for number in range(30):
        (tmp_path / f"d{number}" / "below").mkdir(parents=True)
    ticks = iter(range(1000))
    count = count_directories(os.fsencode(tmp_path), Excludes(), 5, clock=lambda: next(ticks))
    assert not count.is_all and 31 <= count.directories < 61
    assert count_directories(os.fsencode(tmp_path), Excludes(), 60) == (61, True)


def test_watching_as_configured(patient: MakePatient, no_fanotify: None) -> None:
    def with_watch(kind: str) -> Judged:
        return only(volume.watcher(patient(volume=f'watch = "{kind}"')))

    assert with_watch("poll").verdict == "warn"
    assert with_watch("fanotify").verdict == "fail"
    assert "fanotify" not in with_watch("inotify").told


def status(**more: Any) -> Status:
    known = {
        "state": "idle", "since": utc_text(NOW - 3600), "volume": "nb", "path": "/v",
        "repository": RepositoryStatus("s3://bucket/p"), "pid": 7, "updated": utc_text(NOW),
        "version": service.smsnapd.__version__,
    }  # fmt: skip
    return Status(**{**known, **more})


def test_the_daemon_knows_best_what_it_hears_from(patient: MakePatient) -> None:
    well = status(watcher=WatcherStatus("fanotify", "one mark", True))
    assert only(volume.watcher(patient(daemon=well))).verdict == "ok"
    ill = status(watcher=WatcherStatus("inotify", "each directory", False))
    assert only(volume.watcher(patient(daemon=ill))).verdict == "warn"


def test_the_local_state(patient: MakePatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(volume.state(patient())).verdict == "ok"
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    sqlite3.connect(tmp_path / "state" / "good.db").executescript("create table x(y)").connection.close()
    (tmp_path / "state" / "worse.db").write_bytes(b"no database at all" * 100)
    first, damaged = volume.state(patient())
    assert (first.verdict, damaged.verdict) == ("ok", "warn") and "worse.db" in damaged.told
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["good.db", "worse.db"]
    monkeypatch.setattr("os.access", lambda *_: False)
    assert only(volume.state(patient())).verdict == "fail"


def test_a_file_where_the_state_should_be(patient: MakePatient, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert only(volume.state(patient())).verdict == "fail"


# --- service


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`systemctl(enabled, active)`: a systemd that says so of the unit."""

    def put(enabled: str, active: str) -> None:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "systemctl"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = is-enabled ] && echo "{enabled}" || echo "{active}"\nexit 3\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setattr(service, "RUNTIME", str(tmp_path))

    return put


@pytest.mark.parametrize(
    ("enabled", "active", "verdicts", "mend"),
    [
        ("enabled", "active", ["ok"], ""),
        ("disabled", "active", ["ok", "warn"], "systemctl enable"),
        ("enabled", "failed", ["fail"], "journalctl -u smsnapd.service"),
        ("not-found", "inactive", ["warn"], "sudo smsnap install --config"),
        ("", "inactive", ["warn"], "sudo smsnap install --config"),
    ],
)
def test_units(
    patient: MakePatient,
    systemctl: Callable[[str, str], None],
    enabled: str,
    active: str,
    verdicts: list[str],
    mend: str,
) -> None:
    systemctl(enabled, active)
    found = list(service.unit(patient()))
    assert [one.verdict for one in found] == verdicts
    assert mend in found[-1].mend


def test_no_systemd(patient: MakePatient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "RUNTIME", str(tmp_path / "none"))
    assert only(service.unit(patient())).verdict == "skipped"
    assert only(service.daemon(patient())).mend.startswith("smsnapd --config ")


def test_a_systemctl_that_hangs(
    patient: MakePatient,
    systemctl: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    systemctl("enabled", "active")
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(service, "_SYSTEMCTL_S", 0.1)
    with pytest.raises(service.SmsnapError, match="did not answer"):
        list(service.unit(patient()))


ERROR = Failure("reach it", "it is gone", "bring it back", utc_text(NOW), utc_text(NOW - 600), 4)


@pytest.mark.parametrize(
    ("answer", "verdicts", "piece"),
    [
        (status(), ["ok"], "process 7, idle"),
        (status(volume="other"), ["warn"], "another configuration"),
        (status(repository=RepositoryStatus("s3://other")), ["warn"], "another configuration"),
        (status(version="0.0.0"), ["warn"], "restart"),
        (status(configuration_error="no such key"), ["ok", "warn"], "no such key"),
        (status(last_error=ERROR), ["ok", "fail"], "bring it back"),
        (None, ["warn"], "no daemon"),
        (NotAllowedError("ask", "no"), ["skipped"], "sudo smsnap doctor"),
    ],
)
def test_daemons(patient: MakePatient, answer: Any, verdicts: list[str], piece: str) -> None:
    found = list(service.daemon(patient(daemon=answer)))
    assert [one.verdict for one in found] == verdicts
    assert piece in found[-1].told + found[-1].mend


@pytest.mark.parametrize(
    ("more", "verdict", "piece"),
    [
        ({}, "warn", "none yet"),
        (
            {"last_recovery_point": Point("ab12", utc_text(NOW - 90), "full"), "age_s": 90.0},
            "ok",
            "full ab12, 90 s ago",
        ),
        (
            {
                "last_recovery_point": Point("ab12", utc_text(NOW - 9000), "full"),
                "age_s": 9000.0,
                "pending": Pending(1, 0, utc_text(NOW - 100)),
            },
            "ok",
            "pending",
        ),
        (
            {
                "last_recovery_point": Point("ab12", utc_text(NOW - 9000), "full"),
                "age_s": 9000.0,
                "pending": Pending(1, 0, utc_text(NOW - 1000)),
            },
            "warn",
            "changes have waited since",
        ),
    ],
)
def test_recovery_points(patient: MakePatient, more: dict[str, Any], verdict: str, piece: str) -> None:
    found = only(service.recovery_point(patient(daemon=status(**more))))
    assert found.verdict == verdict and piece in found.told


@pytest.mark.root
@pytest.mark.loop
def test_images_need_a_device(patient: MakePatient, tmp_path: Path) -> None:
    from tests.unit.volume.ext4 import loop_ext4

    block = '[backup]\nmode = "block"'
    assert list(volume.image(patient())) == []
    with pytest.raises(VolumeError, match="whole file system"):
        list(volume.image(patient(block)))
    with loop_ext4(tmp_path, "device") as point:
        told = only(volume.image(patient(block, root=bytes(point))))
        assert told.verdict == "ok" and "ext4" in told.told and "freeze" in told.told


# --- images


@pytest.mark.parametrize(
    ("tools", "fuse", "verdict", "told"),
    [
        (True, True, "ok", "restored, and looked into"),
        (False, True, "fail", "not installed"),
        (True, False, "warn", "temporary copy"),
    ],
)
def test_images_need_tools_to_come_back(
    patient: MakePatient,
    monkeypatch: pytest.MonkeyPatch,
    tools: bool,
    fuse: bool,
    verdict: str,
    told: str,
) -> None:
    def look(there: bool) -> Callable[..., None]:
        def check(*_: str) -> None:
            if not there:
                raise VolumeError("run it", "it is not installed", "install it")

        return check

    monkeypatch.setattr("smsnapd.volume.e2fsprogs.check_tools", look(tools))
    monkeypatch.setattr("smsnapd.volume.fuse.check_available", look(fuse))
    found = only(images.coming_back(patient('[backup]\nmode = "block"')))
    assert found.verdict == verdict and told in found.told
    assert bool(found.mend) == (verdict != "ok")
    assert list(images.coming_back(patient())) == []
