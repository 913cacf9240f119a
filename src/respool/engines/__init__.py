"""Where logs and state are kept. `base` states the two seams; each engine fills them.

Code outside this package knows engines by `base.Engine` only. What a new engine needs: a class that fits it
(`open_engine` returns one, so mypy compares them) and an entry in `tests/engines/kits.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..location import Location, NothingThere
from ..record import Id

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Engine
    from .kafka.engine import KafkaEngine
    from .kafka.options import KafkaOptions
    from .lent import LendsState
    from .postgres.reach import PostgresOptions


def open_engine(location: Location, durability: str, timeout: float, *, make: bool = True) -> Engine:
    """Open the engine that a URL names, creating its tables where there are none, unless `make` is False.

    Raises: ConfigError where the engine's extra is not installed, or the server refuses us; NothingThere;
        EngineUnavailable where it cannot be reached.
    """
    if location.state is not None:
        return _open_kafka(location, location.state, durability, timeout, make)
    return _open_lender(location, durability, timeout, make)


def is_there(location: Location) -> bool:
    """Say whether there is a store at a URL, without making one. Raises as `open_engine`."""
    if location.state is not None:
        _kafka(location)  # what is not installed is said first
        return is_there(location.state)
    if location.server is None:
        return _file_is_there(location)
    options = _postgres_options(location, "full", 10.0)
    from .postgres.connection import Connection
    from .postgres.migrate import stored_version

    connection = Connection(options, "look")
    try:
        return connection.read(lambda db: stored_version(db, options)) is not None
    finally:
        connection.close()


def _file_is_there(location: Location) -> bool:
    return location.path is None or os.path.isfile(location.path)


def migrate(location: Location) -> bool:
    """Make the tables where there are none; return whether they were made. Raises as `open_engine`."""
    if location.state is not None:
        return migrate(location.state)
    if location.server is None:
        fresh = location.path is not None and not os.path.exists(location.path)
        open_engine(location, "full", 10.0).close()
        return fresh
    from .postgres.connection import Connection
    from .postgres.migrate import bring_up_to_date

    options = _postgres_options(location, "full", 10.0)
    connection = Connection(options, "migrate")
    try:
        return connection.read(lambda db: bring_up_to_date(db, options))
    finally:
        connection.close()


def grant(location: Location, role: str) -> None:
    """Give a role what it needs to send, and no more. Raises ConfigError where the engine knows no roles."""
    if location.server is None:
        raise ConfigError(f"{location.shown} has no roles: who may write to the file may do everything")
    from .postgres.connection import Connection
    from .postgres.migrate import grant as grant_to

    options = _postgres_options(location, "full", 10.0)
    connection = Connection(options, "migrate")
    try:
        connection.read(lambda db: grant_to(db, options, role))
    finally:
        connection.close()


def grants_of(location: Location, role: str) -> str:
    """Return the SQL that gives a role what it needs to send; the owner is whoever runs it."""
    if location.server is None:
        raise ConfigError(f"{location.shown} has no roles: who may write to the file may do everything")
    from .postgres.sql import grants_text

    return grants_text(location.options.get("schema", "respool"), role, "CURRENT_USER")


def schema_of(location: Location) -> str:
    """Return the SQL that makes the tables."""
    if location.state is not None:
        return schema_of(location.state)
    if location.server is None:
        from .sqlite.sql import schema

        return schema()
    from .postgres.sql import schema_text

    return schema_text(location.options.get("schema", "respool"))


def _open_sqlite(location: Location, durability: str, timeout: float, make: bool) -> LendsState:
    if not make and not _file_is_there(location):
        raise NothingThere(f"there is no database at {location.path}")
    from pathlib import Path

    from .sqlite.engine import SQLiteEngine, SQLiteOptions

    pragmas = {name: value for name, value in location.options.items() if name != "durability"}
    path = None if location.path is None else Path(location.path)
    return SQLiteEngine(SQLiteOptions(path, durability, timeout, pragmas))  # type: ignore[arg-type]


def _open_kafka(location: Location, state: Location, durability: str, timeout: float, make: bool) -> Engine:
    engine, options = _kafka(location)
    inner = _open_lender(state, state.options.get("durability", durability), timeout, make)
    return engine(options(location, timeout), inner)


def _kafka(location: Location) -> tuple[type[KafkaEngine], Callable[[Location, float], KafkaOptions]]:
    """Return what opens one. Raises ConfigError where the extra is not installed."""
    try:
        from .kafka.engine import KafkaEngine
        from .kafka.options import kafka_options
    except ImportError as error:
        raise ConfigError(
            f"{location.shown} needs confluent-kafka ({error}): pip install 'respool[kafka]'"
        ) from error
    return KafkaEngine, kafka_options


def _open_lender(location: Location, durability: str, timeout: float, make: bool) -> LendsState:
    if location.server is not None:
        return _open_postgres(location, durability, timeout, make)
    return _open_sqlite(location, durability, timeout, make)


def _open_postgres(location: Location, durability: str, timeout: float, make: bool) -> LendsState:
    options = _postgres_options(location, durability, timeout)
    from .postgres.engine import PostgresEngine

    return PostgresEngine(options, make)


def _postgres_options(location: Location, durability: str, timeout: float) -> PostgresOptions:
    assert location.server is not None
    try:
        from .postgres.reach import PostgresOptions
    except ImportError as error:
        raise ConfigError(
            f"{location.shown} needs psycopg ({error}): pip install 'respool[postgres]'"
        ) from error
    return PostgresOptions(
        location.server.value,
        location.shown,
        location.options.get("schema", "respool"),
        durability,
        timeout,
        {"on": True, "off": False}.get(location.options.get("prepare", "")),
    )


def stored_id(namespace: str, id: Id) -> Id:
    """Return how an id is stored: one given by a user is unique within its app or stream only."""
    return f"{namespace}\0{id}" if isinstance(id, str) else id


def public_id(id: Id) -> Id:
    """Return an id as it was given."""
    return id.partition("\0")[2] if isinstance(id, str) else id
