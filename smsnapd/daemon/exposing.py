"""Where the metrics can be read: a file that one thread keeps fresh, and a port on this machine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from smsnapd.daemon.board import Board
from smsnapd.daemon.measuring import Measuring
from smsnapd.daemon.plan import Plan
from smsnapd.daemon.standing import Standing
from smsnapd.daemon.status import Status
from smsnapd.daemon.telling import Notice
from smsnapd.telemetry.metrics import Exporter, write_whole

if TYPE_CHECKING:
    from smsnapd.telemetry.metrics import Port

_AT_LEAST_EVERY_S: Final = 60.0
_LAST_WRITE_S: Final = 2.0


class Exposure:
    """The metrics where the configuration wants them; nothing is loaded before it wants any."""

    def __init__(self, board: Board, measuring: Measuring) -> None:
        self._board = board
        self._measuring = measuring
        self._exporter: Exporter | None = None
        self._file: _FreshFile | None = None
        self._port: Port | None = None
        self._port_standing = Standing("metrics_port", "no port", board.trouble)

    def use(self, plan: Plan) -> None:
        """Expose them there and nowhere else. What cannot be done is trouble for the status alone."""
        telemetry = plan.config.telemetry
        self._use_file(telemetry.metrics_file)
        self._use_port(telemetry.metrics_port)

    def tell(self, notice: Notice) -> None:
        """Runs are news when the status says what came of them."""

    def saw(self, status: Status) -> None:
        """The status is another."""
        self._measuring.saw(status)
        file = self._file
        if file is not None:
            file.refresh()

    def close(self) -> None:
        """Write the file a last time, and answer no more."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._use_port(0)

    def _use_file(self, path: Path | None) -> None:
        before = self._file
        if before is not None:
            if before.path == path:
                return
            before.close()
            # Nobody will change it again, and whoever reads it could not know.
            with contextlib.suppress(OSError):
                os.unlink(before.path)
        if path is None:
            self._file = None
            return
        standing = Standing("metrics_file", f"writing the metrics to {path}", self._board.trouble)
        self._file = _FreshFile(path, self._exporting().text, standing)

    def _use_port(self, number: int) -> None:
        if self._port is not None:
            if self._port.number == number:
                return
            self._port.close()
            self._port = None
        self._port_standing.end()
        if not number:
            return
        self._port_standing = Standing("metrics_port", f"port {number} for metrics", self._board.trouble)
        try:
            self._port = self._exporting().serve(number)
        except OSError as error:
            why = error.strerror or str(error)
            self._port_standing.failed(f"{why}; reload the daemon when that is mended")

    def _exporting(self) -> Exporter:
        if self._exporter is None:
            self._exporter = Exporter(lambda: self._measuring.families(self._board.status))
        return self._exporter


class _FreshFile:
    """Writes a file whenever there is news, and at least once a minute, so that its age tells of a death."""

    def __init__(self, path: Path, text: Callable[[], bytes], standing: Standing) -> None:
        self.path = path
        self._text = text
        self._standing = standing
        self._changed = threading.Condition()
        self._is_news = True
        self._is_over = False
        self._thread = threading.Thread(target=self._go, name="metrics-file", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """There is news."""
        with self._changed:
            self._is_news = True
            self._changed.notify()

    def close(self) -> None:
        """Write it once more, if that does not take too long."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join(_LAST_WRITE_S)
        self._standing.end()

    def _go(self) -> None:
        is_over = False
        while not is_over:
            with self._changed:
                self._changed.wait_for(lambda: self._is_news or self._is_over, _AT_LEAST_EVERY_S)
                self._is_news, is_over = False, self._is_over
            self._write()

    def _write(self) -> None:
        try:
            write_whole(self.path, self._text())
        except OSError as error:
            self._standing.failed(error.strerror or str(error))
        else:
            self._standing.works()
