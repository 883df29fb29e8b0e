"""Files that stay open: what the kernel tells of them, and what only a look at everything finds."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tests.fault.daemon.daily import trial

pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.mark.parametrize("kind", ["fanotify", "inotify"])
def test_what_is_appended_to_a_file_that_is_never_closed_is_in_a_recovery_point(
    place: Path, kind: str
) -> None:
    with trial(place, kind, seed=1) as at:
        at.daemon.start()
        at.settle()
        with (at.notebook.volume / "log").open("w", buffering=1) as log:
            text = ""
            # Where the watcher has not caught up in time everything is looked at, which shows nothing here.
            while at.methods().count("events") < 3:
                assert len(text) < 200, "each was found by a look at everything"
                text += f"line {len(text)}\n"
                log.write(text.splitlines(keepends=True)[-1])
                at.daemon.holds("log", text)
        assert at.methods()[0] == "scan"


@pytest.mark.parametrize("kind", ["fanotify", "inotify"])
def test_what_is_stored_through_a_mapping_is_there_after_a_look_at_everything_or_its_end(
    place: Path, kind: str
) -> None:
    with trial(place, kind, seed=1) as at:
        file = at.notebook.volume / "mapped"
        file.write_bytes(b"." * 8192)
        at.daemon.start()
        at.settle()
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapping:
            mapping[:5] = b"first"
            at.settle()
            at.daemon.holds("mapped", "first" + "." * 8187)
            # The page is clean after that run, and dirty again after this.
            mapping[:6] = b"second"
            at.settle()
            at.daemon.holds("mapped", "second" + "." * 8186)
            mapping[:5] = b"third"
        at.daemon.holds("mapped", "thirdd" + "." * 8186)
        assert at.daemon.end() == 0
        at.daemon.is_whole()
