from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec.structs import replace

from smsnapd.errors import VolumeError
from smsnapd.model import BLOCK, CHUNK_TARGET, Entry, Extent, Flag, Kind, Segment, Xattr, join_path
from smsnapd.volume.attributes import Owners
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.tarball.header import header
from smsnapd.volume.tarball.read import HEADER, THIS_PACK, Packed, PackItem, PackReader, RangeRead
from smsnapd.volume.tree import Tree
from tests.unit.volume.ext4 import as_nobody, loop_ext4
from tests.unit.volume.test_tree import deep_directory

KEY = bytes(range(32))
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # vfs_cap_data: CAP_NET_RAW, effective
# In catalog order a directory's entries do not follow it directly: its time must be set at the end.
TAR = [
    "tar", "--xattrs", "--xattrs-include=*", "--acls", "-xp", "--numeric-owner", "--warning=no-timestamp",
    "--delay-directory-restore",
]  # fmt: skip


def items_of(tree: Tree) -> list[PackItem]:
    """All of the tree in catalog order, further names of an inode marked as such."""
    first: dict[int, bytes] = {}
    items = []
    for listing in scan(tree, Excludes(), ScanReport()):
        for entry in listing.entries:
            path = join_path(listing.directory, entry.name)
            item = PackItem(listing.directory, entry)
            linked = entry.links > 1 and entry.kind != Kind.DIRECTORY
            if linked and (target := first.setdefault(entry.inode, path)) != path:
                item = PackItem(listing.directory, replace(entry, flags=Flag.ALIAS, target=target))
            items.append(item)
    return items


def stream_of(reader: PackReader, items: list[PackItem]) -> Iterator[bytes]:
    """The tar stream of the items: their extents, joined, and the end marker."""
    buffer = bytearray(12 * 1024 * 1024)
    while items:
        _, results = reader.read_pack(items, buffer)
        for item, packed in zip(items, results, strict=False):
            assert packed.issue == "", item
            assert packed.entry is not None and packed.entry.header is not None
            for chunk, offset, length in (packed.entry.header, *packed.entry.content):
                assert chunk == THIS_PACK and offset % BLOCK == 0 and length % BLOCK == 0
                yield bytes(buffer[offset : offset + length])
        items = items[len(results) :]
    yield bytes(1024)


def reader_of(tree: Tree, owners: Owners | None = None) -> PackReader:
    return PackReader(tree, KEY, owners or Owners())


def item_of(tree: Tree, path: bytes) -> PackItem:
    return next(item for item in items_of(tree) if join_path(item.directory, item.entry.name) == path)


def read_one(root: Path, name: str, meddle: Callable[[], object] | None = None, **item: object) -> Packed:
    """Scan `name`, do something to it, and read it; checks that data and header agree."""
    with Tree(os.fsencode(root)) as tree:
        found = item_of(tree, os.fsencode(name))
        if meddle is not None:
            meddle()
        packed, _ = pack(reader_of(tree), found._replace(**item))  # type: ignore[arg-type]
        return packed


def pack(reader: PackReader, item: PackItem) -> tuple[Packed, bytes]:
    """Read one item into a buffer of rubbish; what became of it, and the bytes."""
    buffer = bytearray(b"\xaa" * (CHUNK_TARGET + (1 << 20)))
    used, [packed] = reader.read_pack([item], buffer)
    if packed.entry is not None:
        assert packed.entry.header is not None
        lengths = [
            packed.entry.header.length,
            *(extent[2] for extent in packed.entry.content if extent[0] < 0),
        ]
        assert used == sum(lengths)
    else:
        assert used == 0
    return packed, bytes(buffer[:used])


