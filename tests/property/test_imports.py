"""A tree with everything, through GNU tar and an import: what restores is what GNU tar extracts."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.engine.intake.run import ImportRequest, run_import
from smsnapd.engine.progress import Silent
from smsnapd.store import StoreSettings
from smsnapd.volume.archive.members import TarReader
from smsnapd.volume.archive.stream import FileSource, Peekable
from tests.property.faithful_tree import DEEP, MOUNTS, SOCKET, faithful_tree
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected
from tests.property.test_faithful import rsync_differences

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]
FORMS = ["posix", "gnu"] if os.environ.get("SMSNAP_LONG") else ["posix"]
TAR = ("tar", "--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")


@pytest.mark.parametrize("form", FORMS)
def test_an_import_is_what_tar_extracts(new_directory: Callable[[], Path], form: str) -> None:
    place = new_directory()
    root, extracted, archive = place / "volume", place / "extracted", place / "all.tar"
    for directory in (root, extracted):
        directory.mkdir()
    left_out = [f"--exclude=./{name.decode()}" for name in (DEEP, SOCKET, *MOUNTS)]
    protected = Protected.create(root, place / "state", StoreSettings((place / "repository").as_uri()))
    tar = TAR if form == "posix" else TAR[:1]  # GNU's own format has no place for attributes
    with faithful_tree(root):
        made = subprocess.run(
            [*tar, "--numeric-owner", f"--format={form}", "-S", *left_out, "-C", root, "-cf", archive, "."],
            capture_output=True,
            check=False,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        subprocess.run([*TAR, "-C", extracted, "-xpf", archive], check=True)
    with protected.repository(write_key=True) as repository, open(archive, "rb", buffering=0) as file:
        request = ImportRequest(VOLUME, str(archive), place / "state", 0, 0)
        arrivals = TarReader(Peekable(FileSource(io.FileIO(file.fileno(), closefd=False), "read")), "read")
        outcome = run_import(repository, request, arrivals, Silent())
    assert outcome.left_out == ()
    assert not protected.restore(place / "restored", outcome.snapshot.id).not_restored
    assert differences(observe(extracted), observe(place / "restored")) == []
    assert rsync_differences(extracted, place / "restored") == ""
    protected.extract(place / "again", outcome.snapshot.id)
    assert rsync_differences(extracted, place / "again") == ""
    assert protected.check().findings == ()
