"""Retention: cutting logs from their beginning, in small steps, and giving the space back."""

from __future__ import annotations

from typing import Any

import msgspec

from ...delivery.spans import Span
from ...record import first_pos
from ..base import Stream
from .connection import Connection
from .sql import SQL

STEP = 5000  # records removed in one transaction
_unpack_spans = msgspec.msgpack.Decoder(list[Span]).decode


class SQLiteRetention:
    """Removes what is old and done. Nothing that any group has yet to finish goes."""

    _state: Connection

    def trim(self, stream: Stream, before: float, limit: int = STEP) -> int:
        """Remove records from before a moment, at most about `limit`; return how many.

        A run of records goes as a whole, since its head carries the id and the time of all. The first
        position that may be used next is kept, so that none is ever given out twice (H10, S5).
        """
        removed = 0
        with self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            held = _held(db, stream)
            for log in stream.logs:
                if removed < limit:
                    removed += _trim_log(db, stream, log, int(before * 1_000_000), held, limit - removed)
            db.execute("COMMIT")
            if removed:
                db.execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return removed


def _held(db: Any, stream: Stream) -> list[int]:
    """Return the first position of each span that is leased."""
    rows = db.execute(SQL["stream_leases"], (stream.id,)).fetchall()
    return [span.lo for (spans,) in rows for span in _unpack_spans(spans)]


def _trim_log(db: Any, stream: Stream, log: int, before: int, held: list[int], limit: int) -> int:
    first, last = first_pos(log), first_pos(log + 1) - 1
    oldest = db.execute("SELECT min(pos) FROM record WHERE pos BETWEEN ? AND ?", (first, last)).get
    if oldest is None:
        return 0
    end = _needed(db, first, last, held, min(oldest + limit, last))
    young = db.execute(SQL["first_kept"], (first, end, before)).get
    if young is not None:
        end = min(end, young)
    if db.execute(SQL["is_head"], (end,)).get is None:  # in the middle of a run: it stays as a whole
        end = db.execute(SQL["head_at_or_before"], (oldest, end)).get or oldest
    if end <= oldest:
        return 0
    db.execute(SQL["raise_floor"], (log, end))
    db.execute(SQL["trim_outcomes"], (oldest, end, stream.id))
    db.execute(SQL["trim_journal"], (first, end, stream.id))
    db.execute(SQL["trim_records"], (oldest, end))
    return int(db.changes())


def _needed(db: Any, first: int, last: int, held: list[int], most: int) -> int:
    """Return the first position that some group has yet to finish, or `most` where that comes sooner."""
    waters = [water for (water,) in db.execute(SQL["low_water"], (first, last)).fetchall()]
    return min(most, last, *(int(water) for water in waters), *(pos for pos in held if first <= pos <= last))
