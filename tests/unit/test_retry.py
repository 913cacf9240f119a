"""When a call that failed is run again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.delivery.retry import RetryPolicy, delay, may_retry

retries = st.integers(0, 10_000)
chance = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 1e6)
policies = st.builds(RetryPolicy, st.just(3), st.none(), seconds, seconds, st.booleans())


@pytest.mark.parametrize(
    ("max_retries", "retries", "may"),
    [(3, 0, True), (3, 2, True), (3, 3, False), (3, 4, False), (0, 0, False), (None, 10**9, True)],
)
def test_may_retry(max_retries: int | None, retries: int, may: bool) -> None:
    assert may_retry(RetryPolicy(max_retries), retries) is may


def test_backoff_doubles_up_to_its_most() -> None:
    policy = RetryPolicy(retry_backoff=2.0, retry_backoff_max=20.0, retry_jitter=False)
    assert [delay(policy, n, None, 0.5) for n in range(6)] == [2.0, 4.0, 8.0, 16.0, 20.0, 20.0]


@pytest.mark.parametrize("random", [0.0, 0.25, 0.999])
def test_jitter_is_full(random: float) -> None:
    assert delay(RetryPolicy(), 3, None, random) == 8.0 * random


@given(policies, retries, chance)
def test_backoff_stays_within_bounds(policy: RetryPolicy, retries: int, random: float) -> None:
    """However often it was retried: no overflow, never negative."""
    wait = delay(policy, retries, None, random)
    assert 0 <= wait <= policy.retry_backoff_max
    longest = delay(policy._replace(retry_jitter=False), retries, None, random)
    assert wait <= longest
    assert longest <= delay(policy._replace(retry_jitter=False), retries + 1, None, random)


@given(policies, retries, chance, seconds)
def test_an_explicit_delay_is_exact(policy: RetryPolicy, retries: int, random: float, wanted: float) -> None:
    assert delay(policy, retries, wanted, random) == wanted
    fixed = policy._replace(default_retry_delay=wanted)
    assert delay(fixed, retries, None, random) == wanted
    assert delay(fixed, retries, wanted + 1, random) == wanted + 1, "a countdown goes before it"


def test_a_countdown_in_the_past_is_now() -> None:
    assert delay(RetryPolicy(), 0, -5.0, 0.5) == 0.0
    assert delay(RetryPolicy(default_retry_delay=9.0), 0, 0.0, 0.5) == 0.0
