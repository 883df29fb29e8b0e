"""`smsnap import`: what other tools have written becomes a snapshot."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smsnapd.cli import output
from smsnapd.cli.exchange import S3, Place, place_at, seal_in
from smsnapd.cli.filesources import copy_in_bucket, copy_in_directory, copy_of_tags
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError
from smsnapd.model import path_text
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.intake.image import ArrivingImage
    from smsnapd.engine.intake.run import Arrivals, ImportOutcome
    from smsnapd.volume.archive.opening import Seal
    from smsnapd.volume.archive.stream import ByteSource

    _Arriving = tuple[Arrivals | ArrivingImage, str, str, tuple[str, ...]]

INCOMPLETE = 3
NAMED_MAX = 20
NOTEBOOK_OWNER = (1000, 1000)
"""ec2-user and its group, on AL2 and AL2023."""

EXAMPLES = """
smsnap import backup.tar.gz
smsnap import s3://bucket/backup.tar.gz.enc --openssl-passphrase-file secret
smsnap import volume.img.gz       what dd has written, as a block full
ssh old tar -C SageMaker -c . | smsnap import - --volume old
smsnap import s3://bucket/my-notebook_2026-01-31-09-00-00/        a copy of `aws s3 sync`
smsnap import --from-tags         that which the notebook's tags of the AWS samples name
"""
REPORT = """
the new snapshot, as `smsnap snapshots --json` has it, with "source", "form" ("tar", "image"
or "files") and "wrapping" (a list of "openssl", "gzip", "xz", "lz4", "zstd")
"""


@verb("import", examples=EXAMPLES, report=REPORT)
@click.argument("source", required=False, metavar="[FILE|DIR|-|s3://…]")
@click.option(
    "--from-tags",
    is_flag=True,
    help="Take the `aws s3 sync` copy that this notebook's tags ebs-backup-bucket and backup-snapshot name.",
)
@click.option(
    "--openssl-passphrase-file",
    metavar="FILE",
    help="Open what `openssl enc -aes-256-cbc -iter 100000` has sealed, with the first line of FILE.",
)
@click.option(
    "--openssl-iterations",
    type=click.IntRange(1, 2**31 - 1),
    default=100_000,
    help="Another -iter of openssl's.",
)
@click.option(
    "--owner",
    metavar="UID:GID",
    help="Whose the files are that the source names no owner of; default: the volume's, else 1000:1000.",
)
@click.option(
    "--sidecar",
    metavar="FILE|s3://…",
    help="What `export --format files` has put beside the files; default: where it puts it.",
)
def import_(
    source: str | None,
    from_tags: bool,
    openssl_passphrase_file: str | None,
    openssl_iterations: int,
    owner: str | None,
    sidecar: str | None,
) -> int:
    """Take in a tarball, an image, or a copy that `aws s3 sync` has made, as a full snapshot.

    A tarball may be of any kind (GNU, pax, ustar, v7), packed with gzip, xz, lz4 or zstd, and sealed with
    `openssl enc`, all of which is found out; it streams by, and nothing is staged. It is an ordinary
    snapshot of the volume that --volume names, by default this machine's. Names that lead out of it are left
    out, as GNU tar would, and are named; exit status 3 says so. One that is cut off, or whose passphrase is
    wrong, leaves no snapshot. A raw image of an ext4, packed and sealed or not, becomes a block full; of a
    plain file only what its file system has in use is read.
    """
    session = Session.current()
    if (source is None) != from_tags:
        raise UsageError("import", "give one source, or --from-tags", "see smsnap import --help")
    seal = seal_in(openssl_passphrase_file, openssl_iterations)
    owners = _owner(session, owner)
    named = source if source is not None else copy_of_tags(session)
    with _arrivals(session, named, seal, owners, sidecar) as (arrivals, label, form, wrapping):
        plain = Path(named).absolute()
        if form == "image" and not wrapping and not named.startswith(S3) and plain.is_file():
            outcome = _import_image(session, plain, label)
        else:
            outcome = _import(session, arrivals, label, owners)
    _report(session, outcome, label, form, wrapping)
    return 0 if outcome.snapshot.complete else INCOMPLETE


def _owner(session: Session, text: str | None) -> tuple[int, int]:
    """Whose the files are that nothing says of whose they are."""
    if text is not None:
        user, _, group = text.partition(":")
        if not (user.isdecimal() and group.isdecimal() and max(int(user), int(group)) < 2**32):
            raise UsageError("use --owner", f"{text!r} is not two numbers", "give it like 1000:1000")
        return int(user), int(group)
    path = session.config.volume.path
    try:
        status = path.stat() if path is not None else None
    except OSError:
        status = None
    return (status.st_uid, status.st_gid) if status is not None else NOTEBOOK_OWNER


@contextmanager
def _arrivals(
    session: Session, source: str, seal: Seal | None, owners: tuple[int, int], sidecar: str | None
) -> Iterator[_Arriving]:
    """What arrives from a source; what to call that, its form and its wrapping."""
    if source.startswith(S3):
        with place_at(session, source) as place:
            if _is_prefix(place):
                with copy_in_bucket(session, place, owners, sidecar) as copy:
                    yield copy, source, "files", ()
                return
    elif os.path.isdir(source):
        with copy_in_directory(session, source, owners, sidecar) as copy:
            yield copy, str(Path(source).absolute()), "files", ()
        return
    with _archive(session, source, seal) as found:
        yield found


def _is_prefix(place: Place) -> bool:
    """Whether a key is that of a folder, written with its slash or not."""
    if not place.key or place.key.endswith("/"):
        return True
    if place.objects.find(place.key) is not None:
        return False
    return next(iter(place.objects.below(f"{place.key}/")), None) is not None


@contextmanager
def _archive(session: Session, source: str, seal: Seal | None) -> Iterator[_Arriving]:
    """A tarball, as `_arrivals`."""
    from smsnapd.engine.intake.image import ArrivingImage
    from smsnapd.volume.archive.members import TarReader
    from smsnapd.volume.archive.opening import open_content

    with _bytes_of(session, source) as (file, label), closing(file):
        what = f"import {label}"
        content = open_content(file, what, seal)
        with closing(content.source):
            if content.kind == "image":
                yield ArrivingImage(content.source, what), label, "image", content.wrapping
            else:
                yield TarReader(content.source, what), label, "tar", content.wrapping


@contextmanager
def _bytes_of(session: Session, source: str) -> Iterator[tuple[ByteSource, str]]:
    """The bytes of a file, a pipe or an object, and what to call them."""
    from smsnapd.volume.archive.stream import Ahead, FileSource

    if source.startswith(S3):
        with place_at(session, source) as place:
            found = place.objects.find(place.key)
            if found is None:
                raise UsageError(f"import {source}", "there is no such object", "look with aws s3 ls")
            yield Ahead(place.objects.open(found), "download"), source
        return
    what = "import from standard input" if source == "-" else f"import {source}"
    if source == "-" and sys.stdin.isatty():
        raise UsageError(what, "it is a terminal", "pipe an archive into it")
    try:
        file = io.FileIO(sys.stdin.fileno() if source == "-" else source, closefd=source != "-")
    except OSError as error:
        raise UsageError(what, error.strerror or str(error)) from error
    label = "standard input" if source == "-" else str(Path(source).absolute())
    yield Ahead(FileSource(file, what), "read"), label


def _import(
    session: Session, arrivals: Arrivals | ArrivingImage, label: str, owners: tuple[int, int]
) -> ImportOutcome:
    from smsnapd.engine.intake.run import ImportRequest, run_import

    config = session.config
    request = ImportRequest(
        volume=session.own_volume,
        source=label,
        state_dir=session.state_dir,
        owner=owners[0],
        group=owners[1],
        level=config.backup.compression_level,
        grace_s=config.retention.grace.total_seconds(),
    )
    with session.repository(contents=False) as repository, session.progress() as progress:
        return run_import(repository, request, arrivals, progress)


def _import_image(session: Session, path: Path, label: str) -> ImportOutcome:
    """A raw image in a file as a block full: it can be read in any order, and only what is in use."""
    from smsnapd.engine.image.intake import ImageIntake, import_image
    from smsnapd.engine.intake.image import check_whole
    from smsnapd.engine.intake.run import ImportOutcome

    check_whole(path, f"import {label}")
    config = session.config
    request = ImageIntake(
        path=path,
        source=label,
        volume=session.own_volume,
        level=config.backup.compression_level,
        grace_s=config.retention.grace.total_seconds(),
    )
    with session.repository(contents=False) as repository, session.progress() as progress:
        return ImportOutcome(import_image(repository, session.settings, request, progress), ())


def _report(
    session: Session, outcome: ImportOutcome, label: str, form: str, wrapping: tuple[str, ...]
) -> None:
    for issue in outcome.left_out[:NAMED_MAX]:
        print(f"smsnap: left out {path_text(issue.path)}: {issue.reason}", file=sys.stderr)
    if len(outcome.left_out) > NAMED_MAX:
        print(
            f"smsnap: and {len(outcome.left_out) - NAMED_MAX} more: see smsnap snapshots --json",
            file=sys.stderr,
        )
    snapshot = outcome.snapshot
    if session.options.json:
        shape = {"source": label, "form": form, "wrapping": list(wrapping)}
        output.document({**output.snapshot_object(snapshot), **shape})
    elif not session.options.quiet:
        output.line(
            f"full {snapshot.id} of volume {snapshot.volume} from {label}: {snapshot.files} files, "
            f"{size_text(snapshot.bytes)}, stored {size_text(snapshot.stored_bytes)}"
        )
