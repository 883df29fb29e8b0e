"""Who is told of runs: the ping URL and the hook, in order, beside the work and never in its way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, Protocol

from smsnapd.daemon.plan import Plan
from smsnapd.daemon.standing import ShowTrouble, Standing

RunName = Literal["backup", "full", "check", "prune"]
EventName = Literal["start", "success", "failure"]

_SPARING_S: Final = 60.0
_PINGS: Final = 8
_HOOKS: Final = 32
_ABANDONED_S: Final = 1.0
_log = logging.getLogger(__name__)


class Notice(NamedTuple):
    """One event of a run. What does not apply is "" or None.

    `snapshot` is "" too if nothing had changed; `changed`, `deleted`, `stored_bytes` and `incomplete` are a
    backup's. `error` says what failed and why, or what a check found damaged: then the event is a failure.
    """

    event: EventName
    run: RunName
    seconds: float = 0.0
    snapshot: str = ""
    snapshot_kind: str = ""
    changed: int | None = None
    deleted: int | None = None
    stored_bytes: int | None = None
    incomplete: int | None = None
    error: str = ""


class Teller(Protocol):
    """Is told of runs, by the thread that works. Methods must be quick and must not raise."""

    def tell(self, notice: Notice) -> None:
        """This has happened."""

    def use(self, plan: Plan) -> None:
        """Another configuration holds."""


class Tellers:
    """Tells several."""

    def __init__(self, *tellers: Teller) -> None:
        self._tellers = tellers

    def tell(self, notice: Notice) -> None:
        """Tell each."""
        for teller in self._tellers:
            teller.tell(notice)

    def use(self, plan: Plan) -> None:
        """Have each use it."""
        for teller in self._tellers:
            teller.use(plan)


class Sparing:
    """Which notices are worth a ping: all but those of runs that found nothing new, more than one a minute.

    A backup's start is not told within a minute of another; its success is, if it has stored something, or
    its start was told (whoever heard of a start waits for an end), or the run before it failed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = -float("inf")
        self._awaited = False

    def passes(self, notice: Notice) -> bool:
        """Whether to tell it. To be asked of every notice, in order."""
        if notice.event == "start":
            now = self._clock()
            if notice.run == "backup" and now - self._started_s < _SPARING_S:
                return False
            self._started_s, self._awaited = now, True
            return True
        is_news = notice.event == "failure" or notice.run == "check" or bool(notice.snapshot)
        passes = is_news or self._awaited
        self._awaited = notice.event == "failure"
        return passes


class Errand(Protocol):
    """One thing to do for one notice. Raises nothing."""

    def run(self) -> None:
        """Do it, within a time that is bounded."""

    def abandon(self) -> None:
        """From another thread: `run` is to end at once, or not to begin."""


class Outbox:
    """Errands, done one after the other by a thread of its own; of too many the oldest are dropped."""

    def __init__(self, name: str, most: int) -> None:
        """The thread, called `name`, begins with the first errand."""
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._errands: deque[Errand] = deque()
        self._current: Errand | None = None
        self._is_over = False
        self._dropping = False
        self._thread: threading.Thread | None = None

    def put(self, errand: Errand) -> None:
        """Have it done; after the end nothing is."""
        with self._changed:
            if self._is_over:
                return
            if len(self._errands) >= self._most:
                self._drop()
            self._errands.append(errand)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._go, name=self._name, daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Take no more; what is there is still done."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def join(self, within_s: float) -> None:
        """After `end`: wait until all is done; what is not by then is abandoned."""
        if self._thread is None:
            return
        self._thread.join(max(0.0, within_s))
        if not self._thread.is_alive():
            return
        with self._changed:
            left = [*([self._current] if self._current else []), *self._errands]
            self._errands.clear()
        for errand in left:
            errand.abandon()
        _log.warning("%s: %d not told, there was no time left", self._name, len(left))
        self._thread.join(_ABANDONED_S)

    def _drop(self) -> None:
        self._errands.popleft()
        if not self._dropping:
            _log.warning("%s: too slow, the oldest of %d that wait are not told", self._name, self._most)
        self._dropping = True

    def _go(self) -> None:
        while (errand := self._next()) is not None:
            try:
                errand.run()
            except Exception as error:  # one notice is lost, the next are not
                _log.error("%s: a notice was not told", self._name, exc_info=error)

    def _next(self) -> Errand | None:
        with self._changed:
            self._current = None
            self._changed.wait_for(lambda: self._errands or self._is_over)
            if not self._errands:
                return None
            self._current = self._errands.popleft()
            self._dropping = self._dropping and bool(self._errands)
            return self._current


class Telling:
    """Pings and the hook, as the configuration has them. For the worker's thread, but for `close`."""

    def __init__(self, environment: Mapping[str, str], show_trouble: ShowTrouble) -> None:
        """Tells nobody before `use`. `environment` is the daemon's, of which a hook gets a little."""
        self._environment = environment
        self._show_trouble = show_trouble
        self._sparing = Sparing()
        self._pings, self._hooks = Outbox("ping", _PINGS), Outbox("hook", _HOOKS)
        self._channels: list[tuple[Outbox, Callable[[Notice], Errand]]] = []
        self._standings: list[Standing] = []

    def use(self, plan: Plan) -> None:
        """Tell whom this configuration names; what is waiting goes where it was meant to go."""
        for standing in self._standings:
            standing.end()
        self._standings, self._channels = [], []
        telemetry = plan.config.telemetry
        if telemetry.ping_url:
            from smsnapd.daemon.ping import Pinger, host_of

            standing = self._standing("ping_url", f"the ping to {host_of(telemetry.ping_url)}")
            self._channels.append((self._pings, Pinger(telemetry.ping_url, standing).errand))
        if telemetry.hook:
            from smsnapd.daemon.hook import Hook

            standing = self._standing("hook", "the hook")
            self._channels.append((self._hooks, Hook.of(plan, self._environment, standing).errand))

    def tell(self, notice: Notice) -> None:
        """Have it told, if it is worth that."""
        if self._sparing.passes(notice):
            for outbox, errand in self._channels:
                outbox.put(errand(notice))

    def close(self, within_s: float) -> None:
        """Tell what is waiting, within this time, and no more."""
        deadline_s = time.monotonic() + within_s
        boxes = (self._pings, self._hooks)
        for box in boxes:
            box.end()
        for box in boxes:
            box.join(deadline_s - time.monotonic())

    def _standing(self, key: str, name: str) -> Standing:
        self._standings.append(Standing(key, name, self._show_trouble))
        return self._standings[-1]
