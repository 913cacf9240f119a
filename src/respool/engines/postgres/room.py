"""Partitions for numbers yet to be given out, made before anybody needs them.

Who appends on a connection of ours makes what is missing, and tries again. In a transaction of a caller's own
nothing can be made, and what fails there fails all of it: so it is seen to before, and beside it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors as pg

from ...errors import ConfigError, EngineUnavailable, RespoolError
from .connection import NOTHING_SENT, Db, moved_told
from .part import Part
from .partitions import LOCK_PATIENCE, SIZE, add, next_number, partition_of

HALF = SIZE >> 1
AHEAD_AGAIN = 10.0  # seconds before a partition that could not be made ahead is tried again
LOOK_AGAIN = 1.0  # seconds before a single call of a caller's has us look again at a log's numbers
log = logging.getLogger("respool")


class PostgresRoom(Part):
    """Sees to partitions, on a connection of ours: attaching one waits for nobody who appends."""

    _made: set[int]  # partitions that this process knows to be there
    _ahead_at: float  # before that none is made ahead
    _look_at: dict[int, float]  # by log: before that its numbers are not looked at for a single call

    def think_ahead(self, pos: int) -> None:
        """Half through a partition, see to the next: nobody who appends should have to wait for it.

        The record is stored, so its sender hears of nothing that goes wrong here (H20).
        """
        start = partition_of(pos) + SIZE
        if start in self._made or time.monotonic() < self._ahead_at:
            return
        self._made.add(start)
        try:
            self._writer.read(lambda db: _add(db, self.options.schema, start, within=LOCK_PATIENCE))
        except ConfigError:
            return  # who only sends has no right to it: workers see to it too
        except RespoolError as error:
            log.info("the next partition could not be made, which is tried again: %s", error)
            self._made.discard(start)
            self._ahead_at = time.monotonic() + AHEAD_AGAIN

    def add_partitions(self, db: Db, log: int) -> None:
        """Make the partitions for a log's next numbers: the one they are in, and the one after."""
        start = partition_of(next_number(db, self.options.schema, log))
        for each in (start, start + SIZE):
            _add(db, self.options.schema, each)

    @contextmanager
    def room_for(self, log: int, rows: int) -> Iterator[None]:
        """See that there is room for a log's next rows, which the block appends in a caller's transaction.

        Raises: EngineUnavailable where there was none nevertheless; LogMoved.
        """
        if rows > 1 or time.monotonic() >= self._look_at.get(log, 0.0):
            self._make_room(log, rows)
        try:
            with moved_told():
                yield
        except pg.CheckViolation as error:  # others took very many, or nobody here may make one
            self._make_room(log, rows)  # for the next try
            raise EngineUnavailable(
                f"{self.options.shown}: there was no partition for what comes next{NOTHING_SENT}: roll back, "
                "and do the transaction again; where this role may make none, a worker does: start one"
            ) from error

    def _make_room(self, log_id: int, rows: int) -> None:
        """Make what a log's next numbers need, and the partition after where they come past a middle.

        What goes wrong is nobody's error yet: most often there is room.
        """
        if self._look_at.get(log_id) == math.inf:
            return
        self._look_at[log_id] = time.monotonic() + LOOK_AGAIN
        try:
            self._writer.read(lambda db: self._add_for(db, log_id, rows))
        except ConfigError:
            self._look_at[log_id] = math.inf  # who only sends has no right to it: workers see to it
        except RespoolError as error:
            log.info("room for the next records could not be made: %s", error)

    def _add_for(self, db: Db, log: int, rows: int) -> None:
        first = next_number(db, self.options.schema, log)
        for start in range(partition_of(first), first + rows + HALF, SIZE):
            if start not in self._made:
                _add(db, self.options.schema, start, within=LOCK_PATIENCE)
                self._made.add(start)


def _add(db: Db, schema: str, start: int, within: str | None = None) -> bool:
    with db.transaction():
        if within is not None:
            db.execute(f"SET LOCAL lock_timeout = '{within}'".encode())
        return add(db, schema, start)
