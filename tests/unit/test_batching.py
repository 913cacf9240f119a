"""Which items make a batch fail: found in few runs, and never more than is allowed."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.batching import MOST_RUNS, Splitting


class Ran:
    """Runs a batch of so many items of which some raise, part by part."""

    def __init__(self, size: int, culprits: set[int], most: int = MOST_RUNS) -> None:
        self.succeeded: set[int] = set()
        self.alone: set[int] = set()
        self.runs = 0
        splitting = Splitting(size, most)
        while splitting.part is not None:
            lo, hi = splitting.part
            decided = self.succeeded | self.alone
            assert decided == set(range(lo)), "what lies before a part is decided, and nothing else is"
            self.runs += 1
            if culprits & set(range(lo, hi)):
                if splitting.failed():
                    self.alone.add(lo)
            else:
                splitting.succeeded()
                self.succeeded |= set(range(lo, hi))
        self.left = set(range(*splitting.left)) if splitting.left else set()
        self.progress = splitting.progress
        assert self.succeeded | self.alone | self.left == set(range(size))
        assert len(self.succeeded) + len(self.alone) + len(self.left) == size, "each in one place"
        assert self.alone <= culprits, "nobody is blamed for another"
        assert not self.succeeded & culprits
        assert self.runs <= most + 1


@given(st.integers(1, 4096), st.data())
def test_one_culprit_is_found_in_two_runs_a_level(size: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, size - 1))
    ran = Ran(size, {culprit})
    assert ran.alone == {culprit}
    assert not ran.left
    assert ran.runs - 1 <= 2 * ceil(log2(size))


def test_item_387_of_500() -> None:
    ran = Ran(500, {387})
    assert (ran.alone, len(ran.succeeded)) == ({387}, 499)
    assert ran.runs - 1 <= 18


@given(st.integers(1, 600), st.sets(st.integers(0, 599)), st.integers(0, 100))
def test_every_item_ends_in_one_place_whatever_raises(size: int, some: set[int], most: int) -> None:
    culprits = {item for item in some if item < size}
    ran = Ran(size, culprits, most)
    if not culprits:
        assert ran.runs == 1


@given(st.integers(1, 64), st.sets(st.integers(0, 63)))
def test_with_runs_enough_nothing_is_left(size: int, some: set[int]) -> None:
    culprits = {item for item in some if item < size}
    ran = Ran(size, culprits, 10_000)
    if ran.progress:
        assert ran.alone == culprits


@pytest.mark.parametrize("size", [2, 50, 500, 4096])
def test_an_outage_does_not_turn_one_batch_into_a_thousand_runs(size: int) -> None:
    ran = Ran(size, set(range(size)))
    assert ran.runs <= 2 * ceil(log2(size)) + 5
    assert not ran.progress
    if size > 2:
        assert len(ran.left) > size / 2


def test_with_many_culprits_the_rest_is_left_for_later_and_no_innocent_is_blamed() -> None:
    culprits = set(range(0, 500, 5))
    left, rounds = set(range(500)), 0
    while left:
        order = sorted(left)
        ran = Ran(len(order), {place for place, item in enumerate(order) if item in culprits})
        assert ran.progress, "each round gets on"
        assert ran.runs <= 65, "far from a run for each"
        left = {order[place] for place in ran.left}
        rounds += 1
    assert 1 < rounds < 20
