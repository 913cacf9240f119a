"""Passing over records that are not run: what is purged, lost, or lies before a seek's target."""

from __future__ import annotations

from .model import Change, Position, View
from .spans import Span


def pass_over(view: View, change: Change, at: Position, to: int) -> tuple[list[Span], int]:
    """Move a cursor up to a position, as far as is seen; return what is there, and how far it has come.

    What is missing is no record that anybody could end: it may yet be committed, and is kept as gaps, as by a
    claim. Where there is no room for another, the cursor waits before it (G4).
    """
    end = min(to, at.end if at.stop is None else min(at.end, at.stop))
    passed: list[Span] = []
    cursor = at.cursor
    for lo, hi in (*at.missing, (end, end)):
        first, last = min(lo, end), min(hi, end)
        if first > cursor:
            passed.append(Span(cursor, first))
            cursor = first
        if first < last:
            if view.gap_room <= 0:
                break
            view.gap_room -= 1
            change.gaps.append((first, last))
            cursor = last
    if cursor > at.cursor:
        change.cursors.append((at.log, cursor))
    return passed, cursor
