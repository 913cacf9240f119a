"""The schema: created where there is none, refused where it is newer."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors as pg

from ...errors import ConfigError, SchemaTooNew
from .reach import PostgresOptions
from .sql import quoted, schema_text

SCHEMA_VERSION = 1
_LOCK = 0x5263

Db = psycopg.Connection[Any]


def ensure_schema(db: Db, options: PostgresOptions) -> bool:
    """Create the schema where there is none; return whether it was. Raises SchemaTooNew, ConfigError."""
    if (version := stored_version(db, options.schema)) is None:
        try:
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK,))
                version = stored_version(db, options.schema)
                if version is None:
                    db.execute(schema_text(options.schema).encode())
                    return True
        except pg.InsufficientPrivilege as error:
            raise ConfigError(
                f"{options.shown} has no schema {options.schema}, and this role may not create it: "
                "have somebody run: respool migrate --url … (or: respool migrate --print, for the SQL)"
            ) from error
    assert version is not None
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{options.shown} was written by a newer Respool (schema {version}, "
            f"this one knows {SCHEMA_VERSION}): pip install -U respool"
        )
    return False


def stored_version(db: Db, schema: str) -> int | None:
    """Return the version of a schema, None where there is none."""
    name = quoted(schema)
    if db.execute("SELECT to_regclass(%s)", (f"{name}.version",)).fetchone() == (None,):
        return None
    row = db.execute(f"SELECT version FROM {name}.version".encode()).fetchone()
    return None if row is None else int(row[0])
