"""The pace of puts, on a clock that stands still between sleeps: nothing here takes the time it speaks of."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smsnapd.store import Store, StoreSettings, open_store, pacing
from smsnapd.store.pacing import Pacer, SharedFile, pacer_for, shared_file

SECOND_NS = 10**9
NOW_NS = 5_000_000 * SECOND_NS
CREDIT_NS = 50_000_000
KIB = 1024


class Clock:
    """Time passes by sleeping only."""

    def __init__(self) -> None:
        self.now_ns = NOW_NS
        self.sleeps: list[float] = []

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_ns += round(seconds * SECOND_NS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> SharedFile:
    return SharedFile(str(tmp_path / "pace"))


@pytest.fixture
def make(clock: Clock, file: SharedFile) -> Iterator[Callable[..., Pacer]]:
    made: list[Pacer] = []

    def pacer(bytes_s: int, shared: SharedFile | None = file) -> Pacer:
        made.append(Pacer(bytes_s, shared, now_ns=clock, sleep=clock.sleep))
        return made[-1]

    yield pacer
    for one in made:
        one.close()


def number(file: SharedFile) -> int:
    content = Path(file.path).read_bytes()
    assert len(content) == 8
    (value,) = struct.unpack("<q", content)
    assert isinstance(value, int)
    return value


class Sent(NamedTuple):
    at_ns: int
    size: int


def most_in(sent: list[Sent], window_ns: int) -> int:
    """The most bytes that any window of that length holds; `sent` is in the order of time."""
    most = size = begins = 0
    for at_ns, piece_size in sent:
        size += piece_size
        while sent[begins].at_ns <= at_ns - window_ns:
            size -= sent[begins].size
            begins += 1
        most = max(most, size)
    return most


def take_turns(work: list[tuple[int, Pacer, bytes]], clock: Clock) -> dict[int, list[Sent]]:
    """Several senders at once, in the order of time: (when it begins, its pacer, what it sends) of each."""
    queue = [(NOW_NS + start_ns, index, 0) for index, (start_ns, _, _) in enumerate(work)]
    pieces = [pacer.pieces(data) for _, pacer, data in work]
    sent: dict[int, list[Sent]] = {index: [] for index in range(len(work))}
    while queue:
        at_ns, index, ready = heapq.heappop(queue)
        if ready:
            sent[index].append(Sent(at_ns, ready))
        clock.now_ns = at_ns
        piece = next(pieces[index], b"")
        if piece:  # asking for it has moved the clock to when it goes out
            heapq.heappush(queue, (clock.now_ns, index, len(piece)))
    return sent


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bytes_s", [1000, 50_000, 1_000_000, 20_000_000])
def test_what_goes_out_is_the_data_at_the_rate(
    make: Callable[..., Pacer], clock: Clock, file: SharedFile, bytes_s: int, shared: bool
) -> None:
    pacer = make(bytes_s, file if shared else None)
    data = memoryview(random.Random(bytes_s).randbytes(6 * bytes_s))
    sent: list[Sent] = []
    done = 0
    for piece in pacer.pieces(data):
        assert 0 < len(piece) <= 64 * KIB
        assert piece == data[done : done + len(piece)]
        done += len(piece)
        sent.append(Sent(clock.now_ns, len(piece)))
    assert done == len(data)
    elapsed_s = (clock.now_ns - NOW_NS) / SECOND_NS
    assert 5.9 <= elapsed_s <= 6.01
    assert most_in(sent, 2 * SECOND_NS) <= 2 * bytes_s * 1.06 + KIB


def test_pieces_are_short_in_time_too(make: Callable[..., Pacer]) -> None:
    """However slow: a server that waits for the next one must not lose its patience."""
    for bytes_s in (1000, 10_000, 100_000, 10**6, 10**12):
        assert make(bytes_s).piece <= max(1.1 * bytes_s, KIB)
    assert make(50_000).piece < 4 * KIB
    assert make(10**12).piece == 64 * KIB


def test_nothing_is_waited_for_nothing(make: Callable[..., Pacer], clock: Clock, file: SharedFile) -> None:
    assert list(make(1000).pieces(b"")) == []
    assert clock.sleeps == []
    assert not os.path.exists(file.path)


def test_a_silent_line_saves_up_a_moment_only(make: Callable[..., Pacer], clock: Clock) -> None:
    pacer = make(1_000_000)
    for _ in range(3):
        clock.now_ns += 3600 * SECOND_NS
        began_ns = clock.now_ns
        list(pacer.pieces(bytes(1_000_000)))
        assert clock.now_ns - began_ns == pytest.approx(SECOND_NS - CREDIT_NS, rel=1e-6)


def test_a_sleep_that_lasts_too_long_is_made_up_for(make: Callable[..., Pacer], clock: Clock) -> None:
    pacer = make(1_000_000)
    for _ in pacer.pieces(bytes(10_000_000)):
        clock.now_ns += 20_000_000  # sending takes a while as well
    assert (clock.now_ns - NOW_NS) / SECOND_NS == pytest.approx(10, abs=0.1)


def test_those_who_share_a_file_share_the_rate(make: Callable[..., Pacer], clock: Clock) -> None:
    rate = 500_000
    work = [(index * SECOND_NS // 7, make(rate), bytes(rate)) for index in range(9)]
    sent = take_turns(work, clock)
    every = sorted(itertools.chain.from_iterable(sent.values()))
    assert sum(one.size for one in every) == 9 * rate
    assert most_in(every, 2 * SECOND_NS) <= 2 * rate * 1.06
    assert (every[-1].at_ns - NOW_NS) / SECOND_NS == pytest.approx(9, abs=0.2)
    # Nobody is kept waiting, so no server grows impatient.
    for one in sent.values():
        times = [piece.at_ns for piece in one]
        assert max(later - before for before, later in itertools.pairwise(times)) < SECOND_NS


def test_a_small_put_does_not_wait_behind_large_ones(make: Callable[..., Pacer], clock: Clock) -> None:
    """A lease, say."""
    rate = 100_000
    work = [(0, make(rate), bytes(10 * rate)) for _ in range(8)]
    sent = take_turns([*work, (5 * SECOND_NS, make(rate), bytes(300))], clock)
    (lease,) = sent[8]
    assert lease.at_ns - NOW_NS < 6 * SECOND_NS


def test_shares_of_different_limits_add_up_to_one_line(make: Callable[..., Pacer], clock: Clock) -> None:
    sent = take_turns([(0, make(1_000_000), bytes(4_000_000)), (0, make(100_000), bytes(400_000))], clock)
    assert max(one.at_ns for one in sent[0] + sent[1]) - NOW_NS == pytest.approx(8 * SECOND_NS, rel=0.02)


def book(pacer: Pacer, count: int, results: Any) -> None:
    """In a process: so many bookings, on a clock that stands still."""
    for _ in range(count):
        list(pacer.pieces(b"x"))
    results.put(os.getpid())


def still(file: SharedFile) -> Pacer:
    return Pacer(1000, file, now_ns=partial(int, NOW_NS), sleep=for_the_lock_only)


def for_the_lock_only(seconds: float) -> None:
    if seconds == pacing._LOCK_PAUSE_S:
        time.sleep(seconds)


def book_anew(path: str, count: int, results: Any) -> None:
    """As a process that was not forked does: all it has is what was sent to it."""
    book(still(SharedFile(path)), count, results)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_of_many_processes_no_booking_is_lost(file: SharedFile, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    pacer = still(file)
    list(pacer.pieces(b"x"))  # its file is open when others are forked
    count, others = 1500, 3
    if method == "fork":
        jobs = [context.Process(target=book, args=(pacer, count, results)) for _ in range(others)]
    else:
        jobs = [context.Process(target=book_anew, args=(file.path, count, results)) for _ in range(others)]
    for job in jobs:
        job.start()
    for _ in range(count):
        list(pacer.pieces(b"x"))
    for job in jobs:
        job.join()
    pacer.close()
    assert [job.exitcode for job in jobs] == [0] * others
    assert number(file) == NOW_NS - CREDIT_NS + ((others + 1) * count + 1) * SECOND_NS // 1000


def hold(path: str, told: Connection) -> None:
    """In a process: hold the lock until the end."""
    with open(path, "r+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        told.send(True)
        told.recv()


@pytest.fixture
def holder(make: Callable[..., Pacer], file: SharedFile) -> Iterator[Any]:
    list(make(1000).pieces(b"x"))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(file.path, theirs))
    process.start()
    assert ours.recv()
    yield process
    process.kill()
    process.join()
    ours.close()
    theirs.close()


def test_whoever_is_killed_with_the_lock_keeps_nobody(
    holder: Any, make: Callable[..., Pacer], clock: Clock, file: SharedFile
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    before, clock.sleeps = number(file), []
    list(make(1000).pieces(bytes(100)))
    assert number(file) == before + SECOND_NS // 10
    assert len(clock.sleeps) == 1


def test_whoever_is_stopped_with_the_lock_keeps_nobody_for_long(
    holder: Any, make: Callable[..., Pacer], clock: Clock, file: SharedFile
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    pacer = make(1000)
    list(pacer.pieces(bytes(1000)))
    assert clock.now_ns - NOW_NS < 3 * SECOND_NS
    before, clock.sleeps = number(file), []
    list(pacer.pieces(bytes(1000)))
    assert number(file) == before + SECOND_NS  # it counts all the same
    assert len(clock.sleeps) == 1  # and does not ask for the lock again and again


@pytest.mark.parametrize("ahead_s", [61, 3600, 400 * 86400, -1, -(10**6)])
def test_a_number_from_before_a_reboot_delays_nothing(
    make: Callable[..., Pacer], clock: Clock, file: SharedFile, ahead_s: int
) -> None:
    Path(file.path).write_bytes(struct.pack("<q", NOW_NS + ahead_s * SECOND_NS))
    list(make(1000).pieces(bytes(1000)))
    assert clock.now_ns - NOW_NS == SECOND_NS - CREDIT_NS


@pytest.mark.parametrize(
    "content", [b"", b"x", b"1234567", b"\xff" * 8, b"\x7f" * 8, b"\x00" * 8, b"text\n" * 1000]
)
def test_a_garbled_file_is_taken_for_an_empty_one(
    make: Callable[..., Pacer], clock: Clock, file: SharedFile, content: bytes
) -> None:
    Path(file.path).write_bytes(content)
    list(make(1000).pieces(bytes(1000)))
    list(make(1000).pieces(bytes(1000)))
    assert clock.now_ns - NOW_NS == 2 * SECOND_NS - CREDIT_NS


def test_a_file_that_was_deleted_is_made_again_and_shared_again(
    make: Callable[..., Pacer], clock: Clock, file: SharedFile
) -> None:
    one, other = make(1000), make(1000)
    list(one.pieces(bytes(100)))
    list(other.pieces(bytes(100)))
    os.unlink(file.path)
    clock.now_ns += 10 * SECOND_NS
    began_ns = clock.now_ns
    list(one.pieces(bytes(1000)))
    list(other.pieces(bytes(1000)))
    assert clock.now_ns - began_ns == 2 * SECOND_NS - CREDIT_NS
    assert Path(file.path).stat().st_mode & 0o777 == 0o600


def unusable(kind: str, place: Path) -> SharedFile:
    if kind == "missing directory":
        return SharedFile(str(place / "none" / "pace"))
    if kind == "directory":
        (place / "pace").mkdir()
    elif kind == "link":
        (place / "target").write_bytes(b"")
        (place / "pace").symlink_to(place / "target")
    elif kind == "fifo":
        os.mkfifo(place / "pace")
    else:
        (place / "pace").write_bytes(b"")
        os.chown(place / "pace", 4242, -1)
    return SharedFile(str(place / "pace"))


@pytest.mark.parametrize(
    "kind",
    [
        "missing directory",
        "directory",
        "link",
        "fifo",
        pytest.param("another user's", marks=pytest.mark.root),
    ],
)
def test_without_a_usable_file_each_counts_alone_and_says_so_once(
    make: Callable[..., Pacer], clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    if kind == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    pacer = make(1000, unusable(kind, tmp_path))
    list(pacer.pieces(bytes(5000)))
    assert clock.now_ns - NOW_NS == 5 * SECOND_NS - CREDIT_NS
    assert len(caplog.records) == 1
    assert "by itself" in caplog.text


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_shares_with_the_owner_of_the_state(
    make: Callable[..., Pacer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever of both comes first."""
    file = SharedFile(str(tmp_path / "pace"), 4242)
    list(make(1000, file).pieces(b"x"))
    assert os.stat(file.path).st_uid == 4242
    before = number(file)
    list(make(1000, file).pieces(b"x"))
    assert number(file) == before + SECOND_NS // 1000
    assert not caplog.records


