"""Plain objects on real servers: read in ranges, written in parts, never overwritten unless told."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from smsnapd.errors import ObjectExistsError, StoreError
from smsnapd.store import StoreSettings
from smsnapd.store.s3 import open_s3
from smsnapd.store.s3_objects import PART_MIN, PARTS_MAX, PlainObjects, part_size
from tests.servers import S3Server

pytestmark = pytest.mark.server
MIB = 1024 * 1024


@pytest.fixture(params=["seaweed", "moto_s3"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def settings(server: S3Server, s3_settings: Callable[..., StoreSettings]) -> StoreSettings:
    return s3_settings(server)


@pytest.fixture
def objects(settings: StoreSettings) -> Iterator[PlainObjects]:
    store = open_s3(settings)
    yield store.objects()
    store.close()


def uploads(server: S3Server, settings: StoreSettings) -> list[str]:
    """Keys of uploads that were begun and neither finished nor aborted."""
    client = server.client()
    answer = client.list_multipart_uploads(Bucket=settings.url.removeprefix("s3://"))
    client.close()
    return [item["Key"] for item in answer.get("Uploads", ())]


def content_of(objects: PlainObjects, key: str) -> bytes:
    found = objects.find(key)
    assert found is not None
    reader = objects.open(found)
    pieces = []
    while piece := reader.read(3 * MIB):
        pieces.append(piece)
    reader.close()
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 10, 16 * MIB, 16 * MIB + 1, 37 * MIB])
def test_what_is_written_in_pieces_is_read_in_ranges(objects: PlainObjects, size: int) -> None:
    data = os.urandom(size)
    with objects.upload("a b/ü", {"file-owner": "1"}, PART_MIN) as upload:
        for start in range(0, size, 5 * MIB):
            upload.write(data[start : start + 5 * MIB])
        assert objects.find("a b/ü") is None
        upload.commit()
    assert content_of(objects, "a b/ü") == data
    found = objects.find("a b/ü")
    assert found is not None and found.size == size
    assert objects.get(found, 0, 10)[1]["file-owner"] == "1"
    assert [item.key for item in objects.below("a b")] == ["a b/ü"]
    assert objects.folders("") == ["a b/"]


def test_what_is_given_up_leaves_nothing(
    server: S3Server, settings: StoreSettings, objects: PlainObjects
) -> None:
    with pytest.raises(KeyError), objects.upload("key", {}, PART_MIN) as upload:
        upload.write(bytes(40 * MIB))
        assert uploads(server, settings) == ["key"]
        raise KeyError
    assert uploads(server, settings) == [] and objects.find("key") is None


@pytest.mark.parametrize("size", [10, 20 * MIB])
def test_nothing_is_overwritten_unless_told(
    server: S3Server, settings: StoreSettings, objects: PlainObjects, size: int
) -> None:
    with pytest.raises(ObjectExistsError), objects.upload("key", {}, PART_MIN) as upload:
        upload.write(os.urandom(size))
        objects.put("key", b"came in between", {})
        upload.commit()
    assert content_of(objects, "key") == b"came in between"
    assert uploads(server, settings) == []
    with pytest.raises(ObjectExistsError):
        objects.put("key", b"other", {})
    with objects.upload("key", {}, PART_MIN, overwrite=True) as upload:
        upload.write(b"new")
        upload.commit()
    assert content_of(objects, "key") == b"new"


def test_an_object_that_changes_under_the_reader(objects: PlainObjects) -> None:
    objects.put("key", bytes(20 * MIB), {})
    found = objects.find("key")
    assert found is not None
    reader = objects.open(found)
    reader.read(MIB)
    objects.put("key", os.urandom(20 * MIB), {}, overwrite=True)
    with pytest.raises(StoreError, match="changed while it was read"):
        while reader.read(MIB):
            pass
    with suppress(StoreError):
        reader.close()


@pytest.mark.parametrize("total", [0, 10**9, 16 * 10**12, 5 * 2**40])
def test_parts_are_enough_for_any_volume(total: int) -> None:
    assert part_size(total) >= PART_MIN
    assert -(-(total * 101 // 100) // part_size(total)) <= PARTS_MAX
