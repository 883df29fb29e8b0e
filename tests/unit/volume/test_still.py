from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import find_mount
from smsnapd.volume.still import held_read_only
from tests.unit.volume.ext4 import loop_ext4

pytestmark = [pytest.mark.root, pytest.mark.loop]

HOLDER = """
import sys, time
from smsnapd.volume.still import held_read_only
with held_read_only(sys.argv[1].encode(), float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(1000)
"""
PATIENCE_S = 60.0


def is_writable(point: Path) -> bool:
    try:
        (point / "probe").touch()
    except OSError:
        return False
    return True


def wait_until_writable(point: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_writable(point):
        assert time.monotonic() < deadline, "it stayed read-only"
        time.sleep(0.02)


def hold_elsewhere(point: Path, limit_s: float = 1000) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(point), str(limit_s)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_the_guardian_is_told_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSNAP_PASSPHRASE", "correct horse")
    with loop_ext4(tmp_path, "volume") as point, held_read_only(os.fsencode(point)):
        (children,) = Path("/proc/self/task").glob(f"{os.getpid()}/children")
        told = [Path(f"/proc/{child}/environ").read_bytes() for child in children.read_text().split()]
    assert told and not any(b"correct horse" in environment for environment in told)


def test_nothing_can_be_written_inside_and_options_stay(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume", "loop,nosuid,noexec,noatime,lazytime") as point:
        before = find_mount(os.fsencode(point))
        (point / "d").mkdir()
        with held_read_only(os.fsencode(point / "d")) as mount:
            assert mount == before
            assert not is_writable(point)
            during = find_mount(os.fsencode(point))
            assert set(during.options) == set(before.options) - {"rw"} | {"ro"}
        assert find_mount(os.fsencode(point)) == before
        assert is_writable(point)


def test_an_exception_passes_and_it_is_writable(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume", "loop,strictatime") as point:
        before = find_mount(os.fsencode(point))
        with pytest.raises(KeyError), held_read_only(os.fsencode(point)):
            raise KeyError
        assert find_mount(os.fsencode(point)) == before


def test_a_file_open_for_writing_is_named_as_the_cause(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        with (
            (point / "f").open("wb"),
            pytest.raises(VolumeError, match="busy") as caught,
            held_read_only(os.fsencode(point)),
        ):
            pytest.fail("it was not refused")
        assert "open for writing" in caught.value.hint
        assert os.fsdecode(point) in caught.value.what
        assert is_writable(point)


def test_the_root_file_system_is_refused() -> None:
    with pytest.raises(VolumeError, match="root file system"), held_read_only(b"/usr"):
        pytest.fail("it was not refused")


def test_a_read_only_volume_stays_as_it_is(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        with held_read_only(os.fsencode(point)):
            assert not is_writable(point)
        assert not is_writable(point)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_it_writable(tmp_path: Path, number: signal.Signals) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        process = hold_elsewhere(point)
        try:
            assert not is_writable(point)
            process.send_signal(number)
            wait_until_writable(point)
        finally:
            end(process)


def test_a_killed_holder_whose_child_lives_on_leaves_it_writable(tmp_path: Path) -> None:
    """A forked child has the pipe to the guardian open too: its end alone would not tell."""
    script = HOLDER.replace("    time.sleep(", "    import os; os.fork(); time.sleep(")
    with loop_ext4(tmp_path, "volume") as point:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(point), "1000"],
            stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            process.kill()
            wait_until_writable(point)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            end(process)


def test_a_stopped_holder_loses_it_when_the_time_is_up(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        process = hold_elsewhere(point, limit_s=0.3)
        try:
            process.send_signal(signal.SIGSTOP)
            wait_until_writable(point)
        finally:
            end(process)


def test_a_holder_learns_that_it_became_writable_too_early(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        with (
            pytest.raises(VolumeError, match="became writable before the end"),
            held_read_only(os.fsencode(point), limit_s=0.2),
        ):
            wait_until_writable(point)
        assert is_writable(point)


def children() -> set[str]:
    """The processes that this one has started and not reaped, servers of other tests among them."""
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for text in lists for pid in text.read_text(encoding="ascii").split()}


def test_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    with loop_ext4(tmp_path, "volume") as point:
        before = len(os.listdir("/proc/self/fd")), children()
        with held_read_only(os.fsencode(point)):
            pass
        assert (len(os.listdir("/proc/self/fd")), children()) == before
