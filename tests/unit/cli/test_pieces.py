"""The small parts of verbs: paths, patterns, pairs, tables, key files, new files, comparisons."""

import os
from pathlib import Path

import pathspec
import pytest

from smsnapd.cli.check import data_part
from smsnapd.cli.comparison import describe, differences
from smsnapd.cli.destination import new_file
from smsnapd.cli.key_file import reserved
from smsnapd.cli.output import array, table
from smsnapd.cli.paths import volume_path
from smsnapd.cli.restore import user_pair
from smsnapd.daemon.protection import own_places
from smsnapd.errors import SmsnapError, TargetError, UsageError
from smsnapd.model import path_text

ROOT = Path("/home/me/SageMaker")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b", b"a/b"), ("./a//b/", b"a/b"), ("/a/b", b"a/b"), (".", b""), ("/", b""), ("", b""),
        ("./", b""), ("/home/me/SageMaker/a", b"a"), ("/home/me/SageMaker", b""),
        ("/home/me/SageMaker-2/a", b"home/me/SageMaker-2/a"), ("home/me/SageMaker/a", b"home/me/SageMaker/a"),
        ("...", b"..."), ("a..b", b"a..b"), (r"odd\xff\x0a", b"odd\xff\n"), ("ü", "ü".encode()),
        (os.fsdecode(b"raw\xfe"), b"raw\xfe"), (r"back\x5cslash", b"back\\slash"),
    ],
)  # fmt: skip
def test_paths(text: str, path: bytes) -> None:
    assert volume_path(text, ROOT) == path


def test_a_path_as_it_is_shown_means_itself() -> None:
    for path in (b"a\\xb", b"\xff/\n", "ü/\x85".encode(), b"sp ace/[x]*"):
        assert volume_path(path_text(path), ROOT) == path


@pytest.mark.parametrize("text", ["..", "a/../b", "/home/me/SageMaker/../x"])
def test_a_path_that_leaves(text: str) -> None:
    with pytest.raises(UsageError):
        volume_path(text, ROOT)


@pytest.mark.parametrize("text", ["500:1000", "alice:bob", "500:bob"])
def test_a_pair_of_users(text: str) -> None:
    assert user_pair(text) == tuple(text.split(":"))


@pytest.mark.parametrize("text", ["500", ":1000", "500:", ":", "1:2:3", ""])
def test_no_pair_of_users(text: str) -> None:
    with pytest.raises(UsageError, match="OLD:NEW"):
        user_pair(text)


def test_parts_of_the_data() -> None:
    assert data_part("1/1") == (1, 1)
    assert data_part("3/7") == (3, 7)
    for text in ("0/7", "8/7", "3", "3/", "a/b", "-1/2", "0/0", "1/1/1"):
        with pytest.raises(UsageError, match="N/T"):
            data_part(text)


def test_state_and_repository_in_the_volume_are_left_out(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    odd = volume / "s [1] #!*?\\ "
    odd.mkdir(parents=True)
    url = (volume / "back ups").as_uri()
    patterns = own_places(volume, odd / "state", url)
    spec = pathspec.GitIgnoreSpec.from_lines(patterns)
    assert spec.match_file("s [1] #!*?\\ /state/index.db")
    assert spec.match_file("back ups/repository")
    for path in ("s 1 #!*?\\ /state/x", "below/back ups/x", "s [1] #!*?\\ /other", "back ups 2/x"):
        assert not spec.match_file(path)


def test_state_and_repository_elsewhere_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    assert own_places(tmp_path / "volume", tmp_path / "state", (tmp_path / "volume-2").as_uri()) == ()
    assert own_places(tmp_path / "volume", tmp_path / "state", "s3://volume/x") == ()


def test_links_do_not_hide_the_state(tmp_path: Path) -> None:
    (tmp_path / "volume" / "state").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    assert own_places(tmp_path / "link", tmp_path / "volume" / "state", "s3://b") == ("/state/",)
    assert own_places(tmp_path / "volume", tmp_path / "link" / "state", "s3://b") == ("/state/",)


def test_a_repository_that_is_the_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="volume itself"):
        own_places(tmp_path, tmp_path.parent / "state", tmp_path.as_uri())


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    table(("ID", "SIZE"), [("a", "1"), ("bcd", "100 B")], frozenset({"SIZE"}))
    assert capsys.readouterr().out == "ID    SIZE\na        1\nbcd  100 B\n"


