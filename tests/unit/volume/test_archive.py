"""Archives taken apart: every dialect of GNU tar, compression and seals by the real tools, and damage."""

import contextlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.errors import DamageError, UsageError, WrongKeyError
from smsnapd.model import Kind
from smsnapd.volume.archive.compress import FORMATS, Packing, Unpacked, format_of
from smsnapd.volume.archive.members import EXTENDED_LIMIT, Member, TarReader
from smsnapd.volume.archive.opening import Seal, open_content
from smsnapd.volume.archive.openssl import Opened, Sealing
from smsnapd.volume.archive.paths import inside
from smsnapd.volume.archive.stream import Ahead, FileSource, Peekable
from smsnapd.volume.attributes import acl_text, acl_value

TOOLS = {
    "gzip": ["gzip"],
    "pigz": ["pigz"],
    "xz": ["xz", "-T2"],
    "lz4": ["lz4"],
    "zstd": ["zstd", "-q", "-T2"],
}
SAMPLE = bytes(1_500_000) + os.urandom(1_000_000) + b"text " * 400_000


def source(data: bytes) -> FileSource:
    return FileSource(io.BytesIO(data), "read it")


def everything(of: object) -> bytes:
    pieces = []
    while piece := of.read(1 << 20):  # type: ignore[attr-defined]
        pieces.append(piece)
    return b"".join(pieces)


def members(data: bytes) -> list[tuple[Member, bytes]]:
    reader = TarReader(Peekable(source(data)), "read it")
    return [(member, everything(reader)) for member in reader]


def run(*command: str, data: bytes = b"", place: Path | None = None) -> bytes:
    return subprocess.run(command, input=data, capture_output=True, check=True, cwd=place).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    (place / "d" / ("long" * 30)).mkdir(parents=True)
    (place / "plain").write_bytes(b"content" * 1000)
    (place / "d" / ("long" * 30) / ("name" * 20)).write_bytes(b"deep")
    os.link(place / "plain", place / "further")
    os.symlink("plain", place / "link")
    os.utime(place / "plain", ns=(1, 1_234_567_890_123_456_789))
    with open(place / "sparse", "wb") as file:
        for number in range(12):
            file.seek(number * 1_000_000)
            file.write(b"%d" % number * 5000)
        file.truncate(20_000_001)
    return place


