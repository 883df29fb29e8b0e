"""Git repositories made again: cloned where a remote has all of it, else brought back from the backup."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from smsnapd.engine.environment.rebuilding import CommandError, Item, Site
from smsnapd.engine.environment.report import GitRepository, Remote
from smsnapd.engine.environment.words import is_branch, is_cloneable, is_commit

BringBack = Callable[[bytes], str]
"""Brings a path of the volume back from the backup; why it could not, or ""."""

_SAFE: Final = ("git", "-c", "protocol.ext.allow=never", "-c", "core.fsmonitor=false")


def rebuild_repository(repository: GitRepository, site: Site, bring_back: BringBack) -> Item:
    """Make it again; what lies nowhere but in the backup is named, and comes from there."""
    item = Item("git", repository.path, unsaved=repository.unsaved())
    place = site.place(repository.path)
    if place is None:
        item.fail("its place leads out of the target")
    elif _is_there(place):
        item.standing = "there"
    elif os.path.lexists(place) and not _is_empty(place):
        item.fail("something else is there")
    elif item.unsaved:
        _restore(item, place, site, bring_back, repository)
    else:
        try:
            _clone(item, repository, place, site)
        except CommandError as error:
            item.notes.append(f"it could not be cloned: {error}")
            _unmake(place, site)
            _restore(item, place, site, bring_back, repository)
    return item


def _unmake(place: bytes, site: Site) -> None:
    """Remove a clone that did not become what it should: a moment ago nothing was there."""
    if not site.dry_run and os.path.isdir(place):
        site.ask(["rm", "-rf", "--one-file-system", "--", place])


def _is_there(place: bytes) -> bool:
    return os.path.lexists(os.path.join(place, b".git")) or os.path.isfile(os.path.join(place, b"HEAD"))


def _is_empty(place: bytes) -> bool:
    return os.path.isdir(place) and not os.path.islink(place) and not os.listdir(place)


def _restore(item: Item, place: bytes, site: Site, bring_back: BringBack, repository: GitRepository) -> None:
    """All of it, from the backup; if that has it not, what there is of it elsewhere."""
    path = os.path.relpath(place, os.path.realpath(site.target))
    why = bring_back(b"" if path == b"." else path)
    if not why:
        item.standing = "restored"
        return
    for loss in item.unsaved:
        item.fail(f"lost: {loss}; it could not be brought back from the backup: {why}")
    if not item.unsaved:
        item.fail(f"it could not be brought back from the backup either: {why}")
        return
    try:
        _clone(item, repository, place, site, stand=False)
    except CommandError as error:
        item.problems.append(f"it could not be cloned: {error}")


def _clone(item: Item, repository: GitRepository, place: bytes, site: Site, *, stand: bool = True) -> None:
    """Clone, and stand where it stood, or else where its remote does. CommandError."""
    remotes = [remote for remote in repository.remotes if is_cloneable(remote.url) and is_branch(remote.name)]
    if repository.bare or not remotes:
        raise CommandError("it has no remote that can be cloned")
    first = next((remote for remote in remotes if remote.name == "origin"), remotes[0])
    git = (*_SAFE, "-C", place)
    quietly = ("--quiet", *(("--no-checkout",) if stand else ()), "--origin", first.name)
    site.run(item, (*_SAFE, "clone", *quietly, "--", first.url, place))
    for remote in remotes:
        if remote is not first:
            _add_remote(item, git, remote, site)
    if stand and is_commit(repository.commit):
        _stand(item, git, repository, site)
    item.standing = "made"


def _add_remote(item: Item, git: tuple[str | bytes, ...], remote: Remote, site: Site) -> None:
    site.run(item, (*git, "remote", "add", "--", remote.name, remote.url))
    try:
        site.run(item, (*git, "fetch", "--quiet", remote.name))
    except CommandError as error:
        item.notes.append(f"the remote {remote.name} was not fetched: {error}")


def _stand(item: Item, git: tuple[str | bytes, ...], repository: GitRepository, site: Site) -> None:
    """The branches as they were, the current one checked out."""
    branch = repository.branch if is_branch(repository.branch) else ""
    where = ("-B", branch) if branch else ("--detach",)
    site.run(item, (*git, "checkout", "--quiet", *where, repository.commit))
    for other in repository.branches:
        if not is_branch(other.name) or not is_commit(other.commit):
            continue
        if other.name != branch:
            site.run(item, (*git, "branch", "--quiet", "--force", "--no-track", other.name, other.commit))
        if is_branch(other.upstream):
            _track(item, git, other.name, other.upstream, site)


def _track(item: Item, git: tuple[str | bytes, ...], name: str, upstream: str, site: Site) -> None:
    try:
        site.run(item, (*git, "branch", "--quiet", f"--set-upstream-to={upstream}", name))
    except CommandError:
        item.notes.append(f"{name} does not follow {upstream} any more: the remote has no such branch")
