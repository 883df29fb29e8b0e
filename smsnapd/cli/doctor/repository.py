"""The repository: whether it answers, what may be done there, whether it opens, and who else writes."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from smsnapd.cli.doctor.findings import BlockedError, Check, Judged, fail, mend_of, ok, skipped, warn
from smsnapd.cli.doctor.lengths import length_text
from smsnapd.cli.doctor.patient import Patient, existing
from smsnapd.cli.doctor.policy import action_in, policy_line
from smsnapd.cli.times import local_text
from smsnapd.daemon import protection
from smsnapd.daemon.passphrase import is_recovery_key
from smsnapd.errors import (
    DamageError,
    DeniedError,
    ObjectMissingError,
    SmsnapError,
    StoreError,
    WrongKeyError,
)
from smsnapd.format import names
from smsnapd.format.keys import Identity, open_data_key
from smsnapd.model import CHUNK_TARGET
from smsnapd.store.rights import Right, try_rights
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.format.record import Lease
    from smsnapd.repository import Repository
    from smsnapd.store.base import Store

_UNSEEN_S: Final = 2.0
"""A store tells whole seconds."""
_WARN_SKEW_S: Final = 60.0
_FAIL_SKEW_S: Final = 300.0
_CLOCK: Final = "sudo timedatectl set-ntp true; sudo systemctl restart chronyd; chronyc tracking"
_WARN_FREE: Final = 1024**3
_FAIL_FREE: Final = 64 * 1024**2
_SLOW_CHUNK_S: Final = 60.0
_SMALL_FILE: Final = 4096
"""Bytes; a file with a key in it has fewer."""
_NO_ANSWER: Final = fail(
    "no answer in time: its name is not resolved, or packets are dropped",
    "check the network, DNS, the proxy and endpoint_url; in a VPC, the S3 gateway endpoint; or the mount",
)
_DOES: Final = {
    "list": "objects can be listed",
    "read": "objects can be read",
    "create": "objects can be created",
    "replace": "the lease can be replaced",
    "delete": "objects can be deleted, as prune must",
}


def reach(patient: Patient) -> Iterator[Judged]:
    """That the store answers, and that a bucket lies in the region that is configured."""
    settings = patient.settings.examine()
    try:
        patient.skew_s.examine()
    except StoreError as error:
        yield fail(f"cannot {error.what}: {error.why}", _mend(patient, error))
        return
    yield ok(f"{settings.url} answers")
    if patient.is_aws and (region := _bucket_region(patient)) not in ("", patient.region):
        told = (
            f"the bucket lies in {region}, and requests are signed for {patient.region}: each goes two ways"
        )
        yield warn(told, f'write region = "{region}" under [repository]', check="region")


def _bucket_region(patient: Patient) -> str:
    from smsnapd.store.s3 import S3Store

    store = patient.store.use()
    return store.bucket_region() if isinstance(store, S3Store) else ""


def clock(patient: Patient) -> Iterator[Judged]:
    """How far our clock is from the store's. Leases and the grace of garbage are reckoned by clocks."""
    skew_s = patient.skew_s.use()
    size_s = abs(skew_s)
    told = f"{length_text(size_s)} {'ahead of' if skew_s > 0 else 'behind'} the repository's"
    if size_s > _FAIL_SKEW_S:
        limit = "; S3 refuses every request at 15 minutes" if patient.is_s3 else ""
        yield fail(told + limit, _CLOCK)
    elif size_s > _WARN_SKEW_S:
        yield warn(told, _CLOCK)
    else:
        yield ok("agrees with the repository's, to a second or two" if size_s < _UNSEEN_S else told)


def rights(patient: Patient) -> Iterator[Judged]:
    """What may be done there, each thing tried without changing anything."""
    store, volume = patient.answering_store(), patient.volume_name()
    kept = _never_replaced(store, volume)
    tried = try_rights(store, kept, names.lease_name(volume))
    outcomes = {right.name: right.outcome for right in tried}
    in_volume_only = outcomes["create"] == "refused" and outcomes["replace"] == "allowed"
    for right in tried:
        if right.name == "create" and in_volume_only and kept == names.REPOSITORY:
            yield skipped("not tried: there is nothing of this volume yet to try it with", check="create")
        else:
            yield _right(patient, right)


def _never_replaced(store: Store, volume: str) -> str:
    """What to try to create: a data key of the volume, as a writer's policy may allow nothing elsewhere."""
    with contextlib.suppress(StoreError):  # that nothing can be listed is found by trying it
        return next((info.name for info in store.list(names.data_keys_prefix(volume))), names.REPOSITORY)
    return names.REPOSITORY


