"""The thread that the worker works on, and what it ended by."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from smsnapd.daemon.worker import Worker

_log = logging.getLogger(__name__)


class WorkThread(threading.Thread):
    """The thread; `failure` is what it ended by, if that was not the agenda's stop."""

    def __init__(self, worker: Worker, ended: Callable[[], None]) -> None:
        """`ended` is called at its very end, whatever it ended by."""
        super().__init__(name="worker", daemon=True)
        self.worker = worker
        self.failure: BaseException | None = None
        self._ended = ended

    def run(self) -> None:
        """Work."""
        try:
            self.worker.work()
        except BaseException as error:
            self.failure = error
            _log.critical("the worker ended unexpectedly", exc_info=error)
        finally:
            self._ended()
