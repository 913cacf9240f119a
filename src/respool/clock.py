"""The clocks. Wall time names moments for people; nothing about liveness is decided by it (H4)."""

from __future__ import annotations

import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return wall-clock seconds since 1970 (UTC)."""
    return time.time()


def boottime_ns() -> int:
    """Return nanoseconds since the machine started, counting the time it was suspended (H5)."""
    return time.clock_gettime_ns(_BOOTTIME)