def _right(patient: Patient, right: Right) -> Judged:
    error = right.error
    if right.outcome == "allowed":
        return ok(_DOES[right.name], check=right.name)
    if right.outcome == "ignored":
        mend = "use a store with conditional writes (If-None-Match and If-Match on PutObject), as S3 has them"
        return fail("the server does not keep to conditions: writers could overwrite", mend, check=right.name)
    if error is None or isinstance(error, ObjectMissingError):
        return skipped("not tried: there is no repository yet", check=right.name)
    told = f"cannot {error.what}: {error.why}"
    if right.name == "delete":
        mend = f"only prune needs it: run that elsewhere, or: {_mend(patient, error)}"
        return warn(told, mend, check=right.name)
    return fail(told, _mend(patient, error), check=right.name)


def _mend(patient: Patient, error: SmsnapError) -> str:
    """The hint of an error; of a refusal that a policy can mend, the line that it takes."""
    action = action_in(error.hint)
    if not (action and patient.is_aws):
        return mend_of(error)
    line = policy_line(action, patient.settings.use().url, patient.region)
    return f"add to the role's policy: {line}"


def opens(patient: Patient) -> Iterator[Judged]:
    """That what is configured opens the repository, and may write to it."""
    repository = patient.repository.examine()
    if repository is None:
        yield skipped("nothing is configured that opens it", "write write_key_file under [encryption]")
        return
    writer = repository.write_key.writer_id.hex()
    how = "the write key" if repository.identity is None else "the passphrase"
    yield ok(f"repository {repository.repository_id} opens with {how}, writer {writer[:16]}")


def contents(patient: Patient) -> Iterator[Judged]:
    """Whether this machine can read back what it has stored; with a write key alone, the proof that not."""
    repository = _opened(patient)
    if repository.identity is not None:
        yield ok("this machine can read back what it stored; with a write key alone it could not")
        return
    if protection.found_credentials(patient.config.use(), os.environ, given_file=False, contents=True):
        told = "what opens contents is configured beside the write key: this machine can read back all"
        yield warn(told, "remove passphrase_file, passphrase_command and kms_key under [encryption]")
        return
    for path in _identities(patient):
        told = f"{path} holds an identity: whoever reads it reads back all that this machine stored"
        yield warn(told, f"keep it elsewhere, then: shred -u {path}", check="identity-file")
    yield _proof(repository, patient.volume_name())


def _identities(patient: Patient) -> Iterator[Path]:
    """Files that hold a recovery key, where this machine keeps its configuration and state."""
    config = patient.config.use()
    places = {protection.state_dir(config), *([Path(config.source).parent] if config.source else [])}
    for path in sorted(itertools.chain.from_iterable(map(_small_files, places))):
        with contextlib.suppress(OSError):
            text = path.read_bytes()[:_SMALL_FILE].decode("latin-1")
            if is_recovery_key(text):
                yield path


def _small_files(directory: Path) -> list[Path]:
    try:
        found = [path for path in directory.iterdir() if path.is_file() and not path.is_symlink()]
    except OSError:
        return []
    return [path for path in found if path.stat().st_size < _SMALL_FILE]


def _proof(repository: Repository, volume: str) -> Judged:
    """Take each data key that is there, and try to open it with all that this machine has."""
    listed = repository.store.list(names.data_keys_prefix(volume))
    found = [name for info in listed if (name := names.parse_data_key_name(info.name)) is not None]
    if not found:
        return ok("this machine cannot read back what it will store: it holds the write key alone")
    for name in found:
        if _opens(repository, name):
            return fail("the write key opens contents", "this is a defect of smsnap: please report it")
    told = f"tried: the write key opens none of the {len(found)} data keys"
    return ok(f"this machine cannot read back what it stored; {told}")


def _opens(repository: Repository, name: names.DataKeyName) -> bool:
    """Whether what this machine has opens a data key: as a reader, or a secret taken for an identity."""
    with contextlib.suppress(WrongKeyError):
        repository.data_key(name.volume, name.key_id)
        return True
    data = repository.store.get(names.data_key_name(*name))
    key = repository.write_key
    for secret in (key.secret, key.catalog_key, *astuple(key.volume(name.volume))):
        with contextlib.suppress(WrongKeyError, DamageError):
            open_data_key(data, name, repository.id, Identity(secret), repository.verify_key_of)
            return True
    return False


