"""A git repository: remotes, branch, commit, and what of it is not pushed or not committed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from smsnapd.engine.environment.gitcommand import Git, GitError
from smsnapd.engine.environment.reading import Deadline, read_file, read_text
from smsnapd.engine.environment.report import Branch, GitRepository, Remote, Uncommitted
from smsnapd.engine.environment.words import is_commit, without_secrets
from smsnapd.model import path_text

PATHS: Final = 200
SUBJECTS: Final = 20
BRANCHES: Final = 500
_FORMAT: Final = "%(objectname)%00%(refname:short)%00%(upstream:short)"


def read_repository(path: bytes, shown: str, root: bytes, deadline: Deadline) -> GitRepository:
    """The repository at `path`, told of as `shown`. Where git cannot tell, `problem` says why.

    Its git directory must lie below `root`: a `.git` file may point anywhere.
    """
    known = GitRepository(shown)
    try:
        directory, bare = git_directory(path, root)
        git = Git(directory, None if bare else path, deadline)
        return _read(git, shown, bare)
    except (GitError, OSError) as error:
        problem = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return GitRepository(known.path, problem=path_text(problem.encode("utf-8", "replace")))


def git_directory(path: bytes, root: bytes) -> tuple[bytes, bool]:
    """The git directory of a repository at `path`, and whether that has no work tree.

    GitError if it does not lie below `root`, or what it shares with others does not.
    """
    mark = os.path.join(path, b".git")
    try:
        mode = os.lstat(mark).st_mode
    except FileNotFoundError:
        return path, True
    if stat.S_ISREG(mode):
        text = read_file(mark, 8192)
        match = re.fullmatch(rb"gitdir: ([^\n\0]+)\n?", text)
        if match is None:
            raise GitError("its .git file names no git directory")
        mark = os.path.join(path, match[1])
    elif not stat.S_ISDIR(mode):
        raise GitError("its .git is neither a directory nor a file")
    _check_within(mark, root)
    common = os.path.join(mark, b"commondir")
    if os.path.lexists(common):
        _check_within(os.path.join(mark, os.fsencode(read_text(common, 8192).rstrip("\n"))), root)
    return os.path.realpath(mark), False


def _check_within(directory: bytes, root: bytes) -> None:
    real = os.path.realpath(directory)
    if not real.startswith(os.path.realpath(root).rstrip(b"/") + b"/"):
        raise GitError(f"its git directory {path_text(real)} lies elsewhere, and was not looked at")


def _read(git: Git, shown: str, bare: bool) -> GitRepository:
    commit = git.read("rev-parse", "--verify", "--quiet", "HEAD^{commit}", none=True).decode().strip()
    branch = _text(git.read("symbolic-ref", "--quiet", "--short", "HEAD", none=True))
    return GitRepository(
        path=shown,
        remotes=tuple(_remotes(git)),
        branch=branch,
        commit=commit if is_commit(commit) else "",
        unpushed=_unpushed(git, "HEAD") if commit else 0,
        branches=tuple(_branches(git)),
        stashes=len(git.read("reflog", "show", "--format=%H", "refs/stash", none=True).splitlines()),
        uncommitted=Uncommitted() if bare else _uncommitted(git),
        bare=bare,
    )


def _remotes(git: Git) -> Iterator[Remote]:
    for pair in git.read("config", "--null", "--get-regexp", r"^remote\..*\.url$", none=True).split(b"\0"):
        key, _, url = pair.partition(b"\n")
        if key:
            name = key.removeprefix(b"remote.").removesuffix(b".url")
            yield Remote(path_text(name), without_secrets(url.decode("utf-8", "replace")))


def _branches(git: Git) -> Iterator[Branch]:
    listing = git.read("for-each-ref", f"--count={BRANCHES}", f"--format={_FORMAT}", "refs/heads")
    for line in listing.splitlines():
        commit, name, upstream = (*line.split(b"\0"), b"", b"")[:3]
        reference = commit.decode()
        unpushed = _unpushed(git, reference)
        yield Branch(
            name=_text(name),
            commit=reference,
            upstream=_text(upstream),
            unpushed=unpushed,
            subjects=tuple(_subjects(git, reference)) if unpushed else (),
        )


def _unpushed(git: Git, reference: str) -> int:
    """Commits that no remote-tracking branch has: as far as was known at the last fetch or push."""
    return int(git.read("rev-list", "--count", reference, "--not", "--remotes"))


def _subjects(git: Git, reference: str) -> Iterator[str]:
    """The first lines of the newest unpushed commits."""
    options = (f"--max-count={SUBJECTS}", "--no-show-signature", "--no-color", "--format=%h %s")
    for line in git.read("log", *options, reference, "--not", "--remotes", "--").splitlines():
        yield _text(line[:200])


def _uncommitted(git: Git) -> Uncommitted:
    """What `git status` lists; submodules are repositories of their own."""
    listing = git.read(
        "status",
        "--porcelain=v1",
        "-z",
        "--untracked-files=normal",
        "--ignore-submodules=all",
        "--no-renames",
    )
    rows = [row for row in listing.split(b"\0") if row]
    untracked = sum(row.startswith(b"??") for row in rows)
    paths = tuple(path_text(row[3:]) for row in rows[:PATHS])
    return Uncommitted(len(rows) - untracked, untracked, paths)


def _text(raw: bytes) -> str:
    text = raw.removesuffix(b"\n")
    return path_text(text) if text else ""
