"""The directory store when disks are full, read-only, missing, and after crashes."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.disk import sync_file_system
from smsnapd.errors import ObjectExistsError, ObjectMissingError, StoreError
from smsnapd.store import open_store
from smsnapd.store.base import StoreSettings
from smsnapd.store.directory import DirectoryStore

MIB = 1024 * 1024


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def store_in(root: Path, **more: object) -> DirectoryStore:
    return DirectoryStore(os.fsencode(root), **more)  # type: ignore[arg-type]


@contextlib.contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount needs root")


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("how", ["size=1m", "nr_inodes=14"])
def test_a_full_disk(tmp_path: Path, how: str) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", how, "none"):
        store = store_in(disk / "root")
        store.put("a/first", b"x")
        before = files_below(disk)
        with pytest.raises(StoreError) as caught:
            for number in range(9):
                store.put(f"b{number}/c/d", b"x" * (2 * MIB if how.startswith("size") else 1))
                before = files_below(disk)
        assert not caught.value.transient
        assert "full" in caught.value.hint
        assert files_below(disk) == before
        assert store.get("a/first") == b"x"
        if how.startswith("size"):
            version = store.replace("lease", b"mine", None)
            with pytest.raises(StoreError, match="full"):
                store.replace("lease", b"x" * 2 * MIB, version)
            assert store.get_versioned("lease") == (b"mine", version)
            store.put("b/small", b"fits")
        store.close()


@pytest.mark.root
@needs_root
def test_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    store = store_in(tmp_path / "disk/root")
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "none"):
        store.put("a/one", b"x")
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        store = store_in(disk / "root")
        assert store.get("a/one") == b"x"
        assert [info.name for info in store.list("")] == ["a/one"]
        for call in (lambda: store.put("a/two", b"y"), lambda: store.delete("a/one")):
            with pytest.raises(StoreError, match="remount") as caught:
                call()
            assert not caught.value.transient
        store.close()


@pytest.mark.root
@needs_root
def test_no_access(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store_in(root).put("a/one", b"x")
    tmp_path.chmod(0o711)
    code = f"""if True:
        import os
        from smsnapd.store.directory import DirectoryStore
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        DirectoryStore({os.fsencode(root)!r}).get("a/one")
    """
    where = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr or "init_fs_encoding" in done.stderr:
        pytest.skip("this Python is closed to other users")
    assert "DeniedError" in done.stderr
    assert "Permission denied" in done.stderr
    assert "give the user that smsnapd runs as" in done.stderr


def test_a_missing_parent_is_not_made(tmp_path: Path) -> None:
    store = store_in(tmp_path / "disk" / "root")
    assert list(store.list("")) == []
    store.delete("a")
    store.barrier()
    with pytest.raises(ObjectMissingError):
        store.get("a")
    with pytest.raises(StoreError, match="mount"):
        store.put("a", b"x")
    with pytest.raises(StoreError, match="mount"):
        store.replace("a", b"x", None)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_disk_that_is_not_mounted_is_told(tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    store = store_in(tmp_path / "root")
    assert list(store.list("")) == []
    for put in (lambda: store.put("a", b"x"), lambda: store.replace("a", b"x", None)):
        with pytest.raises(StoreError, match=f"symbolic link is there, to {tmp_path}/disk") as caught:
            put()
        assert "mount" in caught.value.hint
    (tmp_path / "disk").mkdir()
    store.put("a", b"x")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"
    store.close()


def test_reading_makes_nothing(tmp_path: Path) -> None:
    store = store_in(tmp_path / "root")
    assert list(store.list("")) == []
    store.barrier()
    store.delete("a/b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    with pytest.raises(StoreError):
        store_in(tmp_path / "root").put("a", b"x")
    store = store_in(tmp_path)
    store.put("a", b"x")
    with pytest.raises(StoreError):
        store.put("a/b", b"x")
    store.put("d/e", b"x")
    with pytest.raises(ObjectExistsError):
        store.put("d", b"x")
    assert files_below(tmp_path) == {"a", "d/e", "root"}


def test_a_removed_root_is_not_made_anew(tmp_path: Path) -> None:
    store = store_in(tmp_path / "root")
    store.put("a", b"x")
    (tmp_path / "root").rename(tmp_path / "moved")
    store.put("b", b"x")
    assert not (tmp_path / "root").exists()
    assert files_below(tmp_path / "moved") == {"a", "b"}
    store.close()


def test_modes(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = store_in(tmp_path / "root")
        store.put("volumes/v/chunks/x", b"x")
        store.replace("volumes/v/lease", b"x", None)
    finally:
        os.umask(old)
    for path in (tmp_path / "root", *(tmp_path / "root").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    store.close()


def test_leftovers_of_a_day_are_removed(tmp_path: Path) -> None:
    store_in(tmp_path).replace("lease", b"x", None)
    old, young = "0a" * 12, "1b" * 12
    for name, age_s in ((old, 90_000), (young, 80_000), ("lock", 90_000), ("somebody-else's", 90_000)):
        path = tmp_path / "tmp" / name
        path.write_bytes(b"half")
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
    store = store_in(tmp_path, clock=lambda: 1e9)
    assert [info.name for info in store.list("")] == ["lease"]
    assert (tmp_path / "tmp" / old).exists()
    store.put("a", b"x")
    assert files_below(tmp_path) == {"a", "lease", f"tmp/{young}", "tmp/lock", "tmp/somebody-else's"}
    store.close()


def test_where_somebody_made_tmp_lead_nothing_is_removed(tmp_path: Path) -> None:
    victim, root = tmp_path / "victim", tmp_path / "root"
    victim.mkdir()
    root.mkdir()
    for name in ("passwd", "0a" * 12):
        (victim / name).write_bytes(b"precious")
        os.utime(victim / name, (1, 1))
    (root / "tmp").symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link") as caught:
        store_in(root).put("a", b"x")
    assert not caught.value.transient
    assert files_below(victim) == {"passwd", "0a" * 12}


def test_a_lock_that_leads_elsewhere_is_not_made_there(tmp_path: Path) -> None:
    (tmp_path / "root/tmp").mkdir(parents=True)
    (tmp_path / "root/tmp/lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="symbolic link"):
        store_in(tmp_path / "root").replace("lease", b"x", None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_killed_put_leaves_no_object(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal
        from smsnapd.store import directory
        os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        directory.DirectoryStore({os.fsencode(tmp_path)!r}).put("a/one", b"x")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    store = store_in(tmp_path)
    assert list(store.list("")) == []
    assert len(files_below(tmp_path)) == 1
    store.put("a/one", b"other")
    assert store.get("a/one") == b"other"
    store.close()


def test_other_files_are_not_objects(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    root = tmp_path / "root"
    store = store_in(root)
    store.put("a/one", b"x")
    (root / "a" / "link").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    (root / "a" / "with space").write_bytes(b"")
    os.mkfifo(root / "a" / "fifo")
    assert [info.name for info in store.list("")] == ["a/one"]
    assert list(store.list("linked/")) == []
    with pytest.raises(StoreError):
        store.get("a/link")
    with pytest.raises(ObjectMissingError):
        store.get("a/fifo")
    store.close()


def test_one_directory_is_open_at_a_time(tmp_path: Path) -> None:
    store = store_in(tmp_path / "root")
    for number in range(30):
        store.put(f"{number:02}/x/y", b"")
    before = len(os.listdir("/proc/self/fd"))
    listing = store.list("")
    next(listing)
    assert len(os.listdir("/proc/self/fd")) == before
    listing.close()  # type: ignore[attr-defined]
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_objects_other_than_chunks_are_synced_before_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync, real_link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(
        os, "link", lambda a, b, **more: (order.append(f"link {b}"), real_link(a, b, **more))[1]
    )
    store = store_in(tmp_path)
    (tmp_path / "volumes/v/chunks/aa").mkdir(parents=True)
    (tmp_path / "volumes/v/manifests").mkdir(parents=True)
    store.put("volumes/v/chunks/aa/x", b"x")
    store.put("volumes/v/manifests/x", b"x")
    assert order == ["link volumes/v/chunks/aa/x", "fsync", "link volumes/v/manifests/x"]
    store.close()


def test_barrier_reports_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    store.put("a", b"x")
    store.barrier()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_file_system(-1)

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("smsnapd.store.directory.sync_file_system", failing)
    with pytest.raises(StoreError, match="disk reports errors") as caught:
        store.barrier()
    assert not caught.value.transient
    store.close()


def test_threads_may_open_at_the_same_time(tmp_path: Path) -> None:
    store = open_store(StoreSettings((tmp_path / "root").as_uri()))
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        store.put(f"a/{number}", b"x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.list("a/"))) == 8
    store.close()
