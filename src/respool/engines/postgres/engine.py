"""PostgreSQL: log and state in one schema of a server."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...errors import ConfigError, EngineUnavailable
from ...record import first_pos
from ..base import CAPABILITIES, Conflict, Group, Registration, Stream, Worker
from ..things import lanes_of
from .bells import PostgresBells
from .blobs import PostgresBlobs
from .connection import Connection, moved_told
from .enlist import Plain, checked
from .inspect import PostgresInspect
from .lent import PostgresLent
from .locks import PostgresLocks
from .log import ROWS_A_STATEMENT, PostgresLog, insert
from .migrate import ensure_schema
from .moving import PostgresMoving, refuse_incoming
from .partitions import SIZE, add, create_log, next_number, partition_of
from .reach import PostgresOptions
from .retention import PostgresRetention
from .sql import GROUP_LOCKS
from .state import PostgresState
from .work import PostgresWorks, RunsOwn

Db = psycopg.Connection[Any]
GROUP_TABLES = (
    *("position", "cursor", "gap", "lease", "parked", "waiting"),
    *("outcome", "progress", "journal", "counter"),
)
_LOCKS = 0x5264  # of changes to streams and groups


class PostgresEngine(
    PostgresLog,
    PostgresLocks,
    PostgresState,
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
        self.target = f"{options.shown}#{options.schema}"
        self._connections: dict[str, Connection] = {}
        self._connecting = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._made: set[int] = set()  # partitions that this process knows to be there
        try:
            self._writer.read(lambda db: ensure_schema(db, options))
        except BaseException:
            self.close()
            raise

    def _connection(self, role: str) -> Connection:
        with self._connecting:
            if self._closed:
                raise EngineUnavailable(f"{self.options.shown}: the engine was closed; nothing was sent")
            return self._connections.setdefault(role, Connection(self.options, role))

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
        return Connection(self.options, "run", RunsOwn)

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

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        done = super().append_row(row)
        if not isinstance(done, Conflict):
            self._think_ahead(done)
        return done

    @cached_property
    def _store(self) -> str:
        """What tells this schema from that of any other database."""
        return str(self._reader.read(lambda db: _id(db, self._sql["store"], ())))

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
        self.ring_log(connection, rows[0].log, everyone=len(rows) > 1)
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
        self.ring_log(connection, log, everyone=len(bodies) > 1)

    def _think_ahead(self, pos: int) -> None:
        """Half through a partition, see to the next: nobody who appends should have to wait for it."""
        start = partition_of(pos) + SIZE
        if pos & SIZE >> 1 and start not in self._made:
            self._made.add(start)
            try:
                self._writer.read(lambda db: _add(db, self.options.schema, start))
            except ConfigError:
                return  # who only sends has no right to it: workers see to it too

    def add_partitions(self, db: Db, log: int) -> None:
        """Make the partitions for a log's next numbers: the one they are in, and the one after."""
        start = partition_of(next_number(db, self.options.schema, log))
        for each in (start, start + SIZE):
            _add(db, self.options.schema, each)

    # Registry: streams, groups, workers

    def create_stream(
        self, kind: Literal["queue", "stream"], app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream, a queue with its `main` at 0 (H10); return the stored one where it exists."""
        sql = self._sql

        def create(db: Db) -> Any:
            found = db.execute(sql["stream"], (kind, app, name)).fetchone()
            if found is not None:
                return found
            with db.transaction():
                db.execute(sql["lock_registry"], (_LOCKS,))
                found = db.execute(sql["stream"], (kind, app, name)).fetchone()
                if found is not None:
                    return found
                refuse_incoming(db, sql, self.shown, kind, app, name)
                stream = _id(db, sql["add_stream"], (kind, app, name, Jsonb(settings), wall_clock()))
                logs = [self._add_log(db, stream, partition, None) for partition in range(partitions)]
                if kind == "queue":
                    bound = (stream, app, "main", "main", Jsonb({}), wall_clock())
                    self._add_group(db, bound, [(log, first_pos(log), None) for log in logs])
            return db.execute(sql["stream"], (kind, app, name)).fetchone()

        return self._noted(_stream(self._writer.append(create)))

    def _add_log(self, db: Db, stream: int, partition: int, priority: int | None) -> int:
        log = int(_id(db, self._sql["add_log"], (stream, partition, priority)))
        db.execute(self._sql["set_floor"], (log,))
        create_log(db, self.options.schema, log)
        return log

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the logs of a priority, which the stream's groups read from 0 (H10), unless they are there."""
        which = (stream.kind, stream.app, stream.name)

        def add(db: Db) -> Stream:
            with db.transaction():
                db.execute(self._sql["lock_registry"], (_LOCKS,))
                now = _stream(db.execute(self._sql["stream"], which).fetchone())
                if now.lane(priority) is not None:
                    return now
                for partition in range(now.partitions):
                    self._add_log(db, stream.id, partition, priority)
                db.execute(self._sql["add_positions"], (stream.id,))
                return _stream(db.execute(self._sql["stream"], which).fetchone())

        return self._noted(self._writer.append(add))

    def streams(self) -> list[Stream]:
        """Return all streams."""
        found = self._reader.read(lambda db: db.execute(self._sql["streams"]).fetchall())
        return [self._noted(_stream(row)) for row in found]

    def _noted(self, stream: Stream) -> Stream:
        if stream.lanes:
            self.rings.update(stream.rings())
        return stream

    def groups(self) -> list[Group]:
        """Return all groups."""
        return self._reader.read(
            lambda db: [Group(*row) for row in db.execute(self._sql["groups"]).fetchall()]
        )

    def create_group(
        self,
        stream: Stream,
        app: str,
        name: str,
        kind: Literal["main", "subscription", "replay", "group"],
        settings: dict[str, Any],
        bounds: Sequence[tuple[int, int, int | None]],
    ) -> Group | None:
        """Create a group that reads lo <= p < hi (None: no end) of each log; None where it exists."""
        created = wall_clock()

        def create(db: Db) -> Group | None:
            with db.transaction():
                db.execute(self._sql["lock_registry"], (_LOCKS,))
                bound = (stream.id, app, name, kind, Jsonb(settings), created)
                id = self._add_group(db, bound, bounds)
                db.execute(
                    self._sql["add_positions"], (stream.id,)
                )  # of a lane made since the bounds were looked at
            return None if id is None else Group(id, stream.id, app, name, kind, settings, 0, created)

        return self._writer.append(create)

    def _add_group(
        self, db: Db, bound: Sequence[Any], bounds: Sequence[tuple[int, int, int | None]]
    ) -> int | None:
        id: int | None = _id(db, self._sql["add_group"], bound)
        for log, start, stop in bounds if id is not None else ():
            db.execute(self._sql["add_position"], (id, start, stop, log))
            db.execute(self._sql["add_cursor"], (id, log, start))
        return id

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay."""

        def drop(db: Db) -> None:
            with db.transaction():
                db.execute(self._sql["lock_group"], (GROUP_LOCKS, group.id))
                for table in GROUP_TABLES:
                    db.execute(self._sql[f"drop_group_{table}"], (group.id,))
                db.execute(self._sql["drop_group"], (group.id,))
                db.execute(self._sql["open_all"])  # its leases may have had slots

        self._writer.append(drop)

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts; return its number, never used before."""

        def enter(db: Db) -> int:
            with db.transaction():
                id = _id(db, self._sql["add_worker"], worker[:6])
                db.execute(self._sql["first_beat"], (id, worker.started, Jsonb(worker.info)))
            return int(id)

        return self._writer.append(enter)

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Say that a worker lives; None where it has been declared dead.

        A synced beat also makes durable what others wrote without syncing (S4): the log of writes is one.
        """
        bound = (wall_clock(), draining, Jsonb(info), worker)
        connection = self._writer if synced else self._state
        beat: int | None = connection.append(lambda db: _id(db, self._sql["beat"], bound))
        return beat

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended and holds no lease."""
        self._state.append(lambda db: db.execute(self._sql["drop_worker"], (worker,)))

    def workers(self) -> list[Worker]:
        """Return the workers registered."""
        return self._reader.read(
            lambda db: [Worker(*row) for row in db.execute(self._sql["workers"]).fetchall()]
        )


def _add(db: Db, schema: str, start: int) -> bool:
    with db.transaction():
        return add(db, schema, start)


def _id(db: Db, statement: bytes, bound: Sequence[Any]) -> Any:
    row = db.execute(statement, bound).fetchone()
    return None if row is None else row[0]


def _stream(row: Any) -> Stream:
    id, kind, app, name, settings, created, logs, priorities = row
    lanes = lanes_of(zip(logs, priorities, strict=True))
    return Stream(id, kind, app, name, tuple(logs), settings, created, lanes)
