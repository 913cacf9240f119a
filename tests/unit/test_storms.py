"""Breakers and retry budgets: pure decisions on a small record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.model import Change, Parked, View
from respool.delivery.storms import (
    BreakerPolicy,
    BudgetPolicy,
    Gauge,
    Report,
    admit,
    close,
    count_runs,
    gauges,
    may_run,
    put_off_retries,
    read,
    report,
    set_right,
    spend,
    take_back,
    write,
)

BREAKER = BreakerPolicy(failures=3, window=10.0, pause=30.0)


def test_so_many_failures_in_a_window_open_it() -> None:
    gauge = Gauge()
    for now in (100.0, 101.0):
        assert not report(gauge, BREAKER, Report(failed=1, why="OSError: no"), now)
        assert admit(gauge, BREAKER, now) is None, "closed: all may run"
    report(gauge, BREAKER, Report(failed=1, succeeded=50, why="OSError: no"), 102.0)
    assert (gauge.state, gauge.until, gauge.why) == ("open", 132.0, "OSError: no")
    assert admit(gauge, BREAKER, 131.9) == 0
    assert not may_run(gauge, 131.9)


def test_failures_that_are_further_apart_do_not() -> None:
    gauge = Gauge()
    for n in range(50):
        report(gauge, BREAKER, Report(failed=1), 100.0 + 6 * n)
    assert gauge.state == "closed"
    assert len(gauge.failures) <= 10, "what is kept is bounded"


def test_one_call_is_tried_by_one_worker_after_the_pause() -> None:
    gauge = Gauge("open", 130.0, "no", 100.0)
    assert [admit(gauge, BREAKER, 130.0) for _ in range(3)] == [1, 0, 0]
    assert admit(gauge, BREAKER, 159.9) == 0
    assert admit(gauge, BREAKER, 160.0) == 1, "of the first one nothing was heard"


def test_another_is_tried_in_place_of_one_that_has_not_run() -> None:
    gauge = Gauge("open", 130.0, "no", 100.0)
    assert admit(gauge, BREAKER, 130.0) == 1
    assert take_back(gauge, 160.0, 131.0)
    assert [admit(gauge, BREAKER, 131.0) for _ in range(2)] == [1, 0]
    assert not take_back(gauge, 160.0, 132.0), "another has been given out since"
    report(gauge, BREAKER, Report(failed=1, why="still"), 140.0)
    assert not take_back(gauge, 161.0, 141.0), "it has run"
    assert (gauge.state, gauge.until) == ("open", 170.0)


def test_the_trial_decides() -> None:
    gauge = Gauge("half-open", 160.0, "no", 100.0)
    report(gauge, BREAKER, Report(failed=1, why="still"), 140.0)
    assert (gauge.state, gauge.until, gauge.since, gauge.why) == ("open", 170.0, 100.0, "still")
    gauge = Gauge("half-open", 160.0, "no", 100.0)
    assert report(gauge, BREAKER, Report(succeeded=1), 140.0), "what waits is released"
    assert gauge == Gauge()


def test_stragglers_of_before_say_nothing_new() -> None:
    gauge = Gauge("open", 130.0, "no", 100.0)
    assert not report(gauge, BREAKER, Report(failed=5, succeeded=5), 110.0)
    assert (gauge.state, gauge.until) == ("open", 130.0)
    close(gauge)
    assert gauge == Gauge()


def test_a_gauge_survives_being_stored() -> None:
    view, change = View(), Change()
    gauge = Gauge("open", 130.5, "no", 100.25, [(10, 2, 0)], [(7, 3, 1)], 9.5)
    write(change, "fetch", gauge)
    view.settings = dict(change.settings)
    assert read(view, "fetch") == gauge
    assert gauges(view.settings) == {"fetch": gauge}
    write(change, "fetch", Gauge())
    assert change.settings == {"gauge:fetch": None}, "where there is nothing to say nothing is kept"
    assert read(View(), "fetch") == Gauge()


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=200))
def test_no_call_runs_while_it_is_open_and_one_while_it_is_half_open(
    steps: list[tuple[float, int, int]],
) -> None:
    gauge, now, tried = Gauge(), 1000.0, None
    for wait, failed, succeeded in steps:
        now += wait * 10
        before = gauge.state
        room = admit(gauge, BREAKER, now)
        if before == "closed":
            assert room is None
            report(gauge, BREAKER, Report(failed, succeeded), now)
        elif room:
            assert room == 1
            assert tried is None or now - tried >= BREAKER.pause or before == "open"
            tried = now
            report(gauge, BREAKER, Report(failed > 0, failed == 0), now)
        assert gauge.state in ("closed", "open")


# Retries


@given(st.integers(0, 5000), st.integers(1, 100), st.integers(0, 50))
def test_no_more_retries_than_the_share_and_the_floor(runs: int, percent: int, floor: int) -> None:
    share = percent / 100
    policy, gauge, now = BudgetPolicy(share, floor, 60.0), Gauge(), 10_000.0
    count_runs(gauge, policy, Report(succeeded=runs), now)
    later = [spend(gauge, policy, now) for _ in range(200)]
    allowed = floor + share * runs
    at_once = [each for each in later if each is None]
    assert len(at_once) == min(floor + percent * runs // 100, 200)
    due = [each for each in later if each is not None]
    assert due == sorted(set(due)), "each of the others has a moment of its own"
    if len(due) > 1:
        assert (due[-1] - due[0]) / (len(due) - 1) == pytest.approx(60.0 / max(allowed, 1.0))


def test_a_million_retries_over_budget_are_each_put_off_once() -> None:
    policy, gauge, change = BudgetPolicy(0.1, 1, 60.0), {"fetch": Gauge()}, Change()
    parked = [Parked(pos, "retry", 1.0, "fetch", 1) for pos in range(1000)]
    parked += [Parked(5000, "limited", 1.0, "fetch", 1), Parked(5001, "retry", 1.0, "other", 1)]
    names = {"fetch": "fetch", "other": "other"}
    kept = put_off_retries(parked, names, gauge, {"fetch": policy}, change, 100.0)
    assert [each.pos for each in kept] == [0, 5000, 5001], "what has had its moment, and other tasks', run"
    assert {each.reason for each in change.parked} == {"limited"}
    assert change.counted == {"retries over budget": 999}
    assert all(each.due is not None and each.due > 100.0 for each in change.parked)


# Clocks that are apart, or set back


@pytest.mark.parametrize("state", ["open", "half-open"])
def test_a_pause_lasts_no_longer_for_a_clock_that_was_set_back(state: Any) -> None:
    gauge = Gauge(state, 1e6 + 30.0, "no", 1e6)
    assert not set_right(gauge, BREAKER, 1e6 - 59.0), "another machine's clock may be ahead"
    assert set_right(gauge, BREAKER, 1e6 - 3600.0)
    assert not set_right(gauge, BREAKER, 1e6 - 3600.0)
    assert admit(gauge, BREAKER, 1e6 - 3600.0 + 29.9) == 0
    assert admit(gauge, BREAKER, 1e6 - 3600.0 + 30.0) == 1
    assert not set_right(Gauge(), BREAKER, 0.0)


def test_failures_count_together_where_clocks_are_apart() -> None:
    """Else one machine, by its clock, would forget what another has just told."""
    gauge = Gauge()
    for n in range(3):
        assert gauge.state == "closed"
        report(gauge, BREAKER, Report(failed=1), 1000.0 + 30 * (1 - n % 2))
    assert gauge.state == "open"


def test_failures_of_a_time_that_is_not_yet_are_forgotten() -> None:
    gauge = Gauge()
    report(gauge, BREAKER, Report(failed=2), 1e6)
    report(gauge, BREAKER, Report(failed=2), 1e6 - 3600.0)
    assert gauge.state == "closed"
    assert len(gauge.failures) == 1


@pytest.mark.parametrize("runs", [0, 5], ids=["quiet", "busy"])
def test_retries_need_not_wait_for_what_the_clock_said_before(runs: int) -> None:
    policy = BudgetPolicy(share=0.1, floor=1, window=10.0)
    gauge = Gauge()
    assert spend(gauge, policy, 1e6) is None
    assert spend(gauge, policy, 1e6) == 1e6 + 10.0
    before = 1e6 - 3600.0
    if runs:
        count_runs(gauge, policy, Report(succeeded=runs), before)
    assert spend(gauge, policy, before) is None
    later = spend(gauge, policy, before)
    assert later is not None
    assert later <= before + 10.0
