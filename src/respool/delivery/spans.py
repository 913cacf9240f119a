"""Arithmetic on spans: ranges of positions that share a delivery history."""

from __future__ import annotations

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

    def part(self, lo: int, hi: int) -> Span:
        """Return the same history for lo <= p < hi."""
        return self._replace(lo=lo, hi=hi)


def count(spans: Iterable[Span]) -> int:
    """Return how many positions the spans cover."""
    return sum(span.hi - span.lo for span in spans)


def find(spans: Iterable[Span], pos: int) -> Span | None:
    """Return the span that covers a position."""
    for span in spans:
        if span.lo <= pos < span.hi:
            return span
    return None


def subtract(spans: Sequence[Span], ranges: Sequence[tuple[int, int]]) -> list[Span]:
    """Return what is left of the spans, in their order, without the ranges [lo, hi).

    One range over one span, the case of a worker that settles what it ran, costs no sorting.
    """
    if len(ranges) == 1:
        return _subtract_one(spans, *ranges[0])
    ordered = merge(ranges)
    left: list[Span] = []
    for span in spans:
        lo = span.lo
        for cut_lo, cut_hi in ordered:
            if cut_hi <= lo:
                continue
            if cut_lo >= span.hi:
                break
            if cut_lo > lo:
                left.append(span.part(lo, cut_lo))
            lo = cut_hi
        if lo < span.hi:
            left.append(span if lo == span.lo else span.part(lo, span.hi))
    return left


def _subtract_one(spans: Sequence[Span], lo: int, hi: int) -> list[Span]:
    if lo >= hi:
        return list(spans)
    left: list[Span] = []
    for span in spans:
        if span.hi <= lo or hi <= span.lo:
            left.append(span)
            continue
        if span.lo < lo:
            left.append(span.part(span.lo, lo))
        if hi < span.hi:
            left.append(span.part(hi, span.hi))
    return left


def intersect(spans: Iterable[Span], ranges: Sequence[tuple[int, int]]) -> list[Span]:
    """Return the parts of the spans that lie in the ranges [lo, hi)."""
    ordered = merge(ranges)
    both: list[Span] = []
    for span in spans:
        for lo, hi in ordered:
            if hi <= span.lo:
                continue
            if lo >= span.hi:
                break
            both.append(span.part(max(lo, span.lo), min(hi, span.hi)))
    return both


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
