"""Which records are granted: shares between sources, what runs alone, who goes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.claim import Request, claim, shares
from respool.delivery.model import MAX_LEASE, Change, Lease, Parked, Position, View
from respool.delivery.spans import Span

amounts = st.integers(0, 50)
turns = st.integers(0, 8)


def due(*positions: int, alone: Iterable[int] = (), body: bytes | None = None) -> list[Parked]:
    return [Parked(pos, "retry", 0.0, "add", 1, alone=pos in alone, body=body) for pos in positions]


def returned(*spans: Span, id: int = 7, bodies: dict[int, bytes] | None = None) -> Lease:
    return Lease(id, None, 3, list(spans), bodies or {}, 5.0)


def view(
    due: Sequence[Parked] = (), returned: Sequence[Lease] = (), positions: Sequence[Position] = ()
) -> View:
    made = View()
    made.due, made.returned, made.positions = list(due), list(returned), list(positions)
    return made


def claimed(view: View, want: int, turn: int = 0) -> tuple[list[int], Change]:
    """Claim for worker 1; return the positions in their order, and the change."""
    change = Change()
    lease = claim(view, change, Request(want, 1, 2, 99, 10.0, turn))
    if lease is None:
        assert not any(getattr(change, name) for name in ("leases", "cursors", "unparked", "dropped_leases"))
        return [], change
    assert (lease.id, lease.owner, lease.child, lease.since) == (99, 1, 2, 10.0)
    assert change.leases[-1] is lease
    return [pos for span in lease.spans for pos in range(span.lo, span.hi)], change


# Shares (H11)


@given(amounts, st.tuples(amounts, amounts, amounts), turns)
def test_shares_are_thirds_and_what_others_leave(
    want: int, available: tuple[int, int, int], turn: int
) -> None:
    given = shares(want, available, turn)
    assert sum(given) == min(want, sum(available))
    for mine, there in zip(given, available, strict=True):
        assert min(there, want // 3) <= mine <= there
    hungry = [mine for mine, there in zip(given, available, strict=True) if mine < there]
    assert not hungry or min(hungry) >= max(given) - 1, "who could take more got less than another"


@pytest.mark.parametrize("turn", range(6))
def test_the_first_source_changes_with_the_turn(turn: int) -> None:
    assert shares(1, (9, 9, 9), turn)[turn % 3] == 1


@pytest.mark.parametrize("want", [1, 2, 3, 10, 1000])
def test_a_storm_of_retries_cannot_stop_new_work(want: int) -> None:
    """Nor what was given back; with claims of 1 each has its turn."""
    storm = view(due(*range(2000, 4000)), [returned(Span(4000, 6000, 1))], [Position(0, 0, 2000)])
    grants = [pos for turn in range(3) for pos in claimed(storm, want, turn)[0]]
    sources = [sum(lo <= pos < lo + 2000 for pos in grants) for lo in (0, 2000, 4000)]
    assert sum(sources) == 3 * want
    assert min(sources) >= want - 2


def test_new_work_cannot_stop_retries() -> None:
    busy = view(due(*range(90)), [], [Position(1, 1 << 40, (1 << 40) + 10**6)])
    assert len([pos for pos in claimed(busy, 60)[0] if pos < 90]) == 30


# New work


def test_a_claim_moves_the_cursor_over_a_range() -> None:
    positions, change = claimed(view(positions=[Position(1, 100, 5000)]), 1000)
    assert positions == list(range(100, 1100))
    assert change.cursors == [(1, 1100)]
    assert change.leases[-1].spans == [Span(100, 1100)]


def test_logs_take_turns_and_help_out() -> None:
    logs = [Position(1, 100, 103), Position(2, 200, 299), Position(3, 300, 300)]
    assert claimed(view(positions=logs), 2, 0)[0] == [100, 101]
    assert claimed(view(positions=logs), 2, 1)[0] == [200, 201]
    positions, change = claimed(view(positions=logs), 5, 0)
    assert positions == [100, 101, 102, 200, 201]
    assert change.cursors == [(1, 103), (2, 202)]


@pytest.mark.parametrize(("stop", "granted"), [(None, 10), (105, 5), (100, 0), (90, 0), (999, 10)])
def test_a_claim_stays_below_the_groups_bound(stop: int | None, granted: int) -> None:
    assert len(claimed(view(positions=[Position(1, 100, 110, stop)]), 50)[0]) == granted


def test_a_cursor_past_the_end_grants_nothing() -> None:
    """The highest records may have been deleted."""
    assert claimed(view(positions=[Position(1, 110, 100)]), 50)[0] == []


def test_a_lease_has_a_largest_size() -> None:
    assert len(claimed(view(positions=[Position(1, 0, 10**6)]), 10**6)[0]) == MAX_LEASE


def test_nothing_to_do_is_no_lease() -> None:
    assert claimed(view(), 5)[0] == []


# Due and returned


def test_due_records_keep_their_history_and_edits() -> None:
    parked = Parked(5, "retry", 0.0, "add", 1, 2, 3, body=b"edit")
    positions, change = claimed(view([parked]), 5)
    assert positions == change.unparked == [5]
    assert change.leases[-1].spans == [Span(5, 6, 1, 2, 3)]
    assert change.leases[-1].bodies == {5: b"edit"}


def test_a_returned_lease_is_taken_in_parts() -> None:
    source = returned(Span(0, 4, 1), Span(8, 12, 2), bodies={1: b"one", 9: b"nine"})
    positions, change = claimed(view(returned=[source]), 6)
    assert positions == [0, 1, 2, 3, 8, 9]
    left, lease = change.leases
    assert left == Lease(7, None, 3, [Span(10, 12, 2)], {}, 5.0)
    assert lease.bodies == {1: b"one", 9: b"nine"}
    assert change.dropped_leases == []


def test_a_returned_lease_taken_whole_is_dropped() -> None:
    positions, change = claimed(view(returned=[returned(Span(0, 2)), returned(Span(5, 9), id=8)]), 4)
    assert positions == [0, 1, 5, 6]
    assert change.dropped_leases == [7]
    assert [(lease.id, lease.spans) for lease in change.leases[:-1]] == [(8, [Span(7, 9)])]


# Alone (H6)


def test_what_is_to_run_alone_is_granted_alone() -> None:
    source = returned(Span(0, 3, 0, 1, 0, True), Span(5, 9), bodies={0: b"zero", 2: b"two"})
    positions, change = claimed(view(returned=[source]), 100, turn=0)
    assert positions == [0]
    left, lease = change.leases
    assert lease.spans == [Span(0, 1, 0, 1, 0, True)]
    assert lease.bodies == {0: b"zero"}
    assert left.bodies == {2: b"two"}
    assert sorted(left.spans) == [Span(1, 3, 0, 1, 0, True), Span(5, 9)]


def test_what_is_alone_takes_turns_with_the_others() -> None:
    both = view(due(5, alone=[5]), [returned(Span(0, 3), Span(8, 9, alone=True))])
    assert claimed(both, 100, turn=0)[0] == [5]
    positions, change = claimed(both, 100, turn=1)
    assert positions == [0, 1, 2]
    assert change.leases[0].spans == [Span(8, 9, alone=True)], "the rest of the lease stays"
    assert change.unparked == []


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_what_is_alone_comes_at_once_where_there_is_nothing_else(turn: int) -> None:
    assert claimed(view(due(5, alone=[5])), 9, turn)[0] == [5]
    assert claimed(view(returned=[returned(Span(8, 12, alone=True))]), 9, turn)[0] == [8]
    done = [Position(1, 100, 100), Position(2, 200, 300, 200)]
    assert claimed(view(due(5, alone=[5]), positions=done), 9, turn)[0] == [5]


@given(
    st.lists(st.booleans(), max_size=6),
    st.lists(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 5), max_size=2),
    st.integers(1, 12),
)
def test_claims_grant_everything_once(
    parked: list[bool], leases: list[list[tuple[int, bool]]], logs: list[int], want: int
) -> None:
    """Claim after claim, each on what the one before left: nothing is lost, doubled or starved."""
    free = iter(range(1000, 2000, 10))
    spans = [[Span(lo := next(free), lo + size, alone=alone) for size, alone in each] for each in leases]
    now = view(
        due(*range(len(parked)), alone=[n for n, alone in enumerate(parked) if alone]),
        [returned(*each, id=id) for id, each in enumerate(spans)],
        [Position(n, n << 40, (n << 40) + size) for n, size in enumerate(logs, 1)],
    )
    every = {p.pos for p in now.due} | {pos for each in spans for s in each for pos in range(s.lo, s.hi)}
    every |= {pos for at in now.positions for pos in range(at.cursor, at.end)}
    found: list[int] = []
    for turn in range(len(every)):
        positions, change = claimed(now, want, turn)
        assert len(positions) <= want
        found += positions
        now = _after(now, change)
    assert sorted(found) == sorted(every)


def _after(before: View, change: Change) -> View:
    stored = {lease.id: lease for lease in before.returned} | {
        lease.id: lease for lease in change.leases if lease.owner is None
    }
    cursors = dict(change.cursors)
    return view(
        [parked for parked in before.due if parked.pos not in change.unparked],
        [lease for id, lease in stored.items() if id not in change.dropped_leases],
        [at._replace(cursor=cursors.get(at.log, at.cursor)) for at in before.positions],
    )


# Gaps (G4)


def seen(cursor: int, end: int, *missing: tuple[int, int], stop: int | None = None) -> Position:
    return Position(1, cursor, end, stop, missing)


def with_room(at: Position, room: int = 1000) -> View:
    made = view(positions=[at])
    made.gap_room = room
    return made


def test_what_is_missing_is_kept_as_a_gap_and_not_handed_out() -> None:
    positions, change = claimed(with_room(seen(10, 20, (12, 14), (17, 18))), 100)
    assert positions == [10, 11, 14, 15, 16, 18, 19]
    assert change.gaps == [(12, 14), (17, 18)]
    assert change.cursors == [(1, 20)]


@pytest.mark.parametrize(
    ("want", "positions", "gaps", "cursor"),
    [
        (1, [10], [], 11),
        (2, [10, 11], [], 12),  # the gap may still be filled by the time it is come to
        (3, [10, 11, 14], [(12, 14)], 15),
        (5, [10, 11, 14, 15, 16], [(12, 14)], 17),
        (6, [10, 11, 14, 15, 16, 18], [(12, 14), (17, 18)], 19),
    ],
)
def test_no_gap_is_kept_before_it_is_come_to(
    want: int, positions: list[int], gaps: list[tuple[int, int]], cursor: int
) -> None:
    got, change = claimed(with_room(seen(10, 20, (12, 14), (17, 18))), want)
    assert (got, change.gaps, change.cursors) == (positions, gaps, [(1, cursor)])


def test_where_there_is_no_room_for_a_gap_the_cursor_waits() -> None:
    at = seen(10, 20, (12, 14), (17, 18))
    got, change = claimed(with_room(at, 1), 100)
    assert (got, change.gaps, change.cursors) == ([10, 11, 14, 15, 16], [(12, 14)], [(1, 17)])
    got, change = claimed(with_room(seen(12, 20, (12, 14)), 0), 100)
    assert (got, change.gaps, change.cursors) == ([], [], [])


def test_logs_share_the_room_for_gaps() -> None:
    both = view(positions=[seen(10, 13, (11, 12)), Position(2, 50, 53, None, ((51, 52),))])
    both.gap_room = 1
    got, change = claimed(both, 100)
    assert (got, change.gaps) == ([10, 12, 50], [(11, 12)])
    assert change.cursors == [(1, 13), (2, 51)]


@given(
    st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 6), st.integers(0, 9)
)
def test_each_number_is_handed_out_or_kept_once(there: list[bool], want: int, room: int, more: int) -> None:
    """Claim after claim, as long as there is room: each number below the cursor went to one of the two."""
    there = [*there, True]
    handed: list[int] = []
    kept: list[tuple[int, int]] = []
    cursor = 0
    for turn in range(len(there) + 1):
        marks = [-1 + cursor, *(n for n in range(cursor, len(there)) if there[n])]
        missing = tuple((lo + 1, hi) for lo, hi in pairwise(marks) if hi > lo + 1)
        now = with_room(seen(cursor, len(there), *missing), room - len(kept))
        if turn == more:
            now.due = due(1000)  # other sources take their share
        change = Change()
        lease = claim(now, change, Request(want, 1, 2, 99, 10.0, turn))
        got = [p for s in lease.spans for p in range(s.lo, s.hi) if p != 1000] if lease else []
        handed += got
        kept += change.gaps
        cursor = dict(change.cursors).get(1, cursor)
        places = sorted([*handed, *(n for lo, hi in kept for n in range(lo, hi))])
        assert places == list(range(cursor))
        assert [n for n in range(cursor) if there[n]] == handed
        assert len(kept) <= room
        assert cursor in (0, len(there)) or there[cursor - 1], "a gap was kept for nothing"
    if room >= len(there):
        assert cursor == len(there)


# The end of what there is to run


@pytest.mark.parametrize(("left", "taken"), [(1000, 7), (56, 7), (40, 5), (9, 2), (8, 1), (1, 1), (0, 0)])
def test_the_last_records_that_take_long_are_left_to_others_too(left: int, taken: int) -> None:
    change = Change()
    request = Request(7, 1, 2, 99, 10.0, share=8)
    lease = claim(view(positions=[Position(1, 100, 100 + left, None)]), change, request)
    assert (0 if lease is None else sum(span.hi - span.lo for span in lease.spans)) == taken


def test_what_was_given_back_is_taken_as_ever_beside_the_last_new_ones() -> None:
    change = Change()
    seen = view(returned=[returned(Span(10, 14))], positions=[Position(1, 100, 108, None)])
    lease = claim(seen, change, Request(6, 1, 2, 99, 10.0, share=8))
    assert lease is not None
    assert sorted(span[:2] for span in lease.spans) == [(10, 14), (100, 101)]


@pytest.mark.parametrize(("left", "taken"), [(7, 7), (6, 1), (1, 1)])
def test_who_looks_only_so_far_ahead_takes_all_of_what_may_be_more(left: int, taken: int) -> None:
    seen, change = view(positions=[Position(1, 100, 100 + left, None)]), Change()
    seen.near = True
    lease = claim(seen, change, Request(7, 1, 2, 99, 10.0, share=8))
    assert lease is not None
    assert lease.spans == [Span(100, 100 + taken)]
