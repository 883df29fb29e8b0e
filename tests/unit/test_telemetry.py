"""Progress and logs: who sees what, how often, and what nobody sees."""

import contextlib
import io
import json
import logging
import os
import pty
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from smsnapd import telemetry
from smsnapd.engine.progress import Progress
from smsnapd.telemetry.lines import JsonProgress
from smsnapd.telemetry.sizes import size_text
from smsnapd.telemetry.terminal import TerminalProgress, counts_text

RECOVERY_KEY = "SMSNAP-IDENTITY-1-3F7ZAM-6FRFOT-66HGAA-GCBA"
WRITE_KEY = "SMSNAP-WRITE-KEY-1-ABCDEFGHIJKLMNOP234567"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def log():
    logger = logging.getLogger("smsnapd")
    before = logger.level, list(logger.handlers), logger.propagate
    yield logger
    logger.level, logger.handlers, logger.propagate = before[0], before[1], before[2]


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_are_at_most_five_a_second() -> None:
    clock, stream = Clock(), io.StringIO()
    with JsonProgress(stream, clock) as progress:
        progress.phase("store", files=1024, bytes=1_024_000)
        for _ in range(1024):
            clock.now_s += 1 / 1024
            progress.advance(files=1, bytes=1000, stored_bytes=400)
    lines = lines_of(stream)
    assert len(lines) == 1 + 4 + 1
    assert lines[0] == {
        "event": "progress", "phase": "store", "files": 0, "files_total": 1024, "bytes": 0,
        "bytes_total": 1_024_000, "stored_bytes": 0, "elapsed_s": 0.0, "done": False,
    }  # fmt: skip
    assert [line["done"] for line in lines] == [False] * 5 + [True]
    assert lines[-1]["files"] == 1024 and lines[-1]["stored_bytes"] == 409_600


def test_each_phase_begins_at_zero_and_ends_with_its_counts() -> None:
    stream = io.StringIO()
    with JsonProgress(stream, Clock()) as progress:
        progress.phase("scan")
        progress.advance(files=7)
        progress.phase("store")
        progress.advance(bytes=3)
    told = [(line["phase"], line["files"], line["bytes"], line["done"]) for line in lines_of(stream)]
    assert told == [
        ("scan", 0, 0, False), ("scan", 7, 0, True), ("store", 0, 0, False), ("store", 0, 3, True),
    ]  # fmt: skip
    assert lines_of(stream)[0]["files_total"] is None


def test_the_last_phase_is_told_when_the_work_fails() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), JsonProgress(stream, Clock()) as progress:
        progress.phase("store")
        progress.advance(files=2)
        raise RuntimeError
    assert lines_of(stream)[-1]["files"] == 2


def test_counts_from_many_threads_are_all_there() -> None:
    stream = io.StringIO()
    with JsonProgress(stream) as progress:
        progress.phase("store")
        threads = [
            threading.Thread(target=lambda: [progress.advance(1, 2, 3) for _ in range(2000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    last = lines_of(stream)[-1]
    assert (last["files"], last["bytes"], last["stored_bytes"]) == (8000, 16000, 24000)


def use(progress: Progress) -> None:
    progress.advance(files=1)  # before any phase
    progress.phase("scan")
    progress.advance(files=3)
    progress.note("the state is of another volume [bold]")
    progress.phase("store", files=10, bytes=2048)
    progress.advance(files=10, bytes=2048, stored_bytes=1024)


@pytest.mark.parametrize(("as_json", "quiet"), [(False, False), (False, True), (True, True)])
def test_nothing_where_nobody_watches(log, as_json: bool, quiet: bool) -> None:
    stream = io.StringIO()
    telemetry.set_up_logging(0, stream)
    with telemetry.progress_to(stream, as_json=as_json, quiet=quiet) as progress:
        use(progress)
    assert stream.getvalue() == ""


def test_json_where_it_is_asked_for() -> None:
    stream = io.StringIO()
    with telemetry.progress_to(stream, as_json=True, quiet=False) as progress:
        use(progress)
    assert {"event": "note", "text": "the state is of another volume [bold]"} in lines_of(stream)


def test_notes_go_to_the_log(log) -> None:
    stream = io.StringIO()
    telemetry.set_up_logging(1, stream)
    with telemetry.progress_to(stream, as_json=False, quiet=False) as progress:
        use(progress)
    assert stream.getvalue() == "smsnap: INFO: the state is of another volume [bold]\n"


def everything_on(terminal: io.RawIOBase) -> bytes:
    """What was written to a terminal until its last writer closed it, which its master sees as EIO."""
    shown = bytearray()
    with contextlib.suppress(OSError):
        while piece := terminal.read(65536):
            shown += piece
    return bytes(shown)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    with ThreadPoolExecutor(1) as pool, os.fdopen(ours, "rb", buffering=0) as terminal:
        reading = pool.submit(everything_on, terminal)
        with (
            os.fdopen(theirs, "w") as stream,
            telemetry.progress_to(stream, as_json=False, quiet=False) as progress,
        ):
            assert isinstance(progress, TerminalProgress)
            use(progress)
        shown = reading.result().decode()
    assert "the state is of another volume [bold]" in shown
    assert "10 of 10 files" in shown and "2.00 KiB" in shown and "1.00 KiB stored" in shown


def test_the_line_of_counts() -> None:
    counts = {"files": 1200, "files_total": 4000, "bytes": 3 << 20, "stored_bytes": 1 << 20}
    assert counts_text(counts, 2.0) == "1,200 of 4,000 files, 3.00 MiB, 1.50 MiB/s, 1.00 MiB stored"
    assert (
        counts_text({"files": 0, "files_total": None, "bytes": 0, "stored_bytes": 0}, 0.0) == "0 files, 0 B"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (10 << 20, "10.0 MiB"),
        (999 << 20, "999 MiB"), ((1 << 30) - 1, "1.00 GiB"), (5 << 40, "5.00 TiB"), (3000 << 50, "3000 PiB"),
    ],
)  # fmt: skip
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("verbosity", "shown"), [(-1, "E"), (0, "WE"), (1, "IWE"), (2, "DIWE"), (5, "DIWE")])
def test_what_is_logged(log, verbosity: int, shown: str) -> None:
    stream = io.StringIO()
    telemetry.set_up_logging(verbosity, stream)
    telemetry.set_up_logging(verbosity, stream)  # twice, and still once a line
    child = logging.getLogger("smsnapd.engine.backup.run")
    for level, letter in ((10, "D"), (20, "I"), (30, "W"), (40, "E")):
        child.log(level, letter)
    assert "".join(line[-1] for line in stream.getvalue().splitlines()) == shown


def test_the_sdk_never_logs_its_signed_requests(log) -> None:
    telemetry.set_up_logging(2, io.StringIO())
    for name in ("boto3", "botocore.auth", "urllib3.connectionpool"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize("secret", [RECOVERY_KEY, WRITE_KEY])
def test_keys_are_struck_out(log, secret: str) -> None:
    stream = io.StringIO()
    telemetry.set_up_logging(0, stream)
    try:
        raise ValueError(f"cannot parse {secret}!")
    except ValueError:
        logging.getLogger("smsnapd").exception("with %s", secret)
    assert secret[20:] not in stream.getvalue()
    assert stream.getvalue().count("(withheld)") == 2
    assert "Traceback" in stream.getvalue()
