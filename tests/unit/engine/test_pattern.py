"""Patterns of `find`."""

import pytest

from smsnapd.engine.lookback.pattern import pattern


@pytest.mark.parametrize(
    ("text", "path", "matches"),
    [
        (b"*.csv", b"data/a.csv", True),
        (b"*.csv", b"a.csv", True),
        (b"*.csv", b"a.csv/b", False),
        (b"data", b"data", True),
        (b"data", b"other/data", True),
        (b"data/", b"other/data", True),
        (b"/data", b"other/data", False),
        (b"/data", b"data", True),
        (b"data/*.csv", b"data/a.csv", True),
        (b"data/*.csv", b"data/deep/a.csv", False),
        (b"data/*.csv", b"more/data/a.csv", False),
        (b"data/**/a.csv", b"data/a.csv", True),
        (b"data/**/a.csv", b"data/x/y/a.csv", True),
        (b"**/a.csv", b"x/a.csv", True),
        (b"data/**", b"data/x/y", True),
        (b"**", b"x/y", True),
        (b"table-[0-9]?.csv", b"table-1x.csv", True),
        (b"table-[!0-9].csv", b"table-1.csv", False),
        (b"*", b".hidden", True),
        (b"\xff?", b"d/\xffa", True),
        (b"\xc3\xa9?", b"\xc3\xa9\xc3\xa9", True),
        (b"a\nb", b"a\nb", True),
        (b"a", b"a\n", False),
    ],
)
def test_what_matches(text: bytes, path: bytes, matches: bool) -> None:
    assert pattern(text)(path) is matches


def test_case() -> None:
    assert pattern(b"readme*", ignore_case=True)(b"d/README.md")
    assert not pattern(b"readme*")(b"d/README.md")


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not pattern(b"/".join([b"**", b"a"] * 40) + b"/b")(b"/".join([b"a"] * 200))
