"""A run's own transaction on the log's file, which its settlement joins.

It holds the file's only write lock from its beginning to the settlement, as any transaction of the user's
own on that file would (H1): the docs say to keep it short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw

from ...delivery.model import Change, NewCall, View
from ...errors import ConfigError, RespoolError
from ..base import Conflict, LeaseLost, Reads
from .change import write_change
from .connection import Connection
from .log import append_rows
from .sql import SQL
from .view import read_view


class SQLiteWorks:
    """Begins runs' own transactions, on a connection of their own."""

    _connect: Callable[..., Connection]
    options: Any
    ring_freed: Callable[[Change], None]

    def begin_work(self, fence: tuple[int, int]) -> SQLiteWork:
        """Begin a transaction for a run's own work. Raises LeaseLost."""
        if self.options.path is None:
            raise ConfigError("a log in memory has no transaction that another connection could be part of")
        connection = self._connect("run", synced=self.options.durability == "full")
        with connection.lock, connection.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            held = db.execute(SQL["fence"], fence).fetchone() is not None
            if not held:
                db.execute("ROLLBACK")
        if not held:
            raise LeaseLost("this run's lease is another worker's by now: its transaction was not begun")
        return SQLiteWork(connection, self.ring_freed)


class SQLiteWork:
    """One transaction of a run's."""

    exclusive = True

    def __init__(self, connection: Connection, ring_freed: Callable[[Change], None]) -> None:
        self._connection, self._ring_freed = connection, ring_freed
        self._committing = False
        connection.db.set_commit_hook(lambda: not self._committing)  # True: it is rolled back instead

    @property
    def connection(self) -> apsw.Connection:
        """apsw's connection. A COMMIT on it undoes the transaction."""
        return self._connection.db

    enlisted = connection

    def append(self, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records of one log in this transaction."""
        return append_rows(self._connection.db, rows, None)

    def settle(self, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        """Settle and commit; see `Work.settle`."""
        try:
            return self._settle(reads, decide)
        finally:
            self._end()

    def _settle(self, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        if self._connection.db.get_autocommit():
            raise ConfigError(
                "the task ended self.transaction() by a COMMIT or ROLLBACK of its own: what it did was undone"
            )
        refused: apsw.ConstraintError | None = None
        with self._connection.lock, self._connection.writing() as db:
            change = Change()
            if not decide(read_view(db, reads), change):
                db.execute("ROLLBACK")
                return False
            write_change(db, reads.group, change)
            self._committing = True
            try:
                db.execute("COMMIT")
            except apsw.ConstraintError as error:  # one of the user's, that was deferred
                db.execute("ROLLBACK")
                refused = error
        if refused is not None:
            raise refused
        self._ring_freed(change)
        return True

    def roll_back(self) -> None:
        """Undo all of it."""
        db = self._connection.db
        try:
            if not db.get_autocommit():
                with self._connection.lock, self._connection.writing():
                    db.execute("ROLLBACK")
        except RespoolError:
            return  # the file is gone, or its disk fails: nothing was committed
        finally:
            self._end()

    def _end(self) -> None:
        self._connection.db.set_commit_hook(None)
