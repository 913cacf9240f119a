"""Connections of the caller's own, for appends within their transactions."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import ConfigError
from .reach import PostgresOptions
from .sql import quoted


def unwrapped(connection: Any) -> psycopg.Connection[Any]:
    """Return psycopg's connection from what SQLAlchemy or Django wrap around it. Raises ConfigError."""
    found = connection
    if hasattr(found, "ensure_connection"):  # Django's, which connects when it is used
        found.ensure_connection()
        found = found.connection
    elif hasattr(found, "get_bind") and hasattr(found, "connection"):  # SQLAlchemy's Session
        found = found.connection()
    if hasattr(found, "exec_driver_sql") and not found.in_transaction():
        found.exec_driver_sql("SELECT 1")  # else its commit would know of no transaction, and do nothing
    for name in ("connection", "driver_connection"):  # SQLAlchemy's Connection, its pool's, the driver's
        if not isinstance(found, psycopg.Connection) and hasattr(found, name):
            found = getattr(found, name)
    if isinstance(found, psycopg.Connection):
        return found
    raise ConfigError(
        f"{type(connection).__module__}.{type(connection).__name__} has no connection of psycopg 3: "
        "give one of psycopg's, SQLAlchemy's (postgresql+psycopg://) or Django's, not an asynchronous one"
    )


class Plain:
    """A connection of the caller's, used with cursors of our own: theirs may return whatever they like."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: bytes, bound: Any = (), *, binary: bool = False) -> psycopg.Cursor[Any]:
        """Run a statement, as `psycopg.Connection.execute` does."""
        return psycopg.Cursor(self._connection, row_factory=tuple_row).execute(
            statement, bound, binary=binary
        )


def checked(connection: Any, options: PostgresOptions, store: str) -> Plain:
    """Return the connection, if it is in a transaction of the database that the log is in."""
    inner = unwrapped(connection)
    db = Plain(inner)
    if inner.autocommit and inner.info.transaction_status == TransactionStatus.IDLE:
        raise ConfigError("the connection is in no transaction, and commits by itself: begin one first")
    version = f"{quoted(options.schema)}.version"
    known = db.execute(b"SELECT to_regclass(%s) IS NOT NULL", (version,)).fetchone()
    if (
        known
        and known[0]
        and db.execute(f"SELECT store::text FROM {version}".encode()).fetchone() == (store,)
    ):
        return db
    raise ConfigError(
        f"the connection is of another database than the log, {options.shown}: "
        "a transaction can hold both only in one"
    )
