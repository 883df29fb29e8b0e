"""Manifests: listed by name, loaded and verified, committed last and once."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field

from smsnapd.errors import DamageError, ObjectMissingError, WrongKeyError
from smsnapd.format import names
from smsnapd.format.codec import parse_header
from smsnapd.format.manifest import Manifest
from smsnapd.format.manifest_object import decode_manifest, encode_manifest, manifest_hash
from smsnapd.format.names import ManifestName
from smsnapd.repository.access import Repository
from smsnapd.repository.lease import Lease


@dataclass(frozen=True)
class Listed:
    """A volume's manifests, oldest first: those that count, and those that do not.

    `fenced` are those that a higher generation fenced and those that are `refused`: of a revoked writer, and
    not among what the root says counts of it. For those that were `replaced` another one stands, and the
    `shortcuts` stand beside others.
    """

    counting: tuple[ManifestName, ...]
    fenced: tuple[ManifestName, ...]
    refused: tuple[ManifestName, ...] = ()
    replaced: tuple[ManifestName, ...] = ()
    shortcuts: tuple[ManifestName, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """A manifest as it lies in the repository, verified, and the id of the writer that signed it.

    `attachments` are there if its catalog is among them, which need not be fetched then.
    """

    name: ManifestName
    manifest: Manifest
    hash: bytes
    writer_id: bytes
    attachments: bytes = field(default=b"", repr=False, compare=False)

    @property
    def hashes(self) -> frozenset[bytes]:
        """Its own hash, and those of all that it stands for: what follows from one of them follows it."""
        return frozenset((self.hash, *(row.manifest_hash for row in self.manifest.stands_for)))


def list_manifests(repository: Repository, volume: str, *, heed_parents: bool = False) -> Listed:
    """What counts of a volume. No manifest is opened but where a writer was revoked, and for `heed_parents`.

    With that, what was fenced counts if the manifest behind follows it. Where a writer was revoked this is so
    in any case: nobody can be kept from putting something beside what counts who has its key.
    """
    listing = repository.store.list(names.manifests_prefix(volume))
    found = [name for name in (ManifestName.parse(info.name) for info in listing) if name is not None]
    candidates: dict[int, list[ManifestName]] = {}
    for name in sorted(name for name in found if not name.first):
        candidates.setdefault(name.sequence, []).append(name)
    refused = _refuse_newest(repository, volume, candidates)
    standing = [name for name in found if name.first]
    refused += _refuse_standing(repository, volume, standing)
    replacements = sorted((name for name in standing if name.is_replacement), key=_widest_first)
    counting = {number: candidates[number][-1] for number in sorted(candidates)}
    fenced = [name for alike in candidates.values() for name in alike[:-1]]
    if fenced and (heed_parents or repository.roster.revoked):
        _heed_parents(repository, counting, fenced, replacements)
    every = {name for alike in candidates.values() for name in alike}
    chosen, replaced = _without_replaced(replacements, list(counting.values()))
    return Listed(
        tuple(chosen),
        tuple(sorted({*every, *refused} - {*counting.values()})),
        tuple(sorted(refused)),
        tuple(replaced),
        tuple(name for name in standing if name.is_shortcut),
    )


def _widest_first(name: ManifestName) -> tuple[int, int, int]:
    """By where it begins; of several the one that stands for most, or of the highest generation, first."""
    return name.begins, -name.sequence, -name.generation


def _without_replaced(
    replacements: list[ManifestName], written: list[ManifestName]
) -> tuple[list[ManifestName], list[ManifestName]]:
    """Those that count, in order, and those for all of which another stands.

    Two may overlap, each with more than the other: prunes at the same time made them, and both count.
    """
    kept: list[ManifestName] = []
    gone: list[ManifestName] = []
    for name in replacements:
        (gone if kept and name.sequence <= kept[-1].sequence else kept).append(name)
    # They rise at both ends now, so that the first one to end at or behind a manifest is the one to ask.
    ends = [name.sequence for name in kept]
    plain: list[ManifestName] = []
    for name in written:
        row = bisect_left(ends, name.sequence)
        is_gone = row < len(kept) and kept[row].begins <= name.sequence
        (gone if is_gone else plain).append(name)
    return sorted((*kept, *plain)), gone


def heads_of_revoked(repository: Repository, volume: str) -> dict[bytes, set[bytes]]:
    """By revoked writer the hashes of what counts of it in a volume: the last manifest, and replacements."""
    return {
        item.id: {head.manifest_hash for head in (*item.heads, *item.replacements) if head.volume == volume}
        for item in repository.roster.revoked
    }


def _refuse_newest(
    repository: Repository, volume: str, candidates: dict[int, list[ManifestName]]
) -> list[ManifestName]:
    """Take the newest ones away for as long as they are a revoked writer's and do not count.

    So whoever has a stolen key, and a daemon that has not heard yet, are in nobody's way. What lies before
    the first that is not theirs is told by what that follows.
    """
    heads = heads_of_revoked(repository, volume)
    refused: list[ManifestName] = []
    while heads and candidates:
        newest = max(candidates)
        data = _get(repository, candidates[newest][-1])
        try:
            writer_id = parse_header(data).key_id
        except DamageError:
            break
        if writer_id not in heads or manifest_hash(data) in heads[writer_id]:
            break
        refused.append(candidates[newest].pop())
        if not candidates[newest]:
            del candidates[newest]
    return refused


def _refuse_standing(repository: Repository, volume: str, standing: list[ManifestName]) -> list[ManifestName]:
    """Take those away that a revoked writer signed, but for what the root says counts.

    Of what it wrote in the course of the chain the hashes that others name are the witness; of what stands
    for that nothing is.
    """
    heads = heads_of_revoked(repository, volume)
    refused: list[ManifestName] = []
    for name in list(standing) if heads else ():
        data = _get(repository, name)
        with suppress(DamageError):
            writer_id = parse_header(data).key_id
            if writer_id in heads and manifest_hash(data) not in heads[writer_id]:
                refused.append(name)
                standing.remove(name)
    return refused


def _heed_parents(
    repository: Repository,
    counting: dict[int, ManifestName],
    fenced: list[ManifestName],
    replacements: list[ManifestName],
) -> None:
    """Of several manifests with one sequence, let that count which the manifest behind them follows.

    Its writer listed them under a higher lease; one that was put after that, by a writer that had slept,
    must not take its parent away, whatever its generation. What one generation wrote follows itself, unless
    a revoked writer may have made the generation up.
    """
    standing_behind = {name.begins: name for name in replacements}
    for name in sorted(fenced, reverse=True):
        behind = standing_behind.get(name.sequence + 1) or counting.get(name.sequence + 1)
        is_own = behind is not None and behind.generation == counting[name.sequence].generation
        if behind is None or (is_own and not repository.roster.revoked):
            continue
        with suppress(DamageError, WrongKeyError):
            parent = load_manifest(repository, behind).manifest.parent
            if parent is not None and parent.snapshot == name.snapshot:
                counting[name.sequence] = name


def signer_of(repository: Repository, name: ManifestName) -> bytes | None:
    """Whom a manifest names as its writer, which proves nothing; None if it cannot be read."""
    try:
        return parse_header(_get(repository, name)).key_id
    except DamageError:
        return None


def load_manifest(repository: Repository, name: ManifestName) -> Recorded:
    """Get, open and verify one manifest. Whether its writer was revoked is for `History` to say."""
    data = _get(repository, name)
    object_name, keys = name.object_name(), (repository.catalog_key_of, repository.verify_key_of)
    try:
        manifest = decode_manifest(data, name, repository.id, *keys)
    except DamageError as error:
        if object_name in error.what:
            raise
        why = f"cannot {error.what}: {error.why}"
        raise DamageError(f"read {object_name}", why, error.hint) from error
    repository.check_seen(manifest.roster, f"the writer of {name.object_name()}")
    header = parse_header(data)
    has_catalog = any(ref.manifest == name.object_name() for ref in manifest.catalog)
    attachments = data[header.sealed_size :] if has_catalog else b""
    return Recorded(name, manifest, manifest_hash(data), header.key_id, attachments)


def _get(repository: Repository, name: ManifestName) -> bytes:
    object_name = name.object_name()
    try:
        return repository.store.get(object_name)
    except ObjectMissingError as error:
        hint = "if a prune has let it go meanwhile, list the snapshots anew; else run `smsnap check`"
        raise DamageError(f"read {object_name}", "the object is missing", hint) from error


def commit_manifest(repository: Repository, lease: Lease, manifest: Manifest, attachments: bytes) -> Recorded:
    """Make a recovery point: everything before it durable, the manifest put, the lease read again.

    LockedError if another writer has taken the lease: then nothing was saved.
    """
    name = manifest.name
    data = encode_manifest(manifest, repository.write_key, attachments)
    repository.store.barrier()
    lease.renew()
    repository.store.put(name.object_name(), data)
    repository.store.barrier()
    lease.confirm()
    return Recorded(name, manifest, manifest_hash(data), repository.writer_id)
