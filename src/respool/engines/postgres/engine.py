"""PostgreSQL: log and state in one schema of a server."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...delivery.model import NewCall
from ...errors import ConfigError, EngineUnavailable, RespoolError
from ..base import CAPABILITIES, Conflict
from .appends import ROWS_A_STATEMENT, PostgresAppends, insert
from .aside import Aside
from .bells import PostgresBells
from .blobs import PostgresBlobs
from .connection import Connection, Db, moved_told, one
from .enlist import Plain, checked
from .inspect import PostgresInspect
from .lent import PostgresLent
from .locks import PostgresLocks
from .log import PostgresLog
from .migrate import ensure_schema
from .moving import PostgresMoving
from .partitions import LOCK_PATIENCE, SIZE, add, next_number, partition_of
from .reach import PostgresOptions
from .registry import PostgresRegistry
from .retention import PostgresRetention
from .state import PostgresState
from .view import Known
from .work import PostgresWorks, RunsOwn

AHEAD_AGAIN = 10.0  # seconds before a partition that could not be made ahead is tried again
log = logging.getLogger("respool")


class PostgresEngine(
    PostgresAppends,
    PostgresLog,
    PostgresLocks,
    PostgresState,
    PostgresRegistry,
    PostgresWorks,
    PostgresInspect,
    PostgresRetention,
    PostgresBlobs,
    PostgresMoving,
    PostgresLent,
    PostgresBells,
):
    """Log and state on a server. Connections open when first used, and only in the process that uses them."""

    capabilities = CAPABILITIES["postgresql://"]

    def __init__(self, options: PostgresOptions) -> None:
        PostgresBells.__init__(self)
        PostgresWorks.__init__(self)
        self.options = options
        self._connections: dict[str, Connection] = {}
        self._connecting = threading.Lock()
        self._closed = False
        self._reached = False  # the server, by any connection: see Connection
        self._pid = os.getpid()
        self._made: set[int] = set()  # partitions that this process knows to be there
        self._ahead_at = 0.0  # before that none is made ahead
        self._aside: dict[int, Aside] = {}  # by log
        self._cursors_begin: dict[tuple[int, ...], int] = {}  # by group and log; below, versions were deleted
        self._beats_begin: dict[tuple[int, ...], int] = {}  # by worker
        self._known = Known()
        self._sequences: dict[int, int] = {}
        self._names: dict[int, tuple[bytes, bytes]] = {}
        try:
            self._writer.read(lambda db: ensure_schema(db, options))
        except BaseException:
            self.close()
            raise
        self._reached = True

    def _connection(self, role: str) -> Connection:
        with self._connecting:
            if self._closed:
                raise EngineUnavailable(f"{self.options.shown}: the engine was closed; nothing was sent")
            return self._connections.setdefault(role, Connection(self.options, role, reached=self._reached))

    @cached_property
    def _writer(self) -> Connection:  # type: ignore[override]
        return self._connection("writer")

    @cached_property
    def _state(self) -> Connection:  # type: ignore[override]
        return self._connection("state")

    @cached_property
    def _reader(self) -> Connection:  # type: ignore[override]
        return self._connection("reader")

    def connection_for_work(self) -> Connection:
        """Return a connection for a run's own work, opened when it is used."""
        return Connection(self.options, "run", RunsOwn, reached=True)

    @property
    def breaks(self) -> int:
        """How often a connection was opened: a server that was away has ended them all."""
        return sum(connection.made for connection in list(self._connections.values()))

    @cached_property
    def target(self) -> str:
        """The server, and what tells this store from a copy, or from another that the same URL leads to."""
        return f"{self.options.shown}#{self.options.schema}#{self._store}"

    @property
    def run_folder(self) -> Path:
        """A folder on this machine for what its workers share with their children."""
        store = hashlib.blake2b(self.target.encode(), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"respool-{os.getuid()}-{store}"

    def usable(self) -> bool:
        """Say whether this process opened the engine: no connection is used across fork."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Close the connections."""
        with self._connecting:
            self._closed = True
            for role in ("_writer", "_state", "_reader"):
                self.__dict__.pop(role, None)
            connections = [*self._connections.values(), *self.idle_works]
            self.idle_works.clear()
            self._connections.clear()
        self.close_bells()
        for connection in connections:
            connection.close()

    # Appending

    @cached_property
    def _store(self) -> str:
        """What tells this schema from that of any other database."""
        return str(self._reader.read(lambda db: one(db, self._sql["store"], ())))

    def enlist(self, connection: Any) -> Plain:
        """Return psycopg's connection, in a transaction of this database. Raises ConfigError."""
        return checked(connection, self.options, self._store)

    def append_enlisted(self, connection: Plain, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records in the caller's transaction, whose commit wakes workers that sleep now."""
        conflicts: list[Conflict] = []
        with moved_told():
            for start in range(0, len(rows), ROWS_A_STATEMENT):
                some = rows[start : start + ROWS_A_STATEMENT]
                conflicts += insert(connection, self._sql, self._sequence, some, start, None)
        self.ring_at_commit(connection, rows[0].log, everyone=len(rows) > 1)
        return conflicts

    def append_run_enlisted(
        self,
        connection: Plain,
        log: int,
        task: str,
        bodies: Sequence[bytes],
        meta: bytes | None,
        head: bytes,
        now: float,
    ) -> None:
        """Append a run in the caller's transaction."""
        with moved_told():
            connection.execute(self._sql["append_run"], self._run_values(log, task, bodies, meta, head, now))
        self.ring_at_commit(connection, log, everyone=len(bodies) > 1)

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


def _add(db: Db, schema: str, start: int, within: str | None = None) -> bool:
    with db.transaction():
        if within is not None:
            db.execute(f"SET LOCAL lock_timeout = '{within}'".encode())
        return add(db, schema, start)
