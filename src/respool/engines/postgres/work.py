"""A run's own transaction, which its settlement joins.

    BEGIN; is the lease ours?                       one round trip, when the run asks for it
    what the user does                              on the same connection, in any time
    constraints; settings; advisory lock; reads     one
    decide                                          pure, in this process
    writes; COMMIT                                  another

The group's lock is taken only at the end: nobody waits for what the user does. The transaction reads anew
with each statement (READ COMMITTED), so what the settlement sees was committed before the lock (G3). Where
another open transaction holds up a call that the run has made, the lock is let go and taken again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as pg
from psycopg.rows import tuple_row

from ...delivery.model import Change, NewCall, View
from ...errors import AppendUnknown, ConfigError, EngineUnavailable
from ..base import Conflict, LeaseLost, Reads
from .change import write_change
from .connection import Bounded, Connection, Db, Lost, milliseconds, patience
from .enlist import Plain
from .sql import GROUP_LOCKS
from .state import HeldUp, NoPartition

if TYPE_CHECKING:
    from .engine import PostgresEngine

HELD_PAUSE = 0.5  # seconds without the group's lock, where others' open transactions hold up a settlement


class RunsOwn(Bounded):
    """A connection in a task's hands: it waits as long as the task's statements take, and ends nothing."""

    lent = False
    driver_prepares = 5  # the task's own statements: no batch is sent here

    def commit(self) -> None:
        """Refuse, while a task has it."""
        self._refuse("commit")
        super().commit()

    def rollback(self) -> None:
        """Refuse, while a task has it."""
        self._refuse("rollback")
        super().rollback()

    def close(self) -> None:
        """Refuse, while a task has it."""
        self._refuse("close")
        super().close()

    def _refuse(self, what: str) -> None:
        if self.lent:
            raise ConfigError(
                f"connection.{what}() within self.transaction(): it commits with the run's settlement, or is "
                "undone where the run raises"
            )


class PostgresWorks:
    """Begins runs' own transactions, on connections that are used again."""

    connection_for_work: Callable[[], Connection]

    def __init__(self) -> None:
        self.idle_works: list[Connection] = []

    def begin_work(self, fence: tuple[int, int]) -> PostgresWork:
        """Begin a transaction for a run's own work. Raises LeaseLost."""
        connection = self.idle_works.pop() if self.idle_works else self.connection_for_work()

        def begin(db: Db) -> bool:
            db.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            row = db.execute(connection.sql["begin_work"], (str(fence[0]), *fence)).fetchone()
            return row is not None and bool(row[1])

        work = PostgresWork(self, connection, fence[0])  # type: ignore[arg-type]
        if not connection.read(begin):
            work.roll_back()
            raise LeaseLost("this run's lease is another worker's by now: its transaction was not begun")
        work.lend()
        return work


class PostgresWork:
    """One transaction of a run's."""

    exclusive = False

    def __init__(self, engine: PostgresEngine, connection: Connection, lease: int) -> None:
        self._engine, self._connection, self._lease = engine, connection, lease
        self._db: Any = None
        self._committing = False

    def lend(self) -> None:
        """Give the connection out of our hands: no statement of the user's is cut off by our patience."""
        self._db = self._connection.opened()
        self._db.patience, self._db.lent = math.inf, True

    @property
    def connection(self) -> Any:
        """psycopg's connection."""
        return self._db

    @property
    def enlisted(self) -> Plain:
        """The connection, with cursors of our own."""
        return Plain(self._db)

    def append(self, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records of one log in this transaction."""
        return self._engine.append_enlisted(self.enlisted, rows)

    def settle(self, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        """Settle and commit; see `Work.settle`."""
        shown, self._committing = self._engine.options.shown, False
        self._take_back()
        try:
            with self._connection.using() as db:
                if db is not self._db:
                    raise Lost(pg.OperationalError("the connection was lost"), sent=False)
                return self._settle(db, reads, decide)
        except Lost as lost:
            if self._committing:
                raise AppendUnknown(f"{shown}: {lost}; it is not known whether it was committed") from lost
            raise EngineUnavailable(f"{shown}: {lost}; nothing was committed") from lost
        except pg.LockNotAvailable as error:  # the group's: the user's own were waited for before
            raise self._connection.translated(error) from error
        finally:
            self._end()

    def _settle(self, db: Db, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        until = time.monotonic() + self._engine.options.timeout
        while True:
            try:
                return self._settle_now(db, reads, decide)
            except HeldUp:
                db.execute("ROLLBACK TO SAVEPOINT respool_settles")  # which lets go of the lock, too
                if time.monotonic() >= until:
                    raise
            time.sleep(HELD_PAUSE)

    def _settle_now(self, db: Db, reads: Reads, decide: Callable[[View, Change], bool]) -> bool:
        engine, rung = self._engine, None
        # One pipeline for all: psycopg leaves one with a Flush behind the Sync, and that stops the clock by
        # which the server ends who is idle in a transaction (G7).
        with db.pipeline() as pipeline:
            view = self._locked(db, pipeline, reads)
            change = Change()
            if not decide(view, change):
                db.execute("ROLLBACK")
                return False
            if change.calls:
                change.count("calls refused: id taken", self._append_calls(db, pipeline, change.calls))
            write_change(db, self._connection.sql, reads.group, change)
            self._committing = True
            db.execute("COMMIT")
            pipeline.sync()
            rung = engine.ring_written(db, change)
        if rung is not None:
            engine.note_rung(rung.rowcount)
        return True

    def _locked(self, db: Db, pipeline: psycopg.Pipeline, reads: Reads) -> View:
        """Check what was deferred, while nobody waits for us; then lock. See that it is our transaction."""
        sql, most = self._connection.sql, milliseconds(self._engine.options)
        db.execute("SET CONSTRAINTS ALL IMMEDIATE")
        found = db.execute(sql["work_of"])
        try:  # an answer of the server's is looked at with any statement that comes after
            db.execute("SAVEPOINT respool_settles")
            db.execute(sql["work_settings"], (most, most))
            db.execute(sql["lock_group"], (GROUP_LOCKS, reads.group))
            view, _ = self._engine.read(db, reads, pipeline.sync)
            ours = found.fetchone() == (str(self._lease),)
        except pg.NoActiveSqlTransaction:  # for a savepoint
            ours = False
        if not ours:
            raise ConfigError(
                "the task ended self.transaction() by a COMMIT or ROLLBACK of its own: what it did "
                "is no part of its settlement"
            )
        return view

    def _append_calls(self, db: Db, pipeline: psycopg.Pipeline, calls: Sequence[NewCall]) -> int:
        """Append the outbox; where a partition is missing, make it beside this transaction (G6)."""
        while True:
            db.execute("SAVEPOINT respool_outbox")
            try:
                return self._engine.append_calls(db, calls)
            except NoPartition as missing:
                pipeline.sync()
                db.execute("ROLLBACK TO SAVEPOINT respool_outbox")
                self._engine._writer.append(partial(self._engine.add_partitions, log=missing.log))

    def roll_back(self) -> None:
        """Undo all of it."""
        self._take_back()
        try:
            with self._connection.using() as db:
                db.execute("ROLLBACK")
        except (Lost, psycopg.Error):
            self._connection.drop()  # the server undoes it
        finally:
            self._end()

    def _take_back(self) -> None:
        db = self._db
        if db is not None:
            db.lent, db.patience = False, patience(self._engine.options, "run")
            db.row_factory, db.cursor_factory = tuple_row, psycopg.Cursor  # the user may have set others

    def _end(self) -> None:
        """Keep the connection for the next run."""
        self._db = None
        self._engine.idle_works.append(self._connection)
