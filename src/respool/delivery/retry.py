"""When a call that failed is run again."""

from __future__ import annotations

from typing import NamedTuple


class RetryPolicy(NamedTuple):
    """A task's retry options, in seconds; Celery's names and meanings."""

    max_retries: int | None = 3  # None: for ever
    default_retry_delay: float | None = None  # exact, instead of the backoff
    retry_backoff: float = 1.0
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True


def may_retry(policy: RetryPolicy, retries: int) -> bool:
    """Say whether a call that was retried so often may be retried once more."""
    return policy.max_retries is None or retries < policy.max_retries


def delay(policy: RetryPolicy, retries: int, countdown: float | None, random: float) -> float:
    """Return the seconds to wait before retry number `retries` + 1.

    An explicit `countdown` or the task's `default_retry_delay` is exact. Else it is exponential with full
    jitter, `random` (0 <= r < 1) of min(retry_backoff_max, retry_backoff * 2**retries): see M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if countdown is not None:
        return max(countdown, 0.0)
    if policy.default_retry_delay is not None:
        return policy.default_retry_delay
    ceiling = min(policy.retry_backoff_max, policy.retry_backoff * 2.0 ** min(retries, 60))
    return ceiling * random if policy.retry_jitter else ceiling
