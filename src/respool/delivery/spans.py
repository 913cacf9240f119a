"""Arithmetic on spans: ranges of positions that share a delivery history."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """The records at positions lo <= p < hi, and what they went through so far."""

    lo: int
    hi: int
    retries: int = 0
    deliveries: int = 0  # runs that ended with the death of their process and were charged for it
    redrives: int = 0
    alone: bool = False  # to be granted singly: a whole worker died with it (H6)
    until: float = 0.0  # so long it waits for others to run with: its task takes batches

    @property
    def begun(self) -> bool:
        """Whether a run of them may have begun before, as far as their history tells.

        It does not tell of a run that we ended ourselves, nor of one in a batch that was put off: the journal
        does (`engines.base.State.began`).
        """
        return bool(self.retries or self.deliveries or self.redrives or self.alone)

    def part(self, lo: int, hi: int) -> Span:
        """Return the same history for lo <= p < hi."""
        return self._replace(lo=lo, hi=hi)


def count(spans: Iterable[Span]) -> int:
    """Return how many positions the spans cover."""
    return sum(span.hi - span.lo for span in spans)


def find(spans: Iterable[Span], pos: int) -> Span | None:
    """Return the span that covers a position. To look up many, use `Finder`."""
    for span in spans:
        if span.lo <= pos < span.hi:
            return span
    return None


class Finder:
    """Looks up which of many spans, in any order, covers a position."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans)
        self._starts = [span.lo for span in self._spans]

    def find(self, pos: int) -> Span | None:
        """Return the span that covers a position."""
        at = bisect_right(self._starts, pos) - 1
        return self._spans[at] if at >= 0 and pos < self._spans[at].hi else None


def subtract(spans: Sequence[Span], ranges: Sequence[tuple[int, int]]) -> list[Span]:
    """Return what is left of the spans, in their order, without the ranges [lo, hi).

    One range over one span, the case of a worker that settles what it ran, costs no sorting.
    """
    cuts = _merged(ranges)
    ends = [hi for _, hi in cuts]
    left: list[Span] = []
    for span in spans:
        lo = span.lo
        for at in range(bisect_right(ends, lo), len(cuts)):
            cut_lo, cut_hi = cuts[at]
            if cut_lo >= span.hi:
                break
            if cut_lo > lo:
                left.append(span.part(lo, cut_lo))
            lo = cut_hi
        if lo < span.hi:
            left.append(span if lo == span.lo else span.part(lo, span.hi))
    return left


def intersect(spans: Iterable[Span], ranges: Sequence[tuple[int, int]]) -> list[Span]:
    """Return the parts of the spans that lie in the ranges [lo, hi)."""
    wanted = _merged(ranges)
    ends = [hi for _, hi in wanted]
    both: list[Span] = []
    for span in spans:
        for at in range(bisect_right(ends, span.lo), len(wanted)):
            lo, hi = wanted[at]
            if lo >= span.hi:
                break
            both.append(span.part(max(lo, span.lo), min(hi, span.hi)))
    return both


def _merged(ranges: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    return ranges if len(ranges) == 1 and ranges[0][0] < ranges[0][1] else merge(ranges)


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return spans sorted by position, those that touch and share a history as one."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and found[-1].hi == span.lo and found[-1][2:] == span[2:]:
            found[-1] = found[-1].part(found[-1].lo, span.hi)
        else:
            found.append(span)
    return found


def take(spans: Sequence[Span], want: int) -> tuple[list[Span], list[Span]]:
    """Split the spans, in their order, into the first `want` positions and the rest."""
    taken: list[Span] = []
    for index, span in enumerate(spans):
        size = span.hi - span.lo
        if size > want:
            rest = [span.part(span.lo + want, span.hi), *spans[index + 1 :]]
            if want:
                taken.append(span.part(span.lo, span.lo + want))
            return taken, rest
        taken.append(span)
        want -= size
    return taken, []


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges sorted, with those that touch or overlap joined and the empty ones left out."""
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if lo >= hi:
            continue
        if merged and lo <= merged[-1][1]:
            if hi > merged[-1][1]:
                merged[-1] = (merged[-1][0], hi)
        else:
            merged.append((lo, hi))
    return merged


def ranges_of(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Return positions, in any order, as merged ranges [lo, hi)."""
    return merge((pos, pos + 1) for pos in positions)
