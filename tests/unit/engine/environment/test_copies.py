"""Large files that lie on a real S3 server too, and what can be said of that."""

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from smsnapd.engine.environment.copies import SAME_CONTENTS, SAME_SIZE, with_copies
from smsnapd.engine.environment.report import DataFile, Report
from smsnapd.store import StoreSettings
from tests.servers import S3Server

MIB = 1024 * 1024


@pytest.mark.server
def test_a_copy_is_proved_by_its_etag_or_said_to_be_likely(
    tmp_path: Path, seaweed: S3Server, s3_settings: Callable[..., StoreSettings]
) -> None:
    settings = s3_settings(seaweed)
    bucket, client = settings.url.removeprefix("s3://"), seaweed.client()
    contents = {
        "data/whole.bin": os.urandom(100_000),
        "data/parts.bin": os.urandom(9 * MIB + 5),
        "data/other.bin": os.urandom(5000),
        "data/here.bin": os.urandom(6000),
        "data/renamed.bin": os.urandom(7000),
        "data/twice.bin": os.urandom(8000),
    }
    for path, data in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    client.put_object(Bucket=bucket, Key="sets/whole.bin", Body=contents["data/whole.bin"])
    client.upload_fileobj(BytesIO(contents["data/parts.bin"]), bucket, "sets/parts.bin")  # 8 MiB a part
    client.put_object(Bucket=bucket, Key="sets/other.bin", Body=bytes(5000))
    client.put_object(Bucket=bucket, Key="sets/newname.bin", Body=contents["data/renamed.bin"])
    for key in ("sets/a/twice.bin", "sets/data/twice.bin", "sets/z/twice.bin", "elsewhere/here.bin"):
        client.put_object(Bucket=bucket, Key=key, Body=contents[f"data/{key.rpartition('/')[2]}"])
    client.close()
    data = tuple(DataFile(path, len(content)) for path, content in contents.items())
    report = Report(1, "", str(tmp_path), data=(*data, DataFile("../outside.bin", 5000)))
    gone = replace(settings, url="s3://there-is-no-such-bucket/x", attempts=1)
    places = (replace(settings, url=f"s3://{bucket}/sets/"), gone)
    found = with_copies(report, os.fsencode(tmp_path), places, lambda: None)
    assert {file.path: (file.copy, file.certainty) for file in found.data} == {
        "data/whole.bin": (f"s3://{bucket}/sets/whole.bin", SAME_CONTENTS),
        "data/parts.bin": (f"s3://{bucket}/sets/parts.bin", SAME_CONTENTS),
        "data/other.bin": (f"s3://{bucket}/sets/other.bin", SAME_SIZE),
        "data/here.bin": ("", ""),
        "data/renamed.bin": ("", ""),
        "data/twice.bin": (f"s3://{bucket}/sets/data/twice.bin", SAME_CONTENTS),
        "../outside.bin": ("", ""),
    }
    (note,) = found.notes
    assert "s3://there-is-no-such-bucket/x could not be looked at" in note
