"""A KMS key as a keyslot, on moto: it opens, in its context and by its key alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from smsnapd.errors import WrongKeyError
from smsnapd.format import names
from smsnapd.format.record import KmsSlot, decode_keyslot
from smsnapd.instance import InstanceError, kms_decrypt, kms_encrypt
from smsnapd.repository import Credentials, Repository
from smsnapd.store import StoreSettings, open_store
from tests.e2e.transcript import Notebook
from tests.servers import S3Server

pytestmark = pytest.mark.server
REGION = "eu-west-1"


@pytest.fixture
def kms(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", moto_s3.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testaccess")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret123")
    return boto3.client("kms", REGION)


@pytest.fixture
def arn(kms: Any) -> str:
    return str(kms.create_key()["KeyMetadata"]["Arn"])


@pytest.fixture
def notebook(tmp_path: Path, arn: str, moto_s3: S3Server) -> Notebook:
    """A repository with a keyslot of the KMS key beside the owner's, and a machine that has no other key."""
    made = Notebook(tmp_path)
    made.well("init")
    (made.volume / "file").write_text("content\n")
    made.well("backup")
    signed_in = {
        "AWS_ENDPOINT_URL_KMS": moto_s3.endpoint,
        "AWS_ACCESS_KEY_ID": "testaccess",
        "AWS_SECRET_ACCESS_KEY": "testsecret123",
    }
    made.well("key", "add", "--kms-key", arn, "--volume", "nb", **signed_in)
    made.configure(encryption=f'kms_key = "{arn}"')
    made.well("restore", "--target", "back", **signed_in)
    assert (made.place / "back/file").read_text() == "content\n"
    return made


def slot_of(notebook: Notebook) -> KmsSlot:
    for path in (notebook.repo / "keys/slots").iterdir():
        data = path.read_bytes()
        members = json.loads(data.split(b"\n")[1])
        slot = decode_keyslot(data, path.name, bytes.fromhex(members["repository"]))
        if isinstance(slot, KmsSlot):
            return slot
    raise AssertionError("no KMS slot")


def opened(notebook: Notebook, arn: str) -> Repository:
    store = open_store(StoreSettings(notebook.url))
    return Repository.open(store, Credentials(kms_key=arn, unwrap=kms_decrypt))


def plant(notebook: Notebook, slot: KmsSlot) -> None:
    """Somebody who may write to the bucket puts this slot in the place of the one that is there."""
    (notebook.repo / names.keyslot_name(slot.slot)).unlink()
    (notebook.repo / names.keyslot_name(slot.slot)).write_bytes(slot.encode())


def test_it_is_bound_to_the_repository_and_the_volume(notebook: Notebook, arn: str) -> None:
    slot = slot_of(notebook)
    assert slot.context == {"smsnapd:repository": slot.repository_id.hex(), "smsnapd:volume": "nb"}
    for context in (
        {},
        slot.context | {"smsnapd:volume": "other"},
        slot.context | {"smsnapd:repository": "0"},
    ):
        with pytest.raises(InstanceError, match="InvalidCiphertext"):
            kms_decrypt(arn, slot.sealed, context)
    plant(notebook, replace(slot, volume="other"))
    with pytest.raises(WrongKeyError, match="InvalidCiphertext"):
        opened(notebook, arn)


def test_a_slot_of_another_key_is_not_asked_for(notebook: Notebook, arn: str, kms: Any) -> None:
    """Whoever plants one would learn who opens the repository, and hand us an identity of theirs."""
    theirs = str(kms.create_key()["KeyMetadata"]["Arn"])
    slot = replace(slot_of(notebook), kms_key=theirs)
    plant(notebook, replace(slot, sealed=kms_encrypt(theirs, bytes(32), slot.context)))
    asked: list[str] = []

    def unwrap(key: str, ciphertext: bytes, context: dict[str, str]) -> bytes:
        asked.append(key)
        return kms_decrypt(key, ciphertext, context)

    with pytest.raises(WrongKeyError, match="no keyslot of this key"):
        Repository.open(open_store(StoreSettings(notebook.url)), Credentials(kms_key=arn, unwrap=unwrap))
    assert asked == []


def test_another_identity_under_the_same_key_is_not_the_roots(notebook: Notebook, arn: str) -> None:
    slot = slot_of(notebook)
    plant(notebook, replace(slot, sealed=kms_encrypt(arn, bytes(32), slot.context)))
    with pytest.raises(WrongKeyError, match="belongs to another repository"):
        opened(notebook, arn)


def test_a_key_that_is_gone_or_none(notebook: Notebook, arn: str, kms: Any) -> None:
    with pytest.raises(InstanceError, match="no ARN of a KMS key"):
        kms_encrypt("alias/mine", b"x", {})
    missing = arn.rpartition("/")[0] + "/00000000-0000-0000-0000-000000000000"
    with pytest.raises(InstanceError, match="NotFound"):
        kms_encrypt(missing, b"x", {})


def test_kms_out_of_reach_is_told(notebook: Notebook, arn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    with pytest.raises(WrongKeyError, match="Could not connect") as caught:
        opened(notebook, arn)
    assert "endpoint" in caught.value.hint