def lease(patient: Patient) -> Iterator[Judged]:
    """Who writes to this volume's chain now."""
    from smsnapd.format.record import Lease

    repository, volume = _opened(patient), patient.volume_name()
    try:
        record = Lease.decode(repository.store.get(names.lease_name(volume)), volume, repository.id)
    except ObjectMissingError:
        yield ok(f"nobody has written to volume {volume} yet")
    except DamageError as error:
        yield warn(f"{error.what}: {error.why}", "the next backup writes it anew: smsnap backup")
    else:
        yield _lease(record, patient.clock() - patient.skew_s.use())


def _lease(record: Lease, now_s: float) -> Judged:
    """Who has the lease at `now_s` of the store's clock, by which it ends."""
    from smsnapd.repository.lease import HINT, Holder, is_dead

    if not record.holder or record.expires_us <= now_s * 1e6:
        return ok(f"free: nobody writes to volume {record.volume} now")
    host, *rest = record.holder.split(" ")
    if is_dead(record.holder):
        return ok("left by a process of this machine that is no more; the next backup takes it")
    if rest[:1] == [Holder.this_process().boot]:
        return ok(f"held by process {' '.join(rest[2:3])} of this machine")
    until = local_text(record.expires_us).partition(".")[0]
    told = f"another writer on {host} has the lease of volume {record.volume} until {until}"
    return warn(told, HINT)


def _opened(patient: Patient) -> Repository:
    repository = patient.repository.use()
    if repository is None:
        raise BlockedError("nothing is configured that opens the repository")
    return repository


def room(patient: Patient) -> Iterator[Judged]:
    """Of a directory repository: the disk that it is on."""
    url = patient.settings.use().url
    if not url.startswith("file:"):
        yield skipped("the repository is not a directory")
        return
    path = Path(os.fsdecode(unquote_to_bytes(url.removeprefix("file://"))))
    disk = shutil.disk_usage(existing(path))
    told = f"{size_text(disk.free)} of {size_text(disk.total)} free for {path}"
    mend = f"free space there: df -h {existing(path)}"
    if disk.free < _FAIL_FREE:
        yield fail(told, mend)
    elif disk.free < _WARN_FREE:
        yield warn(told, mend)
    else:
        yield ok(told)
    if existing(path).stat().st_dev == patient.device_of_volume():
        told = "the repository lies on the volume that it protects: what destroys one destroys both"
        yield warn(
            told, 'write another url under [repository]: "s3://bucket/prefix", or a directory elsewhere'
        )


def upload(patient: Patient) -> Iterator[Judged]:
    """How fast may be stored."""
    limit = patient.config.use().repository.upload_limit
    if not limit:
        yield ok("as fast as the network lets it")
    elif CHUNK_TARGET / limit > _SLOW_CHUNK_S:
        told = f"{size_text(limit)} a second at most: one chunk takes {CHUNK_TARGET / limit:.0f} s"
        yield warn(told, 'write a higher upload_limit under [repository], "500KB/s" or more')
    else:
        yield ok(f"{size_text(limit)} a second at most, all of smsnapd together")


def locks(patient: Patient) -> Iterator[Judged]:
    """Whether the store can lock what is put, as configured, and has done it."""
    from smsnapd.store.s3 import S3Store

    settings, store = patient.settings.use(), patient.answering_store()
    if not settings.object_lock or not isinstance(store, S3Store):
        yield skipped("no object_lock is configured")
        return
    with contextlib.suppress(DeniedError):  # not everybody may know; then an object shows it
        if not store.can_lock():
            yield fail("the bucket has no Object Lock, so whatever is stored is refused", _lock_it(store.url))
            return
    try:
        until_s = store.locked_until(names.REPOSITORY)
    except ObjectMissingError:
        yield ok("the bucket has Object Lock")
        return
    told = f"{settings.object_lock.lower()} locks, of {settings.object_lock_days} days"
    if until_s <= patient.clock() - patient.skew_s.use():
        yield warn(f"{told}; but the repository's record is not locked now", "smsnap prune, every day")
    else:
        until = "that somebody ends a legal hold" if math.isinf(until_s) else local_text(int(until_s * 1e6))
        yield ok(f"{told}; the repository's record is locked until {until.partition('.')[0]}")


def _lock_it(url: str) -> str:
    bucket = url.removeprefix("s3://").partition("/")[0]
    on = "--object-lock-configuration ObjectLockEnabled=Enabled"
    return f"with its versions on: aws s3api put-object-lock-configuration --bucket {bucket} {on}"


CHECKS: Final = (
    Check("repository", "reach", reach, _NO_ANSWER),
    Check("repository", "clock", clock),
    Check("repository", "rights", rights),
    Check("repository", "opens", opens),
    Check("repository", "contents", contents),
    Check("repository", "lease", lease),
    Check("repository", "room", room),
    Check("repository", "locks", locks),
    Check("repository", "upload", upload),
)