def fill(root: Path) -> None:
    """One of everything that a file system of Linux can hold."""
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "secret").write_bytes(b"s" * 513)
    (root / "d" / "secret").chmod(0)
    (root / "d" / "closed").mkdir(0)
    for mode in (0o4755, 0o2711, 0o1777, 0o6000):
        (root / f"mode-{mode:o}").write_bytes(b"m")
        os.chown(root / f"mode-{mode:o}", 1234, 4_000_000_000)
        (root / f"mode-{mode:o}").chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    for size in (0, 1, 511, 512, 513, 4096, 300_000):
        (root / f"size-{size}").write_bytes(os.urandom(size))
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "disk", 0o060660, os.makedev(259, 7))
    (root / "link").symlink_to("nowhere")
    (root / "long link").symlink_to("t/" * 1500 + "t")
    (root / "odd link").symlink_to(b"\xff\n".decode("utf-8", "surrogateescape"))
    os.link(root / "size-513", root / "d" / "size-513 again")
    os.link(root / "size-513", root / "a further name")
    os.link(root / "long link", root / "d" / "long link again", follow_symlinks=False)
    os.link(root / "fifo", root / "zz fifo")
    for name in (b"n\xff\xe9", "né".encode(), b"new\nline", b"-rf", b"=%\\", b"x" * 255, b"\x01", b" "):
        with open(os.fsencode(root) + b"/d/" + name, "wb") as file:
            file.write(name)
    deep = root / "/".join(["p" * 200] * 12)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")


def add_attributes(root: Path) -> None:
    (root / "attributes").write_bytes(b"x")
    for name, value in (("user.a=b%c", b"1\0\n="), ("user.empty", b""), ("trusted.t", b"\xff" * 2000)):
        os.setxattr(root / "attributes", name, value)
        os.setxattr(root / "d", name, value)
    os.setxattr(root / "size-1", "security.capability", CAPABILITY)
    os.setxattr(root / "fifo", "trusted.fifo", b"f")
    subprocess.run(["setfacl", "-m", "u:1000:r--,g:4000000000:rwx", root / "size-512"], check=True)
    subprocess.run(["setfacl", "-m", "u:77:--x", "-dm", "u:1000:rwx,g:5:r-x", root / "d"], check=True)
    (root / "d" / "inherits").write_bytes(b"")


def add_sparse(root: Path) -> None:
    for name, size, pieces in (
        ("hole", 1 << 20, []),
        ("hole small", 100, []),
        ("hole at end", 10 << 20, [(8192, 5000)]),
        ("hole at start", 70_536, [(65_536, 5000)]),
        ("holes", 5 << 20, [(0, 1), (1 << 20, 4096), (3 << 20, 70_000), ((5 << 20) - 1, 1)]),
        ("ü sparse", 1 << 20, [(4096, 4096)]),
    ):
        with open(root / name, "wb") as file:
            file.truncate(size)
            for offset, length in pieces:
                file.seek(offset)
                file.write(os.urandom(length))


def add_times(root: Path) -> None:
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(5, 1_700_000_000_000_000_000 + number * 1_000_000_007), follow_symlinks=False)
    for name, time_ns in (
        ("size-0", -1_500_000_000),
        ("size-1", 0),
        ("size-511", 5_000_000_000_000_000_009),
        ("d", 1),
        ("link", -1),
        ("sticky", 1_600_000_000 * 10**9),
    ):
        os.utime(root / name, ns=(5, time_ns), follow_symlinks=False)


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_gnu_tar_extracts_a_tree_with_everything(tmp_path: Path, locale: str) -> None:
    with loop_ext4(tmp_path, "volume") as source, loop_ext4(tmp_path, "target") as target:
        for add in (fill, add_attributes, add_sparse, add_times):
            add(source)
        with Tree(os.fsencode(source)) as tree:
            stream = b"".join(stream_of(reader_of(tree), items_of(tree)))
        extracted = subprocess.run(
            [*TAR, "-C", target], input=stream, check=True, capture_output=True,
            env={"LC_ALL": locale, "PATH": os.environ["PATH"]},
        )  # fmt: skip
        compared = subprocess.run(
            ["rsync", "-aHAXnci", "--numeric-ids", "--delete", "--modify-window=-1", f"{source}/", target],
            check=True, capture_output=True,
        )  # fmt: skip
        assert extracted.stderr == b""
        assert compared.stdout == b""
        for name in ("hole", "hole small", "hole at end", "holes"):
            assert (target / name).stat().st_blocks == (source / name).stat().st_blocks
        assert os.getxattr(target / "fifo", "trusted.fifo") == b"f"


def test_entries_are_complete(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "l").symlink_to("ü")
    os.setxattr(tmp_path / "f", "user.x", b"1")
    with Tree(os.fsencode(tmp_path)) as tree:
        items = items_of(tree)
        used, results = reader_of(tree).read_pack(items, bytearray(CHUNK_TARGET))
    root, file, link = (packed.entry for packed in results)
    assert root is not None and file is not None and link is not None
    assert file == replace(
        items[1].entry,
        xattrs=(Xattr(b"user.x", b"1"),),
        header=file.header,
        content=(Extent(THIS_PACK, file.header[1] + file.header[2], BLOCK),) if file.header else (),
        digest=blake3(b"12345", key=KEY).digest(16),
    )
    assert link == replace(items[2].entry, target="ü".encode(), header=link.header)
    assert link.header is not None and used == link.header.offset + link.header.length
    assert root.header == Extent(THIS_PACK, 0, file.header.offset) if file.header else False


