"""SQLite: log and state in one file, or in memory for tests."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import apsw

from ...delivery.model import NewCall
from ...errors import EngineUnavailable, RespoolError
from ..base import CAPABILITIES, Conflict, LeaseLost
from ..columns import append_in_parts, places_by_log
from ..waiters import LoopWaiter, ThreadWaiter, Waiters
from .bell_page import ALL, Kind, mask_of
from .blobs import SQLiteBlobs
from .connection import Connection, Doubt, gone, identity_of, moved_told
from .doorbell import Doorbell, Sleeper
from .enlist import checked
from .inspect import SQLiteInspect
from .lent import SQLiteLent
from .locks import SQLiteLocks
from .log import SQLiteLog, append_row, append_rows, append_run, append_run_alone
from .moving import SQLiteMoving
from .preparing import prepare
from .registry import SQLiteRegistry
from .retention import SQLiteRetention
from .state import SQLiteState
from .work import SQLiteWorks

log = logging.getLogger("respool.engine")
_memory_names = itertools.count()
WAL_SIZE = 16 << 20  # bytes: checkpointed by a worker beyond this, by a producer beyond twice as many
SHARDS = 16  # sleepers of those who wait, in each event loop and for all threads: each has three descriptors
COMMIT_SIZE = 8 << 10  # bytes that a record's commit writes at most, besides its body


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
    SQLiteRegistry,
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
        SQLiteRegistry.__init__(self)
        self._waiters = Waiters(lambda: self.bell.sleeper(Kind.WAITER), SHARDS)
        self._pid = os.getpid()
        self._patience = 0  # bytes that the log may have before the next try to copy it
        self._unseen = 0  # bytes that were written since it was last looked at, roughly
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
    def bell(self) -> Doorbell:  # type: ignore[override]
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

    def waiter(self, pos: int | None) -> AbstractContextManager[ThreadWaiter]:
        """Give a thread a waiter that is woken when the record, or any (None), may be finished."""
        return self._waiters.waiter(pos)

    def async_waiter(self, pos: int | None) -> AbstractContextManager[LoopWaiter]:
        """Give a coroutine a waiter that is woken when the record, or any (None), may be finished."""
        return self._waiters.async_waiter(pos)

    def sleeper(self, logs: Sequence[int], service: int, wake_fds: tuple[int, ...] = ()) -> Sleeper:
        """Return a sleeper that is woken when one of these logs has grown."""
        return self.bell.sleeper(Kind.WORKER, mask_of(logs), service, wake_fds)

    @property
    def breaks(self) -> int:
        """Always 0: nothing is lost but with the machine, and all that ran on it."""
        return 0

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
        self._waiters.close()
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
        with self._writer.writing_in_turn() as db:
            append_run_alone(db, log, task, bodies, meta, head, now)
        self.tidy(2 * WAL_SIZE)
        self.ring(log, everyone=len(bodies) > 1)

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        writer = self._writer
        with writer.lock, writer.writing() as db:
            done = append_row(db, row)
        self._unseen += len(row.body) + COMMIT_SIZE
        if self._unseen > WAL_SIZE // 16:
            self.tidy(2 * WAL_SIZE)
        self.ring(row.log, everyone=row.key is not None)  # one of them holds its partition, maybe
        return done

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own."""
        lost = False
        with self._writer.writing_in_turn() as db:
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

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs, log by log: each statement is synced, and the lock is free between."""
        append_in_parts(rows, places_by_log(rows), self.append_rows)

    def tidy(self, size: int = WAL_SIZE) -> None:
        """Checkpoint the write-ahead log where it has more than so many bytes.

        Workers do it off the hot path. A producer does it only where the log is twice as long, that is
        where no worker does. Nothing is lost where it fails: the log stays, and the next one is tried
        after the next commit. Whoever appended must not hear of it, for that has succeeded (H20).
        """
        self._unseen = 0
        if self.options.path is None:
            return
        longest, done = self._patience, False
        try:
            longest = self._writer.log_size()
            if longest <= max(size, self._patience):
                return
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
