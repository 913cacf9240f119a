"""Retention: a log's floor rises, and partitions that lie below it as a whole are dropped (G6).

Nothing of a log is deleted row by row but its ids, which are indexed apart. What is parked when its partition
goes is moved aside first, and goes once it is parked nowhere (H15).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import errors as pg

from ...clock import now as wall_clock
from ...delivery.spans import Span
from ...errors import LogMoved, RespoolError
from ...record import first_pos
from ..base import Stream
from ..columns import spans_of
from .aside import Aside
from .connection import Bounded, Db, connect
from .part import Part
from .partitions import LOCK_PATIENCE, SIZE, add, detach_record, drop, has_own, partition_of, partitions_below
from .sql import GROUP_LOCKS

STEP = 5000
IDS_A_STEP = 20_000
OLD_A_STEP = 1000  # versions of each cursor, of each worker's beat
MOST_KNOWN = 20_000
LOOK_AHEAD = 100_000  # positions: after many from a clock that was ahead, one of these tells how old they are
log = logging.getLogger("respool")


class PostgresRetention(Part):
    """Removes what is old and done. Nothing that any group has yet to finish goes."""

    _made: set[int]
    _aside: dict[int, Aside]
    _cursors_begin: dict[tuple[int, ...], int]
    _beats_begin: dict[tuple[int, ...], int]

    def trim(
        self, stream: Stream, before: float, limit: int = STEP, upto: Mapping[int, int] | None = None
    ) -> int:
        """Cut off records from before a moment, or below `upto`, at most about `limit`; return how many.

        Cutting raises the floor, below which nothing is read any more; space comes back by partitions.
        """
        left = limit
        try:
            for log in stream.logs:
                if left > 0:
                    left -= self._state.append(
                        self._cutter(stream, log, before, left, (upto or {}).get(log, 0))
                    )
        except LogMoved:
            return 0  # it stays as it is
        return limit - left

    def byte_count(self, lo: int, hi: int) -> int:
        """Return how many bytes the records at lo <= p < hi have."""
        return self._reader.read(
            lambda db: int(db.execute(self._sql["byte_count"], (lo, hi)).fetchone()[0])  # type: ignore[index]
        )

    def tidy(self) -> None:
        """Delete old versions of cursors and beats, in slices; make partitions before they are needed."""
        try:
            self._state.append(self._forget_old_versions)
            self._state.append(self._make_next_partitions)
        except RespoolError as error:
            log.warning("the database could not be tidied, which is tried again: %s", error)

    def _forget_old_versions(self, db: Db) -> None:
        self._cursors_begin |= self._forgotten(db, "old_cursors", ("grps", "logs"), self._cursors_begin)
        self._beats_begin |= self._forgotten(db, "old_beats", ("workers",), self._beats_begin)

    def _forgotten(
        self, db: Db, statement: str, names: Sequence[str], known: dict[tuple[int, ...], int]
    ) -> dict[tuple[int, ...], int]:
        """Delete old versions; return from which number on some may be left, of each that had any.

        An open transaction keeps all that was deleted since it began; to pass over it again each second would
        take longer and longer (G5).
        """
        if len(known) > MOST_KNOWN:  # some may be of groups and workers that are gone
            known.clear()
        keys = zip(*known, strict=True) if known else ((),) * len(names)
        bound = dict(zip(names, map(list, keys), strict=True))
        found = db.execute(
            self._sql[statement], {**bound, "begins": list(known.values()), "limit": OLD_A_STEP}
        )
        return {tuple(row[:-1]): row[-1] for row in found.fetchall()}

    def _make_next_partitions(self, db: Db) -> None:
        """Make the next partition of each log whose numbers have come past the middle of one.

        Who appends does that too, but may have no right to.
        """
        half = SIZE >> 1
        for (pos,) in db.execute(self._sql["half_full"], {"half": half}).fetchall():
            for start in sorted({partition_of(pos), partition_of(pos + half)} - self._made):
                with db.transaction():
                    db.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'".encode())
                    add(db, self.options.schema, start)
                self._made.add(start)

    def _cutter(self, stream: Stream, log: int, before: float, limit: int, upto: int) -> Any:
        def cut(db: Bounded) -> int:
            with db.transaction():
                passed = self._raise_floor(db, stream, log, int(before * 1_000_000), limit, upto)
            if passed:
                return passed
            return self._drop_partition(db, stream, log) or self._drop_kept(db, stream, log)

        return cut

    def _raise_floor(self, db: Db, stream: Stream, log: int, before: int, limit: int, upto: int) -> int:
        """Raise a log's floor as far as it may; return how many records that passes."""
        sql = self._sql
        row = db.execute(sql["lock_floor"], (log,)).fetchone()
        if row is None:
            return 0
        start, past = max(row[0], first_pos(log)), first_pos(log + 1)
        bound = {"stream": stream.id, "log": log, "lo": start, "hi": past, "before": before, "limit": limit}
        bound |= {"upto": upto, "now": int(wall_clock() * 1_000_000), "far": LOOK_AHEAD}
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
        return list(spans_of(rows))

    def _drop_partition(self, db: Bounded, stream: Stream, log: int) -> int:
        """Drop the log's first partition if it lies below the floor; its ids first, in slices.

        Returns: how many rows went, so that the next step comes soon.
        """
        row = db.execute(self._sql["floor"], (log,)).fetchone()
        below = partitions_below(db, self.options.schema, partition_of(row[0])) if row else []
        if not below:
            return 0
        start, end = below[0], below[0] + SIZE
        aside = self._aside.get(log)
        if aside is None or aside.start != start:
            aside = self._aside[log] = Aside(start)
        moved = aside.go_on(db, self._sql, stream)
        if moved != 0:
            return moved or 0
        bound = {"first": first_pos(log), "end": end, "limit": IDS_A_STEP}
        gone = db.execute(self._sql["trim_ids"], bound).rowcount
        if not gone and not has_own(db, self.options.schema, "outcome", start):
            bound = {"lo": start, "hi": end, "limit": IDS_A_STEP}
            gone = db.execute(self._sql["trim_outcomes"], bound).rowcount
        if gone:
            return int(gone)
        db.execute(self._sql["trim_once"], {"lo": start, "hi": end})
        if aside.finish(db, self._sql, stream) is None:
            return 0
        with connect(self.options, "retention", reached=True) as other:  # one that can be told to stop
            if not detach_record(other, self.options.schema, start):
                return 0  # somebody reads it, or has an enqueue open: the next round will do
        try:
            drop(db, self.options.schema, start, self._sql)
        except (pg.LockNotAvailable, pg.UndefinedTable):
            return 0  # the latter: another worker was faster
        return 1

    def _drop_kept(self, db: Db, stream: Stream, log: int) -> int:
        """Drop what outlived its partition, and is parked and leased nowhere any more."""
        bound = (first_pos(log), first_pos(log + 1), stream.id)
        if db.execute(self._sql["kept_for_nobody"], bound).fetchone() is None:
            return 0
        edge = min(partitions_below(db, self.options.schema, first_pos(log + 1) - 1))
        with db.transaction():
            gone = self._for_nobody(db, stream, bound)
            if gone:
                db.execute(self._sql["drop_kept"], {"gone": gone})
                db.execute(self._sql["drop_once"], (gone,))
                db.execute(self._sql["trim_journal"], {"first": first_pos(log), "end": edge})
        return len(gone)

    def _for_nobody(self, db: Db, stream: Stream, bound: tuple[int, int, int]) -> list[int]:
        """Return where records are that outlived their partition, and are parked and leased nowhere any more.

        Under the locks of all groups, or what is leased at one look and parked at the next would be missed.
        """
        db.execute(self._sql["lock_groups"], (GROUP_LOCKS, stream.id))
        places = [pos for (pos,) in db.execute(self._sql["kept_for_nobody"], bound).fetchall()]
        held = self._leased(db, stream)
        return [pos for pos in places if not any(span.lo <= pos < span.hi for span in held)]
