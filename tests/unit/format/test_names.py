"""Object names and times: built, parsed, and refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import UsageError
from smsnapd.format import names
from smsnapd.format.names import ManifestName

VOLUMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
NUMBERS = st.integers(1, names.NUMBER_MAX)
TIMES = st.integers(0, names.TIME_MAX_US)
IDS = st.binary(min_size=16, max_size=16)
HASHES = st.binary(min_size=32, max_size=32)
SNAPSHOTS = st.binary(min_size=8, max_size=8).map(bytes.hex)
NAME = ManifestName("home", 3, 2, 1_767_323_045_000_006, "incremental", "0123456789abcdef")
TEXT = "volumes/home/manifests/0000000003-0000000002-20260102T030405000006Z-incremental-0123456789abcdef"


def test_a_manifest_name_is_the_one_of_the_specification() -> None:
    assert NAME.object_name() == TEXT
    assert ManifestName.parse(TEXT) == NAME
    assert TEXT.startswith(names.manifests_prefix("home"))


@given(
    st.builds(
        ManifestName,
        *(VOLUMES, NUMBERS, NUMBERS, TIMES),
        *(st.sampled_from(["full", "incremental"]), SNAPSHOTS, st.just(0), st.just(False), st.just(0)),
    )
)
@settings(deadline=None)
def test_manifest_names_round_trip(name: ManifestName) -> None:
    assert ManifestName.parse(name.object_name()) == name
    assert (name.begins, name.is_replacement) == (name.sequence, False)
    for first in {1, name.sequence}:
        for is_shortcut in (False, True):
            other = name._replace(first=first, is_shortcut=is_shortcut)
            assert ManifestName.parse(other.object_name()) == other
            rewritten = other._replace(rewrites=name.generation)
            assert ManifestName.parse(rewritten.object_name()) == rewritten
            assert (other.begins, other.is_replacement) == (first, not is_shortcut)
    for behind in (f"-{name.sequence + 1:010d}", "-0000000000", "-shortcut", "-1", "-"):
        assert ManifestName.parse(name.object_name() + behind) is None


@given(st.lists(st.tuples(NUMBERS, NUMBERS, TIMES), min_size=2, max_size=5))
def test_manifest_names_sort_by_sequence_then_generation_then_time(keys: list[tuple[int, int, int]]) -> None:
    built = [ManifestName("v", *key, "full", "00" * 8) for key in keys]
    assert sorted(name.object_name() for name in built) == [name.object_name() for name in sorted(built)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0000000003", "000000003"),
        ("0000000003", "0000000000"),
        ("0000000003", "000000000\u0663"),
        ("0000000002", "0000000000"),
        ("20260102", "20261302"),
        ("20260102", "19691231"),
        ("T030405", "T240000"),
        ("T030405", "T030460"),
        ("incremental", "partial"),
        ("abcdef", "abcdeF"),
        ("abcdef", "abcdef0"),
        ("home", ".home"),
        ("home", "home/x"),
        ("home", "h" * 64),
        ("abcdef", "abcdef\n"),
        ("volumes", "/volumes"),
    ],
)
def test_another_form_is_no_manifest(old: str, new: str) -> None:
    assert ManifestName.parse(TEXT.replace(old, new)) is None


@given(st.text())
def test_any_text_parses_to_none_or_to_what_builds_it(text: str) -> None:
    for candidate in (text, names.manifests_prefix("v") + text):
        name = ManifestName.parse(candidate)
        assert name is None or name.object_name() == candidate


@given(VOLUMES, HASHES, IDS)
def test_chunk_and_catalog_names_round_trip(volume: str, name_hash: bytes, key_id: bytes) -> None:
    chunk = names.chunk_name(volume, name_hash, key_id)
    assert chunk == f"volumes/{volume}/chunks/{name_hash.hex()[:2]}/{name_hash.hex()}-{key_id.hex()}"
    assert names.parse_chunk_name(chunk) == (volume, name_hash, key_id)
    catalog = names.catalog_name(volume, name_hash, key_id)
    assert names.parse_catalog_name(catalog) == (volume, name_hash, key_id)
    assert names.parse_chunk_name(catalog) is None
    assert names.parse_catalog_name(chunk) is None
    assert names.volume_of(chunk) == names.volume_of(catalog) == volume


def test_a_chunk_in_the_wrong_directory_is_none() -> None:
    name = names.chunk_name("v", b"\xab" * 32, bytes(16))
    assert names.parse_chunk_name(name.replace("/ab/", "/ac/")) is None


@given(VOLUMES, IDS, st.none() | NUMBERS)
def test_key_names_round_trip(volume: str, key_id: bytes, roster: int | None) -> None:
    assert names.parse_data_key_name(names.data_key_name(volume, key_id, roster)) == (volume, key_id, roster)
    assert names.parse_writer_name(names.writer_name(key_id, roster)) == (key_id, roster)


def test_names_outside_of_volumes() -> None:
    assert names.REPOSITORY == "repository"
    assert names.roster_name(12) == "keys/roster/0000000012"
    assert names.parse_roster_name("keys/roster/0000000012") == 12
    assert names.parse_roster_name("keys/roster/0000000000") is None
    assert names.parse_roster_name("keys/roster/12") is None
    assert names.keyslot_name("00" * 8) == "keys/slots/0000000000000000"
    assert names.parse_keyslot_name("keys/slots/0000000000000000") == "00" * 8
    assert names.parse_keyslot_name("keys/slots/000000000000000G") is None
    assert names.lease_name("home") == "volumes/home/lease"
    assert names.volume_of("keys/slots/0000000000000000") is None
    assert names.parse_data_key_name(f"volumes/v/keys/{'00' * 16}-0000000000") is None
    assert names.parse_writer_name(f"keys/writers/{'00' * 16}-0000000000") is None


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_a_wrong_volume_name_is_refused_with_a_hint(name: str) -> None:
    assert not names.is_volume_name(name)
    with pytest.raises(UsageError) as caught:
        names.check_volume_name(name)
    assert "letters" in caught.value.hint


@pytest.mark.parametrize("name", ["a", "7", "Home.dir_1-x", "a" * 63])
def test_a_right_volume_name_passes(name: str) -> None:
    names.check_volume_name(name)
    assert names.is_volume_name(name)


@given(TIMES)
def test_times_round_trip(time_us: int) -> None:
    text = names.format_time_us(time_us)
    assert len(text) == len("YYYY-MM-DDTHH:MM:SS.ffffffZ")
    assert names.parse_time_us(text) == time_us


def test_times_are_those_of_the_specification() -> None:
    assert names.format_time_us(0) == "1970-01-01T00:00:00.000000Z"
    assert names.format_time_us(1_767_323_045_000_006) == "2026-01-02T03:04:05.000006Z"
    assert names.format_time_us(names.TIME_MAX_US) == "9999-12-31T23:59:59.999999Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05.000006",
        "2026-01-02T03:04:05.000006+00:00",
        "2026-01-02 03:04:05.000006Z",
        "2026-02-30T03:04:05.000006Z",
        "2026-01-02T24:00:00.000000Z",
        "2026-01-02T03:04:05.000006Z\n",
        "0000-01-02T03:04:05.000006Z",
        "1969-12-31T23:59:59.999999Z",
    ],
)
def test_other_times_are_none(text: str) -> None:
    assert names.parse_time_us(text) is None


@pytest.mark.parametrize("time_us", [-1, names.TIME_MAX_US + 1])
def test_a_time_beyond_the_years_cannot_be_written(time_us: int) -> None:
    with pytest.raises(ValueError, match="years"):
        names.format_time_us(time_us)


@pytest.mark.parametrize("number", [0, names.NUMBER_MAX + 1])
def test_a_number_beyond_ten_digits_cannot_be_written(number: int) -> None:
    with pytest.raises(ValueError, match="is not from 1"):
        names.roster_name(number)
