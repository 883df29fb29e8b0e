from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from smsnapd.volume.watch.hints import Hints, Pending, is_below, make_hints

paths = st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=4).map(b"/".join)
path_sets = st.frozensets(paths, max_size=6)


def test_nothing_is_pending_at_first_and_none_is_invented() -> None:
    pending = Pending(10)
    assert not pending.wait(0)
    assert pending.take() == Hints()
    assert not pending.take()


def test_a_subtree_covers_what_lies_in_it_and_not_what_begins_alike() -> None:
    subtrees = frozenset((b"a/b",))
    assert is_below(b"a/b", subtrees)
    assert is_below(b"a/b/c/d", subtrees)
    assert not is_below(b"a", subtrees)
    assert not is_below(b"a/bc", subtrees)
    assert not is_below(b"", subtrees)
    assert is_below(b"", frozenset((b"",)))
    assert is_below(b"a/x", frozenset((b"",)))


@given(path_sets, path_sets, paths)
def test_what_was_put_in_is_covered_by_what_is_taken_and_none_twice(
    directories: frozenset[bytes], subtrees: frozenset[bytes], path: bytes
) -> None:
    pending = Pending(100)
    pending.merge(make_hints(directories, subtrees, 1))
    taken = pending.take()
    assert taken.covers(path) == (path in directories or is_below(path, subtrees))
    assert not any(is_below(directory, taken.subtrees) for directory in taken.directories)
    for subtree in taken.subtrees:
        assert not is_below(subtree, taken.subtrees - {subtree})


def test_too_many_paths_become_everything() -> None:
    pending = Pending(100)
    for number in range(101):
        pending.merge(make_hints((b"d%d" % number,), (), 1))
    assert pending.counts().subtrees == 1
    assert pending.counts().directories == 0
    taken = pending.take()
    assert taken.subtrees == {b""}
    assert taken.events == 101
    assert taken.covers(b"anything")
    pending.merge(make_hints((b"a",), (), 1))
    assert pending.take().directories == {b"a"}


def test_times_are_those_of_the_oldest_hint_and_of_the_last_event() -> None:
    pending = Pending(100)
    pending.merge(Hints(frozenset((b"b",)), events=1, first_event_s=20.0, last_event_s=21.0))
    pending.merge(Hints(frozenset((b"a",)), events=2, first_event_s=10.0, last_event_s=11.0))
    taken = pending.take()
    assert (taken.events, taken.first_event_s, taken.last_event_s) == (3, 10.0, 21.0)
    # A poll is no change.
    pending.merge(Hints(subtrees=frozenset((b"",)), first_event_s=30.0))
    taken = pending.take()
    assert (taken.events, taken.first_event_s, taken.last_event_s) == (0, 30.0, 21.0)
    assert pending.counts().first_event_s == 0.0


def test_a_waiter_is_told() -> None:
    pending = Pending(100)
    told = threading.Thread(target=pending.wait, args=(None,))
    told.start()
    pending.merge(make_hints((b"a",), (), 1))
    told.join(60)
    assert not told.is_alive()
    assert pending.wait(None)