def test_paths_beyond_path_max_are_stored(tmp_path: Path) -> None:
    path = deep_directory(tmp_path, 40)
    try:
        with Tree(os.fsencode(tmp_path)) as tree:
            stream = b"".join(stream_of(reader_of(tree), items_of(tree)))
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)
    listed = subprocess.run(["tar", "-tf", "-"], input=stream, check=True, capture_output=True)
    assert listed.stdout.splitlines()[-2:] == [path + b"/file", path + b"/link"]


class Meddler(Owners):
    """Does something each time after a file was looked at and before its content is read."""

    def __init__(self, meddle: Callable[[int], object]) -> None:
        super().__init__()
        self._meddle = meddle
        self.calls = 0

    def user(self, uid: int) -> bytes:
        self.calls += 1
        self._meddle(self.calls)
        return super().user(uid)


def meddled(root: Path, name: str, meddle: Callable[[int], object]) -> tuple[Packed, bytes, int]:
    meddler = Meddler(meddle)
    with Tree(os.fsencode(root)) as tree:
        packed, stored = pack(reader_of(tree, meddler), item_of(tree, os.fsencode(name)))
    return packed, stored, meddler.calls


def test_a_file_that_moves_once_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    packed, stored, calls = meddled(tmp_path, "f", lambda call: call == 1 and file.write_bytes(b"newer"))
    assert (packed.issue, calls) == ("", 2)
    assert packed.entry is not None and packed.entry.header is not None
    assert (packed.entry.size, packed.entry.flags) == (5, Flag.UNSETTLED)
    assert stored[packed.entry.header.length :] == b"newer".ljust(BLOCK, b"\0")


@pytest.mark.parametrize("growing", [True, False])
def test_a_file_that_keeps_moving_is_stored_and_flagged(tmp_path: Path, growing: bool) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"a" * 1000)

    def meddle(call: int) -> None:
        os.truncate(file, 1000 + 100 * call * (1 if growing else -1))

    packed, stored, calls = meddled(tmp_path, "f", meddle)
    assert (packed.issue, calls) == ("changed while read", 4)  # one quick try and three careful ones
    assert packed.entry is not None and packed.entry.flags & Flag.CHANGED
    size = 1300 if growing else 700
    data = stored[packed.entry.header[2] :] if packed.entry.header else b""
    assert packed.entry.size == size
    assert data == (b"a" * (1000 if growing else 600)).ljust(-(-size // BLOCK) * BLOCK, b"\0")
    assert packed.entry.digest == blake3(data[:size], key=KEY).digest(16)
    assert (
        f" {size} "
        in subprocess.run(
            ["tar", "-tvf", "-"], input=stored + bytes(1024), check=True, capture_output=True, text=False
        ).stdout.decode()
    )


def test_a_file_that_is_written_to_at_every_reading_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"a" * (6 << 20))
    readings = []
    read = os.preadv

    def read_and_write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = read(descriptor, buffers, offset)
        readings.append(count)
        with file.open("r+b") as other:
            other.write(b"b%d" % len(readings))
        # Clocks of files are coarse: let none of the writes hide within a tick.
        os.utime(file, ns=(0, len(readings)))
        return count

    monkeypatch.setattr(os, "preadv", read_and_write)
    packed = read_one(tmp_path, "f")
    assert len(readings) == 3
    assert packed.issue == "changed while read"
    assert packed.entry is not None and packed.entry.size == 6 << 20


def test_unsettled_stays_and_comes_with_a_new_ctime(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"a")
    (tmp_path / "d").mkdir()
    with Tree(os.fsencode(tmp_path)) as tree:
        for name in (b"f", b"d"):
            item = item_of(tree, name)
            flags = []
            for entry in (
                item.entry,
                replace(item.entry, flags=Flag.UNSETTLED),
                replace(item.entry, ctime_ns=1),
            ):
                packed, _ = pack(reader_of(tree), item._replace(entry=entry))
                assert packed.entry is not None
                flags.append(packed.entry.flags)
            assert flags == [0, Flag.UNSETTLED, Flag.UNSETTLED]


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        make(path)

    return change


def make_socket(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


MAKERS: dict[Kind, Callable[[Path], object]] = {
    Kind.REGULAR: lambda path: path.write_bytes(b"now a file"),
    Kind.DIRECTORY: Path.mkdir,
    Kind.SYMLINK: lambda path: path.symlink_to("now a link"),
    Kind.FIFO: os.mkfifo,
    Kind.TOMBSTONE: make_socket,
}


@pytest.mark.parametrize("now", list(MAKERS), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "before", [Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO], ids=lambda kind: kind.name
)
def test_what_became_another_kind_is_stored_as_what_it_is(tmp_path: Path, before: Kind, now: Kind) -> None:
    path = tmp_path / "x"
    MAKERS[before](path)
    packed = read_one(tmp_path, "x", lambda: replace_by(MAKERS[now])(path))
    if now == Kind.TOMBSTONE or (now == Kind.DIRECTORY and before != Kind.DIRECTORY):
        assert packed == Packed(None, "vanished")
        return
    assert packed.issue == ""
    assert packed.entry is not None and packed.entry.kind == now
    assert packed.entry.size == (10 if now in (Kind.REGULAR, Kind.SYMLINK) else 0)
    assert packed.entry.target == (b"now a link" if now == Kind.SYMLINK else b"")


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO])
def test_what_is_gone_is_vanished_and_the_others_are_stored(tmp_path: Path, kind: Kind) -> None:
    for name in ("a", "b", "c"):
        MAKERS[kind](tmp_path / name)
    with Tree(os.fsencode(tmp_path)) as tree:
        items = items_of(tree)
        (tmp_path / "b").rmdir() if kind == Kind.DIRECTORY else (tmp_path / "b").unlink()
        _, results = reader_of(tree).read_pack(items, bytearray(CHUNK_TARGET))
    assert [packed.issue for packed in results] == ["", "", "vanished", ""]


