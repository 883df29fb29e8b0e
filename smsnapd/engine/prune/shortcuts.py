"""Shortcuts: manifests that say at once what many incrementals say; by them a long chain is read quickly.

With the 64th incremental goes one for the last 64, with the 4,096th one for all of those: of 10,000 a reader
opens some fifty. They stand beside what they stand for; without them a chain is read as it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from smsnapd.engine.history import History
from smsnapd.errors import ObjectExistsError, SmsnapError
from smsnapd.format.names import ManifestName
from smsnapd.repository import Repository

if TYPE_CHECKING:
    from smsnapd.engine.prune.folding import Known

SPANS: Final = (64, 4096)
"""Every so many sequences there is a shortcut for so many; each is a multiple of the one before."""

log = logging.getLogger(__name__)


def is_due(head: ManifestName) -> bool:
    """Whether this manifest is one to which a shortcut leads."""
    return head.sequence % SPANS[0] == 0


def make_shortcuts(repository: Repository, volume: str) -> None:
    """Make those that lead to the newest manifest; to be called under the lease, behind the commit.

    That was reported by now: what goes wrong here is logged, and costs readers a longer way.
    """
    try:
        for span in SPANS:
            history = History.load(repository, volume)
            head = history.head_name
            if head is not None and head.sequence % span == 0:
                _make(repository, history, span)
    except SmsnapError as error:
        log.info("no shortcut was made to the newest recovery point of %s: %s", volume, error)


def _make(repository: Repository, history: History, span: int) -> None:
    """One for the last `span` sequences, or what of them is behind the last full."""
    # Few runs make one: the others do not load what it takes.
    from smsnapd.engine.prune.folding import Folder
    from smsnapd.engine.prune.thinning import Fold

    names = history.names
    end = start = len(names) - 1
    after = names[end].sequence - span
    while start and names[start].kind != "full" and names[start - 1].begins > after:
        start -= 1
    if names[start].kind == "full":
        start += 1
    if end - start < 1:
        return
    folder = Folder(
        repository,
        history.volume,
        lambda name: _known(history, name),
        {*names, *history.fenced, *history.replaced, *history.shortcuts},
        repository.write_key,
    )
    encoded = folder.write(Fold(names[start:]), history.layers(start, end))
    repository.store.barrier()
    try:
        repository.store.put(encoded.manifest.name.object_name(), encoded.data)
    except ObjectExistsError:
        log.info("%s is there already", encoded.manifest.name.object_name())
    repository.store.barrier()


def _known(history: History, name: ManifestName) -> Known:
    from smsnapd.engine.prune.folding import Known

    recorded = history.record(name)
    return Known(recorded.hash, recorded.manifest.parent, recorded.manifest.stands_for)