@pytest.mark.parametrize(
    "options",
    [
        ["--format=v7"],
        ["--format=oldgnu", "--sparse"],
        ["--format=gnu", "--sparse"],
        ["--format=ustar"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=posix", "--sparse", "--hole-detection=raw"],
    ],
    ids=" ".join,
)
def test_every_dialect_of_gnu_tar(tree: Path, options: list[str]) -> None:
    names = ["plain", "further", "link", "sparse"]
    if options[0] not in ("--format=v7", "--format=ustar"):
        names.append("d")
    found = members(run("tar", *options, "-cf", "-", *names, place=tree))
    by_path = {member.path.rstrip(b"/"): (member, data) for member, data in found}
    assert by_path[b"plain"][1] == b"content" * 1000
    further = by_path[b"further"][0]
    assert (further.is_link, further.target) == (True, b"plain")
    assert (by_path[b"link"][0].kind, by_path[b"link"][0].target) == (Kind.SYMLINK, b"plain")
    sparse, data = by_path[b"sparse"]
    whole = bytearray(sparse.size)
    for offset, length in sparse.segments or [(0, sparse.size)]:
        whole[offset : offset + length], data = data[:length], data[length:]
    assert bytes(whole) == (tree / "sparse").read_bytes()
    assert (sparse.segments is not None) == ("--sparse" in options)
    if "d" in names:
        assert by_path[f"d/{'long' * 30}/{'name' * 20}".encode()][1] == b"deep"
    if "--format=posix" in options:
        assert by_path[b"plain"][0].mtime_ns == 1_234_567_890_123_456_789


def test_a_sparse_file_in_very_many_pieces(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        for number in range(3000):
            file.seek(number * 8192)
            file.write(b"x" * 4096)
    for version in ("0.1", "1.0"):
        ((member, data),) = members(
            run("tar", "-cf", "-", "-S", "--format=posix", f"--sparse-version={version}", "f", place=tmp_path)
        )
        assert member.segments is not None
        assert (len(member.segments), len(data)) == (3000, 3000 * 4096)
    ((member, _),) = members(run("tar", "-cf", "-", "-S", "--format=gnu", "f", place=tmp_path))
    assert member.segments is not None and len(member.segments) == 3000


def made(**fields: object) -> bytes:
    """A tarball of one member, by another implementation."""
    data = io.BytesIO()
    info = tarfile.TarInfo("name")
    content = fields.pop("content", b"")
    assert isinstance(content, bytes)
    info.size = len(content)
    for name, value in fields.items():
        setattr(info, name, value)
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_attributes_in_the_words_of_others() -> None:
    headers = {
        "SCHILY.xattr.user.a": "value", "SCHILY.xattr.user.b%3Dc": "x", "LIBARCHIVE.xattr.user.d%2Fe":
        "aGFsbG8", "SCHILY.acl.access": "user::rw-,user:nobody:r--:65534,group::r--,mask::r--,other::---",
        "RHT.security.selinux": "system_u", "LIBARCHIVE.xattr.user.bad": "!",
    }  # fmt: skip
    ((member, _),) = members(made(pax_headers=headers))
    found = dict(member.xattrs)
    assert found[b"user.a"] == b"value" and found[b"user.b=c"] == b"x" and found[b"user.d/e"] == b"hallo"
    assert found[b"security.selinux"] == b"system_u\0"
    assert "user:65534:r--" in acl_text(found[b"system.posix_acl_access"])
    assert len(member.lost) == 1 and "base64" in member.lost[0]


@given(
    st.lists(
        st.tuples(st.sampled_from([0x02, 0x08]), st.integers(0, 7), st.integers(0, 2**32 - 2)),
        max_size=5,
        unique_by=lambda entry: (entry[0], entry[2]),
    )
)
def test_an_acl_survives_its_text(named: list[tuple[int, int, int]]) -> None:
    entries = sorted(
        [(0x01, 6, 0xFFFFFFFF), (0x04, 4, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF), *named]
    )
    value = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + owner.to_bytes(4, "little")
        for tag, permissions, owner in entries
    )
    assert acl_value(acl_text(value)) == value
    assert acl_value(acl_text(value).replace("\n", ",")) == value


def test_large_numbers_and_times_before_the_epoch() -> None:
    data = io.BytesIO()
    info = tarfile.TarInfo("name")
    info.uid, info.gid, info.mtime = 4_000_000_000, 3_000_000_000, -1000
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(info)
    ((member, _),) = members(data.getvalue())
    assert (member.uid, member.gid, member.mtime_ns) == (4_000_000_000, 3_000_000_000, -1000 * 10**9)
    ((member, _),) = members(made(uid=4_000_000_000, mtime=-1.25))
    assert (member.uid, member.mtime_ns) == (4_000_000_000, -1_250_000_000)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 700, 1024])
def test_what_is_cut_off_says_so(size: int) -> None:
    whole = made(content=b"x" * 600)
    with pytest.raises(DamageError, match="cut off"):
        members(whole[:size])
    with pytest.raises(DamageError, match="cut off"):
        members(whole[:1536])  # all of the member, and no end mark


def test_huge_headers_are_refused_unread() -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = b"x", EXTENDED_LIMIT + 1
    with pytest.raises(DamageError, match="more than any needs"):
        members(header.tobuf(tarfile.USTAR_FORMAT))


@given(st.data())
def test_damage_is_damage_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(made(content=b"x" * 100, pax_headers={"comment": "y" * 50, "path": "z" * 200}))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DamageError):
        members(bytes(whole))


@pytest.mark.parametrize("tool", TOOLS)
def test_we_unpack_what_the_tools_pack(tool: str) -> None:
    packed = run(*TOOLS[tool], "-c", data=SAMPLE)
    format_ = format_of(packed)
    assert format_ == {"pigz": "gzip"}.get(tool, tool)
    assert everything(Unpacked(source(packed), format_, "read it")) == SAMPLE
    twice = packed + packed
    assert everything(Unpacked(source(twice), format_, "read it")) == SAMPLE + SAMPLE
    for cut in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(DamageError, match="cut off"):
            everything(Unpacked(source(packed[:cut]), format_, "read it"))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 1
    with pytest.raises(DamageError):
        everything(Unpacked(source(bytes(broken)), format_, "read it"))


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_unpack_what_we_pack(tool: str) -> None:
    for data in (b"", b"x", SAMPLE):
        packed = bytearray()
        packing = Packing(
            next(name for name in FORMATS if name == {"pigz": "gzip"}.get(tool, tool)), packed.extend
        )
        for start in range(0, len(data), 700_001):
            packing.write(memoryview(data)[start : start + 700_001])
        packing.finish()
        assert run(*TOOLS[tool][:1], "-dc", data=bytes(packed)) == data


