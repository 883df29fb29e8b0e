"""Folding a row of manifests into one that stands for them all: catalogs only, no content is opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from smsnapd import __version__
from smsnapd.engine.chain.catalog import Attachments, CatalogBuilder
from smsnapd.engine.prune.moving import Moved
from smsnapd.engine.prune.thinning import Fold
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.format.catalog import CatalogWriter
from smsnapd.format.keys import WriteKey
from smsnapd.format.manifest import Manifest, Owner, Owners, ParentRef, StoodFor
from smsnapd.format.manifest_object import encode_manifest, manifest_hash
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef, Kind, Listing
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded, load_manifest

ATTACH_BYTES: Final = 128 * 1024
"""Sealed bytes of catalog that a replacement carries with it at most, instead of objects of their own."""

_TOMBSTONE: Final = int(Kind.TOMBSTONE)


class Rows(dict[int, int]):
    """Rows of a chunk table, by the numbers of `chunks`: one row a chunk, which may have several numbers."""

    def __init__(self, chunks: Sequence[ChunkRef]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rows: dict[tuple[bytes, bytes], int] = {}
        self.refs: list[ChunkRef] = []

    def setdefault(self, number: int, default: int = 0) -> int:
        """The row of a number; `default` is no matter."""
        row = self.get(number)
        if row is None:
            ref = self._chunks[number]
            row = self._rows.setdefault((ref.name_hash, ref.key_id), len(self.refs))
            if row == len(self.refs):
                self.refs.append(ref)
            self[number] = row
        return row


class _Counts(NamedTuple):
    """Entries and tombstones of a catalog."""

    changed: int = 0
    deleted: int = 0

    def plus(self, listing: Listing) -> _Counts:
        deleted = sum(entry.kind == _TOMBSTONE for entry in listing.entries)
        return _Counts(self.changed + len(listing.entries) - deleted, self.deleted + deleted)


class Known(NamedTuple):
    """What is known of a manifest that is folded."""

    hash: bytes
    parent: ParentRef | None
    stands_for: tuple[StoodFor, ...]


class Folder:
    """Folds manifests. `known` tells of each that is; `present` are all manifests that are there."""

    def __init__(
        self,
        repository: Repository,
        volume: str,
        known: Callable[[ManifestName], Known],
        present: Collection[ManifestName],
        signer: WriteKey,
    ) -> None:
        self._repository = repository
        self._volume = volume
        self._known = known
        self._present = present
        self._signer = signer
        self._fixed = {head.manifest_hash for item in repository.roster.revoked for head in item.heads}

    def name_of(self, fold: Fold, *, is_shortcut: bool = False, rewrites: int = 0) -> ManifestName:
        """The name of the manifest that stands for all of a fold."""
        rewrites = max(rewrites, *(name.rewrites for name in fold.names))
        begins, ends = fold.names[0].begins, fold.last.sequence
        highest = max(name.generation for name in self._present if begins <= name.sequence <= ends)
        return fold.last._replace(
            generation=highest + 1,
            kind=fold.kind,
            first=begins,
            is_shortcut=is_shortcut,
            rewrites=rewrites,
        )

    def write(
        self, fold: Fold, shortcut: list[Recorded] | None = None, moved: Moved | None = None
    ) -> Encoded:
        """Store the catalog of a fold, and make the manifest, which is not put. DamageError if it cannot.

        One that is to be a `shortcut` is made of these, which do the same as what is folded. With `moved`
        what lies in some chunks lies in others then.
        """
        rewrites = moved.rewrites if moved else 0
        name = self.name_of(fold, is_shortcut=shortcut is not None, rewrites=rewrites)
        tree = self._tree(fold) if shortcut is None else SnapshotTree(self._repository, shortcut)
        listings = tree.merged() if moved is None else moved.applied(tree)
        rows = Rows(tree.chunks)
        builder = CatalogBuilder(
            self._repository, self._volume, ATTACH_BYTES, write_key=self._signer, rows=rows
        )
        counts = _Counts()
        for listing in listings:
            builder.add(listing)
            counts = counts.plus(listing)
        builder.finish()
        attachments = Attachments(name.object_name())
        catalog = tuple(attachments.add(ref, sealed) for ref, sealed in builder.segments)
        manifest = self._manifest(fold, name, tree, rows, catalog, counts)
        return Encoded(manifest, encode_manifest(manifest, self._signer, attachments.data()))

    def suppose(self, fold: Fold) -> Recorded:
        """What `write` would make, without its catalog; nothing is stored."""
        tree = self._tree(fold)
        rows = Rows(tree.chunks)
        writer = CatalogWriter(rows=rows)
        for listing in tree.merged():
            writer.add(listing)
        writer.finish()
        manifest = self._manifest(fold, self.name_of(fold), tree, rows, (), _Counts())
        return Recorded(manifest.name, manifest, b"", self._signer.writer_id)

    def _tree(self, fold: Fold) -> SnapshotTree:
        return SnapshotTree(self._repository, [load_manifest(self._repository, name) for name in fold.layers])

    def _manifest(
        self,
        fold: Fold,
        name: ManifestName,
        tree: SnapshotTree,
        rows: Rows,
        catalog: tuple[ChunkRef, ...],
        counts: _Counts,
    ) -> Manifest:
        last = tree.newest
        environment = self._environment(tree, rows)
        users, groups = tree.owners()
        statistics = replace(
            last.statistics,
            changed=counts.changed,
            deleted=counts.deleted,
            stored_bytes=sum(ref.stored_length for ref in catalog),
        )
        return replace(
            last,
            name=name,
            parent=self._known(fold.names[0]).parent,
            program=f"smsnapd {__version__}",
            statistics=statistics,
            owners=Owners(_owners(users), _owners(groups)),
            chunks=tuple(self._placed(ref) for ref in rows.refs),
            catalog=catalog,
            stands_for=self._stands_for(fold, only_last=name.is_shortcut),
            environment=environment,
            roster=self._repository.rosters[-1].ref,
        )

    def _environment(self, tree: SnapshotTree, rows: Rows) -> bytes | None:
        """The newest environment report there is: its chunk must have a row."""
        found = tree.environment
        if found is not None:
            number = next(n for n, ref in enumerate(tree.chunks) if ref.name_hash == found)
            rows.setdefault(number)
        return found

    def _placed(self, ref: ChunkRef) -> ChunkRef:
        """Where a chunk lies: what was attached to a manifest that is gone is an object of its own."""
        host = ManifestName.parse(ref.manifest) if ref.manifest else None
        return ref if host in self._present else replace_place(ref)

    def _stands_for(self, fold: Fold, *, only_last: bool) -> tuple[StoodFor, ...]:
        """All that may be named as a parent still: what is there, and what the last one was known as."""
        sequences = {name.sequence for name in self._present}
        rows: set[StoodFor] = set(self._known(fold.last).stands_for)
        for name in (fold.last,) if only_last else fold.names:
            seen = self._known(name)
            rows.add(StoodFor(name.sequence, seen.hash))
            rows.update(
                row
                for row in seen.stands_for
                if row.sequence in sequences or row.manifest_hash in self._fixed
            )
        return tuple(sorted(rows))


class Encoded(NamedTuple):
    """A manifest, and its object."""

    manifest: Manifest
    data: bytes

    @property
    def recorded(self) -> Recorded:
        """As it would be read."""
        return Recorded(self.manifest.name, self.manifest, manifest_hash(self.data), b"")


def replace_place(ref: ChunkRef) -> ChunkRef:
    """The same chunk as an object of its own."""
    if not ref.manifest:
        return ref
    return ChunkRef(ref.name_hash, ref.key_id, ref.length, ref.stored_length, ref.stored_hash)


def _owners(names: dict[int, str]) -> tuple[Owner, ...]:
    return tuple(Owner(number, name) for number, name in sorted(names.items()))
