"""The clocks. Wall time names moments for people; nothing about liveness is decided by it (H4)."""

from __future__ import annotations

import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_UPTIME = getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC)  # macOS's monotonic clock counts sleep


def now() -> float:
    """Return wall-clock seconds since 1970 (UTC)."""
    return time.time()


def boottime_ns() -> int:
    """Return nanoseconds since the machine started, counting the time it was suspended (H5)."""
    return time.clock_gettime_ns(_BOOTTIME)


def uptime_ns() -> int:
    """Return nanoseconds that the machine has run: `boottime_ns` without the time it was suspended."""
    return time.clock_gettime_ns(_UPTIME)


def suspended_ns() -> int:
    """Return how much the two differ; maybe less by what passes between the two looks, and never more."""
    return boottime_ns() - uptime_ns()