@pytest.mark.parametrize("tool", ["gzip", "xz", "lz4", "zstd"])
def test_a_bomb_comes_out_piece_by_piece(tool: str) -> None:
    packed = run(*TOOLS[tool], "-c", data=bytes(40_000_000))
    unpacked = Unpacked(source(packed), format_of(packed), "read it")
    total, largest = 0, 0
    while piece := unpacked.read(1 << 20):
        total, largest = total + len(piece), max(largest, len(piece))
    assert total == 40_000_000 and largest <= 1 << 20


def openssl(*more: str, data: bytes, passphrase: Path) -> bytes:
    command = ("openssl", "enc", *more, "-aes-256-cbc", "-iter", "100000", "-pass", f"file:{passphrase}")
    return run(*command, data=data)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4_000_003])
def test_seals_of_openssl_both_ways(tmp_path: Path, size: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pass phrase with a space\n")
    data = os.urandom(size)
    sealed = openssl(data=data, passphrase=secret)
    assert (
        everything(Opened(Peekable(source(sealed)), b"pass phrase with a space", "read it", lambda _: True))
        == data
    )
    ours = bytearray()
    sealing = Sealing(ours.extend, b"pass phrase with a space")
    for start in range(0, size, 100_001):
        sealing.write(memoryview(data)[start : start + 100_001])
    sealing.finish()
    assert openssl("-d", data=bytes(ours), passphrase=secret) == data
    for cut in (len(sealed) - 1, len(sealed) - 16):
        if cut > 16:
            with pytest.raises(DamageError, match="cut off"):
                everything(
                    Opened(
                        Peekable(source(sealed[:cut])), b"pass phrase with a space", "read it", lambda _: True
                    )
                )


def test_what_it_is_is_found_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    tarball = made(content=b"content")
    sealed = openssl(data=run("pigz", "-c", data=tarball), passphrase=secret)
    content = open_content(source(sealed), "read it", Seal(b"right"))
    assert (content.kind, content.wrapping) == ("tar", ("openssl", "gzip"))
    assert everything(content.source) == tarball
    with pytest.raises(WrongKeyError, match="passphrase is wrong"):
        open_content(source(sealed), "read it", Seal(b"wrong"))
    with pytest.raises(UsageError, match="sealed with openssl"):
        open_content(source(sealed), "read it", None)
    for nothing in (b"", b"no archive at all", os.urandom(5000)):
        with pytest.raises(UsageError, match="neither a tarball nor an image"):
            open_content(source(nothing), "read it", None)
    assert open_content(source(bytes(10240)), "read it", None).kind == "tar"
    image = bytes(1080) + b"\x53\xef" + bytes(4000)
    assert open_content(source(image), "read it", None).kind == "image"


def test_what_is_read_ahead_fails_where_it_failed() -> None:
    class Failing:
        left = 3

        def read(self, size: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise DamageError("read it", "it broke")
            return b"x" * 10

        def close(self) -> None:
            pass

    ahead = Ahead(Failing(), "test")
    got = b"".join(ahead.read(10) for _ in range(3))
    assert got == b"x" * 30
    for _ in range(2):
        with pytest.raises(DamageError, match="it broke"):
            ahead.read(1)
    ahead.close()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a/b", b"a/b"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"./", b""),
        (b".", b""),
        (b"a//b/./c/", b"a/b/c"),
    ],
)
def test_names_inside(name: bytes, path: bytes) -> None:
    assert inside(name) == (path, "")


@pytest.mark.parametrize(
    "name", [b"..", b"../x", b"a/../b", b"a/..", b"x" * 256, b"a\0b", b"d/" * 40_000 + b"x"]
)
def test_names_that_are_none(name: bytes) -> None:
    path, why = inside(name)
    assert why and b".." not in path.split(b"/") and b"\0" not in path
