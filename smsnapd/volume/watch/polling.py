"""Where the kernel tells nothing: everything is due for a look at regular intervals."""

from __future__ import annotations

from smsnapd.volume.watch.emitter import HintEmitter, RootIdentity, WatchEvent
from smsnapd.volume.watch.hints import EVERYTHING, make_hints


class PollingEmitter(HintEmitter):
    """Says once in an interval that everything must be looked at. The scan finds what has changed."""

    def on_thread_start(self) -> None:
        """Raises `OSError` if there is no root."""
        self._identity = RootIdentity(self.root)

    def queue_events(self, timeout: float) -> None:
        """Wait for the end of the interval, or of the thread."""
        if self.stopped_event.wait(self.settings.poll_interval_s):
            return
        self._identity.check_now()
        self.say(WatchEvent(self.root, make_hints((), (EVERYTHING,), 0)))

    def ask(self, ticket: int) -> None:
        """Never answered: polling knows of no change before it looks."""
