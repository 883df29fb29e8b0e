"""What systemd is told (sd_notify(3)): ready, how it stands, and that the work goes on."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping

_log = logging.getLogger(__name__)
_MICROSECONDS = 1_000_000
_PATIENCE_S = 5.0
_PAUSE_S = 0.05


class Notifier:
    """Sends datagrams to the socket that systemd named; does nothing where there is none. Thread-safe.

    A notification that cannot be sent is no error: the service must go on.
    """

    def __init__(
        self, address: str, watchdog_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`address` is a path, `@name` in the abstract name space, or "". `watchdog_s` None: no watchdog."""
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._lock = threading.Lock()
        self._beaten_s = -float("inf")
        self._status = ""
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that does not listen must not stop the work.
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """As systemd says; its variables are taken away, so that no child answers for this process."""
        address = environment.pop("NOTIFY_SOCKET", "")
        period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        meant = period.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(period) / _MICROSECONDS if meant and int(period) else None)

    def ready(self) -> None:
        """The service has started, or has taken in its configuration anew."""
        self._send("READY=1", _PATIENCE_S)

    def reloading(self) -> None:
        """The configuration is being read anew."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", _PATIENCE_S)

    def stopping(self, within_s: float) -> None:
        """The service stops, and asks for so much time for it (systemd 236 and newer grant it)."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((within_s + 10) * _MICROSECONDS)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; the same again is not sent."""
        line = " ".join(text.split())
        with self._lock:
            if line == self._status:
                return
            self._status = line
        if not self._send(f"STATUS={line}"):
            self._status = ""

    def beat(self) -> None:
        """The work goes on. To be called by what works, as often as it likes: few are sent."""
        if self.watchdog_s is None:
            return
        now = self._clock()
        if now - self._beaten_s >= self.watchdog_s / 8:
            self._beaten_s = now
            if not self._send("WATCHDOG=1"):
                self._beaten_s = -float("inf")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str, patience_s: float = 0.0) -> bool:
        """Whether it went out; a full queue is waited for, if at all, by trying again: nothing else tells."""
        deadline_s = time.monotonic() + patience_s
        while self._socket is not None:
            try:
                self._socket.sendto(message.encode(), self._address)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    return False
                time.sleep(_PAUSE_S)
            except OSError as error:
                _log.debug("systemd was not told %r: %s", message, error)
                return False
        return True
