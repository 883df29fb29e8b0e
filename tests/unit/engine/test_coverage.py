"""What a machine knows of the contents that it has read."""

from __future__ import annotations

from pathlib import Path

from smsnapd.engine.coverage import Coverage, keep_coverage, known_coverage, load_coverage
from tests.property.protected import Protected, fill


def test_shares_in_turn() -> None:
    coverage = Coverage("r")
    taken = []
    for when in range(1, 8):
        share = coverage.next_share(3)
        taken.append(share)
        coverage = coverage.after(share, 3, float(when), opened=False)
        assert coverage.read_s == (None if when < 3 else when - 2)
    assert taken == [1, 2, 3, 1, 2, 3, 1]
    assert coverage.opened_s is None


def test_all_at_once_is_every_share() -> None:
    coverage = Coverage("r").after(2, 3, 1.0, opened=True).after(1, 1, 5.0, opened=True)
    assert (coverage.shares, coverage.read_s, coverage.opened_s) == (3, 5.0, 5.0)
    assert coverage.after(1, 3, 9.0, opened=False).next_share(3) == 2


def test_another_number_of_shares() -> None:
    half = Coverage("r").after(1, 2, 1.0, opened=True)
    assert half.in_shares(4) == Coverage("r", 4)
    whole = half.after(2, 2, 2.0, opened=False).in_shares(4)
    assert (whole.read_s, whole.opened_s) == (1.0, None)
    assert whole.after(3, 4, 7.0, opened=False).read_s == 1.0


def test_it_is_kept_by_repository_and_damage_is_nothing(tmp_path: Path) -> None:
    keep_coverage(tmp_path / "state", "v", Coverage("r").after(1, 1, 3.0, opened=True))
    assert known_coverage(tmp_path / "state", "v", "r").opened_s == 3.0
    assert known_coverage(tmp_path / "state", "v", "other").opened_s is None
    (tmp_path / "state" / "v.contents").write_bytes(b'{"repository": 3}')
    assert load_coverage(tmp_path / "state", "v") is None
    keep_coverage(Path("/dev/null/none"), "v", Coverage("r"))


def test_checks_read_every_object_in_turn(protected: Protected) -> None:
    fill(protected.root, 30, 20_000)
    for number in range(8):
        (protected.root / "more").write_bytes(bytes([number]) * 30_000)
        protected.backup(attach=False)
    whole = protected.check(write_key=True)
    read = [protected.check(write_key=True, read_data=(0, 5)) for _ in range(5)]
    assert sum(report.bytes_read for report in read) == whole.bytes_read > 0
    assert max(report.bytes_read for report in read) < whole.bytes_read
    (coverage,) = read[-1].coverage.values()
    assert coverage.read_s is not None and coverage.opened_s is None
    (coverage,) = protected.check().coverage.values()
    assert coverage.opened_s is not None and coverage.opened_s == coverage.read_s