def test_a_directory_swapped_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    for name in ("a", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(name.encode())

    def swap() -> None:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").symlink_to("elsewhere")

    with Tree(os.fsencode(tmp_path)) as tree:
        item = item_of(tree, b"a/f")
        swap()
        tree.forget()
        assert pack(reader_of(tree), item)[0] == Packed(None, "vanished")


def test_a_directory_replaced_by_another_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"old")
    with Tree(os.fsencode(tmp_path)) as tree:
        item = item_of(tree, b"a/f")
        (tmp_path / "a" / "f").unlink()
        (tmp_path / "a").rmdir()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f").write_bytes(b"newer")
        packed, _ = pack(reader_of(tree), item)
    assert packed.entry is not None and (packed.entry.size, packed.issue) == (5, "")


@pytest.mark.root
def test_what_may_not_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o600)
    (tmp_path / "d").mkdir(0o700)
    os.setxattr(tmp_path / "d", "user.x", b"1")
    tmp_path.chmod(0o755)
    with Tree(os.fsencode(tmp_path)) as tree:
        items = items_of(tree)
        with as_nobody():
            _, [_, directory, file] = reader_of(tree).read_pack(items, bytearray(CHUNK_TARGET))
    assert file == Packed(None, f"unreadable: {os.strerror(errno.EACCES)}")
    assert directory.issue == f"unreadable: {os.strerror(errno.EACCES)}"
    assert directory.entry is not None and directory.entry.mode == 0o700


def test_the_same_content_is_not_stored_again(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"same" * 1000)
    kept = (Extent(7, 4096, 4096),)
    with Tree(os.fsencode(tmp_path)) as tree:
        item = item_of(tree, b"f")
        reader = reader_of(tree)
        first, whole = pack(reader, item)
        assert first.entry is not None
        previous = replace(first.entry, content=kept, mode=0o777, mtime_ns=5)
        again, stored = pack(reader, item._replace(previous=previous))
        assert again.entry is not None and again.entry.header is not None
        assert again.entry == replace(first.entry, content=kept)
        assert stored == whole[: again.entry.header.length]
        for other in (
            replace(previous, digest=b""),
            replace(previous, digest=bytes(16)),
            replace(previous, size=3999),
            replace(previous, content=()),
            replace(previous, kind=Kind.SYMLINK),
            replace(previous, segments=(Segment(0, 4000),)),
        ):
            assert pack(reader, item._replace(previous=other)) == (first, whole)


