"""Unique calls and steps that were done, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...delivery.model import NewCall
from ...delivery.spans import Finder
from ...record import Id
from ..base import UniqueLock
from ..columns import spans_of
from .appends import insert
from .connection import Bounded, Db, snapshot
from .ids import id_bytes, id_from
from .part import Part
from .partitions import LOCK_PATIENCE, SIZE

UNIQUE_TRIES = 5  # of a call whose key an open transaction has taken; others append in between


class PostgresLocks(Part):
    """Which keys are taken by which records (H16), and what of a call was done once and for all (H14)."""

    _swept: str = ""
    _sequence: Callable[[int], str]
    _appending: Callable[[int, Any], Any]
    _unheld: Callable[..., Any]
    ring_log: Callable[..., Any]
    ring_at_commit: Callable[..., Any]
    room_for: Callable[..., Any]
    think_ahead: Callable[[int], None]

    def lock_of(self, key: str, connection: Any = None) -> UniqueLock | None:
        """Return what a key is taken by, or was."""

        def look(db: Any) -> UniqueLock | None:
            row = db.execute(self._sql["lock_of"], (key,)).fetchone()
            return None if row is None else UniqueLock(row[0], id_from(bytes(row[1])), *row[2:])

        return look(connection) if connection is not None else self._reader.read(look)

    def append_unique(
        self,
        row: NewCall,
        key: str,
        seen: Id | None,
        until: float | None,
        fence: tuple[int, int] | None = None,
        connection: Any = None,
    ) -> int | None:
        """Append a record and have it take a key; None where another has taken it since."""
        bound = {"key": key, "id": id_bytes(row.id), "until": until}
        bound["patience"] = "" if connection is not None else LOCK_PATIENCE
        if seen is not None:
            bound["seen"] = id_bytes(seen)

        def append(db: Any) -> int | None:
            taken = db.execute(self._sql["take_free_lock" if seen is None else "take_lock"], bound).fetchone()
            if taken is None:
                return None
            insert(db, self._sql, self._sequence, [row], 0, fence)
            (pos,) = db.execute(self._sql["place_lock"], bound).fetchone()
            ring = self.ring_log if connection is None else self.ring_at_commit
            ring(db, row.log, everyone=False)
            return int(pos)

        def at_once(db: Db) -> int | None:
            with db.transaction():
                return append(db)

        pos: int | None
        if connection is not None:
            with self.room_for(row.log, 1):
                pos = append(connection)
        else:
            pos = self._unheld(
                "the same unique key", partial(self._appending, row.log, at_once), UNIQUE_TRIES
            )
        if pos is not None and pos & SIZE >> 1:
            self.think_ahead(pos)
        return pos

    def sweep_locks(self, now: float, limit: int) -> int:
        """Forget locks of records that have ended, of the next `limit` locks."""
        bound = {"after": self._swept, "now": now, "limit": limit}

        def look(db: Bounded) -> tuple[list[Any], list[Any]]:
            # Of one moment, or a record that was leased at first and then parked is seen in neither place.
            # What has ended then has ended for good, but for a seek.
            with snapshot(db):
                page = db.execute(self._sql["locks_after"], bound).fetchall()
                ended = any(is_ended for _, _, is_ended in page)
                return page, db.execute(self._sql["main_leases"]).fetchall() if ended else []

        page, leases = self._reader.read(look)
        self._swept = page[-1][0] if len(page) == limit else ""
        leased = Finder(spans_of(leases))
        gone = [(key, pos) for key, pos, is_ended in page if is_ended and leased.find(pos) is None]
        if not gone:
            return 0
        drop = [key for key, _ in gone], [pos for _, pos in gone], now
        return self._state.append(lambda db: db.execute(self._sql["drop_locks"], drop).rowcount)

    def step_done(self, pos: int, step: str) -> bytes | None:
        """Return what a step of a call gave; None where it was not done."""

        def look(db: Db) -> bytes | None:
            row = db.execute(self._sql["once"], (pos, step)).fetchone()
            return None if row is None else bytes(row[0])

        return self._reader.read(look)

    def keep_step(self, pos: int, step: str, value: bytes, now: float) -> None:
        """Keep what a step of a call gave."""
        self._writer.append(lambda db: db.execute(self._sql["put_once"], (pos, step, value, now)))
