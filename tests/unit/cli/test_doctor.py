"""`smsnap doctor`: the checks are run each for itself, and what they find is told with its mend."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from smsnapd.cli.doctor.findings import BlockedError, Check, Finding, Judged, examine, fail, ok, skipped, warn
from smsnapd.cli.doctor.lengths import length_text
from smsnapd.cli.doctor.patient import Part
from smsnapd.cli.doctor.policy import action_in, policy_line
from smsnapd.cli.doctor.verb import _SIGNS, _WORDS, CHECKS, _marks, lines
from smsnapd.errors import SmsnapError, StoreError
from smsnapd.store.s3_answers import Answer, meaning


def found(*checks: Check[str], check_s: float = 8.0, total_s: float = 20.0) -> list[tuple[str, str, str]]:
    findings = examine("patient", checks, check_s=check_s, total_s=total_s)
    return [(one.check, one.verdict, one.told) for one in findings]


def test_a_check_may_say_several_things_under_names_of_their_own() -> None:
    def several(patient: str) -> Iterator[Judged]:
        yield ok(f"of {patient}")
        yield warn("so so", "do this", check="second")
        yield skipped("not looked at")

    (one, two, three) = examine("patient", [Check("subject", "first", several)])
    assert one == Finding("subject", "first", "ok", "of patient")
    assert two == Finding("subject", "second", "warn", "so so", "do this")
    assert three.verdict == "skipped"


def test_an_error_is_a_finding_and_the_others_go_on() -> None:
    def foreseen(_: str) -> Iterator[Judged]:
        yield ok("before")
        raise SmsnapError("do it", "it broke", "mend it")

    def unforeseen(_: str) -> Iterator[Judged]:
        raise KeyError("x")
        yield ok("never")

    def blocked(_: str) -> Iterator[Judged]:
        raise BlockedError("nothing to look at")
        yield ok("never")

    told = found(Check("s", "a", foreseen), Check("s", "b", unforeseen), Check("s", "c", blocked))
    assert told == [
        ("a", "ok", "before"),
        ("a", "fail", "cannot do it: it broke"),
        ("b", "fail", "unexpected KeyError: 'x'"),
        ("c", "skipped", "nothing to look at"),
    ]
    (first, last) = examine("p", [Check("s", "a", foreseen)])
    assert (first.mend, last.mend) == ("", "mend it")


def test_a_check_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    end, seen = threading.Event(), threading.Event()
    hanging: set[threading.Thread] = set()

    class Joined(threading.Thread):
        """Its time is up when it hangs, on whatever machine."""

        def join(self, timeout: float | None = None) -> None:
            assert timeout is not None
            while self.is_alive() and self not in hanging:
                super().join(0.01)

    def hangs(_: str) -> Iterator[Judged]:
        yield ok("so far")
        hanging.add(threading.current_thread())
        end.wait(600)
        seen.set()
        yield ok("too late")

    late = warn("it did not answer", "never mind")
    checks = (Check("s", "a", hangs), Check("s", "b", hangs, late), Check("s", "c", lambda _: [ok("fine")]))
    monkeypatch.setattr("smsnapd.cli.doctor.findings.threading.Thread", Joined)
    told = found(*checks)
    assert [one[:2] for one in told] == [("a", "ok"), ("a", "fail"), ("b", "ok"), ("b", "warn"), ("c", "ok")]
    assert told[3][2] == "it did not answer"
    end.set()
    assert seen.wait(60)


def test_the_time_of_all_is_bounded() -> None:
    """A clock that jumps 15 s at every look: the later checks have what is left, and at least something."""
    now = iter(range(0, 1000, 15))
    limits: list[float] = []

    class Joined(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            assert timeout is not None
            limits.append(timeout)
            super().join(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smsnapd.cli.doctor.findings.threading.Thread", Joined)
        checks = [Check[str]("s", str(number), lambda _: [ok("")]) for number in range(3)]
        list(examine("p", checks, check_s=8, total_s=20, clock=lambda: next(now)))
    assert limits == [5, 0.5, 0.5]


def test_a_part_is_made_once_and_told_of_once() -> None:
    tries = []

    def make() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise SmsnapError("make it", "not yet")
        return "made"

    part = Part(make, "it is not there")
    with pytest.raises(SmsnapError, match="not yet"):
        part.examine()
    with pytest.raises(BlockedError, match="it is not there"):
        part.use()
    assert len(tries) == 1
    assert part.examine() == part.use() == "made"
    assert len(tries) == 2


def test_a_part_that_nobody_examined_blocks_as_well() -> None:
    def make() -> str:
        raise StoreError("reach it", "it is gone")

    part = Part(make, "it is not there")
    for _ in range(2):
        with pytest.raises(BlockedError, match="it is not there"):
            part.use()


def test_every_check_has_a_place_and_a_name() -> None:
    assert len({(check.subject, check.name) for check in CHECKS}) == len(CHECKS)
    subjects = list(dict.fromkeys(check.subject for check in CHECKS))
    assert subjects == ["machine", "configuration", "account", "repository", "volume", "service"]


def test_lines_are_aligned_and_mends_stand_below() -> None:
    finding = Finding("repository", "clock", "fail", "2 h behind", "sudo timedatectl set-ntp true")
    (told, mend) = lines(finding, _SIGNS)
    assert told.startswith("✗ repository") and told.endswith("2 h behind")
    assert mend == " " * told.index("2 h") + "sudo timedatectl set-ntp true"
    (alone,) = lines(Finding("volume", "state", "ok", "fine"), _WORDS)
    (failed, _) = lines(finding, _WORDS)
    assert alone.startswith("ok   volume") and failed.startswith("FAIL repository")
    assert alone.index("fine") == failed.index("2 h")


@pytest.mark.parametrize(
    ("encoding", "signs"),
    [
        ("utf-8", True),
        ("UTF-8", True),
        ("ascii", False),
        ("latin-1", False),
        (None, False),
        ("no such", False),
    ],
)
def test_signs_only_where_they_can_be_shown(encoding: str | None, signs: bool) -> None:
    assert _marks(encoding) == (_SIGNS if signs else _WORDS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (61.4, "61 s"), (120, "2 min"), (7199, "120 min"), (90_000, "25 h"), (2e6, "23 days")],
)
def test_lengths(seconds: float, text: str) -> None:
    assert length_text(seconds) == text


def test_policy_lines_say_what_is_missing() -> None:
    assert policy_line("s3:PutObject", "s3://b/p/q", "eu-west-1") == (
        '{"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::b/p/q/*"}'
    )
    assert policy_line("s3:GetObject", "s3://b", "cn-north-1") == (
        '{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws-cn:s3:::b/*"}'
    )
    assert policy_line("s3:ListBucket", "s3://b/p/", "us-gov-west-1") == (
        '{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws-us-gov:s3:::b",'
        ' "Condition": {"StringLike": {"s3:prefix": ["p", "p/*"]}}}'
    )
    assert "Condition" not in policy_line("s3:ListBucket", "s3://b", "eu-west-1")


@pytest.mark.parametrize("action", ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"])
def test_the_action_is_found_in_what_the_store_says(action: str) -> None:
    assert action_in(meaning(Answer(403, "AccessDenied", "no"), action).hint) == action
    assert action_in(meaning(Answer(404, "NoSuchBucket", "no"), action).hint) == ""
    assert action_in(meaning(Answer(403, "KMS.Disabled", "no"), action).hint) == ""


def test_a_failure_has_its_mend() -> None:
    assert fail("broken", "mend it").mend == "mend it"
    assert Check[str]("s", "n", lambda _: ()).late.mend
