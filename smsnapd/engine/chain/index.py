"""Keeping the local index in step with the repository: used if it mirrors the head, else made from it."""

from __future__ import annotations

import secrets
import socket
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from smsnapd.engine.history import History
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import SmsnapError
from smsnapd.format.manifest import Issue, ParentRef
from smsnapd.format.manifest_object import manifest_hash
from smsnapd.format.names import ManifestName, SnapshotKind
from smsnapd.model import ChunkRef, Listing
from smsnapd.repository import Repository
from smsnapd.repository.lease import Lease
from smsnapd.repository.manifests import Recorded
from smsnapd.state import Head, State, StateUpdate


class LostTreeError(SmsnapError):
    """The chain begins with an image, and what its tree was is known to the lost index alone."""


class Parent(NamedTuple):
    """The newest commit, which the next one follows: its name, its whole object's hash, what it missed."""

    name: ManifestName
    hash: bytes
    incomplete: tuple[Issue, ...] = ()
    filesystem: str = ""


def move_on(
    update: StateUpdate,
    committed: Recorded,
    root: bytes,
    filesystem: str,
    rewrites: int,
    *,
    chunks: dict[int, ChunkRef] | None = None,
    left_out: bytes = b"",
) -> None:
    """The index, to which `update` has put what changed, goes to what was committed from here, last of all.

    `chunks` are those that the commit's catalog was the first to name: what else was stored may be pruned at
    any time. `rewrites` is the history's, as of when the index was made; `left_out` as `StateUpdate.commit`.
    """
    update.put_chunks(chunks or {})
    is_full = committed.name.kind == "full"
    # An incremental leaves this as it was: it follows an image, or a full whose entries have extents.
    bare = committed.manifest.image is not None if is_full else None
    update.commit(_head_of(committed, root, filesystem, rewrites), bare=bare, left_out=left_out)


def _head_of(recorded: Recorded, root: bytes, filesystem: str, rewrites: int) -> Head:
    """What the index remembers of a commit."""
    return Head(recorded.name.snapshot, recorded.name.sequence, recorded.hash, root, filesystem, rewrites)


def parent_of(recorded: Recorded) -> Parent:
    """A commit as that which the next one follows."""
    manifest = recorded.manifest
    return Parent(recorded.name, recorded.hash, manifest.completeness.incomplete, manifest.source.filesystem)


def reference(head: Parent | Recorded | None) -> ParentRef | None:
    """How the next manifest names the newest commit; None if there is none."""
    return None if head is None else ParentRef(head.name.snapshot, head.hash)


def next_name(
    volume: str, head: Parent | None, lease: Lease, time_ns: int, kind: SnapshotKind
) -> ManifestName:
    """The name of the manifest behind `head`, of a new snapshot that stands for `time_ns`."""
    return ManifestName(
        volume=volume,
        sequence=head.name.sequence + 1 if head else 1,
        generation=lease.generation,
        time_us=time_ns // 1000,
        kind=kind,
        snapshot=secrets.token_hex(8),
    )


def bring_up(
    repository: Repository, history: History, state: State, root: bytes, filesystem: str
) -> Parent | None:
    """Make `state` mirror the newest commit of `history`; that commit, None if there is none.

    An index of another commit or another volume is made anew from the catalogs. Then no digests are
    known: what a stat cannot tell apart is read again, once. DamageError if they are not whole, LostTreeError
    if there are none, because the chain begins with an image.
    """
    name = history.head_name
    if name is None:
        if state.head is not None:
            state.forget()
        return None
    recorded = history.record(name)
    expected = _head_of(recorded, root, filesystem, history.rewrites)
    if state.head != expected:
        _make_anew(repository, history, state, recorded, expected)
    return parent_of(recorded)


def begin_anew(repository: Repository, history: History, state: State) -> Parent | None:
    """As `bring_up`, but `state` is empty then: a full behind what is damaged needs nothing of it."""
    state.forget()
    return newest(repository, history)


def newest(repository: Repository, history: History) -> Parent | None:
    """The newest commit as that which the next one follows, who needs to know no more of it."""
    name = history.head_name
    return Parent(name, manifest_hash(repository.store.get(name.object_name()))) if name else None


def _make_anew(
    repository: Repository, history: History, state: State, recorded: Recorded, head: Head
) -> None:
    tree = SnapshotTree(repository, history.chain(recorded.name.snapshot))
    if tree.image is not None:
        why = "the local state of the tree that was in the image is lost, or of another commit"
        raise LostTreeError(f"go on behind the image {tree.base.name.snapshot}", why)
    with state.update(anew=True) as update:
        # A directory may come in several listings in a row; the index keeps each in one.
        for directory, listings in groupby(tree.listings(), attrgetter("directory")):
            update.put(Listing(directory, [entry for listing in listings for entry in listing.entries]))
        update.put_chunks(dict(enumerate(tree.chunks)))
        update.commit(head, scanned=False, bare=False)


def rolled_back(history: History, state: State) -> bool:
    """Whether the repository lacks a snapshot that was committed from here: its newest end was cut off."""
    newest = state.newest_seen
    return newest is not None and not history.accounts_for(*newest)


def cut_off(history: History, state: State) -> str:
    """What to say if the repository was `rolled_back`; "" if it was not."""
    if not rolled_back(history, state):
        return ""
    return "recovery points that were made from here are no longer in the repository: run `smsnap check`"


def continued_elsewhere(history: History, state: State, filesystem: str) -> str:
    """What to say if the head was written on another machine, or of another volume, since a commit from here.

    "" if it was not, or if nothing was committed from here that is remembered. DamageError as `bring_up`.
    """
    name, newest = history.head_name, state.newest_seen
    if name is None or newest is None or newest == (name.sequence, name.snapshot):
        return ""
    manifest = history.record(name).manifest
    # What was imported here is of no file system.
    if manifest.host == socket.gethostname() and manifest.source.filesystem in ("", filesystem):
        return ""
    return (
        f"the newest recovery point, {name.snapshot}, was written on {manifest.host} and not here: "
        "if that is another notebook, give this one's volume a name of its own (volume.name)"
    )
