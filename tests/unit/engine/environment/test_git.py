"""What git tells of a repository, and that no repository makes it run anything."""

import os
from pathlib import Path

import pytest

from smsnapd.engine.environment.git import read_repository
from smsnapd.engine.environment.reading import Deadline
from smsnapd.engine.environment.report import GitRepository
from tests.unit.engine.environment.places import commit, git, pushed_repository

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def read(place: Path, top: Path) -> GitRepository:
    return read_repository(os.fsencode(place), "r", os.fsencode(top), Deadline(60))


def test_a_clean_clone_has_nothing_that_is_only_here(tmp_path: Path) -> None:
    made = pushed_repository(tmp_path / "v/r", tmp_path / "remote.git")
    found = read(tmp_path / "v/r", tmp_path / "v")
    assert (found.branch, found.commit, found.unpushed, found.problem) == ("main", made, 0, "")
    assert [remote.url for remote in found.remotes] == [str(tmp_path / "remote.git")]
    assert found.unsaved() == ()


def test_what_is_not_pushed_and_not_committed_is_named(tmp_path: Path) -> None:
    place = tmp_path / "v/r"
    pushed_repository(place, tmp_path / "remote.git")
    git(place, "remote", "set-url", "origin", "https://me:s3cret@example.org/r.git")
    commit(place, "b.txt", "b\n", "second thoughts")
    git(place, "checkout", "-q", "-b", "idea")
    commit(place, "c.txt", "c\n", "an idea")
    (place / "a.txt").write_text("stashed\n")
    git(place, "stash")
    (place / "b.txt").write_text("changed\n")
    (place / "new\nline").write_text("untracked\n")
    found = read(place, tmp_path / "v")
    assert (found.branch, found.unpushed, found.stashes) == ("idea", 2, 1)
    assert {branch.name: branch.unpushed for branch in found.branches} == {"idea": 2, "main": 1}
    subjects = {branch.name: [text.split(" ", 1)[1] for text in branch.subjects] for branch in found.branches}
    assert subjects == {"idea": ["an idea", "second thoughts"], "main": ["second thoughts"]}
    assert (found.uncommitted.changed, found.uncommitted.untracked) == (1, 1)
    assert found.uncommitted.paths == ("b.txt", "new\\x0aline")
    assert "s3cret" not in repr(found) and found.remotes[0].url == "https://example.org/r.git"
    said = "; ".join(found.unsaved())
    assert "2 unpushed commits on idea" in said and "1 unpushed commits on main" in said
    assert "1 stashes" in said and "1 uncommitted changes" in said and "1 untracked files" in said


