"""Unique calls and steps that were done, in SQLite: each write is one statement (H1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw

from ...delivery.model import NewCall
from ...delivery.spans import Finder
from ...record import Id
from ..base import LeaseLost, UniqueLock
from ..columns import spans_of
from .log import head_seq, log_ends, no_such_log
from .part import Part
from .sql import SQL


class SQLiteLocks(Part):
    """Which keys are taken by which records (H16), and what of a call was done once and for all (H14)."""

    _swept: str = ""
    ring: Callable[..., None]

    def lock_of(self, key: str, connection: Any = None) -> UniqueLock | None:
        """Return what a key is taken by, or was."""
        if connection is not None:
            return _lock(connection, key)
        with self._reader.lock, self._reader.reading() as db:
            return _lock(db, key)

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
        if connection is not None:
            return _append(connection, row, key, seen, until, fence)
        lost, pos = False, None
        with self._writer.writing_in_turn() as db:
            try:
                pos = _append(db, row, key, seen, until, fence)
            except LeaseLost:
                lost = True
        if lost:
            raise LeaseLost
        if pos is not None:
            self.ring(row.log)
        return pos

    def sweep_locks(self, now: float, limit: int) -> int:
        """Forget locks of records that have ended, of the next `limit` locks."""
        with self._reader.lock, self._reader.reading() as db:
            db.execute("BEGIN")
            try:
                page = db.execute(SQL["locks_after"], (self._swept, now, limit)).fetchall()
                gone = _ended(db, page)
            finally:
                db.execute("COMMIT")
        self._swept = page[-1][0] if len(page) == limit else ""
        if not gone:
            return 0
        with self._state.lock, self._state.writing() as db:
            before = int(db.total_changes())
            db.execute("BEGIN IMMEDIATE")
            db.executemany(SQL["drop_lock"], [(*each, now) for each in gone])
            db.execute("COMMIT")
            return int(db.total_changes()) - before

    def step_done(self, pos: int, step: str) -> bytes | None:
        """Return what a step of a call gave; None where it was not done."""
        with self._reader.lock, self._reader.reading() as db:
            found: bytes | None = db.execute(SQL["once"], (pos, step)).get
            return found

    def keep_step(self, pos: int, step: str, value: bytes, now: float) -> None:
        """Keep what a step of a call gave."""
        with self._writer.writing_in_turn() as db:
            db.execute(SQL["put_once"], (pos, step, value, now))


def _ended(db: Any, page: Sequence[tuple[str, int, int]]) -> list[tuple[str, int]]:
    """Return key and position of the locks whose record has ended, in the snapshot that the page is of.

    Of one moment, or a record that was leased at first and then parked is seen in neither place. What has
    ended then has ended for good, but for a seek.
    """
    ended = [(key, pos) for key, pos, is_ended in page if is_ended]
    leased = Finder(spans_of(db.execute(SQL["main_leases"]))) if ended else None
    return [(key, pos) for key, pos in ended if leased is None or leased.find(pos) is None]


def _lock(db: Any, key: str) -> UniqueLock | None:
    row = db.execute(SQL["lock_of"], (key,)).fetchone()
    return None if row is None else UniqueLock(*row)


def _append(
    db: Any, row: NewCall, key: str, seen: Id | None, until: float | None, fence: tuple[int, int] | None
) -> int | None:
    head = (row.log, *log_ends(row.log), *(fence or (None, None)))
    record = (row.task, row.body, row.meta, row.id, int(row.time * 1_000_000), head_seq(row.id, row.time))
    try:
        db.execute(SQL["append_unique"], (*head, *record, row.key, key, seen, until))
    except apsw.MismatchError:
        raise no_such_log(row.log) from None
    except apsw.ConstraintError as error:
        if "lock taken" in str(error):
            return None
        if "lease lost" in str(error):
            raise LeaseLost from None
        raise
    return int(db.execute(SQL["by_id"], (row.id,)).get)
