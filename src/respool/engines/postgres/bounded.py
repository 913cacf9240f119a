"""A connection that waits for no answer without end."""

from __future__ import annotations

import math
import time
from typing import Any

import psycopg
from psycopg import errors as pg

from ..turns import left
from .batch import Batch, NoAnswer

GIVEN_UP_FOR = 1000  # milliseconds after which the server sees that a connection is gone while it works


class Bounded(psycopg.Connection[Any]):
    """Waits for an answer only so long: a server that hangs, or a network that is cut, closes nothing."""

    patience = 10.0
    pooled = False
    prepares = True  # PgBouncer before 1.21 has no prepared statements in transaction mode
    driver_prepares: int | None = None
    """Uses before the driver prepares a statement; where it does, a rollback has all forgotten, ours too."""
    _batch: Batch | None = None

    @property
    def batch(self) -> Batch:
        """What sends statements together, without cursors."""
        if self._batch is None:
            self._batch = Batch(self)
        return self._batch

    def find_pooler(self) -> None:
        """See whether a pooler is between: it gives its own number for the server's process.

        What lasts for longer than a transaction (LISTEN, session locks, prepared statements) may then be
        lost, or be somebody else's.
        """
        row = self.execute("SELECT pg_backend_pid()").fetchone()
        self.pooled = row != (self.info.backend_pid,)

    def end_with_us(self) -> None:
        """Have the server end what it does for a connection that was given up: it may hold locks.

        A pooler gives the server's connection to others, who know nothing of this; some systems cannot.
        """
        if not self.pooled:
            try:
                self.execute(f"SET client_connection_check_interval = {GIVEN_UP_FOR}".encode())
            except pg.InvalidParameterValue:
                return

    @classmethod
    def _connect_gen(cls, *args: Any, **kwargs: Any) -> Any:
        """Connect; the driver's own timeout is two seconds at least, and a thread may have less (`limited`).

        A driver that calls this otherwise has but that.
        """
        until = time.monotonic() + (patience := left(math.inf))
        gen: Any = super()._connect_gen(*args, **kwargs)
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    gen.close()
                    raise NoAnswer(patience)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Let one of the driver's operations go on; where nothing comes for too long, close and raise."""
        return super().wait(self._within(gen), *args, **kwargs)

    def _within(self, gen: Any) -> Any:
        patience = left(self.patience)
        until = time.monotonic() + patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # 0: nothing has come for a tenth of a second
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise NoAnswer(patience)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
