"""Coverage-guided fuzzing of every parser, by atheris: `python -m tests.fuzz.fuzz CORPUS… [options]`.

Options are libFuzzer's: -runs=N, -timeout=S, -rss_limit_mb=N. What it finds new goes into the first CORPUS
directory. It ends with an error at the first input that crashes, hangs, or takes too much memory.
"""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["smsnapd"]):
    from tests.fuzz.parsers import feed


def main() -> None:
    """Run until the options say stop."""
    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
