"""The object of a manifest: its JSON, signed and sealed, with small chunks attached (FORMAT.md, 7)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final, get_args

from blake3 import blake3

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.codec import CONTENT_LIMITS, Context, ObjectType, parse_header
from smsnapd.format.image import EXTENSION, Image, image_members, parse_image
from smsnapd.format.keys import WriteKey
from smsnapd.format.manifest import (
    Completeness,
    Consistency,
    CopiedFrom,
    Issue,
    Manifest,
    Owner,
    Owners,
    ParentRef,
    RosterRef,
    Source,
    Statistics,
    StoodFor,
)
from smsnapd.format.members import UPGRADE, Members, canonical_json, parse_canonical_json
from smsnapd.format.names import NUMBER_MAX, ManifestName, format_time_us
from smsnapd.format.signed import SIGNATURE_SIZE, KeyOfWriter, open_signed, seal_signed
from smsnapd.format.table import (
    check_attachments,
    check_blocks,
    decode_table,
    encode_table,
    number_keys,
    number_places,
)
from smsnapd.model import ChunkRef, path_bytes, path_text

STANDS_FOR: Final = "stands-for"
"""The extension that manifests use which stand for several."""

KNOWN_EXTENSIONS: Final[frozenset[str]] = frozenset({EXTENSION, STANDS_FOR})
"""What this version understands of `must_understand`."""

_CONSISTENCIES: Final[dict[str, Consistency]] = {name: name for name in get_args(Consistency)}
_ID_MAX: Final = 2**32 - 1


def manifest_hash(data: bytes) -> bytes:
    """The hash (32 bytes) of a whole manifest object, attachments included, as a child names it."""
    return blake3(data).digest()


def encode_manifest(
    manifest: Manifest,
    write_key: WriteKey,
    attachments: bytes = b"",
    *,
    level: int = 3,
    salt: bytes | None = None,
) -> bytes:
    """The object of a manifest: signed, sealed, with the attachments behind it. `salt` as for `seal`.

    Raises `SmsnapError` for a manifest that a reader would refuse, so that none is ever written.
    """
    name = manifest.name.object_name()
    what = f"write {name}"
    text = canonical_json(_members(manifest, write_key, name, what))
    size = SIGNATURE_SIZE + len(text)
    if size > CONTENT_LIMITS[ObjectType.MANIFEST]:
        raise SmsnapError(what, f"it would have {size} bytes", "take fulls more often")
    try:
        decoded = _parse(text, manifest.name, write_key.repository_id, write_key.writer_id)
        _check_attached(decoded, memoryview(attachments), what)
    except DamageError as error:
        raise SmsnapError(what, f"a reader would refuse it: {error.why}") from error
    if (decoded.chunks, decoded.catalog, decoded.parent, decoded.stands_for) != (
        manifest.chunks,
        manifest.catalog,
        manifest.parent,
        manifest.stands_for,
    ):
        raise SmsnapError(what, "a reader would understand something else")
    context = Context(write_key.repository_id, manifest.name.volume, name)
    return seal_signed(ObjectType.MANIFEST, context, text, write_key, level=level, salt=salt) + attachments


def decode_manifest(
    data: bytes,
    name: ManifestName,
    repository_id: bytes,
    catalog_key: KeyOfWriter,
    verify_key: KeyOfWriter,
) -> Manifest:
    """The manifest in the object `name`; `DamageError` if anything in it deviates from the format.

    `catalog_key` and `verify_key` give a writer's catalog key and its public key. Whether its parent's
    hash is right, and its writer revoked, is for the caller.
    """
    object_name = name.object_name()
    context = Context(repository_id, name.volume, object_name)
    text, writer_id = open_signed(ObjectType.MANIFEST, context, data, catalog_key, verify_key)
    manifest = _parse(text, name, repository_id, writer_id)
    attached = memoryview(data)[parse_header(data).sealed_size :]
    _check_attached(manifest, attached, f"read {object_name}")
    return manifest


def _check_attached(manifest: Manifest, attachments: memoryview, what: str) -> None:
    own = manifest.name.object_name()
    refs = [ref for refs in (manifest.chunks, manifest.catalog) for ref in refs if ref.manifest == own]
    check_attachments(refs, attachments, what)


def _members(manifest: Manifest, write_key: WriteKey, name: str, what: str) -> dict[str, object]:
    keys = number_keys(manifest.chunks, what)
    places = number_places(name, (*manifest.chunks, *manifest.catalog), what)
    if any(ref.key_id != write_key.writer_id for ref in manifest.catalog):
        raise SmsnapError(what, "a segment of its catalog is another writer's", "take a full")
    parent, image, report = manifest.parent, manifest.image, manifest.environment
    extensions = [STANDS_FOR] * bool(manifest.name.first) + [EXTENSION] * (image is not None)
    return {
        "format": 1,
        "must_understand": extensions,
        "repository": manifest.repository_id.hex(),
        "volume": manifest.name.volume,
        "snapshot": manifest.name.snapshot,
        "sequence": manifest.name.sequence,
        "generation": manifest.name.generation,
        "kind": manifest.name.kind,
        "time": format_time_us(manifest.name.time_us),
        "finished": format_time_us(manifest.finished_us),
        "mode": manifest.mode,
        "parent": parent and {"snapshot": parent.snapshot, "hash": parent.manifest_hash.hex()},
        "program": _text(manifest.program),
        "host": _text(manifest.host),
        "source": {"path": _text(manifest.source.path), "filesystem": manifest.source.filesystem},
        "consistency": manifest.consistency,
        "completeness": _completeness_members(manifest.completeness),
        "statistics": vars(manifest.statistics),
        "owners": {
            "users": {str(owner.id): _text(owner.name) for owner in manifest.owners.users},
            "groups": {str(owner.id): _text(owner.name) for owner in manifest.owners.groups},
        },
        "keys": [key_id.hex() for key_id in keys],
        "attached_to": list(places)[2:],
        "chunks": encode_table(manifest.chunks, keys, places),
        "catalog": encode_table(manifest.catalog, {write_key.writer_id: 0}, places),
        **({} if image is None else {"image": image_members(image)}),
        **({} if report is None else {"environment": report.hex()}),
        **_roster_members(manifest.roster),
        **_stands_for_members(manifest),
        **_copied_members(manifest.copied_from),
    }


def _copied_members(origin: CopiedFrom | None) -> dict[str, object]:
    if origin is None:
        return {}
    return {"copied_from": {"repository": origin.repository_id.hex(), "hash": origin.manifest_hash.hex()}}


def _roster_members(roster: RosterRef | None) -> dict[str, object]:
    return {} if roster is None else {"roster": {"sequence": roster.sequence, "hash": roster.hash.hex()}}


def _stands_for_members(manifest: Manifest) -> dict[str, object]:
    if not manifest.name.first:
        return {}
    rows = [{"sequence": row.sequence, "hash": row.manifest_hash.hex()} for row in manifest.stands_for]
    return {
        "first": manifest.name.first,
        "rewrites": manifest.name.rewrites,
        "shortcut": manifest.name.is_shortcut,
        "stands_for": rows,
    }


def _text(text: str) -> str:
    """What the system said, as valid Unicode: bytes that were none become `\\xNN`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _completeness_members(completeness: Completeness) -> dict[str, object]:
    return {
        "method": completeness.method,
        "complete": completeness.complete,
        "incomplete": _issue_members(completeness.incomplete),
        "vanished": [path_text(path) for path in completeness.vanished],
        "skipped": _issue_members(completeness.skipped),
    }


