"""Watching the volume: what the kernel tells about changes, as hints for a scan.

Nothing else in the project knows of watchdog, inotify or fanotify. `watcher` starts, supervises and
replaces the emitters; `hints` collects what they find, in bounded memory; `fanotify` and `inotify` are the
two that hear from the kernel, `polling` is for where neither can be had; `directories` remembers which
inotify watch is which directory; `admission` knows what nobody asked about.

What no kernel tells, so that a scan has to find it: a write through a shared mapping (the event comes when
the mapping and the last descriptor are closed); a change of a file seen from its other hard links in other
directories (a hinted run looks at those that the index knows; one that was made, written through and removed
between two runs is known to nobody); a change made by another machine on a network file system.
"""

from smsnapd.volume.watch.hints import Counts, Hints
from smsnapd.volume.watch.watcher import Gap, Watcher

__all__ = ["Counts", "Gap", "Hints", "Watcher"]
