"""The notebook that a machine is, and the name of its volume."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.config import VOLUME_NAME
from smsnapd.instance import InstanceError, Notebook, default_volume_name, read_notebook

ARN = "arn:aws:sagemaker:eu-west-1:123456789012:notebook-instance/analysis-nb"


def test_metadata_as_sagemaker_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "resource-metadata.json"
    file.write_text(json.dumps({"ResourceArn": ARN, "ResourceName": "analysis-nb"}))
    assert read_notebook(file) == Notebook("analysis-nb", "eu-west-1", "123456789012")
    file.write_text(json.dumps({"ResourceArn": ARN.replace("aws", "aws-cn", 1), "ResourceName": "x"}))
    assert read_notebook(file) == Notebook("x", "eu-west-1", "123456789012")


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    assert read_notebook(tmp_path / "none.json") is None
    (tmp_path / "file").touch()
    assert read_notebook(tmp_path / "file" / "below.json") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"ResourceName": "x"}', '{"ResourceName": "x", "ResourceArn": "y"}', "\udcff",
     '{"ResourceName": "x", "ResourceArn": 3}', f'{{"ResourceName": 3, "ResourceArn": "{ARN}"}}'],
)  # fmt: skip
def test_metadata_that_is_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "metadata.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InstanceError) as caught:
        read_notebook(file)
    assert str(file) in caught.value.what and "name" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("ip-10-0-0-1.eu-west-1.compute.internal", "ip-10-0-0-1"),
        ("my host", "my-host"),
        ("_x", "x"),
        ("ünïcode", "n-code"),
        ("...", "volume"),
        ("", "volume"),
        ("a" * 80, "a" * 63),
    ],
)
def test_a_volume_without_a_name_has_the_hosts(host: str, name: str) -> None:
    assert default_volume_name(None, host) == name


def test_a_notebooks_name_goes_before() -> None:
    assert default_volume_name(Notebook("nb.1", "eu-west-1", "1"), "host") == "nb.1"


@given(st.text())
def test_every_default_is_a_volume_name(text: str) -> None:
    assert re.fullmatch(VOLUME_NAME, default_volume_name(Notebook(text, "", ""), "host"))
