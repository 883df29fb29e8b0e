"""What the daemon asks of S3, as its status shows it: by run, and by the month."""

from __future__ import annotations

import msgspec

from smsnapd.daemon.plan import Plan
from smsnapd.daemon.status import RequestsStatus, utc_text
from smsnapd.daemon.totals import RequestTotals, totals_file
from smsnapd.store.counting import Requests, made


class Spending:
    """Follows the count of this process, and keeps the totals of the volume of `plan`. For one thread."""

    def __init__(self, plan: Plan) -> None:
        file = totals_file(plan.request.state_dir, plan.request.volume)
        self._totals = RequestTotals(file, plan.settings.url)
        self._known = self._run_began = made.total()

    def run_begins(self) -> None:
        """From here on it is a run's."""
        self._run_began = made.total()

    def of_run(self) -> Requests:
        """What the run has asked so far."""
        return made.total() - self._run_began

    def status(self) -> RequestsStatus:
        """This month's, up to now."""
        total = made.total()
        month = self._totals.take_in(total - self._known)
        self._known = total
        counts = msgspec.structs.asdict(month.requests)
        return RequestsStatus(month.month, utc_text(round(month.since_s)), **counts)

    def used(self, plan: Plan) -> Spending:
        """The same under another configuration, which may name another volume or repository."""
        self.close()
        return Spending(plan)

    def close(self) -> None:
        """Write what is not yet written."""
        self.status()
        self._totals.close()