def _issue_members(issues: tuple[Issue, ...]) -> list[dict[str, str]]:
    return [{"path": path_text(issue.path), "reason": _text(issue.reason)} for issue in issues]


def _parse(text: bytes, name: ManifestName, repository_id: bytes, writer_id: bytes) -> Manifest:
    what = f"read {name.object_name()}"
    members = parse_canonical_json(text, what)
    _check_understood(members, what)
    _check_name(members, name, repository_id)
    chunks, catalog = _tables(members, name, writer_id, what)
    image = _image(members, name.kind, what)
    source = members.nested("source")
    return Manifest(
        repository_id=repository_id,
        name=name,
        finished_us=members.time_us("finished"),
        parent=_parent(members, name),
        stands_for=_stands_for(members, name),
        program=members.text("program"),
        host=members.text("host"),
        source=Source(source.text("path"), source.text("filesystem")),
        consistency=_consistency(members, image),
        completeness=_completeness(members.nested("completeness")),
        statistics=_statistics(members.nested("statistics")),
        owners=_owners(members.nested("owners")),
        chunks=chunks,
        catalog=catalog,
        image=image,
        environment=_environment(members, chunks),
        roster=_roster(members),
        copied_from=_copied_from(members),
    )


def _environment(members: Members, chunks: tuple[ChunkRef, ...]) -> bytes | None:
    """The chunk of the environment report, if this manifest has one, and its table still names it."""
    if "environment" not in members.names():
        return None
    name_hash = members.hex("environment", 32)
    return name_hash if any(ref.name_hash == name_hash for ref in chunks) else None


