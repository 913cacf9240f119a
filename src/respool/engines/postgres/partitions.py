"""The partitions that records, outcomes and journal lie in, by position (G6).

A partition covers 2**20 offsets of one log. It is created on its own and then attached: `CREATE … PARTITION
OF` would wait for every open transaction that has appended, and all appends would wait behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from psycopg import errors as pg

from ...delivery.model import MAX_LEASE
from ...record import OFFSET_BITS, first_pos
from .connection import Bounded, Db
from .sql import quoted

PARTITION_BITS = 20
SIZE = 1 << PARTITION_BITS
TABLES = ("record", "outcome", "journal")
_KEYS = {"record": "pos", "outcome": "pos", "journal": "lo"}
PATIENCE = 0.2  # seconds that a partition is waited for
LOCK_PATIENCE = "200ms"  # that a lock is waited for by which others would wait
_LOCK = 0x5270  # of whoever makes partitions


def partition_of(pos: int) -> int:
    """Return the first position of the partition that a position lies in."""
    return pos & ~(SIZE - 1)


def table_name(table: str, start: int) -> str:
    """Return the name of the partition that begins at a position."""
    log, offset = start >> OFFSET_BITS, start & (1 << OFFSET_BITS) - 1
    return f"{table}_{log}_{offset >> PARTITION_BITS}"


def create_log(db: Db, schema: str, log: int) -> None:
    """Make the sequence and the first partition of a new log, in the caller's transaction."""
    as_owner(db, schema)
    prefix, first = quoted(schema), first_pos(log)
    db.execute(f"CREATE SEQUENCE {prefix}.log_{log} MINVALUE {first} START {first} CACHE 1".encode())
    add(db, schema, first)


def as_owner(db: Db, schema: str) -> None:
    """Let what this transaction makes be the schema's owner's, for whom workers work as members."""
    row = db.execute(
        "SELECT relowner::regrole::text FROM pg_class WHERE oid = to_regclass(%s) "
        "AND relowner <> current_user::regrole AND pg_has_role(relowner, 'MEMBER')",
        (f"{quoted(schema)}.record",),
    ).fetchone()
    if row is not None:
        db.execute(f"SET LOCAL ROLE {row[0]}".encode())


def add(db: Db, schema: str, start: int) -> bool:
    """Make the partition that begins at a position, unless it is there; in the caller's transaction."""
    prefix = quoted(schema)
    db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, start >> OFFSET_BITS))
    if db.execute("SELECT to_regclass(%s)", (f"{prefix}.{table_name('record', start)}",)).fetchone() != (
        None,
    ):
        return False
    as_owner(db, schema)
    _attach(db, prefix, "record", start)
    try:
        with db.transaction():
            db.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'".encode())
            for table in ("outcome", "journal"):
                _attach(db, prefix, table, start)
    except (pg.LockNotAvailable, pg.CheckViolation):
        return True  # their rows lie in the partition for the rest, which somebody reads for long (a backup)
    return True


def _attach(db: Db, prefix: str, table: str, start: int) -> None:
    name, key = f"{prefix}.{table_name(table, start)}", _KEYS[table]
    bounds = f"{key} >= {start} AND {key} < {start + SIZE}"
    # The check lets it be attached without a look at its rows.
    db.execute(
        f"CREATE TABLE {name} (LIKE {prefix}.{table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS, "
        f"CONSTRAINT bounds CHECK ({bounds}))".encode()
    )
    values = f"FROM ({start}) TO ({start + SIZE})"
    db.execute(f"ALTER TABLE {prefix}.{table} ATTACH PARTITION {name} FOR VALUES {values}".encode())
    db.execute(f"ALTER TABLE {name} DROP CONSTRAINT bounds".encode())


def those_there(db: Db, schema: str, starts: Collection[int]) -> set[int]:
    """Return those of the partitions, by their first positions, that exist. Waits for nobody."""
    names = {f"{quoted(schema)}.{table_name('record', start)}": start for start in starts}
    found = db.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL", (list(names),)
    )
    return {names[name] for (name,) in found.fetchall()}


