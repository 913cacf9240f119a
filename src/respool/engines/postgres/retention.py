"""Retention: a log's floor rises, and partitions that lie below it as a whole are dropped (G6).

Nothing of a log is deleted row by row but its ids, which are indexed apart. What is parked when its partition
goes is copied aside first, and goes once it is parked nowhere (H15).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import errors as pg

from ...delivery.spans import Span
from ...record import first_pos
from ..base import Stream
from .connection import Connection, PostgresOptions
from .partitions import SIZE, drop, partition_of, partitions_below
from .state import GROUP_LOCKS

STEP = 5000
IDS_A_STEP = 20_000
Db = psycopg.Connection[Any]
_unpack_spans = msgspec.msgpack.Decoder(list[Span]).decode


class PostgresRetention:
    """Removes what is old and done. Nothing that any group has yet to finish goes."""

    options: PostgresOptions
    _state: Connection
    _writer: Connection

    @property
    def _sql(self) -> dict[str, bytes]:
        return self._writer.sql

    def trim(self, stream: Stream, before: float, limit: int = STEP) -> int:
        """Cut off records from before a moment, at most about `limit`; return how many.

        Cutting raises the floor, below which nothing is read any more; space comes back by partitions.
        """
        left = limit
        for log in stream.logs:
            if left > 0:
                left -= self._state.append(self._cutter(stream, log, before, left))
        return limit - left

    def tidy(self) -> None:
        """Delete old versions of cursors and beats, in slices."""
        self._state.append(self._forget_old_versions)

    def _forget_old_versions(self, db: Db) -> None:
        db.execute(self._sql["old_cursors"], (1000,))
        db.execute(self._sql["old_beats"], (1000,))

    def _cutter(self, stream: Stream, log: int, before: float, limit: int) -> Any:
        def cut(db: Db) -> int:
            with db.transaction():
                passed = self._raise_floor(db, stream, log, int(before * 1_000_000), limit)
            if passed:
                return passed
            return self._drop_partition(db, stream, log) or self._drop_kept(db, stream, log)

        return cut

    def _raise_floor(self, db: Db, stream: Stream, log: int, before: int, limit: int) -> int:
        """Raise a log's floor as far as it may; return how many records that passes."""
        sql = self._sql
        row = db.execute(sql["lock_floor"], (log,)).fetchone()
        if row is None:
            return 0
        start, past = max(row[0], first_pos(log)), first_pos(log + 1)
        bound = {"stream": stream.id, "log": log, "lo": start, "hi": past, "before": before, "limit": limit}
        end, water, gap = db.execute(sql["cut_to"], bound).fetchone() or (None, None, None)
        held = [
            max(span.lo, start) for span in self._leased(db, stream) if start < span.hi and span.lo < past
        ]
        ends = [each for each in (end, water, gap, *held) if each is not None]
        if end is None or min(ends) <= start:
            return 0
        passed = db.execute(sql["count_between"], (start, min(ends))).fetchone()
        db.execute(sql["raise_floor"], (min(ends), log))
        return int(passed[0]) if passed else 0

    def _leased(self, db: Db, stream: Stream) -> list[Span]:
        rows = db.execute(self._sql["stream_leases"], (stream.id,)).fetchall()
        return [span for (spans,) in rows for span in _unpack_spans(spans)]

    def _drop_partition(self, db: Db, stream: Stream, log: int) -> int:
        """Drop the log's first partition if it lies below the floor; its ids first, in slices.

        Returns: how many rows went, so that the next step comes soon.
        """
        row = db.execute(self._sql["floor"], (log,)).fetchone()
        for start in partitions_below(db, self.options.schema, partition_of(row[0])) if row else ():
            if start >> 40 != log:
                continue
            gone = db.execute(self._sql["trim_ids"], (start, start + SIZE, start + SIZE, IDS_A_STEP)).rowcount
            if gone:
                return int(gone)
            if not self._copy_aside(db, stream, start):
                return 0
            try:
                drop(db, self.options.schema, start, self._sql)
            except pg.LockNotAvailable:
                return 0  # somebody reads it, or has an enqueue open: the next round will do
            return 1
        return 0

    def _copy_aside(self, db: Db, stream: Stream, start: int) -> bool:
        """Copy what is parked in a partition; False where some of it is being run, and would be missed.

        Under the locks of all groups: what is parked or leased later was parked then.
        """
        with db.transaction():
            db.execute(self._sql["lock_groups"], (GROUP_LOCKS, stream.id))
            if any(span.lo < start + SIZE and start < span.hi for span in self._leased(db, stream)):
                return False
            db.execute(self._sql["keep_parked"], (start, start + SIZE, stream.id))
        return True

    def _drop_kept(self, db: Db, stream: Stream, log: int) -> int:
        """Drop what outlived its partition, and is parked and leased nowhere any more."""
        bound = (first_pos(log), first_pos(log + 1), stream.id)
        places = [pos for (pos,) in db.execute(self._sql["kept_for_nobody"], bound).fetchall()]
        held = self._leased(db, stream)
        return self._forget_kept(db, [p for p in places if not any(s.lo <= p < s.hi for s in held)])

    def _forget_kept(self, db: Db, positions: Sequence[int]) -> int:
        if positions:
            db.execute(self._sql["drop_kept"], (list(positions),))
        return len(positions)
