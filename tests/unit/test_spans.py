"""Arithmetic on spans, beside sets of positions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.spans import (
    Finder,
    Span,
    count,
    find,
    intersect,
    joined,
    merge,
    ranges_of,
    subtract,
    take,
)

ends = st.integers(0, 30)
ranges = st.lists(st.tuples(ends, ends), max_size=6)  # empty and inverted ones too


@st.composite
def some_spans(draw: st.DrawFn) -> list[Span]:
    """Draw spans that do not overlap, in any order, each with a history of its own."""
    cuts = sorted(draw(st.lists(ends, unique=True, max_size=9)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return draw(st.permutations([Span(lo, hi, lo, hi, lo % 2, bool(hi % 2)) for lo, hi in pairs]))


def listed(spans: Iterable[Span]) -> list[tuple[object, ...]]:
    """Return each position with its history, in order."""
    return [(pos, *span[2:]) for span in spans for pos in range(span.lo, span.hi)]


def within(pos: object, chosen: Iterable[tuple[int, int]]) -> bool:
    assert isinstance(pos, int)
    return any(lo <= pos < hi for lo, hi in chosen)


def no_empty_ones(spans: Iterable[Span]) -> bool:
    return all(span.lo < span.hi for span in spans)


@given(some_spans(), ranges)
def test_subtract_leaves_the_others_in_their_order(spans: list[Span], cut: list[tuple[int, int]]) -> None:
    left = subtract(spans, cut)
    assert listed(left) == [each for each in listed(spans) if not within(each[0], cut)]
    assert no_empty_ones(left)


@given(some_spans(), ends, ends)
def test_one_range_is_subtracted_as_many_are(spans: list[Span], lo: int, hi: int) -> None:
    """It has a way of its own, which an inverted range must not confuse."""
    assert listed(subtract(spans, [(lo, hi)])) == listed(subtract(spans, [(lo, hi), (lo, hi)]))


@given(some_spans(), ranges)
def test_intersect_is_what_subtract_takes(spans: list[Span], chosen: list[tuple[int, int]]) -> None:
    both = intersect(spans, chosen)
    assert listed(both) == [each for each in listed(spans) if within(each[0], chosen)]
    assert no_empty_ones(both)


@given(some_spans(), st.integers(0, 40))
def test_take_splits_after_so_many(spans: list[Span], want: int) -> None:
    taken, rest = take(spans, want)
    assert listed(taken) + listed(rest) == listed(spans)
    assert count(taken) == min(want, count(spans))
    assert no_empty_ones([*taken, *rest])


@given(some_spans())
def test_count_and_find_agree_with_a_list(spans: list[Span]) -> None:
    positions = [each[0] for each in listed(spans)]
    assert count(spans) == len(positions)
    for pos in range(31):
        span = find(spans, pos)
        assert (span is not None) == (pos in positions)
        assert span is None or span in spans
        assert span is None or span.lo <= pos < span.hi


@given(some_spans())
def test_a_finder_finds_what_find_does(spans: list[Span]) -> None:
    finder = Finder(spans)
    assert [finder.find(pos) for pos in range(31)] == [find(spans, pos) for pos in range(31)]


@given(st.lists(st.tuples(ends, st.integers(0, 1)), unique_by=lambda each: each[0]))
def test_joined_are_those_that_touch_and_share_a_history(records: list[tuple[int, int]]) -> None:
    found = joined(Span(pos, pos + 1, retries) for pos, retries in records)
    assert listed(found) == [(pos, retries, 0, 0, False, 0.0) for pos, retries in sorted(records)]
    assert all(one.hi < two.lo or one.retries != two.retries for one, two in pairwise(found))


@given(ranges)
def test_merge_joins_what_touches(parts: list[tuple[int, int]]) -> None:
    merged = merge(parts)
    each = [{pos for lo, hi in some for pos in range(lo, hi)} for some in (merged, parts)]
    assert each[0] == each[1]
    assert all(lo < hi for lo, hi in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@given(st.lists(ends))
def test_ranges_of_positions(positions: list[int]) -> None:
    found = ranges_of(positions)
    assert [pos for lo, hi in found for pos in range(lo, hi)] == sorted(set(positions))
    assert found == merge(found)


def test_a_part_has_the_history_of_the_whole() -> None:
    assert Span(0, 9, 1, 2, 3, True).part(4, 5) == Span(4, 5, 1, 2, 3, True)


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(0, 3)], [(3, 10)]),
        ([(7, 10)], [(0, 7)]),
        ([(3, 7)], [(0, 3), (7, 10)]),
        ([(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 10)]),
        ([(10, 20)], [(0, 10)]),
        ([(7, 3)], [(0, 10)]),
    ],
)
def test_subtract_by_example(cut: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert [span[:2] for span in subtract([Span(0, 10)], cut)] == left
