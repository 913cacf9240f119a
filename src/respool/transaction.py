"""Sending within the caller's own database transaction: a call exists if, and only if, that commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .delivery.model import NewCall
from .engines.base import Engine
from .engines.columns import by_log
from .errors import ConfigError
from .producer import check_size, conflict_error
from .record import new_head


class Enlisted:
    """Appends on a connection of the caller's, in its transaction. Stands in for the producer.

    Nothing is synced here and nobody is waited for: the caller's commit does all of that. Workers are woken
    by the commit where the engine can do so, and else find the calls by polling.
    """

    def __init__(self, engine: Engine, connection: Any, max_record_size: int) -> None:
        self._engine, self.connection, self._max = engine, connection, max_record_size

    @classmethod
    def on(cls, engine: Engine, connection: Any, max_record_size: int) -> Enlisted:
        """Return what appends on a connection. Raises ConfigError for one that cannot be used."""
        if not engine.capabilities.enlists:
            raise ConfigError(f"{engine.capabilities.name} takes no calls within transactions of others")
        return cls(engine, engine.enlist(connection), max_record_size)

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
        for conflict in self._engine.append_enlisted(self.connection, rows):
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
        self._engine.append_run_enlisted(self.connection, log, task, bodies, meta, head, now)
        return head

    def check_size(self, body: bytes, meta: bytes | None) -> None:
        """Raise RecordTooLarge for a record over `max_record_size`."""
        check_size(body, meta, self._max)


class Collector:
    """Takes what would be sent, and sends nothing: for runs that are to change nothing."""

    def __init__(self) -> None:
        self.rows: list[NewCall] = []

    def append(self, row: NewCall) -> int | None:
        """Take one record."""
        self.rows.append(row)
        return None

    async def aappend(self, row: NewCall) -> None:
        """Take one record."""
        self.rows.append(row)

    def append_rows(self, rows: Sequence[NewCall]) -> None:
        """Take records of one log."""
        self.rows += rows

    append_many = append_rows

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, now: float
    ) -> bytes:
        """Take records that share everything but their bodies; return the id of the first."""
        head = new_head(now)
        self.rows += [NewCall(log, task, body, meta, head, now) for body in bodies]
        return head

    def check_size(self, body: bytes, meta: bytes | None) -> None:
        """Let all sizes pass."""


_enlisted: ContextVar[tuple[Any, Enlisted] | None] = ContextVar("respool_transaction", default=None)


def enlisted(app: Any) -> Enlisted | None:
    """Return what an app's calls are sent by, where the present code is in a block of its `transaction`."""
    found = _enlisted.get()
    return found[1] if found is not None and found[0] is app else None


@contextmanager
def enlist(app: Any, sender: Enlisted) -> Iterator[None]:
    """Have an app's calls sent within a transaction while the block runs."""
    token = _enlisted.set((app, sender))
    try:
        yield
    finally:
        _enlisted.reset(token)
