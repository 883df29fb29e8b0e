"""What a stranger sees who can read the bucket, and what opens it."""

from __future__ import annotations

import base64

import pytest

from smsnapd.errors import DamageError, SmsnapError, WrongKeyError
from smsnapd.repository import Credentials, Repository
from tests.fault.small import MARKER, Small, kind_of, store_of
from tests.property.protected import PASSPHRASE

pytestmark = pytest.mark.root


# --- what a stranger sees


def test_nothing_stored_shows_a_name_or_content(small: Small) -> None:
    raw = MARKER.encode()
    forms = [raw, raw.hex().encode(), raw[::-1]]
    forms += [base64.b64encode(raw[start:])[:16] for start in range(3)]
    for name, data in small.objects.items():
        for form in forms:
            assert form not in data and form not in name.encode(), name


def padme(length: int) -> int:
    """The length that Padmé gives (Nikitin and others, PETS 2019): at most its upper bits differ."""
    exponent = length.bit_length() - 1
    free = exponent - exponent.bit_length()
    mask = (1 << free) - 1
    return (length + mask) & ~mask


def test_sizes_are_padded(small: Small) -> None:
    for name, data in small.objects.items():
        if data[:4] == b"SMSN":
            sealed = 64 + int.from_bytes(data[56:64], "little")
            assert sealed >= 4096 and sealed == padme(sealed), name
            if kind_of(name) == "manifests":
                continue
            assert len(data) == sealed, name


def test_equal_volumes_give_different_names(small: Small, other: Small) -> None:
    """In two repositories, and in two volumes of one."""
    ours = {name for name in small.objects if kind_of(name) in ("chunks", "catalogs", "manifests")}
    theirs = {name for name in other.objects if kind_of(name) in ("chunks", "catalogs", "manifests")}
    hashes = [
        {name.rpartition("/")[2].partition("-")[0] for name in names if "/manifests/" not in name}
        for names in (ours, theirs)
    ]
    assert ours and theirs and not hashes[0] & hashes[1]
    keys = []
    with small.protected.repository() as repository:
        for volume in ("one", "two"):
            volume_keys = repository.volume_keys(volume)
            keys += [volume_keys.chunk_names, volume_keys.catalog_names, volume_keys.boundaries]
    assert len(set(keys)) == 6


# --- opened with a passphrase


def test_a_damaged_keyslot_is_damage_and_a_wrong_passphrase_is_not(small: Small) -> None:
    (slot,) = (name for name in small.objects if name.startswith("keys/slots/"))
    data = small.objects[slot]
    for position in range(0, len(data), 97):
        flipped = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        store = store_of({**small.objects, slot: flipped})
        with pytest.raises(DamageError):
            Repository.open(store, Credentials(passphrase=PASSPHRASE))
    with pytest.raises(WrongKeyError):
        Repository.open(store_of(small.objects), Credentials(passphrase="wrong"))


@pytest.mark.parametrize("write_key", [False, True])
def test_the_records_that_open_a_repository(small: Small, write_key: bool) -> None:
    """Damaged, they are damage, with either key: never a wrong key, never a traceback."""
    text = small.protected.write_key_text if write_key else None
    credentials = (
        Credentials(write_key_text=text) if text else Credentials(recovery_key=small.protected.recovery_key)
    )
    for name in ("repository", "keys/roster/0000000001"):
        data = small.objects[name]
        for position in range(0, len(data), 13):
            flipped = data[:position] + bytes((data[position] ^ 2,)) + data[position + 1 :]
            with pytest.raises(SmsnapError) as caught:
                Repository.open(store_of({**small.objects, name: flipped}), credentials)
            assert caught.value.exit_status == 13, (name, position)
