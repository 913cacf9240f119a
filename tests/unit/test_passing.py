"""Passing over what is not run: what is missing is kept, and nothing is both passed and kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.model import Change, Position, View
from respool.delivery.passing import pass_over
from respool.delivery.spans import ranges_of


@given(
    there=st.lists(st.booleans(), min_size=1, max_size=30),
    to=st.integers(0, 40),
    stop=st.none() | st.integers(0, 40),
    room=st.integers(0, 8),
    sees=st.integers(1, 10),
)
def test_each_number_is_passed_or_kept_or_left(
    there: list[bool], to: int, stop: int | None, room: int, sees: int
) -> None:
    records = [pos for pos, is_there in enumerate(there) if is_there]
    cursor, passed, kept = 0, [], []
    while True:
        seen = [pos for pos in records if pos >= cursor and (stop is None or pos < stop)][:sees]
        end = seen[-1] + 1 if seen else cursor
        missing = tuple(ranges_of({*range(cursor, end)} - {*seen}))
        view, change = View(), Change()
        view.gap_room = room - len(kept)
        spans, reached = pass_over(view, change, Position(0, cursor, end, stop, missing), to)
        assert change.cursors == ([(0, reached)] if reached > cursor else [])
        passed += [pos for span in spans for pos in range(span.lo, span.hi)]
        kept += change.gaps
        if reached == cursor:
            break
        cursor = reached
    in_gaps = [pos for lo, hi in kept for pos in range(lo, hi)]
    assert sorted(passed + in_gaps) == list(range(cursor))
    assert passed == [pos for pos in records if pos < cursor]
    assert not {*in_gaps} & {*records}
    assert len(kept) <= room
    rest = [pos for pos in records if cursor <= pos < min(to, to if stop is None else stop)]
    assert not rest or len(kept) == room, "it stops for nothing but the room"
