"""Letting recovery points go: the policy asked, folds planned and done, each with one put at its end.

Without the lease, for the daemon has that all day: the newest manifest is left alone, whatever else is
written has the same tree, and two prunes at the same time make what fits together (FORMAT.md, section 15).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from smsnapd.engine.chain.sparse import ChunkKey, remember_sparse
from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune.folding import Folder, Known
from smsnapd.engine.prune.references import References
from smsnapd.engine.prune.report import Amount, PruneRequest
from smsnapd.engine.prune.rewriting import Rewriter
from smsnapd.engine.prune.thinning import Fold, plan_folds, points_of
from smsnapd.engine.retention import kept
from smsnapd.errors import DamageError, ObjectExistsError
from smsnapd.format.names import ManifestName
from smsnapd.repository import Repository
from smsnapd.repository.garbage import signer_for
from smsnapd.repository.manifests import Listed, list_manifests
from smsnapd.repository.tags import pinned

LEAST_S: Final = 600.0
"""However short the grace period: what was listed so long ago may be built upon."""

log = logging.getLogger(__name__)


def listed_strictly(repository: Repository, volume: str) -> History:
    """The volume's manifests by their generations alone.

    Where what follows says otherwise the chain does not hold together; nothing is to be thinned or deleted.
    """
    return History(repository, volume, list_manifests(repository, volume))


class Thinner:
    """One volume's thinning, of a history whose manifests were all read.

    `removed` are those whose recovery points went; `sparse`, `rewritten`, `notes` and `refused` as those of
    the report.
    """

    def __init__(
        self,
        repository: Repository,
        history: History,
        references: References,
        request: PruneRequest,
        progress: Progress,
        began_s: float,
    ) -> None:
        """`began_s` is when the history was listed or before, by the store's clock."""
        self._repository = repository
        self._history = history
        self._references = references
        self._request = request
        self._progress = progress
        self._began_s = began_s
        self._folder = self._new_folder()
        self.sparse = Amount()
        self.rewritten = 0
        self.removed: list[ManifestName] = []
        self.notes: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def _new_folder(self) -> Folder:
        history = self._history
        present = {*history.names, *history.fenced, *history.replaced, *history.shortcuts}
        signer = signer_for(self._repository, self._references.head_writer)
        return Folder(self._repository, history.volume, self._known, present, signer)

    def _known(self, name: ManifestName) -> Known:
        seen = self._references.seen[name]
        return Known(seen.hash, seen.parent, seen.stands_for)

    def _folds(self) -> list[Fold]:
        tags = pinned(self._repository, self._history.volume)
        stay = kept(points_of(self._history.names), self._request.policy, tags)
        return plan_folds(self._history.names, stay, lambda name: self._references.seen[name].is_image)

    def thin(self) -> History:
        """Do it; the history afterwards, its manifests read. May be cut off at any moment."""
        folds = self._folds()
        self._progress.phase(f"fold recovery points of {self._history.volume}", files=len(folds))
        for fold in folds:
            if not self._in_time():
                self.notes.append("not all recovery points went that may; the next prune goes on")
                break
            self._fold(fold)
            self._progress.advance(files=1)
        if self.removed:
            self._list_again()
        if not self.refused:
            self._rewrite()
        return self._history

    def _list_again(self) -> None:
        self._history = listed_strictly(self._repository, self._history.volume)
        self._references.read(self._history.names, lambda: None)
        self._folder = self._new_folder()

    def _rewrite(self) -> None:
        """With the identity write mostly dead and small chunks anew; without it see which they are."""
        rewriter = Rewriter(self._repository, self._history, self._folder, self._progress, self._in_time)
        try:
            rewriter.look()
            self.sparse = Amount(len(rewriter.chosen), rewriter.dead_bytes)
            if self._repository.identity is not None and rewriter.chosen:
                self.rewritten = rewriter.rewrite()
                self._list_again()
            elif self._request.state_dir is not None:
                self._remember(self._request.state_dir, rewriter.chosen)
        except DamageError as error:
            self.refused.append(
                (self._history.volume, f"no chunk was written anew: {error.what}: {error.why}")
            )

    def _remember(self, directory: Path, chosen: list[ChunkKey]) -> None:
        """Let the next full from here leave these chunks; who may not write there prunes all the same."""
        try:
            remember_sparse(directory, self._repository.repository_id, self._history.volume, chosen)
        except OSError as error:
            self.notes.append(f"mostly dead chunks are not remembered for the next full: {error}")

    def _in_time(self) -> bool:
        """Whether what was listed is recent enough to build upon: nothing of it can have been deleted yet."""
        return self._repository.store.now() - self._began_s <= max(self._request.grace_s / 2, LEAST_S)

    def _fold(self, fold: Fold) -> None:
        store = self._repository.store
        try:
            encoded = self._folder.write(fold)
        except DamageError as error:
            self.refused.append((fold.last.object_name(), f"not folded: {error.what}: {error.why}"))
            return
        store.barrier()
        if not self._still_counts(fold):
            return
        fresh = pinned(self._repository, self._history.volume)
        if not self._in_time() or any(name.snapshot in fresh for name in fold.gone):
            return
        try:
            store.put(encoded.manifest.name.object_name(), encoded.data)
        except ObjectExistsError:
            log.info("another prune has folded %s meanwhile", fold.last.object_name())
            return
        store.barrier()
        self.removed += fold.gone

    def _still_counts(self, fold: Fold) -> bool:
        """Whether no other prune was at what is folded: of what that has written anew an index may be made
        by now, which would be used still when this fold had taken it away."""
        counting = list_manifests(self._repository, self._history.volume).counting
        if set(fold.names).issubset(counting):
            return True
        log.info("another prune was at what %s stands for", fold.last.object_name())
        return False

    def suppose(self) -> History:
        """What the history would be. Nothing is written; `References` knows what would be needed."""
        counting = set(self._history.names)
        for fold in self._folds():
            try:
                supposed = self._folder.suppose(fold)
            except DamageError as error:
                self.refused.append((fold.last.object_name(), f"not to be folded: {error.what}: {error.why}"))
                continue
            self._references.suppose(supposed)
            counting = counting - set(fold.names) | {supposed.name}
            self.removed += fold.gone
        replaced = {*self._history.names, *self._history.replaced} - counting
        listed = Listed(
            tuple(sorted(counting)),
            self._history.fenced,
            tuple(sorted(replaced)),
            self._history.shortcuts,
        )
        return History(self._repository, self._history.volume, listed)