def next_number(db: Db, schema: str, log: int) -> int:
    """Return the number that a log's sequence gives out next."""
    row = db.execute(f"SELECT last_value, is_called FROM {quoted(schema)}.log_{log}".encode()).fetchone()
    assert row is not None
    return int(row[0]) + int(row[1])


def partitions_below(db: Db, schema: str, pos: int) -> list[int]:
    """Return the first positions of the partitions that begin below a position of the same log, in order.

    By their tables: one that is detached already is still to be dropped.
    """
    found = db.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' "
        "AND relname ~ %s",
        (quoted(schema), f"^record_{pos >> OFFSET_BITS}_[0-9]+$"),
    ).fetchall()
    return [start for start in sorted(_start_of(name) for (name,) in found) if start < pos]


def _start_of(name: str) -> int:
    log, number = name.split("_")[1:]
    return first_pos(int(log)) + (int(number) << PARTITION_BITS)


def detach_record(db: Db, schema: str, start: int) -> bool:
    """Take a partition out of `record`; False where a transaction that is open for long holds it up.

    Concurrently, and given up after a while: nobody who appends waits behind it, nor does the caller. It is
    out of sight once that has begun; what is left then is to finish it, another time, and before any other.
    """
    table = f"{quoted(schema)}.record"
    for name, pending in db.execute(
        "SELECT inhrelid::regclass::text, inhdetachpending FROM pg_inherits "
        "WHERE inhparent = to_regclass(%s) AND (inhdetachpending OR inhrelid = to_regclass(%s)) "
        "ORDER BY inhdetachpending DESC",
        (table, f"{quoted(schema)}.{table_name('record', start)}"),
    ).fetchall():
        how = "FINALIZE" if pending else "CONCURRENTLY"
        given_up = threading.Timer(PATIENCE, db.cancel_safe)
        given_up.start()
        try:
            db.execute(f"ALTER TABLE {table} DETACH PARTITION {name} {how}".encode())
        except pg.QueryCanceled:
            return False
        except (pg.ObjectInUse, pg.ObjectNotInPrerequisiteState, pg.UndefinedTable):
            return False  # another worker is at it, or was faster
        finally:
            given_up.cancel()
    return True


def has_own(db: Db, schema: str, table: str, start: int) -> bool:
    """Say whether a table has the partition that begins at a position: else its rows lie with the rest."""
    name = f"{quoted(schema)}.{table_name(table, start)}"
    return db.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone() == (True,)


def drop(db: Bounded, schema: str, start: int, sql: dict[str, bytes]) -> None:
    """Drop the partition that begins at a position, once its records are detached.

    What is parked there was moved aside before (H15). Raises LockNotAvailable where outcomes or journal,
    which only workers write, are in use for long. The server gives up when we do, and lets go of its locks.
    """
    prefix, end = quoted(schema), start + SIZE
    names = [f"{prefix}.{table_name('record', start)}"]
    with db.transaction():
        db.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'".encode())
        db.execute(f"SET LOCAL statement_timeout = '{int(db.patience * 1000)}ms'".encode())
        for table, keep in (("outcome", "keep_outcomes"), ("journal", "keep_journal")):
            if has_own(db, schema, table, start):
                names.append(f"{prefix}.{table_name(table, start)}")
                db.execute(f"ALTER TABLE {prefix}.{table} DETACH PARTITION {names[-1]}".encode())
                kept = sql[keep].replace(b"respool_detached", names[-1].encode())
                db.execute(kept, {"lo": start, "hi": end, "low": end - MAX_LEASE})
        db.execute(sql["trim_journal"], {"first": first_pos(start >> OFFSET_BITS), "end": end})
        db.execute(f"DROP TABLE {', '.join(names)}".encode())
