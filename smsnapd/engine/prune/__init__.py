"""Garbage collection: mark what no recovery point refers to, and sweep what was marked long enough ago.

Marking is done under the volume's lease, sweeping without it: what is on a list was of no use to anybody
when no writer was at work, and every writer since then leaves it alone (architecture, invariant 2).
"""

from smsnapd.engine.prune.report import Amount, PruneReport, PruneRequest, VolumePruned
from smsnapd.engine.prune.run import run_prune

__all__ = ["Amount", "PruneReport", "PruneRequest", "VolumePruned", "run_prune"]
