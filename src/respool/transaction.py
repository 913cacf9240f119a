"""Sending within the caller's own database transaction: a call exists if, and only if, that commits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .delivery.model import NewCall
from .engines.base import Engine
from .engines.columns import by_log
from .errors import ConfigError, Refused
from .producer import check_size, conflict_error
from .record import new_head
from .running import current_run


class Enlisted:
    """Appends on a connection of the caller's, in its transaction. Stands in for the producer.

    Nothing is synced here and nobody is waited for: the caller's commit does all of that. Workers are woken
    by the commit where the engine can do so, and else find the calls by polling.
    """

    def __init__(self, engine: Engine, connection: Any, max_record_size: int) -> None:
        self._engine, self._connection, self._max = engine, connection, max_record_size
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._over = False

    @classmethod
    def on(cls, engine: Engine, connection: Any, max_record_size: int) -> Enlisted:
        """Return what appends on a connection. Raises ConfigError for one that cannot be used."""
        if not engine.capabilities.enlists:
            raise ConfigError(f"{engine.capabilities.name} takes no calls within transactions of others")
        return cls(engine, engine.enlist(connection), max_record_size)

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """Give the connection; the block that it is lent for does not end meanwhile.

        Raises: Refused where that has ended: what was begun in it and outlives it, such as a thread, would
            go on writing after the caller's commit, where nobody commits any more (P1). So would a process
            that was forked in it.
        """
        if os.getpid() != self._process:  # it has no use of the lock, either
            raise _stray("another process's")
        with self._lock:
            if self._over:
                raise _stray("over")
            yield self._connection

    def end(self) -> None:
        """Give the connection back, when what is being sent on it has been."""
        with self._lock:
            self._over = True

    def append(self, row: NewCall) -> int | None:
        """Append one record. Raises Refused, and what the caller's own driver raises."""
        self.append_rows((row,))
        return None  # it is nowhere yet

    async def aappend(self, row: NewCall) -> None:
        """Append one record, at once: the caller's connection is not one of an event loop."""
        self.append(row)

    def append_rows(self, rows: Sequence[NewCall]) -> None:
        """Append records of one log, each with an id of its own."""
        for row in rows:
            self.check_size(row.body, row.meta)
        with self.in_use() as connection:
            conflicts = self._engine.append_enlisted(connection, rows)
        for conflict in conflicts:
            if not conflict.same:
                raise conflict_error(rows[conflict.row])

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs."""
        for some in by_log(rows).values():
            self.append_rows(some)

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, now: float
    ) -> bytes:
        """Append records that share everything but their bodies; return the id of the first."""
        head = new_head(now)
        with self.in_use() as connection:
            self._engine.append_run_enlisted(connection, log, task, bodies, meta, head, now)
        return head

    def check_size(self, body: bytes, meta: bytes | None) -> None:
        """Raise RecordTooLarge for a record over `max_record_size`."""
        check_size(body, meta, self._max)


def _stray(what: str) -> Refused:
    return Refused(
        f"this was begun in a block of app.transaction() that is {what}, and would go on its connection; "
        "nothing was sent. Wait for it within the block, or begin it outside"
    )


class Collector:
    """Takes what would be sent, and sends nothing: for runs that are to change nothing.

    Parameters:
        take: called with the records.
    """

    def __init__(self, take: Callable[[Sequence[NewCall]], Any]) -> None:
        self._take = take

    def append(self, row: NewCall) -> int | None:
        """Take one record."""
        self._take((row,))
        return None

    async def aappend(self, row: NewCall) -> None:
        """Take one record."""
        self._take((row,))

    def append_rows(self, rows: Sequence[NewCall]) -> None:
        """Take records of one log."""
        self._take(rows)

    append_many = append_rows

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, now: float
    ) -> bytes:
        """Take records that share everything but their bodies; return the id of the first."""
        head = new_head(now)
        self._take([NewCall(log, task, body, meta, head, now) for body in bodies])
        return head

    def check_size(self, body: bytes, meta: bytes | None) -> None:
        """Let all sizes pass."""


_enlisted: ContextVar[Mapping[Any, Enlisted] | None] = ContextVar("respool_transaction", default=None)


def enlisted(app: Any) -> Enlisted | None:
    """Return what an app's calls are sent by, where the present code is in a block of its `transaction`.

    None within a run that sends nothing: what is sent there is dropped or collected, whatever it is sent by.
    """
    found = _enlisted.get()
    sender = None if found is None else found.get(app)
    if sender is not None:
        run = current_run.get()
        if run is not None and not run.sends:
            return None
    return sender


@contextmanager
def enlist(app: Any, sender: Enlisted) -> Iterator[None]:
    """Have an app's calls sent within a transaction while the block runs, and none after it."""
    token = _enlisted.set({**(_enlisted.get() or {}), app: sender})
    try:
        yield
    finally:
        sender.end()
        _enlisted.reset(token)
