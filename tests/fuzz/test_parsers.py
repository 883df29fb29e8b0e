"""A short run of the fuzzer over every parser, from the vectors and what longer runs have found.

The long one is `SMSNAP_LONG=1`. `corpus.zip` is what one of 10,000,000 inputs has kept, the small ones: each
reached something that none before it had.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fuzz import parsers
from tests.fuzz.make_corpus import main as make_corpus
from tests.fuzz.make_corpus import seeds

RUNS = 10_000_000 if os.environ.get("SMSNAP_LONG") else 10_000
ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.fuzz", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_parser_has_something_to_begin_from() -> None:
    assert {name for name, _ in seeds()} == set(parsers.PARSERS)


def test_a_run_finds_nothing(tmp_path: Path) -> None:
    corpus, found = tmp_path / "corpus", tmp_path / "found"
    make_corpus(corpus)
    with zipfile.ZipFile(Path(__file__).with_name("corpus.zip")) as kept:
        kept.extractall(corpus)
    found.mkdir()
    limits = (f"-artifact_prefix={tmp_path}/", "-timeout=120", "-rss_limit_mb=2000", "-max_len=8192")
    done = fuzz(found, corpus, f"-runs={RUNS}", *limits)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
    assert any(found.iterdir())  # coverage leads it


def test_what_no_parser_may_raise_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        _ = data[1000]

    monkeypatch.setattr(parsers, "PARSERS", {"broken": broken})
    with pytest.raises(IndexError):
        parsers.feed(b"\0short")