def test_an_empty_file_has_no_content_whatever_was_before(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    packed = read_one(tmp_path, "f", previous=Entry(b"f", Kind.REGULAR, content=(Extent(1, 0, 512),)))
    assert packed.entry is not None and packed.entry.content == ()


def test_the_place_of_data_counts_in_the_digest_of_a_sparse_file(tmp_path: Path) -> None:
    digests = set()
    for offset in (0, 8192, 65_536):
        with open(tmp_path / "f", "wb") as file:
            file.truncate(1 << 20)
            file.seek(offset)
            file.write(b"x" * 4096)
        packed = read_one(tmp_path, "f")
        assert packed.entry is not None and packed.entry.flags & Flag.SPARSE
        assert packed.entry.segments == (Segment(offset, 4096),)
        digests.add(packed.entry.digest)
    assert len(digests) == 3


def test_a_file_that_grew_large_is_left_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert read_one(tmp_path, "f", lambda: os.truncate(tmp_path / "f", 1 << 40)).issue == ""
    (tmp_path / "g").write_bytes(b"x" * (CHUNK_TARGET - 1))
    assert read_one(tmp_path, "g").issue == ""
    with (tmp_path / "g").open("ab") as file:
        file.write(b"x")
    assert read_one(tmp_path, "g") == Packed(None, "large")


def test_a_full_buffer_leaves_the_rest_for_another_call(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * 3000)
    with Tree(os.fsencode(tmp_path)) as tree:
        items, reader, buffer = items_of(tree), reader_of(tree), bytearray(10_000)
        whole = b"".join(stream_of(reader, items))
        joined, counts = b"", []
        while items:
            used, results = reader.read_pack(items, buffer)
            joined += buffer[:used]
            counts.append(len(results))
            items = items[len(results) :]
        assert joined + bytes(1024) == whole
        assert counts == [2, 2, 2, 2, 2, 1]


def test_what_no_buffer_can_hold_is_named_and_the_others_are_stored(tmp_path: Path) -> None:
    for name, size in ((b"f1", 100), (b"f2", 3000), (b"f3", 100)):
        (tmp_path / os.fsdecode(name)).write_bytes(bytes(size))
    with Tree(os.fsencode(tmp_path)) as tree:
        rest = [item_of(tree, name) for name in (b"f1", b"f2", b"f3")]
        results: list[Packed] = []
        while rest:
            _, packed = reader_of(tree).read_pack(rest, bytearray(4000))
            results += packed
            rest = rest[len(packed) :]
    assert [packed.entry is not None for packed in results] == [True, False, True]
    assert results[1].issue == "unreadable: it needs more than 4000 bytes"


def test_a_complete_entry_needs_no_file(tmp_path: Path) -> None:
    gone = Entry(
        b"gone", Kind.REGULAR, 0, 0o644, 0, 0, 700, 5, 6, 7, xattrs=(Xattr(b"user.x", b"1"),),
        content=(Extent(3, 0, 1024),), digest=b"d" * 16,
    )  # fmt: skip
    with Tree(os.fsencode(tmp_path)) as tree:
        packed, stored = pack(reader_of(tree), PackItem(b"new/place", gone, mode=HEADER))
    assert packed == Packed(replace(gone, header=Extent(THIS_PACK, 0, len(stored))), "")
    assert stored == header(b"new/place/gone", gone, b"root", b"root")


def test_an_alias_of_another_inode_is_stored_as_scanned_and_flagged(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.link(tmp_path / "a", tmp_path / "b")
    with Tree(os.fsencode(tmp_path)) as tree:
        item, reader = item_of(tree, b"b"), reader_of(tree)
        os.chmod(tmp_path / "a", 0o600)
        packed, _ = pack(reader, item)
        assert packed.entry is not None and packed.issue == ""
        assert (packed.entry.mode, packed.entry.target, packed.entry.content) == (0o600, b"a", ())
        assert packed.entry.flags == Flag.ALIAS | Flag.UNSETTLED
        (tmp_path / "c").write_bytes(b"another")
        (tmp_path / "c").rename(tmp_path / "b")
        packed, _ = pack(reader, item)
        assert packed.issue == "changed while read"
        assert packed.entry is not None and packed.entry.flags == Flag.ALIAS | Flag.CHANGED
        (tmp_path / "b").unlink()
        assert pack(reader, item)[0] == Packed(None, "vanished")


def large_file(path: Path) -> bytes:
    data = os.urandom(1 << 20) * 20 + b"end"
    path.write_bytes(data)
    return data


def test_a_large_file_is_read_by_ranges(tmp_path: Path) -> None:
    data = large_file(tmp_path / "f")
    with Tree(os.fsencode(tmp_path)) as tree:
        reader, buffer = reader_of(tree), bytearray(b"\xaa" * CHUNK_TARGET)
        entry, issue = reader.inspect(b"f", item_of(tree, b"f").entry)
        assert entry is not None and (entry.size, issue) == (len(data), "")
        joined = b""
        for start in range(0, entry.size, CHUNK_TARGET):
            used, issue = reader.read_range(b"f", entry, start, start + CHUNK_TARGET, buffer)
            assert (used % BLOCK, issue) == (0, "")
            joined += buffer[:used]
        assert joined == data + bytes(-len(data) % BLOCK)
        with pytest.raises(VolumeError, match="more than 4096 bytes"):
            reader.read_range(b"f", entry, 0, 4097, bytearray(4096))


def test_a_large_sparse_file_gives_its_data_alone(tmp_path: Path) -> None:
    pieces = ((0, 4096), (CHUNK_TARGET - 4096, 12_288), (1 << 33, 4096), ((1 << 34) - 10, 10))
    with open(tmp_path / "f", "wb") as file:
        for number, (offset, length) in enumerate(pieces):
            file.seek(offset)
            file.write(bytes([65 + number]) * length)
    with Tree(os.fsencode(tmp_path)) as tree:
        reader, buffer = reader_of(tree), bytearray(b"\xaa" * CHUNK_TARGET)
        entry, _ = reader.inspect(b"f", item_of(tree, b"f").entry)
        assert entry is not None and entry.flags == Flag.SPARSE
        assert entry.segments == (*(Segment(*piece) for piece in pieces[:3]), Segment((1 << 34) - 4096, 4096))
        ranges = {}
        for start in range(0, entry.size, CHUNK_TARGET):
            used, issue = reader.read_range(b"f", entry, start, start + CHUNK_TARGET, buffer)
            assert issue == ""
            if used:
                ranges[start] = bytes(buffer[:used])
    assert ranges == {
        0: b"A" * 4096 + b"B" * 4096,
        CHUNK_TARGET: b"B" * 8192,
        1 << 33: b"C" * 4096,
        (1 << 34) - CHUNK_TARGET: bytes(4086) + b"D" * 10,
    }


def test_a_large_file_that_moves_is_marked(tmp_path: Path) -> None:
    data = large_file(tmp_path / "f")
    with Tree(os.fsencode(tmp_path)) as tree:
        reader, buffer = reader_of(tree), bytearray(b"\xaa" * CHUNK_TARGET)
        scanned = item_of(tree, b"f").entry
        entry, _ = reader.inspect(b"f", scanned)
        assert entry is not None
        os.truncate(tmp_path / "f", CHUNK_TARGET + 5)
        result = reader.read_range(b"f", entry, CHUNK_TARGET, 2 * CHUNK_TARGET, buffer)
        assert result == RangeRead(CHUNK_TARGET, "changed while read")
        assert buffer == data[CHUNK_TARGET : CHUNK_TARGET + 5] + bytes(CHUNK_TARGET - 5)
        (tmp_path / "f").unlink()
        assert reader.read_range(b"f", entry, 0, 512, buffer) == RangeRead(0, "vanished")
        assert reader.inspect(b"f", scanned) == Packed(None, "vanished")
        os.mkfifo(tmp_path / "f")
        assert reader.read_range(b"f", entry, 0, 512, buffer) == RangeRead(0, "vanished")
        assert reader.inspect(b"f", scanned) == Packed(None, "vanished")


def test_a_file_in_very_many_pieces_is_stored_in_coarser_ones(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        for number in range(33_000):
            os.pwrite(file.fileno(), b"x", number * 8192)
        size = file.seek(0, 2)
    with Tree(os.fsencode(tmp_path)) as tree:
        entry, _ = reader_of(tree).inspect(b"f", item_of(tree, b"f").entry)
    assert entry is not None
    # All holes are smaller than the coarser step, so nothing is left of them but the plain file.
    assert entry.segments == () and not entry.flags & Flag.SPARSE and entry.size == size
