"""Where `import` finds copies of plain files, and what `export --format files` has put beside them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smsnapd.cli.exchange import S3, Place, place_at
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError
from smsnapd.instance import notebook_tags, read_notebook
from smsnapd.volume.archive.sidecar import SUFFIX

if TYPE_CHECKING:
    from smsnapd.engine.intake.synced import Sidecar, SyncedCopy
    from smsnapd.volume.archive.stream import ByteSource

BUCKET_TAG = "ebs-backup-bucket"
SNAPSHOT_TAG = "backup-snapshot"
"""The tags by which AWS's migrate-ebs-data-backup and -sync know bucket and copy."""

_COPY = re.compile(r"(.+)_\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d/")


def copy_of_tags(session: Session) -> str:
    """The URL of the copy that this notebook's tags name; without one for the copy, its newest in the bucket.

    UsageError if there is none.
    """
    what = "find the copy that the notebook's tags name"
    notebook = read_notebook()
    if notebook is None:
        raise UsageError(what, "this machine is no notebook", "name it: s3://bucket/NotebookName_time/")
    tags = notebook_tags()
    bucket = tags.get(BUCKET_TAG, "")
    if not bucket:
        raise UsageError(what, f"it has no tag {BUCKET_TAG}", "name it: s3://bucket/NotebookName_time/")
    named = tags.get(SNAPSHOT_TAG, "").strip("/")
    if named:
        return f"{S3}{bucket}/{named}/"
    with place_at(session, f"{S3}{bucket}") as place:
        folders = place.objects.folders(f"{notebook.name}_")
    own = sorted(
        folder for folder in folders if (match := _COPY.fullmatch(folder)) and match[1] == notebook.name
    )
    if not own:
        why = f"it has no tag {SNAPSHOT_TAG}, and s3://{bucket} has no copy of {notebook.name}"
        raise UsageError(what, why, "name it: s3://bucket/NotebookName_time/")
    return f"{S3}{bucket}/{own[-1]}"


@contextmanager
def copy_in_bucket(
    session: Session, place: Place, owners: tuple[int, int], sidecar: str | None
) -> Iterator[SyncedCopy]:
    """The copy below a prefix. UsageError if there is nothing."""
    from smsnapd.engine.intake.copies import files_in_bucket
    from smsnapd.engine.intake.synced import SyncedCopy

    prefix = f"{place.key.rstrip('/')}/" if place.key else ""
    url = place.objects.url(prefix)
    if next(iter(place.objects.below(prefix)), None) is None:
        raise UsageError(f"import {url}", "there are no objects", "look with aws s3 ls")
    with ExitStack() as stack:
        named = sidecar
        if named is None and prefix and place.objects.find(prefix.rstrip("/") + SUFFIX) is not None:
            named = url.rstrip("/") + SUFFIX
        found = stack.enter_context(_sidecar(session, named)) if named is not None else None
        files = stack.enter_context(closing(files_in_bucket(place.objects, prefix)))
        yield SyncedCopy(files, found, *owners)


@contextmanager
def copy_in_directory(
    session: Session, source: str, owners: tuple[int, int], sidecar: str | None
) -> Iterator[SyncedCopy]:
    """The copy in a directory."""
    from smsnapd.engine.intake.copies import files_in_directory
    from smsnapd.engine.intake.synced import SyncedCopy

    path = Path(source).absolute()
    beside = path.with_name(path.name + SUFFIX)
    named = sidecar if sidecar is not None else str(beside) if beside.exists() else None
    with ExitStack() as stack:
        found = stack.enter_context(_sidecar(session, named)) if named is not None else None
        files = stack.enter_context(closing(files_in_directory(os.fsencode(path))))
        yield SyncedCopy(files, found, *owners)


@contextmanager
def _sidecar(session: Session, name: str) -> Iterator[Sidecar]:
    from smsnapd.engine.intake.synced import Sidecar
    from smsnapd.volume.archive.compress import Unpacked

    what = f"read the sidecar {name}"
    session.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        source: ByteSource = stack.enter_context(_bytes_of(session, name, what))
        found = Sidecar(Unpacked(source, "gzip", what), session.state_dir, what)
        stack.callback(found.close)
        yield found


@contextmanager
def _bytes_of(session: Session, name: str, what: str) -> Iterator[ByteSource]:
    from smsnapd.volume.archive.stream import FileSource

    if not name.startswith(S3):
        try:
            file = io.FileIO(name)
        except OSError as error:
            raise UsageError(what, error.strerror or str(error)) from error
        with closing(FileSource(file, what)) as source:
            yield source
        return
    with place_at(session, name) as place:
        found = place.objects.find(place.key)
        if found is None:
            raise UsageError(what, "there is no such object")
        with closing(place.objects.open(found)) as ranges:
            yield ranges
