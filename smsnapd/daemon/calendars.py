"""What the calendar asks for: fulls, checks and prunes. What was due while nobody ran is made up for."""

from __future__ import annotations

import time

from smsnapd.daemon import memory
from smsnapd.daemon.plan import Plan


class Calendars:
    """Those of one configuration. For one thread."""

    def __init__(self, plan: Plan) -> None:
        self._place = plan.request.state_dir, plan.request.volume
        self.full, self.check, self.prune = plan.calendars()
        self.check.done(memory.last_check(*self._place))
        self.prune.done(memory.last_prune(*self._place))
        self.knows_full = False
        """Whether it is known when the last full was; before that none is due."""

    def full_is_due(self) -> bool:
        """Whether a full is."""
        return self.knows_full and self.full.is_due()

    def full_was(self, when_s: float | None) -> None:
        """The last full is of this time, in seconds since the epoch; None if there is none."""
        self.knows_full = True
        if when_s is not None:
            self.full.done(when_s)

    def checked(self) -> None:
        """A check was done, now."""
        self.check.done()
        memory.remember_check(*self._place, time.time())

    def pruned(self) -> None:
        """A prune was done, now."""
        self.prune.done()
        memory.remember_prune(*self._place, time.time())

    def rests_s(self) -> list[float]:
        """How long until the next times, by the wall clock."""
        times = (self.full.next_s, self.check.next_s, self.prune.next_s)
        return [when - time.time() for when in times if when is not None]
