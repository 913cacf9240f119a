"""PostgreSQL: log and state in one schema of a server."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...delivery.model import NewCall
from ...errors import EngineUnavailable
from ..base import CAPABILITIES, Conflict
from .appends import ROWS_A_STATEMENT, PostgresAppends, insert
from .aside import Aside
from .bells import PostgresBells
from .blobs import PostgresBlobs
from .connection import Connection, one
from .enlist import Plain, checked
from .groups import LeftOver
from .inspect import PostgresInspect
from .lent import PostgresLent
from .locks import PostgresLocks
from .log import PostgresLog
from .migrate import ensure_schema
from .moving import PostgresMoving
from .partitions import SIZE
from .reach import PostgresOptions
from .registry import PostgresRegistry
from .retention import PostgresRetention
from .room import PostgresRoom
from .state import PostgresState
from .view import Known
from .work import PostgresWorks, RunsOwn


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
    PostgresRoom,
    PostgresBells,
):
    """Log and state on a server. Connections open when first used, and only in the process that uses them."""

    capabilities = CAPABILITIES["postgresql://"]

    def __init__(self, options: PostgresOptions, make: bool = True) -> None:
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
        self._left_over = LeftOver()
        self._aside: dict[int, Aside] = {}  # by log
        self._look_at: dict[int, float] = {}  # by log: before that its numbers are not looked at (room.py)
        self._cursors_begin: dict[tuple[int, ...], int] = {}  # by group and log; below, versions were deleted
        self._beats_begin: dict[tuple[int, ...], int] = {}  # by worker
        self._known = Known()
        self._sequences: dict[int, int] = {}
        self._names: dict[int, tuple[bytes, bytes]] = {}
        try:
            # Who makes nothing may only look, and needs no other connection for that.
            first = self._writer if make else self._reader
            first.read(lambda db: ensure_schema(db, options, make))
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
        placed: list[int] = []
        with self.room_for(rows[0].log, len(rows)):
            for start in range(0, len(rows), ROWS_A_STATEMENT):
                some = rows[start : start + ROWS_A_STATEMENT]
                conflicts += insert(connection, self._sql, self._sequence, some, start, None, placed=placed)
        self.ring_at_commit(connection, rows[0].log, everyone=len(rows) > 1)
        if placed and max(placed) & SIZE >> 1:
            self.think_ahead(max(placed))
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
        with self.room_for(log, len(bodies)):
            connection.execute(self._sql["append_run"], self._run_values(log, task, bodies, meta, head, now))
        self.ring_at_commit(connection, log, everyone=len(bodies) > 1)
