"""SQLite as the state of a log that is kept elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ...record import first_pos
from ..base import Stream
from .part import Part
from .retention import leased_of, parked_of, remove
from .sql import SQL

STEP = 20_000  # positions in one transaction


class SQLiteLent(Part):
    """What is asked of it beside what is asked of any engine."""

    def reserve(self, positions: Iterable[int], *, ahead: bool = False) -> None:
        """Nothing: there is room."""

    def forget_below(self, stream: Stream, log: int, end: int) -> int:
        """Forget outcomes and journal below a position, in steps; what is parked stays."""
        with self._state.lock, self._state.reading() as db:
            if (db.execute(SQL["floor"], (log,)).get or end) >= end:
                return 0  # no write lock for nothing
        with self._state.lock, self._state.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            floor = max(db.execute(SQL["floor"], (log,)).get or end, first_pos(log))
            step = min(floor + STEP, end)
            if step > floor:
                leased = [s for s in leased_of(db, stream) if s.lo < step and s.hi > floor]
                held = [pos for span in leased for pos in range(max(span.lo, floor), min(span.hi, step))]
                db.execute(SQL["raise_floor"], (log, step))
                remove(db, stream, floor, step, [*parked_of(db, stream, floor, step), *held], floor=step)
            db.execute("COMMIT")
        return max(end - step, 0)

    def find_kept(self, begins: bytes) -> int | None:
        """Return where a kept record is whose attributes begin so."""
        with self._reader.lock, self._reader.reading() as db:
            found: int | None = db.execute(SQL["kept_by_beginning"], (begins,)).get
            return found

    def drop_kept(self, stream: Stream, limit: int) -> int:
        """Drop kept records that are parked and leased nowhere any more; return how many."""
        dropped = 0
        for log in stream.logs:
            with self._state.lock, self._state.reading() as db:
                bound = (first_pos(log), first_pos(log + 1), stream.id, limit)
                if not db.execute(SQL["kept_for_nobody"], bound).fetchall():
                    continue
            with self._state.lock, self._state.writing() as db:
                db.execute("BEGIN IMMEDIATE")
                leased = leased_of(db, stream)
                found = [pos for (pos,) in db.execute(SQL["kept_for_nobody"], bound).fetchall()]
                gone = [pos for pos in found if not any(span.lo <= pos < span.hi for span in leased)]
                floor = db.execute(SQL["floor"], (log,)).get
                for pos in gone:
                    if pos < floor:  # nothing else is left of it
                        remove(db, stream, pos, pos + 1, [], floor)
                db.execute(SQL["drop_records"], (json.dumps(gone),))
                db.execute("COMMIT")
                dropped += len(gone)
        return dropped
