"""SQLite: log and state in one file, or in memory for tests."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import apsw

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...errors import EngineUnavailable, RespoolError
from ...record import first_pos
from ..base import CAPABILITIES, Conflict, Group, LeaseLost, Registration, Stream, Worker
from ..things import lanes_of
from .blobs import SQLiteBlobs
from .connection import Connection, Doubt, gone, identity_of, moved_told
from .doorbell import ALL, Doorbell, Kind, Sleeper, mask_of
from .enlist import checked
from .inspect import SQLiteInspect
from .lent import SQLiteLent
from .locks import SQLiteLocks
from .log import SQLiteLog, append_row, append_rows, append_run
from .moving import SQLiteMoving, refuse_incoming
from .preparing import prepare
from .retention import SQLiteRetention
from .sql import SQL
from .state import SQLiteState
from .work import SQLiteWorks

log = logging.getLogger("respool.engine")
_memory_names = itertools.count()
WAL_SIZE = 16 << 20  # bytes: checkpointed by a worker beyond this, by a producer beyond twice as many


@dataclass(frozen=True, slots=True)
class SQLiteOptions:
    """How to open a file: `path` None for memory."""

    path: Path | None
    durability: Literal["full", "os"] = "full"
    timeout: float = 10.0  # seconds to wait for the lock
    pragmas: dict[str, str] = field(default_factory=dict)
    vfs: str | None = None  # for tests that inject faults


class SQLiteEngine(
    SQLiteLog,
    SQLiteState,
    SQLiteLocks,
    SQLiteWorks,
    SQLiteInspect,
    SQLiteRetention,
    SQLiteBlobs,
    SQLiteMoving,
    SQLiteLent,
):
    """The embedded engine. Connections open when first used, and only in the process that uses them."""

    def __init__(self, options: SQLiteOptions) -> None:
        self.options = options
        self.capabilities = CAPABILITIES["sqlite:///path" if options.path else "sqlite:///:memory:"]
        self._connections: dict[str, Connection] = {}
        self._connecting = threading.Lock()
        self._doubt = Doubt()
        self._closed = False
        self._identity: Any = None
        self._bell: Doorbell | None = None
        self._rings: dict[int, int] = {}  # as which log a lane rings
        self._waiters: list[Sleeper] = []  # to be used again: making one takes a tenth of a millisecond
        self._pid = os.getpid()
        self._patience = 0  # bytes that the log may have before the next try to copy it
        if options.path is None:
            self.target = f"file:/respool-{os.getpid()}-{next(_memory_names)}?vfs=memdb"
            import tempfile

            self.run_folder = Path(tempfile.mkdtemp(prefix="respool-"))
            self._connect("keeper", synced=False)  # the database lives as long as one connection does
        else:
            self.target = (
                str(options.path) if options.vfs is None else f"file:{options.path}?vfs={options.vfs}"
            )
            self.run_folder = options.path.with_name(options.path.name + "-run")
        try:
            self._identity = prepare(self.target, options.timeout, options.pragmas)
        except BaseException:
            self.close()
            raise

    def _connect(self, role: str, *, synced: bool) -> Connection:
        connection = self._connections.get(role)
        if connection is not None:
            return connection
        with self._connecting:
            connection = self._connections.get(role)
            if connection is None:
                connection = self._connections[role] = self._opened(synced)
        return connection

    def _opened(self, synced: bool) -> Connection:
        if self._closed:
            raise EngineUnavailable(f"{self.target} was closed; nothing was sent")
        path = self.options.path
        if path is not None and self._identity is not None and identity_of(str(path)) != self._identity:
            raise gone(path)  # opening would make an empty file, or lead into another log
        return Connection(
            self.target,
            synced=synced,
            timeout=self.options.timeout,
            pragmas=self.options.pragmas,
            doubt=self._doubt,
        )

    @cached_property
    def _writer(self) -> Connection:  # type: ignore[override]
        return self._connect("writer", synced=self.options.durability == "full")

    @cached_property
    def _state(self) -> Connection:  # type: ignore[override]
        return self._connect("state", synced=False)

    @cached_property
    def _reader(self) -> Connection:  # type: ignore[override]
        return self._connect("reader", synced=False)

    @property
    def bell(self) -> Doorbell:
        """The doorbell beside the file."""
        if self._bell is None:
            self._bell = Doorbell(self.run_folder)
        return self._bell

    def ring(self, log: int, *, everyone: bool = False) -> None:
        """Wake workers that sleep and serve a log: one of each kind, or all."""
        self.bell.ring_workers(1 << self._rings.get(log, log) % 64, everyone)

    def ring_waiters(self, positions: Sequence[int]) -> int:
        """Wake those who wait for one of these records; return how many that were."""
        bell = self.bell
        if not bell.waiters_present():
            return 0
        return bell.ring_waiters(ALL if len(positions) > 64 else mask_of(positions))

    @contextmanager
    def waiter(self, pos: int | None) -> Iterator[Sleeper]:
        """Give a sleeper that is woken when the record, or any (None), may be finished."""
        try:
            sleeper = self._waiters.pop()
        except IndexError:
            sleeper = self.bell.sleeper(Kind.WAITER)
        sleeper.set_mask(ALL if pos is None else 1 << pos % 64)
        try:
            yield sleeper
        finally:
            sleeper.cancel()
            self._waiters.append(sleeper)

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> Sleeper:
        """Return a sleeper that is woken when one of these logs has grown."""
        return self.bell.sleeper(Kind.WORKER, mask_of(logs), service, wake_fds)

    def usable(self) -> bool:
        """Say whether this process opened the engine: nothing is used across fork (S2)."""
        return self._pid == os.getpid()

    def close(self) -> None:
        """Close the connections; in memory, that ends the database."""
        with self._connecting:
            self._closed = True
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()
            for role in ("_writer", "_state", "_reader"):
                self.__dict__.pop(role, None)  # the next use says that it was closed
        for sleeper in self._waiters:
            sleeper.close()
        self._waiters.clear()
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        if self.options.path is None:
            import shutil

            shutil.rmtree(self.run_folder, ignore_errors=True)

    # Log: appending

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies; the same head again appends nothing."""
        with self._writer.lock, self._writer.writing() as db:
            append_run(db, log, task, bodies, meta, head, now)
        self.tidy(2 * WAL_SIZE)
        self.ring(log, everyone=len(bodies) > 1)

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        writer = self._writer
        with writer.lock, writer.writing() as db:
            done = append_row(db, row)
        if writer.log_size > 2 * WAL_SIZE:
            self.tidy(2 * WAL_SIZE)
        self.ring(row.log, everyone=row.key is not None)  # one of them holds its partition, maybe
        return done

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own."""
        lost = False
        with self._writer.lock, self._writer.writing() as db:
            try:
                conflicts = append_rows(db, rows, fence)
            except LeaseLost:
                lost, conflicts = True, []
        if lost:
            raise LeaseLost
        self.tidy(2 * WAL_SIZE)
        if rows:
            self.ring(rows[0].log, everyone=len(rows) > 1)
        return conflicts

    def tidy(self, size: int = WAL_SIZE) -> None:
        """Checkpoint the write-ahead log where it has more than so many bytes.

        Workers do it off the hot path. A producer does it only where the log is twice as long, that is
        where no worker does. Nothing is lost where it fails: the log stays, and the next one is tried
        after the next commit. Whoever appended must not hear of it, for that has succeeded (H20).
        """
        connections = tuple(self._connections.values())
        longest = max((connection.log_size for connection in connections), default=0)
        if longest <= max(size, self._patience):
            return
        for connection in connections:
            connection.log_size = 0
        done = False
        try:
            # What can be copied is, before anybody is asked to wait; starting over needs that all is.
            done = self._state.checkpoint("PASSIVE") == 0 and self._state.checkpoint("RESTART") == 0
        except RespoolError as error:
            log.warning("the write-ahead log could not be copied into the file: %s", error)
        self._patience = 0 if done else longest + WAL_SIZE  # a reader holds it, maybe for long

    def enlist(self, connection: Any) -> apsw.Connection:
        """Return a connection of apsw's on this file, in a transaction (S1). Raises ConfigError."""
        return checked(connection, self.options.path)

    def append_enlisted(self, connection: apsw.Connection, rows: Sequence[NewCall]) -> list[Conflict]:
        """Append records in the caller's transaction."""
        with moved_told():
            return append_rows(connection, rows, None)

    def append_run_enlisted(
        self,
        connection: apsw.Connection,
        log: int,
        task: str,
        bodies: Sequence[bytes],
        meta: bytes | None,
        head: bytes,
        now: float,
    ) -> None:
        """Append a run in the caller's transaction."""
        with moved_told():
            append_run(connection, log, task, bodies, meta, head, now)

    # Registry: streams, groups, workers

    def create_stream(
        self, kind: Literal["queue", "stream"], app: str, name: str, partitions: int, settings: dict[str, Any]
    ) -> Stream:
        """Create a stream, a queue with its `main` at 0 (H10); return the stored one where it exists."""
        with self._reader.lock, self._reader.reading() as db:  # every process asks: no lock for what is there
            row = db.execute(SQL["stream"], (kind, app, name)).get
            if row is not None:
                return self._noted(_stream(db, row))
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            if db.execute(SQL["stream"], (kind, app, name)).get is None:
                refuse_incoming(db, self.shown, kind, app, name)
                created = wall_clock()
                stream = db.execute(SQL["add_stream"], (kind, app, name, json.dumps(settings), created)).get
                logs = [
                    db.execute(SQL["add_log"], (stream, partition, None)).get
                    for partition in range(partitions)
                ]
                db.execute(SQL["set_floor"], (stream,))
                if kind == "queue":
                    group = db.execute(SQL["add_group"], (stream, app, "main", "main", "{}", created)).get
                    for log in logs:
                        db.execute(SQL["add_position"], (group, log, first_pos(log), None))
            db.execute("COMMIT")
            row = db.execute(SQL["stream"], (kind, app, name)).get
            return self._noted(_stream(db, row))

    def add_lane(self, stream: Stream, priority: int) -> Stream:
        """Make the logs of a priority, which the stream's groups read from 0 (H10), unless they are there."""
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            now = _stream(db, db.execute(SQL["stream"], (stream.kind, stream.app, stream.name)).get)
            if now.lane(priority) is None:
                for partition in range(now.partitions):
                    db.execute(SQL["add_log"], (stream.id, partition, priority)).fetchall()
                db.execute(SQL["set_floor"], (stream.id,))
                db.execute(SQL["add_positions"], (stream.id,))
                now = _stream(db, db.execute(SQL["stream"], (stream.kind, stream.app, stream.name)).get)
            db.execute("COMMIT")
        return self._noted(now)

    def _noted(self, stream: Stream) -> Stream:
        if stream.lanes:
            self._rings.update(stream.rings())
        return stream

    def streams(self) -> list[Stream]:
        """Return all streams."""
        with self._reader.lock, self._reader.reading() as db:
            return [self._noted(_stream(db, row)) for row in db.execute(SQL["streams"]).fetchall()]

    def groups(self) -> list[Group]:
        """Return all groups."""
        with self._reader.lock, self._reader.reading() as db:
            return [_group(row) for row in db.execute(SQL["groups"]).fetchall()]

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
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            bound = (stream.id, app, name, kind, json.dumps(settings), wall_clock())
            if any(
                g[1] == stream.id and g[2] == app and g[3] == name
                for g in db.execute(SQL["groups"]).fetchall()
            ):
                db.execute("ROLLBACK")
                return None
            id = db.execute(SQL["add_group"], bound).get
            for log, start, stop in bounds:
                db.execute(SQL["add_position"], (id, log, start, stop))
            db.execute(SQL["add_positions"], (stream.id,))  # of a lane made since the bounds were looked at
            db.execute("COMMIT")
            return Group(id, stream.id, app, name, kind, settings, 0, bound[-1])

    def drop_group(self, group: Group) -> None:
        """Forget a group and all that it knows; the records stay."""
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            for table in (
                *("positions", "leases", "parked", "waiting"),
                *("outcomes", "progress", "journal", "counters"),
            ):
                db.execute(SQL[f"drop_group_{table}"], (group.id,))
            db.execute(SQL["drop_group"], (group.id,))
            db.execute(SQL["open_all"])  # its leases may have had slots
            db.execute("COMMIT")

    def register(self, worker: Registration) -> int:
        """Enter a worker that starts; return its number, never used before."""
        with self._writer.lock, self._writer.writing() as db:
            bound = (*worker[:6], json.dumps(worker.info))
            return db.execute(SQL["add_worker"], bound).get  # type: ignore[no-any-return]

    def beat(self, worker: int, draining: bool, info: dict[str, Any], *, synced: bool) -> int | None:
        """Say that a worker lives, in one statement (H1); None where it has been declared dead.

        A synced beat also makes durable what others wrote without syncing (S4).
        """
        connection = self._writer if synced else self._state
        with connection.lock, connection.writing() as db:
            return db.execute(SQL["beat"], (worker, wall_clock(), draining, json.dumps(info))).get  # type: ignore[no-any-return]

    def drop_worker(self, worker: int) -> None:
        """Remove a worker that has ended and holds no lease."""
        with self._state.lock, self._state.writing() as db:
            db.execute(SQL["drop_worker"], (worker,))

    def workers(self) -> list[Worker]:
        """Return the workers registered."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["workers"]).fetchall()
        return [_worker(*row) for row in found]


def _stream(db: Any, row: Any) -> Stream:
    id, kind, app, name, settings, created = row
    logs = db.execute(SQL["logs"], (id,)).fetchall()
    return Stream(
        id, kind, app, name, tuple(log for log, _ in logs), json.loads(settings), created, lanes_of(logs)
    )


def _worker(*row: Any) -> Worker:
    id, app, name, host, boot, pid, beat, started, beaten, draining, info = row
    return Worker(id, app, name, host, boot, pid, beat, started, beaten, bool(draining), json.loads(info))


def _group(row: Any) -> Group:
    id, stream, app, name, kind, settings, generation, created = row
    return Group(id, stream, app, name, kind, json.loads(settings), generation, created)