@pytest.mark.parametrize(("items", "text"), [([], "[]\n"), ([1, {"a": 2}], '[\n  1,\n  {"a": 2}\n]\n')])
def test_a_json_array(capsys: pytest.CaptureFixture[str], items: list[object], text: str) -> None:
    array(items)
    assert capsys.readouterr().out == text


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    os.umask(before := os.umask(0))
    assert before != 0
    with reserved(tmp_path / "key") as write:
        write("SMSNAP-WRITE-KEY-1-X")
    assert (tmp_path / "key").read_text() == "SMSNAP-WRITE-KEY-1-X\n"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("key", "link"):
        with pytest.raises(UsageError, match="exists"), reserved(tmp_path / name):
            raise AssertionError
    assert (tmp_path / "key").read_text() == "old"


def test_a_key_file_without_a_key_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(SmsnapError), reserved(tmp_path / "key"):
        raise SmsnapError("make the repository", "it failed")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TargetError, match="No such file"), reserved(tmp_path / "none" / "key"):
        raise AssertionError


def test_a_new_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    with new_file(path) as write:
        write(memoryview(b"one "))
        write(memoryview(b"two"))
        assert not path.exists()
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [SmsnapError("x", "y"), KeyboardInterrupt(), OSError(5, "Input/output error")]
)
def test_a_new_file_that_failed_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(BaseException) as caught, new_file(tmp_path / "out.tar") as write:
        write(memoryview(b"x"))
        raise error
    assert isinstance(caught.value, SmsnapError | KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    with pytest.raises(TargetError, match="File exists"), new_file(path):
        path.write_text("came in between")
    with pytest.raises(UsageError, match="exists"), new_file(path):
        raise AssertionError
    assert path.read_text() == "came in between"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No space left"), new_file(tmp_path / "out.tar") as write:
        # Whatever the file is, its descriptor now leads to a device without room.
        full = os.open("/dev/full", os.O_WRONLY)
        descriptor = next(
            int(name) for name in os.listdir("/proc/self/fd")
            if os.path.realpath(f"/proc/self/fd/{name}").endswith(".part")
        )  # fmt: skip
        os.dup2(full, descriptor)
        os.close(full)
        write(memoryview(bytes(1 << 20)))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        root = tmp_path / name
        (root / "d").mkdir(parents=True)
        (root / "f").write_text("text")
        os.link(root / "f", root / "d" / "g")
        (root / "l").symlink_to("f")
        with (root / "s").open("wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"x" * 4096)
        for path in (root / "f", root / "s", root / "l", root / "d", root):
            os.utime(path, ns=(1, 1_700_000_000_123_456_789), follow_symlinks=False)
    return tmp_path / "one", tmp_path / "two"


def test_equal_trees_have_no_difference(trees: tuple[Path, Path]) -> None:
    one, two = map(describe, trees)
    assert set(one) == {b"", b"d", b"d/g", b"f", b"l", b"s"}
    assert differences(one, two) == []


def _relink(root: Path) -> None:
    status = (root / "d").stat()
    (root / "d" / "g").unlink()
    (root / "d" / "g").write_text("text")
    os.utime(root / "d" / "g", ns=(1, 1_700_000_000_123_456_789))
    os.utime(root / "d", ns=(1, status.st_mtime_ns))


def _fill(root: Path) -> None:
    with (root / "s").open("r+b") as file:
        file.write(bytes(1 << 19))
    os.utime(root / "s", ns=(1, 1_700_000_000_123_456_789))


def _retarget(root: Path) -> None:
    (root / "l").unlink()
    (root / "l").symlink_to("g")
    os.utime(root / "l", ns=(1, 1_700_000_000_123_456_789), follow_symlinks=False)
    os.utime(root, ns=(1, 1_700_000_000_123_456_789))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda root: (root / "f").chmod(0o600), ["d/g: mode differs", "f: mode differs"]),
        (lambda root: os.utime(root / "d", ns=(1, 1_700_000_000_123_456_788)), ["d: mtime_ns differs"]),
        (_relink, ["d/g: links differs", "f: links differs"]),
        (_fill, ["s: data differs"]),
        (_retarget, ["l: target differs"]),
        (lambda root: os.setxattr(root / "s", "user.x", b"1"), ["s: xattrs differs"]),
    ],
)
def test_each_difference_is_found(trees: tuple[Path, Path], change, found: list[str]) -> None:
    one, two = trees
    change(two)
    assert differences(describe(one), describe(two)) == found


def test_missing_and_surplus_are_found(trees: tuple[Path, Path]) -> None:
    one, two = trees
    (two / "s").rename(two / "t\n")
    found = differences(describe(one), describe(two))
    assert {"s: missing", r"t\x0a: should not be there"} <= set(found)
