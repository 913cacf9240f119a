"""The state in SQLite: one short IMMEDIATE transaction for each decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...delivery.model import Change, View
from ...errors import LogMoved
from ..base import Reads
from .change import write_change
from .limits import SQLiteLimits
from .looks import SQLiteLooks
from .sql import SQL
from .view import read_view


class SQLiteState(SQLiteLooks, SQLiteLimits):
    """What groups know."""

    def transact(self, reads: Reads, decide: Callable[[View, Change], Any], *, synced: bool = False) -> Any:
        """Lock, read, let `decide` fill the change, write, commit; return what `decide` returned."""
        connection = self._writer if synced else self._state
        with connection.lock, connection.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            change = Change()
            answer = decide(read_view(db, reads), change)
            write_change(db, reads.group, change)
            db.execute("COMMIT")
        self.ring_freed(change)
        return answer

    def look(self, reads: Reads, decide: Callable[[View, Change], Any]) -> Any:
        """Return what `decide` would, and write nothing: from one snapshot, without the write lock."""
        with self._reader.lock, self._reader.reading() as db:
            db.execute("BEGIN")
            try:
                return decide(read_view(db, reads), Change())
            finally:
                db.execute("COMMIT")

    def set_progress(self, group: int, pos: int, value: bytes, fence: tuple[int, int] | None = None) -> None:
        """Keep what a running task says of itself, unless it lost its lease: one statement (H1)."""
        with self._state.lock, self._state.writing() as db:
            db.execute(SQL["put_progress"], (group, pos, value, *(fence or (None, None))))

    def expire_outcomes(self, now: float, limit: int) -> int:
        """Drop the values of outcomes past their `result_ttl`, at most `limit`; return how many."""
        with self._reader.lock, self._reader.reading() as db:
            if not db.execute(SQL["has_expired"], (now,)).get:
                return 0  # no write lock for nothing
        try:
            with self._state.lock, self._state.writing() as db:
                db.execute(SQL["expire_outcomes"], (now, limit))
                return int(db.changes())
        except LogMoved:
            return 0  # it stays as it is
