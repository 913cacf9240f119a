"""Waits that are bounded in all (P10): how long a thread has for what it does, and its turn at a lock.

Who waits for a lock of ours waits for the one who holds it, who may be waiting for a server: each would begin
its own time only after that of those before.
"""

from __future__ import annotations

import math
import threading
import time
from functools import partial
from typing import Literal

from ..errors import EngineUnavailable

GRACE = 1.0
"""Seconds that an answer is waited for at least, by one who had to wait for its turn, or has little time."""


class _Limit(threading.local):
    until = math.inf


_limit = _Limit()


def left(most: float) -> float:
    """Return for how many seconds this thread may wait: `most`, unless it has less (`limited`)."""
    until = _limit.until
    return most if until == math.inf else max(min(most, until - time.monotonic()), 0.0)


class limited:  # noqa: N801, it reads as a word
    """Have what this thread does in the block end by a time of `time.monotonic()`; None: whenever it likes.

    Engines raise EngineUnavailable then. What holds already goes on to hold where it ends earlier.
    """

    __slots__ = ("_before", "_until")

    def __init__(self, until: float | None) -> None:
        self._until = math.inf if until is None else until

    def __enter__(self) -> None:
        self._before = _limit.until
        _limit.until = min(self._until, self._before)

    def __exit__(self, *error: object) -> None:
        _limit.until = self._before


class NotMyTurn(Exception):
    """What a block of `Turn` raises, and nothing else, where it did not get the lock."""


class Turn(partial[bool]):
    """The block of one turn at a lock, which is waited for only so long, or not at all.

        with Turn(lock.acquire, True, 2.0) as mine:
            if not mine:
                raise NotMyTurn

    May be used again and again, by any thread. Only C code takes the lock: an exception from a signal handler
    could come between its taking and a `try`.
    """

    __enter__ = partial.__call__

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> Literal[False]:
        if kind is not NotMyTurn:
            self.func.__self__.release()  # type: ignore[attr-defined]
        return False


class Down:
    """What the last one met that waited in vain, for those who waited behind it."""

    def __init__(self) -> None:
        self._at = 0.0
        self._waited = 0.0
        self._why = ""

    def note(self, why: str, began: float, ended: float) -> None:
        """Take note that somebody has waited in vain from one time to another."""
        self._why, self._waited, self._at = why, ended - began, ended

    def check(self, came: float, until: float) -> None:
        """Raise EngineUnavailable where that happened since `came`, to one who had as long as is left now."""
        if came < self._at and until - self._at < self._waited:
            raise EngineUnavailable(self._why)
