"""Cutting logs, expiring outcomes, staying fast. What holds for every method stands in `base.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .things import Stream


class Retention(Protocol):
    """What workers do beside their tasks: drop what is too old, keep the store fast. In small steps."""

    def trim(self, stream: Stream, before: float, limit: int, upto: Mapping[int, int] | None = None) -> int:
        """Cut off old records at the beginning of the stream's logs, about `limit`; return how many.

        Only below the first record with time >= before, or below the position of `upto` (by log) where that
        is later. A record whose time is yet to come, from a clock that was ahead, holds up nothing: it goes
        with what comes after it. And below all that any group has pending or leased (a group that has come to
        its stop has nothing pending). What is parked stays readable: the log is cut no further, or it stays
        behind by itself. Runs are cut as a whole; outcomes and journal go with their records; no end in
        `Log.bounds` falls. 0: there is nothing more to do for now.
        """

    def byte_count(self, lo: int, hi: int) -> int:
        """Return how many bytes the bodies and attributes of the records at lo <= p < hi have."""

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes with until <= now, at most `limit`; return how many.

        The ending stays, with `until` 0 and no value (H9). No lock where there is nothing to drop.
        """

    def tidy(self) -> None:
        """Do what the store needs to stay fast and small, if it is time; cheap if not.

        Workers call it after each beat. It holds up no writer for longer than a commit takes, and what it
        cannot do now it leaves for the next time: it logs, and raises nothing for that.
        """
