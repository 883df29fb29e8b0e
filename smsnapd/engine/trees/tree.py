"""The tree of a recovery point: its chain's catalogs, folded and checked, as a stream of listings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from smsnapd.engine.image.listing import image_listings
from smsnapd.engine.trees.fold import checked, fold, merge, without_lost_aliases
from smsnapd.errors import DamageError, UsageError
from smsnapd.format.catalog import Order, decode_segment
from smsnapd.format.image import Image, pieces_of
from smsnapd.format.manifest import Manifest
from smsnapd.model import ChunkRef, Entry, Listing
from smsnapd.repository import Repository
from smsnapd.repository.contents import CatalogOpener, ChunkOpener, Fetcher
from smsnapd.repository.manifests import Recorded


class SnapshotTree:
    """Entries of one recovery point; extents name chunks by their row in `chunks`."""

    def __init__(
        self, repository: Repository, chain: list[Recorded], image_root: bytes | None = None
    ) -> None:
        """`image_root` is where the image that the chain begins with is mounted, for who wants its files."""
        self.repository = self._repository = repository
        self._chain = chain
        self.image_root = image_root
        self.volume = chain[-1].name.volume
        self.chunks: list[ChunkRef] = []
        self._bases: list[int] = []
        for recorded in chain:
            self._bases.append(len(self.chunks))
            self.chunks.extend(recorded.manifest.chunks)

    @property
    def newest(self) -> Manifest:
        """The manifest of the recovery point."""
        return self._chain[-1].manifest

    @property
    def environment(self) -> bytes | None:
        """The hash in the name of the newest environment report's chunk; None if there is no report."""
        found = (recorded.manifest.environment for recorded in reversed(self._chain))
        return next((name_hash for name_hash in found if name_hash is not None), None)

    @property
    def image(self) -> Image | None:
        """The image that the chain begins with; None if that is a tree of files, too."""
        return self._chain[0].manifest.image

    def pieces(self) -> Iterator[Entry]:
        """The pieces of the image that the chain begins with, in order; DamageError if they are not whole."""
        assert self.image is not None
        return pieces_of(self.image, self._layer(0))

    def verify(self) -> None:
        """Read every catalog of the chain, and hold the tree to what it must be; else DamageError."""
        if self.image is None:
            for _ in self.listings():
                pass  # reading it is the check
            return
        for _ in self.pieces():
            pass
        for number in range(1, len(self._chain)):
            for _ in self._layer(number):
                pass

    def listings(self) -> Iterator[Listing]:
        """The tree in catalog order; may be called again. UsageError if an image is its lowest layer, and
        that is not mounted: `files_of` opens such trees.
        """
        if len(self._chain) == 1:
            return checked(self._lowest())
        above = (self._layer(number) for number in range(1, len(self._chain)))
        folded = fold([self._lowest(), *above])
        is_live_image = self.image is not None and self.base.consistency == "live"
        return checked(without_lost_aliases(folded) if is_live_image else folded)

    def with_image_at(self, root: bytes) -> SnapshotTree:
        """The same, the image that the chain begins with being mounted at `root`."""
        return SnapshotTree(self.repository, self._chain, root)

    def _lowest(self) -> Iterator[Listing]:
        if self.image is None:
            return self._layer(0)
        if self.image_root is None:
            raise UsageError(
                f"list the files of snapshot {self.newest.name.snapshot}",
                "its chain begins with a block image, which is not mounted here",
                "`smsnap ls`, `cat` and `restore` mount it",
            )
        return image_listings(self.image_root)

    @property
    def is_bare_image(self) -> bool:
        """Whether the recovery point is an image, and nothing behind it."""
        return self.image is not None and len(self._chain) == 1

    @property
    def base(self) -> Manifest:
        """The manifest of the full."""
        return self._chain[0].manifest

    def merged(self) -> Iterator[Listing]:
        """What all the catalogs together say: of a full and what follows it the tree, else one layer."""
        if self.is_bare_image:
            return self._layer(0)
        if self._chain[0].name.kind == "full":
            return self.listings()
        return merge([self._layer(number) for number in range(len(self._chain))])

    def layer(self) -> Iterator[Listing]:
        """What the recovery point's own catalog says, tombstones included."""
        return self._layer(len(self._chain) - 1)

    def _layer(self, number: int) -> Iterator[Listing]:
        manifest = self._chain[number].manifest
        fetcher = Fetcher(self._repository.store, self.volume)
        if self._chain[number].attachments:
            fetcher.hold(manifest.name.object_name(), self._chain[number].attachments)
        contents = [ref.length for ref in manifest.chunks]
        order = Order(f"read the catalog of snapshot {manifest.name.snapshot}")
        for ref in manifest.catalog:
            opener = catalog_opener(self._repository, fetcher, self.volume, ref.key_id)
            segment = opener.open(ref)
            for listing in decode_segment(segment, self._bases[number], len(contents), contents):
                order.check(listing)
                yield listing

    def owners(self) -> tuple[dict[int, str], dict[int, str]]:
        """Names of users and of groups by id, the newest layer's first."""
        users: dict[int, str] = {}
        groups: dict[int, str] = {}
        for recorded in self._chain:
            users.update(recorded.manifest.owners.users)
            groups.update(recorded.manifest.owners.groups)
        return users, groups

    def data_keys(self, numbers: set[int]) -> dict[bytes, bytes]:
        """The data keys that these chunks need, opened with the identity.

        One that is missing or damaged is left out: the chunks of the others can be opened still.
        """
        keys: dict[bytes, bytes] = {}
        for key_id in {self.chunks[number].key_id for number in numbers}:
            with suppress(DamageError):  # `ChunkOpener` reports it, for each chunk that needs the key
                keys[key_id] = bytes(self._repository.data_key(self.volume, key_id).secret)
        return keys

    def names_keys(self) -> tuple[bytes, ...]:
        """As `chunk_names_keys`."""
        return chunk_names_keys(self._repository, self.volume)

    def opener(self, numbers: set[int]) -> ChunkOpener:
        """Opens the chunks with these numbers."""
        return ChunkOpener(
            Fetcher(self._repository.store, self.volume),
            self._repository.id,
            self.volume,
            self.data_keys(numbers),
            self.names_keys(),
        )


def chunk_names_keys(repository: Repository, volume: str) -> tuple[bytes, ...]:
    """The chunk-name keys of all writers: a chunk may have been stored by one before.

    With the write key alone its own. A writer whose record is damaged is left out: `ChunkOpener` refuses
    what it has stored, and gives the rest.
    """
    if repository.identity is None:
        return (repository.volume_keys(volume).chunk_names,)
    keys: list[bytes] = []
    for writer in repository.roster.writers:
        with suppress(DamageError):
            keys.append(repository.volume_keys(volume, writer.id).chunk_names)
    return tuple(keys)


def catalog_opener(repository: Repository, fetcher: Fetcher, volume: str, writer_id: bytes) -> CatalogOpener:
    """Opens what a writer's catalogs hold."""
    return CatalogOpener(
        fetcher,
        repository.id,
        volume,
        repository.catalog_key_of(writer_id),
        repository.volume_keys(volume, writer_id).catalog_names,
    )
