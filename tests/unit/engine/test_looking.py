"""Looking into a recovery point: lists, contents of single files, and the order of an export."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from smsnapd.engine.export import tar_order
from smsnapd.engine.history import History
from smsnapd.engine.lookback.browse import list_entries, open_file
from smsnapd.engine.lookback.live import LiveVolume
from smsnapd.engine.trees.placed import placed_tree
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import UsageError
from smsnapd.model import Entry, Extent, Kind, Listing
from smsnapd.store.memory import open_memory
from smsnapd.volume.scan import Excludes
from tests.fault.faulty import FaultyStore
from tests.property.protected import VOLUME, Protected, fill

MIB = 1024 * 1024


@pytest.fixture
def look(protected: Protected) -> Callable[..., list[bytes]]:
    """`look(path, recursive)`: the paths listed."""

    def listed(path: bytes, recursive: bool = False) -> list[bytes]:
        with protected.repository() as repository:
            history = History.load(repository, VOLUME)
            tree = SnapshotTree(repository, history.chain(history.find("latest").id))
            entries = list_entries(tree, path, recursive)
            return [here for here, _ in entries]

    return listed


def content(protected: Protected, path: bytes) -> bytes:
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        tree = SnapshotTree(repository, history.chain(history.find("latest").id))
        return b"".join(open_file(tree, path))


def test_a_directory_is_listed_and_what_is_below_if_asked(
    protected: Protected, look: Callable[..., list[bytes]]
) -> None:
    root = protected.root
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d.x").mkdir()
    for name in ("a", "d/x", "d/deep/y", "d.x/z"):
        (root / name).write_bytes(b"content")
    protected.backup()
    assert look(b"") == [b"a", b"d", b"d.x"]
    assert look(b"d") == [b"d/deep", b"d/x"]
    assert look(b"d", True) == [b"d/deep", b"d/x", b"d/deep/y"]
    assert look(b"", True) == [b"a", b"d", b"d.x", b"d/deep", b"d/x", b"d/deep/y", b"d.x/z"]
    assert look(b"d/x") == look(b"d/x", True) == [b"d/x"]
    assert look(b"d.x") == [b"d.x/z"]
    for path in (b"nothing", b"d/x/y", b"d/"):
        with pytest.raises(UsageError, match="no such path"):
            look(path)


def test_contents_come_whole_whatever_the_file(protected: Protected) -> None:
    root = protected.root
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(b"small")
    (root / "large").write_bytes(os.urandom(17 * MIB + 3))
    with (root / "sparse").open("wb") as file:
        for position in (5 * MIB, 9 * MIB + 4096, 30 * MIB):
            os.pwrite(file.fileno(), os.urandom(4096), position)
        file.truncate(33 * MIB + 1)
    with (root / "sparse-large").open("wb") as file:
        os.pwrite(file.fileno(), os.urandom(10 * MIB), 3 * MIB)
        os.pwrite(file.fileno(), os.urandom(10 * MIB), 23 * MIB)
    (root / "hole").touch()
    os.truncate(root / "hole", 3 * MIB + 1)
    (root / "d").mkdir()
    os.link(root / "large", root / "d" / "link")
    (root / "symlink").symlink_to("small")
    protected.backup()
    for name in ("empty", "small", "large", "sparse", "sparse-large", "hole", "d/link"):
        assert content(protected, name.encode()) == (root / name).read_bytes(), name
    for name in (b"d", b"symlink", b""):
        with pytest.raises(UsageError, match="no regular file"):
            content(protected, name)
    with pytest.raises(UsageError, match="no such path"):
        content(protected, b"d/nothing")


def test_in_an_export_all_of_a_directory_is_in_one_piece() -> None:
    header = Extent(0, 0, 512)

    def listing(above: bytes, *names: str) -> Listing:
        """Directories end with a slash."""
        kinds = [Kind.DIRECTORY if name.endswith("/") or not name else Kind.REGULAR for name in names]
        plain = [name.rstrip("/").encode() for name in names]
        return Listing(above, [Entry(n, k, header=header) for n, k in zip(plain, kinds, strict=True)])

    listings = [
        listing(b"", "", "a/", "b", "c/", "d/", "e/"),
        listing(b"a", "x", "y/"),
        listing(b"a/y", "z"),
        listing(b"d", "w/"),
    ]
    names = [entry.name.decode() for entry in tar_order(listings)]
    assert names == ["", "b", "a", "x", "y", "z", "c", "d", "w", "e"]


def test_what_was_left_out_on_purpose_is_no_change(protected: Protected) -> None:
    for name in ("kept", "left/deep"):
        (protected.root / name).mkdir(parents=True)
        (protected.root / name / "file").write_text("x")
    protected.backup(exclude=("/left/",))
    with protected.repository() as repository, closing(LiveVolume(bytes(protected.root), Excludes())) as live:
        history = History.load(repository, VOLUME)
        stored = placed_tree(SnapshotTree(repository, history.chain(history.names[-1].snapshot)))
        found = [path for path, before, after in live.pairs(stored, {b"left"}) if before is None]
        assert found == []
        stored = placed_tree(SnapshotTree(repository, history.chain(history.names[-1].snapshot)))
        found = [path for path, before, after in live.pairs(stored) if before is None]
        assert found == [b"left", b"left/deep", b"left/deep/file"]


def test_one_file_as_it_was_costs_its_chunk_and_the_catalogs(protected: Protected, tmp_path: Path) -> None:
    fill(protected.root, 60, 400_000)
    (protected.root / "wanted").write_bytes(b"first")
    protected.backup(attach=False)
    for number in range(5):
        (protected.root / "wanted").write_bytes(b"later %d" % number)
        protected.backup(attach=False)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    watched = FaultyStore(store, lambda call: None)
    second = protected.snapshots()[1].id
    protected.restore(tmp_path / "target", second, store=watched, paths=(b"wanted",))
    assert (tmp_path / "target" / "wanted").read_bytes() == b"later 0"
    chunks = [call.name for call in watched.calls if call.method == "get" and "/chunks/" in call.name]
    assert len(chunks) == 1
    manifests = [call.name for call in watched.calls if call.method == "get" and "/manifests/" in call.name]
    assert len(manifests) == 2
