"""Retention: cutting logs from their beginning, in small steps, and giving the space back.

A record that waits by itself, a dead letter for instance, does not hold its log (H15): it stays behind
below the log's floor, made to stand by itself, and goes when it is parked nowhere any more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from ...clock import now as wall_clock
from ...delivery.model import MAX_LEASE
from ...delivery.spans import Span
from ...errors import LogMoved
from ...record import first_pos, id_of
from ..base import Stream
from ..columns import spans_of
from .part import Part
from .sql import SQL

STEP = 5000  # records in one transaction
LOOK_AHEAD = 100_000  # positions: after many from a clock that was ahead, one of these tells how old they are


class SQLiteRetention(Part):
    """Removes what is old and done. Nothing that any group has yet to finish goes."""

    @cached_property
    def _looked_at(self) -> dict[int, int]:
        """Up to which position a stream's left-over records were looked at last; the rest comes next."""
        return {}

    def trim(
        self, stream: Stream, before: float, limit: int = STEP, upto: Mapping[int, int] | None = None
    ) -> int:
        """Cut off records from before a moment, or below `upto`, at most about `limit`; return how many.

        A run of records is cut as a whole, since its head carries the id and the time of all. What is
        parked stays behind, and counts as cut. Where nothing is to be cut, records that stayed behind
        earlier are looked at, and those go that are parked nowhere any more. The first position that may
        be used next is kept, so that none is ever given out twice (H10, S5).
        """
        try:
            return self._trim(stream, before, limit, upto or {})
        except LogMoved:
            return 0  # it stays as it is

    def byte_count(self, lo: int, hi: int) -> int:
        """Return how many bytes the records at lo <= p < hi have."""
        with self._reader.lock, self._reader.reading() as db:
            return int(db.execute(SQL["byte_count"], (lo, hi)).get)

    def _trim(self, stream: Stream, before: float, limit: int, upto: Mapping[int, int]) -> int:
        cut = removed = 0
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            leased = leased_of(db, stream)
            for log in stream.logs:
                if cut < limit:
                    old = int(before * 1_000_000), upto.get(log, 0)
                    cut += _cut(db, stream, log, old, leased, limit - cut)
            if not cut:
                after = self._looked_at.get(stream.id, 0)
                removed, after = _remove_left_over(db, stream, leased, after, limit)
            db.execute("COMMIT")
            if not cut:  # not before the commit: what was rolled back is looked at again
                self._looked_at[stream.id] = after
            if cut or removed:
                db.execute("PRAGMA incremental_vacuum(4000)").fetchall()
        return cut + removed


def leased_of(db: Any, stream: Stream) -> list[Span]:
    """Return what any group of a stream has leased."""
    return list(spans_of(db.execute(SQL["stream_leases"], (stream.id,)).fetchall()))


def _cut(db: Any, stream: Stream, log: int, old: tuple[int, int], leased: list[Span], limit: int) -> int:
    """Raise a log's floor, and remove the records below that are not parked; return how many it passed."""
    start, end = db.execute(SQL["above_floor"], (log,)).fetchone()
    if start is None:
        return 0
    last = first_pos(log + 1)
    held = [span.lo for span in leased if span.hi > start and span.lo < last]
    end = min(start + limit, end, *_low_water(db, log), *held)
    before, upto = old
    end = min(end, max(_end_of_old(db, start, end, last, before), upto))
    if db.execute(SQL["is_head"], (end,)).get is None:  # in the middle of a run: it stays as a whole
        end = db.execute(SQL["head_at_or_before"], (start, end)).get or start
    if end <= start:
        return 0
    parked = parked_of(db, stream, start, end)
    for pos, seq, head, time in db.execute(SQL["members"], (json.dumps(parked),)).fetchall():
        db.execute(SQL["stand_alone"], (pos, id_of(head, seq), time))
    db.execute(SQL["raise_floor"], (log, end))
    return len(parked) + remove(db, stream, start, end, parked, floor=end)


def _end_of_old(db: Any, start: int, end: int, last: int, before: int) -> int:
    """Return up to where records are from before a moment.

    Those from a clock that was ahead are, too, if older ones follow. Nothing else tells how old they are;
    and where it is our clock that is wrong, none follow.
    """
    now = int(wall_clock() * 1_000_000)
    young = db.execute(SQL["first_young"], (start, end, before, now)).get
    if young is not None:
        end = young
    old = db.execute(SQL["last_old"], (start, end, before)).get
    if old is not None:
        return int(db.execute(SQL["next_head"], (old, end)).get or end)
    far = min(end + LOOK_AHEAD, last)
    all_ahead = young is None and db.execute(SQL["next_is_old"], (end, far, before, now)).get
    return end if all_ahead else start


def _low_water(db: Any, log: int) -> list[int]:
    """Return the first position that some group has not read; nothing where all have come to their end."""
    water = db.execute(SQL["low_water"], (log,)).get
    return [] if water is None else [int(water)]


def parked_of(db: Any, stream: Stream, lo: int, hi: int) -> list[int]:
    """Return the positions of what any group of a stream has parked at lo <= p < hi."""
    return [pos for (pos,) in db.execute(SQL["parked_in"], (stream.id, lo, hi)).fetchall()]


def _remove_left_over(db: Any, stream: Stream, leased: list[Span], after: int, limit: int) -> tuple[int, int]:
    """Remove what is parked nowhere any more, nor leased, of `limit` records below the floors.

    Returns: how many went, and where to go on; 0: from the beginning.
    """
    removed = 0
    for log in stream.logs:
        floor = db.execute(SQL["floor"], (log,)).get
        lo = max(after, first_pos(log))
        found = db.execute(SQL["left_over"], (lo, min(floor, *_low_water(db, log), floor), limit)).fetchall()
        if not found:
            continue
        after = found[-1][0] + 1
        kept = set(parked_of(db, stream, lo, after))
        kept.update(p for span in leased for p in range(max(span.lo, lo), min(span.hi, after)))
        if any(pos not in kept for (pos,) in found):
            removed += remove(db, stream, lo, after, kept, floor)
        limit -= len(found)
        if not limit:
            return removed, after
    return removed, 0


def remove(db: Any, stream: Stream, lo: int, hi: int, kept: Collection[int], floor: int) -> int:
    """Remove the records at lo <= p < hi that are not kept, and what is known of them; return how many.

    An entry of the journal stays for as long as one of its records does: it may be all that says how that
    ended (H9).
    """
    but = json.dumps(list(kept))
    db.execute(SQL["trim_records"], (lo, hi, but))
    removed = int(db.changes())
    db.execute(SQL["trim_outcomes"], (lo, hi, but, stream.id))
    db.execute(SQL["trim_once"], (lo, hi, but))
    low = lo - MAX_LEASE  # no entry is longer, but those of a purge
    db.execute(SQL["trim_journal"], (low, hi, floor, stream.id))
    db.execute(SQL["trim_purges"], (low, lo, floor, stream.id))
    return removed
