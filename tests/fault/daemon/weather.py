"""A network whose weather changes: fine for a few seconds, and then bad in one of several ways."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Literal, Self, get_args

from tests.fault.proxy import (
    Answer,
    BlackHole,
    CutResponse,
    Delay,
    Fault,
    FaultProxy,
    LoseResponse,
    Request,
    ResetRequest,
)

Bad = Literal["refused", "busy", "lost", "slow", "cut", "mixed", "silent"]
"""No connection; 503; the server does its work and nobody hears of it; seconds of delay; answers that end too
early; each request another of these, or none; nothing is ever answered."""

BAD: Final = get_args(Bad)
_LOOK_S: Final = 0.05


class Weather(FaultProxy):
    """A proxy with weather, bad for half of the time. As a context manager; `clear_up` ends what is bad."""

    def __init__(self, upstream: str, seed: int, kinds: Sequence[Bad], *, longest_s: float) -> None:
        """A spell of fine or of bad weather, of one of `kinds`, lasts for up to `longest_s`."""
        super().__init__(upstream)
        self._kinds = kinds
        self._chance = random.Random(seed)
        self._longest_s = longest_s
        self._over = threading.Event()
        self._changes = threading.Thread(target=self._change, name="weather")
        self.now: Bad | Literal["fine"] = "fine"
        self.bad_s = 0.0
        self.spells: dict[str, int] = dict.fromkeys(kinds, 0)
        self.befallen = 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear_up()
        super().__exit__(kind, error, trace)

    def begin(self) -> None:
        """From now on it changes."""
        self._changes.start()

    def clear_up(self) -> None:
        """From now on it is fine."""
        self._over.set()
        if self._changes.ident is not None:
            self._changes.join()
        self.now = "fine"

    def befalls(self, request: Request) -> Fault | None:
        kind: str = self.now
        if kind == "mixed":
            kind = self._chance.choice((*self._kinds, "fine", "fine", "fine"))
        self.befallen += kind != "fine"
        body = int(request.headers.get("content-length", "0"))
        match kind:
            case "busy":
                return Answer(503, "SlowDown")
            case "slow":
                return Delay(self._chance.random() * 3)
            case "cut" if body:
                return ResetRequest(self._chance.randrange(body))
            case "cut":
                return CutResponse(self._chance.randrange(200))
            case "lost" | "refused":
                return LoseResponse()
            case "silent":
                return BlackHole()
        return None

    def _change(self) -> None:
        while not self._over.is_set():
            self._over.wait(self._chance.random() * self._longest_s)
            self.now = self._chance.choice(self._kinds)
            self.spells[self.now] += 1
            begin_s = time.monotonic()
            self._over.wait(self._chance.random() * self._longest_s)
            self.now = "fine"
            self.bad_s += time.monotonic() - begin_s

    async def _run(self) -> None:
        """As any proxy, but that nobody listens while connections are to be refused."""
        gate = asyncio.create_task(self._open_and_shut())
        try:
            await super()._run()
        finally:
            gate.cancel()
            self._server.close()

    async def _open_and_shut(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.now != "refused":
                continue
            host, port = self._server.sockets[0].getsockname()
            self._server.close()
            while self.now == "refused":
                await asyncio.sleep(_LOOK_S)
            self._server = await asyncio.start_server(self._accept, host, port)
