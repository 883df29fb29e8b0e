"""Writing chunks anew that are mostly dead or small: with the identity, for their contents are opened.

First the new chunks, then each manifest that names the old ones gets a replacement that names the new. What
the newest manifest names is left alone, since it gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from smsnapd.engine.chain.sparse import ChunkKey
from smsnapd.engine.chain.storedchunk import put_chunk
from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress
from smsnapd.engine.prune.folding import Folder
from smsnapd.engine.prune.moving import Live, Moved, Place, key_of
from smsnapd.engine.prune.thinning import Fold
from smsnapd.engine.trees.tree import SnapshotTree, chunk_names_keys
from smsnapd.errors import ObjectExistsError
from smsnapd.format.keys import DataKey
from smsnapd.format.names import ManifestName
from smsnapd.model import CHUNK_TARGET
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener, Fetcher
from smsnapd.repository.manifests import list_manifests, load_manifest

LEVEL: Final = 3


class Rewriter:
    """One volume's rewriting, of a history whose manifests were all read.

    `in_time` says whether what was listed may be built upon still.
    """

    def __init__(
        self,
        repository: Repository,
        history: History,
        folder: Folder,
        progress: Progress,
        in_time: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._history = history
        self._folder = folder
        self._progress = progress
        self._in_time = in_time
        self._named_by: dict[ManifestName, set[ChunkKey]] = {}
        self.live = Live()
        self.chosen: list[ChunkKey] = []

    def look(self) -> None:
        """See what is live, in all recovery points; `chosen` are the chunks to be written anew."""
        names = self._history.names
        self._progress.phase(f"look into the catalogs of {self._history.volume}", files=len(names))
        barred: set[ChunkKey] = set()
        for name in names:
            recorded = load_manifest(self._repository, name)
            tree = SnapshotTree(self._repository, [recorded])
            self.live.add(tree, tree.layer())
            self._named_by[name] = {key_of(ref) for ref in tree.chunks}
            report = recorded.manifest.environment
            barred.update(key for key in self._named_by[name] if key[0] == report)
            self._progress.advance(files=1)
        if names:
            barred |= self._named_by[names[-1]]
        self.chosen = self.live.to_rewrite(barred)

    @property
    def dead_bytes(self) -> int:
        """What is dead in the chosen chunks, of their content."""
        return sum(self.live.refs[key].length - self.live.bytes_of(key) for key in self.chosen)

    def rewrite(self) -> int:
        """Do it; how many chunks were written anew. May be cut off at any moment.

        DamageError if one is not whole: then none is.
        """
        if not self.chosen:
            return 0
        moved = Moved()
        self._progress.phase(f"write chunks of {self._history.volume} anew", files=len(self.chosen))
        data_key = self._repository.new_data_key(self._history.volume)
        for pieces in _packed(self.chosen, self.live):
            self._write(pieces, moved, data_key)
        self._repository.store.barrier()
        for name in self._history.names[:-1]:
            if self._named_by[name] & moved.places.keys() and self._in_time():
                self._replace(name, moved)
        return len(self.chosen)

    def _write(self, pieces: list[tuple[ChunkKey, int, int]], moved: Moved, data_key: DataKey) -> None:
        """One new chunk, of stretches of old ones."""
        content = bytearray()
        number = len(moved.chunks)
        for key, stretches in _by_chunk(pieces):
            old = memoryview(self._opened(key))
            for begin, end in stretches:
                moved.places.setdefault(key, []).append(Place(begin, end, number, len(content)))
                content += old[begin:end]
            self._progress.advance(files=1)
        volume = self._history.volume
        moved.chunks.append(put_chunk(self._repository, volume, data_key, bytes(content), level=LEVEL))

    def _opened(self, key: ChunkKey) -> bytes:
        repository, volume, ref = self._repository, self._history.volume, self.live.refs[key]
        keys = {ref.key_id: bytes(repository.data_key(volume, ref.key_id).secret)}
        fetcher = Fetcher(repository.store, volume)
        return ChunkOpener(fetcher, repository.id, volume, keys, chunk_names_keys(repository, volume)).open(
            ref
        )

    def _replace(self, name: ManifestName, moved: Moved) -> None:
        """Put one replacement, with a number of its own.

        A writer may make its index at any moment, of manifests of which some are replaced by then: the next
        replacement must have a higher number than that index knows, or it would be used with what that takes.
        """
        listed = list_manifests(self._repository, name.volume)
        if name not in listed.counting:
            return  # another prune has let it go or written it anew meanwhile
        moved.rewrites = 1 + max(each.rewrites for each in (*listed.counting, *listed.replaced))
        encoded = self._folder.write(Fold((name,)), moved=moved)
        self._repository.store.barrier()
        if not self._in_time():  # this may have slept since it was asked
            return
        try:
            self._repository.store.put(encoded.manifest.name.object_name(), encoded.data)
        except ObjectExistsError:
            return  # another prune was at it; what was written here is garbage, unless others name it
        self._repository.store.barrier()


def _packed(chosen: Iterable[ChunkKey], live: Live) -> Iterator[list[tuple[ChunkKey, int, int]]]:
    """The live stretches of the chosen chunks, for one new chunk after the other."""
    pieces: list[tuple[ChunkKey, int, int]] = []
    size = 0
    for key in chosen:
        for begin, end in live.runs(key):
            if pieces and size + end - begin > CHUNK_TARGET:
                yield pieces
                pieces, size = [], 0
            pieces.append((key, begin, end))
            size += end - begin
    if pieces:
        yield pieces


def _by_chunk(
    pieces: list[tuple[ChunkKey, int, int]],
) -> Iterator[tuple[ChunkKey, list[tuple[int, int]]]]:
    found: dict[ChunkKey, list[tuple[int, int]]] = {}
    for key, begin, end in pieces:
        found.setdefault(key, []).append((begin, end))
    yield from found.items()