def _check_understood(members: Members, what: str) -> None:
    if members.integer("format") != 1:
        raise DamageError(what, "it is of another version of the format", UPGRADE)
    unknown = set(members.texts("must_understand")) - KNOWN_EXTENSIONS
    if unknown:
        raise DamageError(what, f"it uses {', '.join(sorted(unknown))}", UPGRADE)


def _image(members: Members, kind: str, what: str) -> Image | None:
    """The image of a manifest of mode block, which must say so where no reader can miss it."""
    mode, extended = members.text("mode"), EXTENSION in members.texts("must_understand")
    if mode not in ("tar", "block"):
        raise DamageError(what, f"its mode is {mode}", UPGRADE)
    if extended != (mode == "block") or (extended and kind != "full"):
        members.refuse("mode", "that of its kind and of what it must be understood by")
    return parse_image(members.nested("image")) if extended else None


def _consistency(members: Members, image: Image | None) -> Consistency:
    found = _CONSISTENCIES.get(members.text("consistency"))
    if found is None or (found == "freeze" and image is None):
        members.refuse("consistency", "one that this version knows")
    return found


def _check_name(members: Members, name: ManifestName, repository_id: bytes) -> None:
    said = {
        "repository": repository_id.hex(),
        "volume": name.volume,
        "snapshot": name.snapshot,
        "kind": name.kind,
        "time": format_time_us(name.time_us),
    }
    for member, value in said.items():
        if members.text(member) != value:
            members.refuse(member, "that of the object's name and place")
    for member, number in (("sequence", name.sequence), ("generation", name.generation)):
        if members.integer(member) != number:
            members.refuse(member, "that of the object's name")


def _copied_from(members: Members) -> CopiedFrom | None:
    if "copied_from" not in members.names():
        return None
    origin = members.nested("copied_from")
    return CopiedFrom(origin.hex("repository", 16), origin.hex("hash", 32))


def _roster(members: Members) -> RosterRef | None:
    """Manifests of before there was this member have none."""
    if "roster" not in members.names():
        return None
    roster = members.nested("roster")
    return RosterRef(roster.integer("sequence", 1, NUMBER_MAX), roster.hex("hash", 32))


def _parent(members: Members, name: ManifestName) -> ParentRef | None:
    if members.is_null("parent") != (name.begins == 1):
        members.refuse("parent", "null for the first manifest and an object for the others")
    if name.begins == 1:
        if name.kind != "full":
            members.refuse("kind", "full, as the first of a volume is")
        return None
    parent = members.nested("parent")
    return ParentRef(parent.hex("snapshot", 8).hex(), parent.hex("hash", 32))


