"""What a group loses whose records were held for it as long as they could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..record import OFFSET_BITS
from .model import MAX_LEASE, Change, JournalEntry, Lease, View
from .order import free, key_map
from .passing import pass_over
from .settle import keep_or_return
from .spans import Span, count, intersect, subtract

LOST = "lost: trimmed before they were done"
"""The counter of what a group has lost."""


def lapse(view: View, change: Change, upto: Mapping[int, int], now: float, kept: Sequence[Span] = ()) -> int:
    """Have a group go on at these positions, if it is not so far: what lies below is lost to it.

    Pending records and those that were given back are; what a worker has, what is parked, and what is not
    committed yet, is not. Of pending ones it is what the view sees: a caller comes again until none is lost.

    Parameters:
        upto: by log.
        kept: what was given back and is not lost, though it lies below.

    Returns: how many records it loses, which are counted.
    """
    lost: list[Span] = []
    for at in view.positions:
        lost += pass_over(view, change, at, upto.get(at.log, at.cursor))[0]
    for lease in view.returned:
        below = _out_of(lease, upto, kept, change)
        lost += below
        if below and lease.keys:
            _let_go(lease, below, view, change, now)
    for span in lost:
        for first in range(span.lo, span.hi, MAX_LEASE):
            last = min(first + MAX_LEASE, span.hi)
            change.journal.append(JournalEntry(first, last, None, 0, now, now, "trimmed", span.retries))
    change.count(LOST, count(lost))
    return count(lost)


def _let_go(lease: Lease, below: list[Span], view: View, change: Change, now: float) -> None:
    """Have what waits behind lost records of its key go on."""
    keys = key_map(lease)
    gone = {keys[pos] for span in below for pos in range(span.lo, span.hi)}
    left = subtract(lease.spans, [(span.lo, span.hi) for span in below])
    free(gone - {keys[pos] for span in left for pos in range(span.lo, span.hi)} - {0}, view, change, now)


def _out_of(lease: Lease, upto: Mapping[int, int], kept: Sequence[Span], change: Change) -> list[Span]:
    ends = [upto.get(span.lo >> OFFSET_BITS, 0) for span in lease.spans]
    lies = [Span(s.lo, min(s.hi, end)) for s, end in zip(lease.spans, ends, strict=True) if s.lo < end]
    below = [(s.lo, s.hi) for s in subtract(lies, [(s.lo, s.hi) for s in kept])]
    if below:
        keep_or_return(change, lease, subtract(lease.spans, below), release=False)
    return intersect(lease.spans, below)
