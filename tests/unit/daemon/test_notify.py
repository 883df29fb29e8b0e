"""What systemd hears."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.daemon.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(systemd: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return found


def test_the_words_of_sd_notify(systemd: socket.socket) -> None:
    notifier = Notifier(systemd.getsockname(), None)
    notifier.ready()
    notifier.status("two\nlines")
    notifier.status("two lines")  # nothing new
    notifier.reloading()
    notifier.stopping(20.0)
    first, second, third, fourth = heard(systemd)
    assert (first, second) == ("READY=1", "STATUS=two lines")
    assert third.startswith("RELOADING=1\nMONOTONIC_USEC=") and fourth.startswith("STOPPING=1\n")
    assert "EXTEND_TIMEOUT_USEC=30000000" in fourth
    notifier.close()


def test_the_watchdog_is_fed_as_often_as_it_needs(systemd: socket.socket) -> None:
    now = [100.0]
    notifier = Notifier(systemd.getsockname(), 8.0, clock=lambda: now[0])
    for _ in range(1000):
        notifier.beat()
        now[0] += 0.01
    assert heard(systemd) == ["WATCHDOG=1"] * 10
    notifier.close()


def test_without_a_watchdog_nothing_is_sent(systemd: socket.socket) -> None:
    notifier = Notifier(systemd.getsockname(), None)
    notifier.beat()
    assert heard(systemd) == []
    notifier.close()


def test_the_environment_is_taken_and_taken_away() -> None:
    environment = {"NOTIFY_SOCKET": "@name", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environment)
    assert (notifier.watchdog_s, environment) == (30.0, {})
    notifier.close()
    others = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}
    assert Notifier.from_environment(others).watchdog_s is None


def test_an_abstract_socket() -> None:
    name = f"smsnapd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        notifier = Notifier("@" + name, None)
        notifier.ready()
        assert listening.recv(100) == b"READY=1"
        notifier.close()


def test_a_manager_that_does_not_read_stops_nothing(systemd: socket.socket) -> None:
    now = [0.0]
    notifier = Notifier(systemd.getsockname(), 8.0, clock=lambda: now[0])
    for number in range(2000):
        notifier.status(f"status {number}")
        notifier.beat()
        now[0] += 1
    assert len(heard(systemd)) < 2000
    notifier.beat()
    notifier.status("status 1999")
    assert heard(systemd) == ["WATCHDOG=1", "STATUS=status 1999"]  # what was not sent is not forgotten
    notifier.close()


def test_where_nobody_listens_nothing_happens(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"), 1.0)
    notifier.ready()
    notifier.beat()
    notifier.close()
    Notifier("", None).ready()
