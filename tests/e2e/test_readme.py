"""The README says what is true: its commands exist, its settings load, its files are there."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from smsnapd.cli.main import VERBS, cli
from smsnapd.cli.options import Options
from smsnapd.config import Overrides, load

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()


def commands() -> list[str]:
    """Every `smsnap …` of the README, in code blocks and in lines of text, without comments."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    spans = re.findall(r"`(smsnap [^`\n]*)`", README)
    pieces = [
        piece.strip() for line in blocks.splitlines() for piece in re.split(r"&&|\|", line.split("  #")[0])
    ]
    return sorted({*spans, *(piece for piece in pieces if piece.startswith("smsnap "))})


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one(command: str) -> None:
    arguments = shlex.split(command)[1:]
    context = cli.make_context("smsnap", list(arguments), obj=Options())
    name, verb, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert name in VERBS and verb is not None
    verb.make_context(name, rest, parent=context)


def test_the_help_has_the_statuses_that_the_readme_names() -> None:
    text = cli.get_help(click.Context(cli))
    for number in re.findall(r"(?:status is|,) (\d+) (?:when|without|for)", README):
        assert re.search(rf"\b{number} ", text)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (TOP / target).exists(), target
    for name in re.findall(r"`(smsnapd/[^`]+|config/[^`]+)`", README):
        assert (TOP / name).exists(), name


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets(target: str) -> None:
    assert f"make {target}" in README
    subprocess.run(["make", "--dry-run", target], cwd=TOP, check=True, capture_output=True)


def test_the_set_up_has_five_lines() -> None:
    block = README.split("## Set up a notebook")[1].split("```sh\n")[1].split("```")[0]
    assert len(block.splitlines()) == 5


def test_the_sample_configuration_loads(tmp_path: Path) -> None:
    config = load(
        str(TOP / "config/smsnapd.toml"), Overrides(), environment={}, directory=tmp_path, home=tmp_path
    )
    assert config.volume.path == Path("/home/ec2-user/SageMaker")
    assert "/.smsnapd" in config.volume.exclude
