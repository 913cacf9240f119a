"""What a group loses whose records were held for it as long as they could be."""

from __future__ import annotations

from collections.abc import Mapping

from .model import MAX_LEASE, Change, JournalEntry, Lease, View
from .settle import keep_or_return
from .spans import Span, count, intersect, subtract

LOST = "lost: trimmed before they were done"
"""The counter of what a group has lost."""


def lapse(view: View, change: Change, upto: Mapping[int, int], now: float) -> int:
    """Have a group go on at these positions, if it is not so far: what lies below is lost to it.

    Pending records and those that were given back are; what a worker has, and what is parked, is not.

    Parameters:
        upto: by log.

    Returns: how many records it loses, which are counted.
    """
    lost: list[tuple[int, int]] = []
    for at in view.positions:
        end = min(upto.get(at.log, at.cursor), at.end if at.stop is None else min(at.end, at.stop))
        if end > at.cursor:
            change.cursors.append((at.log, end))
            unseen = [Span(lo, min(hi, end)) for lo, hi in at.missing if lo < end]
            whole = subtract([Span(at.cursor, end)], [(span.lo, span.hi) for span in unseen])
            lost += [(span.lo, span.hi) for span in whole]
    for lease in view.returned:
        lost += _out_of(lease, upto, change)
    for lo, hi in lost:
        for first in range(lo, hi, MAX_LEASE):
            last = min(first + MAX_LEASE, hi)
            change.journal.append(JournalEntry(first, last, None, 0, now, now, "trimmed"))
    number = sum(hi - lo for lo, hi in lost)
    change.count(LOST, number)
    return number


def _out_of(lease: Lease, upto: Mapping[int, int], change: Change) -> list[tuple[int, int]]:
    below = [
        (span.lo, min(span.hi, end)) for span in lease.spans if (end := upto.get(span.lo >> 40, 0)) > span.lo
    ]
    gone = intersect(lease.spans, below)
    if not count(gone):
        return []
    left = subtract(lease.spans, below)
    keep_or_return(change, lease, left, release=True)
    return [(span.lo, span.hi) for span in gone]
