"""PostgreSQL as the state of a log that is kept elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from psycopg import errors as pg

from ...record import first_pos
from ..base import Stream
from .connection import Db
from .part import Part
from .partitions import LOCK_PATIENCE, SIZE, add, partition_of, those_there

BEGINNING = 48  # bytes of a kept record's attributes that are in an index


class PostgresLent(Part):
    """What is asked of it beside what is asked of any engine."""

    _made: set[int]
    _for_nobody: Callable[..., list[int]]
    _drop_partition: Callable[..., int]

    def reserve(self, positions: Iterable[int], *, ahead: bool = False) -> None:
        """Make the partitions that these positions lie in; `ahead`: and the next ones, once half is used."""
        steps = (0, SIZE // 2) if ahead else (0,)
        missing = {partition_of(pos + step) for pos in positions for step in steps} - self._made
        if missing:
            there = self._state.read(lambda db: those_there(db, self.options.schema, missing))
            for start in sorted(missing - there):
                self._state.append(self._maker(start))
            self._made |= missing

    def _maker(self, start: int) -> Callable[[Db], None]:
        def make(db: Db) -> None:
            try:
                with db.transaction():
                    db.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'".encode())
                    add(db, self.options.schema, start)
            except (pg.CheckViolation, pg.LockNotAvailable):
                return  # the partition for the rest takes what has none of its own

        return make

    def forget_below(self, stream: Stream, log: int, end: int) -> int:
        """Raise a log's floor, and drop a partition that lies below it."""

        def forget(db: Db) -> int:
            with db.transaction():
                row = db.execute(self._writer.sql["lock_floor"], (log,)).fetchone()
                if row is not None and max(row[0], first_pos(log)) < end:
                    db.execute(self._writer.sql["raise_floor"], (end, log))
            return int(self._drop_partition(db, stream, log)) if row is not None else 0

        return self._state.append(forget)

    def find_kept(self, begins: bytes) -> int | None:
        """Return where a kept record is whose attributes begin so."""
        bound = {
            "begins": begins,
            "least": begins[:BEGINNING],
            "above": begins[:BEGINNING] + b"\xff" * BEGINNING,
        }
        row = self._reader.read(lambda db: db.execute(self._sql["kept_by_beginning"], bound).fetchone())
        return None if row is None else int(row[0])

    def drop_kept(self, stream: Stream, limit: int) -> int:
        """Drop kept records that are parked and leased nowhere any more; return how many."""
        sql = self._writer.sql

        def drop(db: Db, log: int) -> int:
            bound = (first_pos(log), first_pos(log + 1), stream.id)
            if db.execute(sql["kept_for_nobody"], bound).fetchone() is None:
                return 0
            with db.transaction():
                gone = self._for_nobody(db, stream, bound)[:limit]
                db.execute(sql["forget_kept"], (gone,))
                floor = db.execute(sql["floor"], (log,)).fetchone()
                if floor is not None:  # what else was known of them went with their partition
                    db.execute(sql["drop_once"], ([pos for pos in gone if pos < partition_of(floor[0])],))
            return len(gone)

        return sum(self._state.append(partial(drop, log=log)) for log in stream.logs)
