"""Arithmetic on ranges [lo, hi): sorted, disjoint lists of them, in time linear in their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..delivery.spans import merge as union

__all__ = ["common", "minus", "overlaps", "size", "union"]

Ranges = list[tuple[int, int]]


def size(ranges: Iterable[tuple[int, int]]) -> int:
    """Return how many positions the ranges hold.

    >>> size([(0, 3), (5, 6)])
    4
    """
    return sum(hi - lo for lo, hi in ranges)


def common(left: Sequence[tuple[int, int]], right: Sequence[tuple[int, int]]) -> Ranges:
    """Return what lies in both.

    >>> common([(0, 5), (8, 10)], [(3, 9)])
    [(3, 5), (8, 9)]
    """
    both: Ranges = []
    i = j = 0
    while i < len(left) and j < len(right):
        lo, hi = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if lo < hi:
            both.append((lo, hi))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return both


def minus(left: Sequence[tuple[int, int]], right: Sequence[tuple[int, int]]) -> Ranges:
    """Return what lies in the first only.

    >>> minus([(0, 10)], [(2, 3), (5, 6)])
    [(0, 2), (3, 5), (6, 10)]
    """
    rest: Ranges = []
    j = 0
    for lo, hi in left:
        while j < len(right) and right[j][1] <= lo:
            j += 1
        at = j
        while at < len(right) and right[at][0] < hi:
            if lo < right[at][0]:
                rest.append((lo, right[at][0]))
            lo = max(lo, right[at][1])
            at += 1
        if lo < hi:
            rest.append((lo, hi))
        j = max(at - 1, j)
    return rest


def overlaps(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return what lies in more than one of these ranges, which may come in any order.

    >>> overlaps([(4, 6), (0, 5), (8, 9)])
    [(4, 5)]
    """
    twice: Ranges = []
    reached = -1
    for lo, hi in sorted(ranges):
        if lo < reached:
            twice.append((lo, min(hi, reached)))
        reached = max(reached, hi)
    return union(twice)
