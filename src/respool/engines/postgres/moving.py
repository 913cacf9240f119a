"""Moving a store away, or taking one in: see `engines/moving.py`. Triggers keep to the mark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from ...delivery.model import Lease
from ...delivery.spans import Span, ranges_of
from ...errors import ConfigError, EngineError, EngineUnavailable, LogMoved
from ...record import OFFSET_BITS, first_pos
from ..inspect import Bounds
from ..moving import (
    INCOMING,
    NUMBERED,
    WRITABLE,
    BlobRow,
    LogPlace,
    Mark,
    RawRecord,
    StateTable,
    arranged,
    same_payload,
    told,
)
from ..things import Group, Stream
from .connection import Db, connect, one
from .groups import forget_group
from .ids import id_bytes, id_from
from .part import Part
from .partitions import (
    SIZE,
    TABLES,
    add,
    create_log,
    detach_record,
    partition_of,
    partitions_below,
    table_name,
)
from .sql import quoted

T = TypeVar("T")
PATIENCE = "300ms"  # that a table's lock is waited for, with all appends behind it; then it is tried again
_TRIGGER = "CREATE OR REPLACE TRIGGER respool_moved BEFORE"
_BOOL = 16  # the type's number in PostgreSQL's catalogue
_RECORD = ("int8", "text", "bytea", "bytea", "int4", "bytea", "int8", "int4")
_BLOB = ("bytea", "int8", "int8", "float8")
_IDS = ("bytea", "int8", "int8")
_pack = msgspec.msgpack.Encoder().encode


class PostgresMoving(Part):
    """One transaction a page. Where a connection breaks it is sent again: `Mark.at` tells if it is there."""

    leases: Callable[[Group], list[Lease]]

    @property
    def shown(self) -> str:
        """The URL, for people."""
        return self.options.shown

    def mark(self) -> Mark | None:
        """Return the mark, None where the store takes part in no transfer."""
        return self._reader.read(lambda db: read_mark(db, self._sql))

    def set_mark(self, mark: Mark | None) -> None:
        """Store a mark, with the triggers that keep to it."""
        deadline = time.monotonic() + self.options.timeout
        while True:
            try:
                return self._writer.append(lambda db: self._put_with_triggers(db, mark))
            except (_Held, EngineUnavailable) as error:
                if time.monotonic() > deadline:
                    raise EngineUnavailable(
                        f"{self.shown}: a transaction that has sent calls, or looks at the tables, has been "
                        f"open for more than {self.options.timeout:g} s; end it, and try again"
                    ) from error

    def _put_with_triggers(self, db: Db, mark: Mark | None) -> None:
        schema = quoted(self.options.schema)
        try:
            with db.transaction():
                db.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'".encode())
                tables = [] if mark is None else self._barred(db, mark)
                if tables:  # whoever has appended has committed then, and nobody can before we have
                    names = ", ".join(f"{schema}.{quoted(table)}" for table in tables)
                    db.execute(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE".encode())
                    if db.execute(self._sql["is_leased"]).fetchone() == (True,):
                        raise EngineError("a worker has leases: nothing is closed while it runs")
                for (table,) in db.execute(self._sql["own_triggers"], (schema,)).fetchall():
                    # Not dropped: that would wait for whoever has as much as read the table.
                    db.execute(f"ALTER TABLE {schema}.{quoted(table)} DISABLE TRIGGER respool_moved".encode())
                db.execute(self._sql["drop_mark"])
                if mark is None:
                    return
                _put_mark(db, self._sql, mark)
                text = psycopg.sql.Literal(told(mark, self.shown)).as_string(db)
                if mark.phase == "draining":
                    what = f"INSERT ON {schema}.lease FOR EACH ROW WHEN (NEW.owner > 0)"
                    db.execute(f"{_TRIGGER} {what} EXECUTE FUNCTION {schema}.refuse_claim({text})".encode())
                for table in tables:
                    events = "INSERT OR UPDATE" + ("" if table == "cursor" else " OR DELETE")
                    what = f"{events} ON {schema}.{quoted(table)} FOR EACH STATEMENT"
                    db.execute(f"{_TRIGGER} {what} EXECUTE FUNCTION {schema}.refuse_moved({text})".encode())
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            raise _Held from error

    def _barred(self, db: Db, mark: Mark) -> list[str]:
        """Return the tables that nobody may write to any more; first those that others wait for."""
        if mark.phase not in ("closed", "moved"):
            return ["record"] if mark.sealed else []
        found = db.execute(self._sql["own_tables"], (quoted(self.options.schema),)).fetchall()
        names = sorted(name for (name,) in found if name not in WRITABLE and not name.endswith("_rest"))
        return sorted(names, key=lambda name: name not in ("record", "ids"))

    # Of the source

    def log_places(self, stream: Stream) -> list[LogPlace]:
        """Return the logs of a stream, in the stream's order."""
        return self._reader.read(
            lambda db: [LogPlace(*row) for row in db.execute(self._sql["log_places"], (stream.id,))]
        )

    def raw_records(self, lo: int, hi: int, limit: int, size: int) -> list[RawRecord]:
        """Return the first records at lo <= p < hi as they are kept."""
        bound = {"lo": lo, "hi": hi, "limit": limit, "size": size}
        found = self._reader.read(
            lambda db: db.execute(self._sql["raw_records"], bound, binary=True).fetchall()
        )
        return [
            RawRecord(pos, task, body, meta, seq, id_from(head), micros)
            for pos, task, body, meta, seq, head, micros in found
        ]

    def leases_to_move(self, group: Group) -> list[Lease]:
        """Return a group's leases, and one of what came late in its gaps: nothing can come any more."""
        late = self._reader.read(lambda db: db.execute(self._sql["came_late"], (group.id,)).fetchall())
        leases = self.leases(group)
        if late:
            spans = [Span(lo, hi) for lo, hi in ranges_of(pos for (pos,) in late)]
            leases.append(Lease(0, None, 0, spans, {}, time.time()))
        return leases

    def state_rows(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        """Return rows with a key past `after`, in the order of keys."""
        key, columns = ", ".join(table.key), ", ".join(table.columns)
        past = f"AND ({key}) > ({', '.join(['%s'] * len(table.key))})" if after is not None else ""
        sized = " + ".join(["100", *(f"octet_length(coalesce({column}, ''))" for column in table.sized)])
        statement = (
            f"SELECT {columns} FROM (SELECT {columns}, sum({sized}) "
            f"OVER (ORDER BY {key} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_it FROM ("
            f"SELECT {columns} FROM {quoted(self.options.schema)}.{table.name} WHERE grp = %s {past} "
            f"ORDER BY {key} LIMIT %s) AS next) AS sized WHERE before_it IS NULL OR before_it < %s "
            f"ORDER BY {key}"
        ).encode()
        bound = (group, *(after or ()), limit, size)
        return self._reader.read(lambda db: db.execute(statement, bound, binary=True).fetchall())

    def numbers_given(self) -> dict[str, int]:
        """Return the highest numbers that were given out."""
        return self._reader.read(
            lambda db: {
                name: int(one(db, self._sql["number_given"], (self._table(name),))) for name in NUMBERED
            }
        )

    def blob_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[BlobRow]:
        """Return the payloads past (digest, stamp)."""
        bound = (*(after or (b"", 0)), limit)
        found = self._reader.read(
            lambda db: db.execute(self._sql["blob_rows"], bound, binary=True).fetchall()
        )
        return [BlobRow(*row) for row in found]

    # Of the target

    def _table(self, name: str) -> str:
        return f"{quoted(self.options.schema)}.{name}"

    def _take(self, mark: Mark, take: Callable[[Db], T]) -> T | None:
        """Run what takes a page, unless it is there: then return None."""

        def once(db: Db) -> T | None:
            with db.transaction():
                stored = read_mark(db, self._sql)
                if stored is None or stored.id != mark.id:
                    raise EngineError(f"{self.shown} takes part in no such transfer any more")
                if stored.at == mark.at:
                    return None
                return take(db)

        return self._writer.append(once)

    def take_stream(self, mark: Mark, stream: Stream, places: Sequence[LogPlace]) -> Mark:
        """Create an incoming stream; return the mark with its numbers."""
        schema = self.options.schema

        def take(db: Db) -> Mark:
            ours = self._number(db, mark, "stream", stream.id)
            bound: tuple[Any, ...] = (
                ours,
                stream.kind,
                INCOMING + stream.app,
                stream.name,
                Jsonb(stream.settings),
                stream.created,
            )
            db.execute(self._sql["take_stream"], bound)
            logs = {}
            for place in places:
                log = logs[place.log] = self._number(db, mark, "log", place.log)
                by = (log - place.log) << OFFSET_BITS
                bound = (log, ours, place.priority, place.partition, place.floor + by)
                db.execute(self._sql["take_log"], bound)
                create_log(db, schema, log)
                given = {"sequence": f"{quoted(schema)}.log_{log}", "first": first_pos(log)}
                db.execute(self._sql["set_next"], {**given, "next": place.end + by})
                for start in range(partition_of(place.floor + by), place.end + by + 1, SIZE):
                    add(db, schema, start)
            kept = mark.with_names(streams={stream.id: ours}, logs=logs)
            _put_mark(db, self._sql, kept)
            return kept

        return self._take(mark, take) or self._stored()

    def take_group(
        self, mark: Mark, stream: int, group: Group, bounds: Sequence[Bounds], leases: Sequence[Lease]
    ) -> Mark:
        """Create a group of an incoming stream; return the mark with its number."""

        def take(db: Db) -> Mark:
            id = self._number(db, mark, "grp", group.id)
            settings = Jsonb(group.settings)
            bound: tuple[Any, ...] = (
                id,
                stream,
                group.app,
                group.name,
                group.kind,
                settings,
                group.generation,
                group.created,
            )
            db.execute(self._sql["take_group"], bound)
            for at in bounds:
                db.execute(self._sql["add_position"], (id, at.start, at.stop, at.log))
                db.execute(self._sql["add_cursor"], (id, at.log, at.cursor))
            for lease in leases:
                number = one(db, self._sql["next_number"], (self._table("worker"),))  # no worker's
                bodies = _pack(lease.bodies) if lease.bodies else None
                whose = (number << OFFSET_BITS, id, None, 0)
                kept_as = (*whose, _pack(lease.spans), bodies, lease.since, None, lease.keys or None)
                db.execute(self._sql["put_lease"], kept_as)
            kept = mark.with_names(groups={group.id: id})
            _put_mark(db, self._sql, kept)
            return kept

        return self._take(mark, take) or self._stored()

    def _stored(self) -> Mark:
        mark = self.mark()
        assert mark is not None
        return mark

    def _number(self, db: Db, mark: Mark, table: str, theirs: int) -> int:
        """Return which number something gets."""
        name = self._table(table)
        if not mark.same_numbers:
            return int(one(db, self._sql["next_number"], (name,)))
        db.execute(self._sql["give_no_number"], {"table": name, "number": theirs})
        return theirs

    def take_records(self, mark: Mark, log: int, rows: Sequence[RawRecord]) -> list[int]:
        """Append records at their positions: copied, each run with one entry among the ids."""

        def take(db: Db) -> None:
            floor = int(one(db, self._sql["floor"], (log,)))
            records, kept, ids = _as_kept(rows, floor)
            try:
                _copy(db, self._sql["take_ids"], _IDS, ids)
                _copy(db, self._sql["take_records"], _RECORD, records)
                _copy(db, self._sql["take_kept"], _RECORD, kept)
            except pg.UniqueViolation as error:
                said = error.diag.message_detail or str(error)
                raise ConfigError(f"an id of the source is taken in {self.shown}: {said}") from error
            _put_at(db, self._sql, mark)

        self._take(mark, take)
        return [row.pos for row in rows]

    def take_state(self, mark: Mark, table: StateTable, group: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add what a group knows: copied."""

        def take(db: Db) -> None:
            name = f"{quoted(self.options.schema)}.{table.name}"
            known = dict(db.execute(self._sql["column_types"], (name,)).fetchall())
            columns = ("grp", *table.columns)
            types = [known[column] for column in columns]
            flags = [at for at, type in enumerate(types) if type == _BOOL]
            statement = f"COPY {name} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)".encode()
            _copy(db, statement, types, ((group, *row) for row in rows), flags)
            _put_at(db, self._sql, mark)

        self._take(mark, take)

    def take_blobs(self, mark: Mark, rows: Sequence[BlobRow]) -> None:
        """Enter large payloads."""

        def take(db: Db) -> None:
            try:
                _copy(db, self._sql["take_blobs"], _BLOB, rows)
            except pg.UniqueViolation as error:
                raise same_payload(self.shown) from error
            _put_at(db, self._sql, mark)

        self._take(mark, take)

    def take_worker_number(self, number: int) -> None:
        """Give out no worker's number up to this one."""
        if number:
            bound = {"table": self._table("worker"), "number": number}
            self._writer.append(lambda db: db.execute(self._sql["give_no_number"], bound))

    def give_names(self, mark: Mark) -> None:
        """Give the incoming streams their names, and drop the mark."""

        def give(db: Db) -> None:
            try:
                with db.transaction():
                    db.execute(self._sql["give_names"], {"incoming": INCOMING})
                    db.execute(self._sql["drop_mark"])
            except pg.UniqueViolation as error:
                said = error.diag.message_detail or str(error)
                raise ConfigError(
                    f"a stream of the same name was made in {self.shown} meanwhile: {said}"
                ) from error

        self._writer.append(give)

    def discard(self, stream: Stream, limit: int) -> bool:
        """Remove a stream with all that is known of it, in steps: first ids, then partitions."""
        for log in stream.logs:
            ends = first_pos(log), first_pos(log + 1)
            if self._discard_ids(*ends, limit):
                return True
            if self._drop_partitions(log):
                return True
        self._writer.append(lambda db: self._drop_stream(db, stream))
        return False

    def _discard_ids(self, lo: int, hi: int, limit: int) -> int:
        return self._writer.append(lambda db: db.execute(self._sql["discard_ids"], (lo, hi, limit)).rowcount)

    def _drop_partitions(self, log: int) -> bool:
        """Drop the log's first partition; False where there is none."""
        schema = self.options.schema
        found = self._reader.read(lambda db: partitions_below(db, schema, first_pos(log + 1) - 1))
        if not found:
            return False
        start = found[0]
        with connect(self.options, "transfer", reached=True) as other:  # one that can be told to stop
            if not detach_record(other, schema, start):
                raise EngineUnavailable(f"{self.shown}: an open transaction holds up its removal; try again")

        def drop(db: Db) -> None:
            names = [f"{quoted(schema)}.{table_name(table, start)}" for table in TABLES]
            db.execute(f"DROP TABLE IF EXISTS {', '.join(names)}".encode())

        self._writer.append(drop)
        return True

    def _drop_stream(self, db: Db, stream: Stream) -> None:
        sql = self._sql
        with db.transaction():
            groups = [row[0] for row in db.execute(sql["groups"]).fetchall() if row[1] == stream.id]
            for group in groups:
                forget_group(db, sql, group)
            for log in stream.logs:
                ends = first_pos(log), first_pos(log + 1)
                db.execute(sql["discard_kept"], ends)
                db.execute(sql["discard_references"], ends)
                db.execute(sql["discard_rest"], {"lo": ends[0], "hi": ends[1]})
                db.execute(f"DROP SEQUENCE IF EXISTS {quoted(self.options.schema)}.log_{log}".encode())
            db.execute(sql["drop_logs"], (stream.id,))
            db.execute(sql["drop_stream"], (stream.id,))


class _Held(Exception):
    """Somebody holds a table for longer than all others may be kept waiting."""


def read_mark(db: Db, sql: dict[str, bytes]) -> Mark | None:
    """Return the store's mark."""
    row = db.execute(sql["mark"]).fetchone()
    if row is None:
        return None
    mark = msgspec.json.decode(row[0], type=Mark)
    return msgspec.structs.replace(mark, at=tuple(msgspec.json.decode(row[1])))


def refuse_incoming(db: Db, sql: dict[str, bytes], shown: str, kind: str, app: str, name: str) -> None:
    """Raise LogMoved where a stream that is to be made is just being filled by a transfer."""
    mark = read_mark(db, sql)
    if mark is not None and one(db, sql["incoming"], (kind, INCOMING + app, name)):
        raise LogMoved(told(mark, shown))


def _put_mark(db: Db, sql: dict[str, bytes], mark: Mark) -> None:
    encode = msgspec.json.encode
    text = encode(msgspec.structs.replace(mark, at=())).decode()
    db.execute(sql["put_mark"], (text, encode(mark.at).decode()))


def _put_at(db: Db, sql: dict[str, bytes], mark: Mark) -> None:
    db.execute(sql["put_mark_at"], (msgspec.json.encode(mark.at).decode(),))


def _as_kept(
    rows: Sequence[RawRecord], floor: int
) -> tuple[list[Any], list[Any], list[tuple[bytes, int, int]]]:
    """Return rows of `record`, of `kept` (what is parked below the floor), and of `ids`."""
    records: list[Any] = []
    kept: list[Any] = []
    runs: list[tuple[bytes, int, int]] = []
    stored = b""
    for row, head, seq in arranged(rows, floor):
        if not seq:
            stored = id_bytes(head)
            runs.append((stored, row.pos, row.pos))
        else:
            runs[-1] = (stored, runs[-1][1], row.pos)
        where = records if row.pos >= floor else kept
        where.append((row.pos, row.task, row.body, row.meta, seq, stored, row.micros, row.key))
    return records, kept, runs


def _copy(
    db: Db, statement: bytes, types: Sequence[Any], rows: Iterable[Sequence[Any]], flags: Sequence[int] = ()
) -> None:
    with db.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            if flags:
                row = [bool(value) if at in flags else value for at, value in enumerate(row)]
            copy.write_row(row)