def test_the_daemon_and_a_command_line_find_one_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    unmade = shared_file(state)
    state.mkdir()
    (tmp_path / "link").symlink_to(state)
    file = shared_file(state)
    assert file == unmade == shared_file(tmp_path / "link") == shared_file(state / ".." / "state")
    assert file != shared_file(tmp_path)
    assert file.owner == os.geteuid()
    assert not file.path.startswith(str(tmp_path))  # the volume may be read-only


def test_settings_carry_it_to_other_processes(file: SharedFile) -> None:
    assert pacer_for(StoreSettings("s3://bucket")) is None
    settings = StoreSettings("s3://bucket", upload_bytes_s=1600, pace_file=file.path, pace_owner=1)
    pacer = pacer_for(pickle.loads(pickle.dumps(settings)))
    assert pacer is not None
    assert pacer.piece == KIB
    assert next(pacer.pieces(b"x")) == b"x"
    assert number(file)
    pacer.close()


@pytest.fixture
def paced_directory(tmp_path: Path, file: SharedFile) -> Iterator[Store]:
    url = (tmp_path / "objects").as_uri()
    store = open_store(StoreSettings(url, upload_bytes_s=10**9, pace_file=file.path))
    yield store
    store.close()


def test_a_directory_store_keeps_the_pace(
    paced_directory: Store, file: SharedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces that are sent on at once: closing a file would send all that waits in memory."""
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "smsnapd.store.file_body.start_writing_back", lambda _, *written: started.append(written)
    )
    lives = 0

    def live() -> None:
        nonlocal lives
        lives += 1

    monkeypatch.setattr("smsnapd.store.file_body.uploading.mark", live)
    data = os.urandom(200_000)
    paced_directory.put("chunks/a", data)
    assert paced_directory.get("chunks/a") == data
    assert lives == 4  # each piece tells whoever waits that it goes on
    assert started == [(start, min(65536, 200_000 - start)) for start in range(0, 200_000, 65536)]
    before = number(file)
    paced_directory.replace("lease", b"x" * 1000, None)
    assert number(file) >= before + 1000
