"""How many records a worker claims at once, from how long they have taken it."""

from __future__ import annotations

from collections.abc import Sequence

from .model import MAX_LEASE

TARGET = 0.075  # seconds of work in a lease: long enough to amortise a claim, short enough to share out
LARGEST = min(2000, MAX_LEASE)
ROOM = 16 << 20  # bytes of bodies in a lease: all of them are in memory at a time
SLOW = 0.001  # seconds of one record from which on a claim more costs little beside it, and evens out the end
SHARE = 8
_WEIGHT = 0.3  # of the newest lease in the moving average
_GROWTH = 8  # a lease is at most so many times the last: one lucky record proves little


class LeaseSizer:
    """Learns from each finished lease; `want` is the size of the next."""

    def __init__(self) -> None:
        self.want = 1
        self._per_record: float | None = None
        self._fits = LARGEST

    def weighed(self, sizes: Sequence[int]) -> None:
        """Take note of how large some bodies of a lease are, in bytes: the next has room for so many."""
        mean = sum(sizes) / max(len(sizes), 1)
        self._fits = max(1, min(int(ROOM / max(mean, 1)), LARGEST))
        self.want = min(self.want, self._fits)

    def ran(self, records: int, seconds: float) -> None:
        """Take note that `records` runs took `seconds` in all.

        Slower than expected counts at once, faster only by and by: claiming too little costs a
        transaction, claiming too much keeps calls from workers that are free.
        """
        if records <= 0:
            return
        took = max(seconds / records, 1e-7)
        known = self._per_record
        self._per_record = took if known is None or took > known else known + (took - known) * _WEIGHT
        fitting = int(TARGET / self._per_record)
        self.want = max(1, min(fitting, max(records, 1) * _GROWTH, self._fits))

    @property
    def share(self) -> int:
        """One in how many of the last new records to take at once: all where they are soon done."""
        return SHARE if self._per_record is not None and self._per_record >= SLOW else 1

    def left_out(self) -> None:
        """Take note of a lease of which nothing was run: to put records aside costs little each."""
        self.want = min(max(self.want, 1) * _GROWTH, self._fits)
