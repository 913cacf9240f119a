"""Lanes: whose turn it is (H11)."""

from __future__ import annotations

import itertools
from collections import Counter

from respool.delivery.claim import Request, claim
from respool.delivery.lanes import PATIENCE, Turns, due_of_lanes, has_lanes
from respool.delivery.model import Change, Lease, Parked, Position, View
from respool.delivery.spans import Span

NOW = 100.0
leases = itertools.count(1000)


def first(log: int) -> int:
    return log << 40


def lanes(*backlogs: tuple[int, int], due: list[Parked] | None = None) -> View:
    """Return a view of lanes, each (priority, pending); the n-th is log n."""
    view = View()
    view.positions = [
        Position(log, first(log), first(log) + pending, None, (), priority)
        for log, (priority, pending) in enumerate(backlogs)
    ]
    view.due = due or []
    return view


def granted(view: View, want: int = 8, turns: Turns | None = None) -> list[int]:
    """Return the logs of what is granted, in order."""
    lease = claim(view, Change(), Request(want, 1, 0, next(leases), NOW, lanes=turns))
    return [pos >> 40 for span in lease.spans for pos in range(span.lo, span.hi)] if lease else []


def test_the_first_lane_that_has_something_is_served() -> None:
    assert granted(lanes((4, 9), (9, 1), (0, 9))) == [1]
    assert granted(lanes((4, 9), (9, 0), (0, 9))) == [0] * 8
    assert granted(lanes((4, 0), (9, 0), (0, 3))) == [2] * 3
    assert granted(lanes((4, 0), (9, 0))) == []


def test_partitions_of_one_priority_are_no_lanes() -> None:
    assert not has_lanes(lanes((4, 1), (4, 1)))
    assert granted(lanes((4, 1), (4, 1))) == [0, 1]


def test_a_retry_of_a_low_lane_comes_after_what_is_new_in_a_higher_one() -> None:
    """H11: what is due, and what was given back, has the rank of its lane."""
    due = [Parked(first(2) + 50 + n, "retry", 1.0, "add") for n in range(9)]
    view = lanes((4, 0), (9, 3), (0, 0), due=due)
    view.returned = [Lease(5, None, 0, [Span(first(2) + 80, first(2) + 90)])]
    assert granted(view) == [1, 1, 1]
    assert set(granted(lanes((4, 0), (9, 0), (0, 0), due=due))) == {2}


def test_a_lane_that_waits_gets_its_share() -> None:
    turns = Turns()
    served: Counter[int] = Counter()
    for _ in range(400):
        served.update(granted(lanes((4, 1000), (9, 1000), (0, 1000)), 8, turns))
    assert served[1] > 4 * served[0] > 4 * served[2] > 0
    assert served[2] >= 400 // (2 * PATIENCE + 3) * 2


def test_none_of_ten_starves() -> None:
    turns = Turns()
    passed: Counter[int] = Counter()
    for _ in range(1000):
        chosen = turns.choose(range(10))
        turns.served(chosen, range(10))
        for lane in range(10):
            passed[lane] = 0 if lane == chosen else passed[lane] + 1
        assert max(passed.values()) <= PATIENCE * 9 + 9


def test_the_first_call_of_a_high_priority_is_next() -> None:
    """However long only others were served: they were not passed over for it."""
    turns = Turns()
    for _ in range(1000):
        turns.served(turns.choose([4, 0]), [4, 0])
    assert turns.choose([4, 0, 9]) == 9


def test_a_claim_that_is_decided_anew_counts_once() -> None:
    """An engine may find that it must read more first, or that its transaction must be run again."""
    turns, change = Turns(), Change()
    for lease in (*(1,) * PATIENCE, *range(2, PATIENCE + 1)):
        claimed = claim(lanes((4, 99), (9, 99)), change, Request(8, 1, 0, lease, NOW, lanes=turns))
        assert claimed is not None
        assert claimed.spans[0].lo >> 40 == 1
    assert granted(lanes((4, 99), (9, 99)), 8, turns) == [0] * 2, "its patience is at an end"


def test_what_was_served_was_not_passed_over() -> None:
    """Where those above it had something, and none to grant."""
    turns = Turns()
    view = lanes((4, 50), (9, 0))
    view.positions[1] = Position(1, first(1), first(1) + 3, None, ((first(1), first(1) + 2),), 9)
    for _ in range(2 * PATIENCE):
        assert granted(view, 8, turns) == [0] * 2
    assert granted(lanes((4, 50), (9, 50)), 8, turns) == [1] * 8


def test_a_lane_that_can_be_granted_nothing_holds_up_no_other() -> None:
    """A cursor waits where there is no room for another gap (G4)."""
    view = lanes((4, 5), (9, 0))
    view.positions[1] = Position(1, first(1), first(1) + 3, None, ((first(1), first(1) + 2),), 9)
    assert view.gap_room == 0
    assert granted(view) == [0] * 2, "a quarter: a higher lane has something"


def test_due_records_of_partitions_share_a_claim() -> None:
    view = lanes((4, 0), (4, 0), (9, 0))
    held = {
        0: [Parked(first(0) + n, "retry", float(n), "add") for n in range(100)],
        1: [Parked(first(1), "retry", 99.0, "add")],
        2: [Parked(first(2) + n, "retry", 200.0, "add") for n in range(3)],
    }
    found = due_of_lanes(view, [0, 1, 2], 6, lambda log, most: held[log][:most])
    by_log = Counter(parked.pos >> 40 for parked in found)
    assert by_log == {2: 3, 1: 1, 0: 5}
    assert [parked.due for parked in found if parked.pos >> 40 < 2] == sorted(
        parked.due or 0 for parked in found if parked.pos >> 40 < 2
    )
    assert len(due_of_lanes(view, [0, 1], 6, lambda log, most: held[log][:most])) == 6