def test_a_repository_without_a_commit_or_a_remote(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    git(tmp_path / "r", "init", "-q")
    found = read(tmp_path / "r", tmp_path)
    assert (found.commit, found.branch, found.problem) == ("", "main", "")
    assert found.unsaved() == ("it has no remote",)
    commit(tmp_path / "r", "a", "a", "a")
    git(tmp_path / "r", "checkout", "-q", "--detach")
    found = read(tmp_path / "r", tmp_path)
    assert found.branch == "" and found.unpushed == 1


def test_a_bare_repository_and_a_work_tree_of_its_own(tmp_path: Path) -> None:
    pushed_repository(tmp_path / "r", tmp_path / "remote.git")
    bare = read(tmp_path / "remote.git", tmp_path)
    assert bare.bare and bare.commit and not bare.problem
    git(tmp_path / "r", "worktree", "add", "-q", str(tmp_path / "w"), "-b", "side")
    tree = read(tmp_path / "w", tmp_path)
    assert tree.branch == "side" and not tree.problem and not tree.bare


def hostile(place: Path, touched: Path) -> None:
    """Make a repository whose configuration runs a program wherever git lets it."""
    program = place.parent / "program"
    program.write_text(f"#!/bin/sh\ntouch {touched}\ncat\n")
    program.chmod(0o755)
    for hook in ("post-index-change", "post-checkout", "reference-transaction", "fsmonitor-watchman"):
        link = place / ".git/hooks" / hook
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(program)
    settings = {
        "core.fsmonitor": program,
        "core.hooksPath": place / ".git/hooks",
        "core.pager": program,
        "core.sshCommand": program,
        "filter.bad.clean": program,
        "filter.bad.smudge": program,
        "filter.bad.required": "true",
        "filter.odd=one.process": program,
        "filter.odd=one.clean": program,
        "diff.external": program,
        "diff.bad.textconv": program,
        "diff.bad.command": program,
        "gpg.program": program,
        "log.showSignature": "true",
        "alias.status": f"!{program}",
        "alias.config": f"!{program}",
        "credential.helper": program,
        "remote.origin.uploadpack": program,
        "remote.origin.promisor": "true",
        "remote.origin.partialclonefilter": "blob:none",
        "extensions.partialClone": "origin",
        "core.repositoryFormatVersion": "1",
        "core.alternateRefsCommand": program,
    }
    for key, value in settings.items():
        git(place, "config", key, str(value))
    (place / ".gitattributes").write_text("a.txt filter=bad diff=bad\nb.txt filter=odd=one\n")
    (place / "a.txt").write_text("changed\n")
    (place / "b.txt").write_text("changed\n")


def test_nothing_of_a_hostile_repository_is_run(tmp_path: Path) -> None:
    place, touched = tmp_path / "v/r", tmp_path / "touched"
    pushed_repository(place, tmp_path / "remote.git")
    commit(place, "b.txt", "b\n", "second")
    hostile(place, touched)
    # It is hostile indeed: plain git runs the program. (Git keeps stdin of the filter.)
    git(place, "status")
    assert touched.exists()
    touched.unlink()
    found = read(place, tmp_path / "v")
    assert not touched.exists()
    assert found.problem == "" and found.uncommitted.changed == 2 and found.unpushed == 1


def test_an_object_that_is_promised_is_not_fetched(tmp_path: Path) -> None:
    place, touched = tmp_path / "v/r", tmp_path / "touched"
    pushed_repository(place, tmp_path / "remote.git")
    hostile(place, touched)
    git(place, "config", "remote.origin.url", "ext::sh -c touch% " + str(touched))
    (place / ".git/refs/heads/gone").write_text("ab" * 20 + "\n")
    found = read(place, tmp_path / "v")
    assert not touched.exists()
    assert found.problem
    (place / ".git/refs/heads/gone").unlink()
    assert [remote.url for remote in read(place, tmp_path / "v").remotes] == ["…"]


def test_a_git_file_that_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    pushed_repository(tmp_path / "other/r", tmp_path / "remote.git")
    place = tmp_path / "v/r"
    place.mkdir(parents=True)
    (place / ".git").write_text(f"gitdir: {tmp_path}/other/r/.git\n")
    assert "lies elsewhere" in read(place, tmp_path / "v").problem
    (place / ".git").write_text("gitdir: ../../other/r/.git\n")
    assert "lies elsewhere" in read(place, tmp_path / "v").problem
    (place / ".git").write_text("nonsense")
    assert "names no git directory" in read(place, tmp_path / "v").problem
    (place / ".git").unlink()
    os.mkfifo(place / ".git")
    assert "neither" in read(place, tmp_path / "v").problem
    (place / ".git").unlink()
    (place / ".git").symlink_to(tmp_path / "other/r/.git")
    assert "neither" in read(place, tmp_path / "v").problem
    (place / ".git").unlink()
    (place / ".git").mkdir()
    (place / ".git/commondir").write_text(f"{tmp_path}/other/r/.git\n")
    (place / ".git/HEAD").write_text("ref: refs/heads/main\n")
    assert "lies elsewhere" in read(place, tmp_path / "v").problem


def test_a_damaged_repository_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    place = tmp_path / "r"
    pushed_repository(place, tmp_path / "remote.git")
    (place / ".git/index").write_bytes(b"DIRC" + b"\xff" * 100)
    assert read(place, tmp_path).problem
    (place / ".git/config").unlink()
    os.mkfifo(place / ".git/config")
    assert (
        "took too long"
        in read_repository(os.fsencode(place), "r", os.fsencode(tmp_path), Deadline(1)).problem
    )


@root
def test_git_runs_as_the_owner_of_the_repository(tmp_path: Path) -> None:
    place = tmp_path / "r"
    pushed_repository(place, tmp_path / "remote.git")
    for path in (place, *place.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    tmp_path.chmod(0o755)
    assert read(place, tmp_path).unsaved() == ()
    (place / ".git/objects").chmod(0)
    assert read(place, tmp_path).problem  # root itself could have read them
