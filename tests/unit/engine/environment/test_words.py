"""Words that end up in command lines, and URLs without what is secret in them."""

import pytest

from smsnapd.engine.environment.words import (
    is_branch,
    is_cloneable,
    is_commit,
    is_conda_spec,
    is_package_name,
    is_version,
    minor_of,
    raw,
    without_secrets,
)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:s3cret@example.org/a.git", "https://example.org/a.git"),
        ("https://ghp_token@example.org:8443/a.git", "https://example.org:8443/a.git"),
        ("https://example.org/simple?token=s3cret#x", "https://example.org/simple"),
        ("https://conda.example.org/t/s3cret/main/linux-64/a.conda", "https://conda.example.org/main/linux-64/a.conda"),
        ("ssh://git:s3cret@example.org/a.git", "ssh://git@example.org/a.git"),
        ("git@example.org:team/a.git", "git@example.org:team/a.git"),
        ("git+https://u:s3cret@example.org/a", "git+https://example.org/a"),
        ("file:///srv/a.git", "file:///srv/a.git"),
        ("/srv/a.git", "/srv/a.git"),
        ("ext::sh -c s3cret", "…"),
        ("codecommit::eu-west-1://s3cret@a", "…"),
        ("https://[s3cret", "…"),
        ("https://example.org/\x1b]0;s3cret", "…"),
    ],
)  # fmt: skip
def test_what_a_url_says_of_a_person_is_left_out(url: str, told: str) -> None:
    assert without_secrets(url) == told


@pytest.mark.parametrize(
    "url", ["ext::sh -c id", "--upload-pack=id", "fd::3", "…", "a b", "javascript:x\n", "-oProxyCommand=id:x"]
)
def test_git_is_told_to_clone_addresses_only(url: str) -> None:
    assert not is_cloneable(url)


def test_what_people_clone_from_is_an_address() -> None:
    for url in ("https://example.org/a.git", "git@example.org:a/b", "ssh://git@example.org/a", "/srv/a.git"):
        assert is_cloneable(url)


def test_words_that_a_command_could_take_for_something_else_are_none() -> None:
    assert not any(map(is_package_name, ("", "-r", "a b", "a;b", "a\n--index-url=x", "../a", "a@b")))
    assert not any(map(is_version, ("", "-1", "1 2", "1;x", "1\n", "1@x")))
    assert not any(map(is_commit, ("", "HEAD", "--all", "A" * 40, "a" * 39)))
    assert not any(map(is_branch, ("", "-b", "a..b", "a b", "a.lock", "a/", "@{-1}")))
    assert not any(map(is_conda_spec, ("", "--file=x", "-n", "a\nb", "a;b", "$(id)")))
    assert is_package_name("zope.interface") and is_version("1!2.0rc1+cu118") and is_branch("feature/x-1")
    assert is_conda_spec("conda-forge::numpy >=1.26,<2") and is_commit("a" * 64)


def test_the_minor_version_chooses_an_interpreter() -> None:
    assert minor_of("3.11.7") == minor_of("3.11.7.final.0") == "3.11"
    assert minor_of("3.11; rm") == minor_of("") == ""


def test_a_path_comes_back_from_its_text() -> None:
    assert raw("/a/\\xff b") == b"/a/\xff b" and raw("a/b") == b"a/b" and raw(".") == b""
