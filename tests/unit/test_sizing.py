"""How many records a worker claims at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.model import MAX_LEASE
from respool.delivery.sizing import LARGEST, ROOM, TARGET, LeaseSizer

took = st.floats(0, 1e4)


def after(*leases: tuple[int, float]) -> LeaseSizer:
    sizer = LeaseSizer()
    for records, seconds in leases:
        sizer.ran(records, seconds)
    return sizer


def steady(per_record: float, leases: int = 20) -> LeaseSizer:
    """Run as many as are wanted, each taking so long."""
    sizer = LeaseSizer()
    for _ in range(leases):
        sizer.ran(sizer.want, sizer.want * per_record)
    return sizer


def test_it_begins_with_one() -> None:
    assert LeaseSizer().want == 1


@pytest.mark.parametrize("per_record", [0.0001, 0.0005, 0.001, 0.005, 0.01])
def test_a_lease_comes_to_take_about_its_target(per_record: float) -> None:
    assert 0.05 <= steady(per_record).want * per_record <= 0.1


@pytest.mark.parametrize("per_record", [TARGET, 1.0, 3600.0])
def test_long_tasks_are_claimed_one_by_one(per_record: float) -> None:
    assert steady(per_record).want == 1


def test_short_tasks_stop_at_the_largest_lease() -> None:
    assert steady(1e-9).want == LARGEST <= MAX_LEASE


def test_one_lucky_record_proves_little() -> None:
    """A lease grows step by step."""
    sizer, wants = LeaseSizer(), []
    for _ in range(4):
        sizer.ran(sizer.want, 0.0)
        wants.append(sizer.want)
    assert wants == [8, 64, 512, LARGEST]


def test_slower_counts_at_once_and_faster_by_and_by() -> None:
    sizer = steady(0.0001)
    sizer.ran(sizer.want, sizer.want * 1.0)
    assert sizer.want == 1
    sizer.ran(1, 0.0001)
    assert sizer.want == 1
    for _ in range(40):
        sizer.ran(sizer.want, sizer.want * 0.0001)
    assert sizer.want * 0.0001 > TARGET / 2


def test_a_lease_has_room_for_so_many_bytes() -> None:
    """All bodies of a lease are in memory at a time (P10)."""
    sizer = steady(1e-9)
    sizer.weighed([1 << 20, 1 << 20])
    assert sizer.want == ROOM >> 20
    sizer.ran(sizer.want, 0.0)
    assert sizer.want == ROOM >> 20
    sizer.weighed([10, 30])
    sizer.ran(sizer.want, 0.0)
    assert sizer.want > ROOM >> 20


def test_nothing_run_teaches_nothing() -> None:
    sizer = steady(0.001)
    before = sizer.want
    sizer.ran(0, 5.0)
    assert sizer.want == before


@given(st.lists(st.tuples(st.integers(-1, 5000), took), max_size=20))
def test_it_stays_within_bounds(leases: list[tuple[int, float]]) -> None:
    want = after(*leases).want
    assert 1 <= want <= LARGEST
    assert isinstance(want, int)


@given(st.integers(1, 2000), st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_slower_never_wants_more(records: int, fast: float, slow: float) -> None:
    fast, slow = sorted((fast, slow))
    assert after((records, slow)).want <= after((records, fast)).want