def _stands_for(members: Members, name: ManifestName) -> tuple[StoodFor, ...]:
    """What the manifest stands for: at least the one with its own sequence."""
    if (STANDS_FOR in members.texts("must_understand")) != bool(name.first):
        members.refuse("must_understand", "what the object's name says")
    if not name.first:
        return ()
    if members.integer("first") != name.first or members.truth("shortcut") != name.is_shortcut:
        members.refuse("first", "that of the object's name")
    if members.integer("rewrites") != name.rewrites:
        members.refuse("rewrites", "that of the object's name")
    rows = members.objects("stands_for")
    found = tuple(
        StoodFor(row.integer("sequence", name.first, name.sequence), row.hex("hash", 32)) for row in rows
    )
    if not found or any(one >= other for one, other in pairwise(found)):
        members.refuse("stands_for", "sorted, with none twice")
    if found[-1].sequence != name.sequence:
        members.refuse("stands_for", "a list with the manifest of its own sequence")
    return found


def _tables(
    members: Members, name: ManifestName, writer_id: bytes, what: str
) -> tuple[tuple[ChunkRef, ...], tuple[ChunkRef, ...]]:
    own = name.object_name()
    others = members.texts("attached_to")
    for other in others:
        parsed = ManifestName.parse(other)
        if not parsed or parsed.volume != name.volume or other == own:
            members.refuse("attached_to", "a list of other manifests of the volume")
    places = ["", own, *others]
    keys = members.hexes("keys", 16)
    chunks = decode_table(members.text("chunks"), keys, places, CONTENT_LIMITS[ObjectType.CHUNK], what)
    check_blocks(chunks, what)
    limit = CONTENT_LIMITS[ObjectType.CATALOG]
    return chunks, decode_table(members.text("catalog"), [writer_id], places, limit, what)


def _completeness(members: Members) -> Completeness:
    method = members.text("method")
    if method not in ("scan", "events"):
        members.refuse("method", "one that this version knows")
    return Completeness(
        method="scan" if method == "scan" else "events",
        complete=members.truth("complete"),
        incomplete=_issues(members, "incomplete"),
        vanished=tuple(_path(members, "vanished", text) for text in members.texts("vanished")),
        skipped=_issues(members, "skipped"),
    )


def _issues(members: Members, name: str) -> tuple[Issue, ...]:
    return tuple(
        Issue(_path(row, "path", row.text("path")), row.text("reason")) for row in members.objects(name)
    )


def _path(members: Members, name: str, text: str) -> bytes:
    """The path that `text` stands for (FORMAT.md, sections 1 and 10)."""
    path = path_bytes(text)
    parts = path.split(b"/") if path else []
    if path_text(path) != text or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        members.refuse(name, "a path")
    return path


def _statistics(members: Members) -> Statistics:
    return Statistics(
        entries=members.integer("entries"),
        files=members.integer("files"),
        bytes=members.integer("bytes"),
        stored_bytes=members.integer("stored_bytes"),
        changed=members.integer("changed"),
        deleted=members.integer("deleted"),
    )


def _owners(members: Members) -> Owners:
    return Owners(_named_ids(members, "users"), _named_ids(members, "groups"))


def _named_ids(members: Members, name: str) -> tuple[Owner, ...]:
    by_id = members.nested(name)
    owners = []
    for digits in by_id.names():
        if not (len(digits) <= 10 and digits.isascii() and digits.isdecimal() and str(int(digits)) == digits):
            members.refuse(name, "an object of ids")
        owners.append(Owner(int(digits), by_id.text(digits)))
    if any(owner.id > _ID_MAX for owner in owners):
        members.refuse(name, "an object of ids of 32 bits")
    return tuple(sorted(owners))
