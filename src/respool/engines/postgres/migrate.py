"""The schema: created where there is none, refused where it is newer."""

from __future__ import annotations

from psycopg import errors as pg

from ...errors import ConfigError, SchemaTooNew
from ...location import NothingThere
from .connection import Db
from .reach import PostgresOptions
from .sql import grants_text, indexes, quoted, schema_text

SCHEMA_VERSION = 1
_LOCK = 0x5263


def bring_up_to_date(db: Db, options: PostgresOptions) -> bool:
    """Create the schema, or the indexes it lacks: some are younger than the first schemas.

    What is there is not touched, or appends would wait behind it (G6).

    Returns: whether the schema was created. Raises as `ensure_schema`.
    """
    made = ensure_schema(db, options)
    if not made:
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK,))
            found = db.execute(
                "SELECT relname FROM pg_class "
                "WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('i', 'I')",
                (quoted(options.schema),),
            )
            there = {name for (name,) in found}
            for name, statement in indexes(options.schema).items():
                if name not in there:
                    db.execute(statement.encode())
    return made


def ensure_schema(db: Db, options: PostgresOptions, make: bool = True) -> bool:
    """Create the schema where there is none, or with `make=False` raise NothingThere; return whether it was.

    Raises: SchemaTooNew, ConfigError.
    """
    if (version := stored_version(db, options)) is None:
        if not make:
            raise NothingThere(f"{options.shown} has no schema {options.schema} yet")
        try:
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK,))
                version = stored_version(db, options)
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
    if version < SCHEMA_VERSION:
        raise ConfigError(
            f"{options.shown} was written by an older Respool (schema {version}, this one needs "
            f"{SCHEMA_VERSION}): run: respool migrate"
        )
    return False


def stored_version(db: Db, options: PostgresOptions) -> int | None:
    """Return the version of a schema, None where there is none. Raises ConfigError without rights to it."""
    name = quoted(options.schema)
    found = db.execute(
        "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s", (options.schema,)
    ).fetchone()
    if found is None:
        return None
    if not found[0]:
        raise ConfigError(
            f"{options.shown}: this role may not use the schema {options.schema}; the schema's owner gives "
            "it what it needs to send: respool migrate --producer ROLE; a worker's role is a member of it"
        )
    if db.execute("SELECT to_regclass(%s)", (f"{name}.version",)).fetchone() == (None,):
        return None
    row = db.execute(f"SELECT version FROM {name}.version".encode()).fetchone()
    return None if row is None else int(row[0])


def grant(db: Db, options: PostgresOptions, role: str) -> None:
    """Give a role what it needs to send. Raises ConfigError where there is no schema, or no such role."""
    if stored_version(db, options) is None:
        raise ConfigError(f"{options.shown} has no schema {options.schema} yet: run: respool migrate")
    row = db.execute(
        "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = %s", (options.schema,)
    ).fetchone()
    assert row is not None
    try:
        with db.transaction():
            db.execute(grants_text(options.schema, role, row[0]).encode())
    except pg.UndefinedObject as error:
        raise ConfigError(
            f"{options.shown}: {str(error).splitlines()[0]}; create it: CREATE ROLE … LOGIN"
        ) from error
