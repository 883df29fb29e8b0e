"""`smsnap export`: a snapshot as other tools read it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from smsnapd.cli import destination as places
from smsnapd.cli import output
from smsnapd.cli.exchange import seal_in
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.volume.archive.compress import Format
    from smsnapd.volume.archive.opening import Seal

EXAMPLES = """
smsnap export latest --output volume.tar
smsnap export 3f9a --output - | tar -xp --acls --xattrs-include='*' -C /mnt/new
smsnap export latest --compress zstd --output s3://bucket/volume.tar.zst
smsnap export latest --format files --output s3://bucket/files/
smsnap export latest --format openssl --openssl-passphrase-file secret --output s3://b/v.enc
  brought back with nothing but preinstalled tools:
  aws s3 cp s3://b/v.enc - | openssl enc -d -aes-256-cbc -iter 100000 | pigz -d | tar x
"""
REPORT = """
{"snapshot", "output", "bytes", "format", "compress"}; on standard error if the archive goes
to standard output; of files also "files", "sidecar_only": {kind: count}
"""
PACKINGS = ("none", "gzip", "lz4", "xz", "zstd")


@verb("export", examples=EXAMPLES, report=REPORT)
@click.argument("snapshot")
@click.option(
    "--output",
    "destination",
    required=True,
    metavar="FILE|DIR|-|s3://…",
    help="A new file, - for standard output, or a new object; of files a directory or prefix.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["tar", "openssl", "files"]),
    default="tar",
    help="openssl: sealed as `openssl enc -aes-256-cbc -iter 100000` does it, packed with gzip by default; "
    "files: plain files below a prefix or in a directory.",
)
@click.option("--compress", type=click.Choice(PACKINGS), help="Default: none, of openssl gzip.")
@click.option(
    "--openssl-passphrase-file", metavar="FILE", help="Its first line is what openssl will ask for."
)
@click.option("--overwrite", is_flag=True, help="Replace what has this name.")
def export(
    snapshot: str,
    destination: str,
    form: str,
    compress: Format | None,
    openssl_passphrase_file: str | None,
    overwrite: bool,
) -> int:
    """Write a snapshot as a tar archive (POSIX pax) that GNU tar extracts, sealed for openssl if asked.

    One whose chain begins with a block image is written as the raw image that dd takes.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. Without --format openssl the archive is not sealed: whoever reads it reads the files. A file or
    object gets its name only when it is whole.

    --format files writes what `aws s3 sync` would, with owners, modes and times in the metadata that AWS
    DataSync uses. What such a copy cannot carry is counted, and kept beside it, for `smsnap import`.
    """
    from smsnapd.engine.export import TarArchive
    from smsnapd.engine.image.raw import RawImage

    session = Session.current()
    seal = _seal(form, openssl_passphrase_file)
    if form == "files":
        return _as_files(session, snapshot, destination, compress, overwrite=overwrite)
    packing: Format = compress or ("none" if seal is None else "gzip")
    with session.repository(contents=True) as repository:
        history, found = session.find(repository, snapshot)
        is_image = history.chain(found.id)[0].manifest.image is not None
        archive: RawImage | TarArchive
        if is_image:
            archive = RawImage(repository, session.settings, history, found)
        else:
            archive = TarArchive(repository, history, found)
        counted = _Counted()
        with (
            places.opened(session, destination, archive.size, overwrite=overwrite, sparse=is_image) as write,
            session.progress() as progress,
            places.wrapped(counted.through(write), packing, seal) as write_plain,
        ):
            archive.write(write_plain, progress)
    _report(session, found.id, destination, counted.size, form, packing)
    return 0


def _as_files(
    session: Session, snapshot: str, destination: str, compress: Format | None, *, overwrite: bool
) -> int:
    from smsnapd.cli.filesinks import files_sink
    from smsnapd.engine.plainfiles import PlainFiles

    if compress not in (None, "none"):
        raise UsageError("export as files", "plain files are not packed", "leave out --compress")
    with (
        session.repository(contents=True) as repository,
        files_sink(session, destination, overwrite=overwrite) as sink,
        session.progress() as progress,
    ):
        history, found = session.find(repository, snapshot)
        done = PlainFiles(repository, history, found).write(sink, progress)
    told = ", ".join(f"{count} {kind}" for kind, count in done.lost.items())
    if told:
        print(f"smsnap: in the sidecar alone: {told}", file=sys.stderr)
    if session.options.json:
        shape = {"snapshot": found.id, "output": destination, "bytes": done.bytes, "format": "files"}
        output.document({**shape, "compress": "none", "files": done.files, "sidecar_only": dict(done.lost)})
    elif not session.options.quiet:
        output.line(f"wrote {done.files} files, {size_text(done.bytes)}, of {found.id} to {destination}")
    return 0


def _seal(form: str, file: str | None) -> Seal | None:
    if (form == "openssl") != (file is not None):
        raise UsageError(
            "export",
            "--format openssl and --openssl-passphrase-file go together",
            "write the passphrase into a file that others cannot read, and name it",
        )
    return seal_in(file)


class _Counted:
    """Counts the bytes that pass."""

    def __init__(self) -> None:
        self.size = 0

    def through(self, write: places.Write) -> places.Write:
        """`write`, counted."""

        def counted(piece: memoryview) -> None:
            write(piece)
            self.size += len(piece)

        return counted


def _report(session: Session, snapshot: str, destination: str, size: int, form: str, packing: Format) -> None:
    to_stdout = destination == "-"
    if session.options.json:
        shape = {
            "snapshot": snapshot,
            "output": destination,
            "bytes": size,
            "format": form,
            "compress": packing,
        }
        output.document(shape, aside=to_stdout)
    elif not session.options.quiet:
        output.line(f"wrote {size_text(size)} of {snapshot} to {destination}", aside=to_stdout)
