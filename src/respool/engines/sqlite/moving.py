"""Moving a store away, or taking one in: see `engines/moving.py`. Triggers keep to the mark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apsw
import msgspec

from ...delivery.model import Lease
from ...errors import ConfigError, EngineError, LogMoved
from ...location import file_url
from ...record import OFFSET_BITS, first_pos
from ..inspect import Bounds
from ..moving import (
    INCOMING,
    NUMBERED,
    STATE_TABLES,
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
from .log import head_seq
from .part import Part
from .sql import SQL

_MICRO = 1_000_000
_pack = msgspec.msgpack.Encoder().encode
_CLAIM = """CREATE TRIGGER moved_claim BEFORE INSERT ON lease
WHEN new.owner > 0 AND NOT EXISTS (SELECT 1 FROM lease WHERE id = new.id)
BEGIN SELECT RAISE(ABORT, {told}); END"""
_SEAL = "CREATE TRIGGER moved_seal BEFORE INSERT ON record BEGIN SELECT RAISE(ABORT, {told}); END"


class SQLiteMoving(Part):
    """One statement or one short transaction a page."""

    target: str
    options: Any

    def mark(self) -> Mark | None:
        """Return the mark, None where the store takes part in no transfer."""
        with self._reader.lock, self._reader.reading() as db:
            return read_mark(db)

    @property
    def shown(self) -> str:
        """The URL, for people."""
        return file_url(self.options.path)

    def set_mark(self, mark: Mark | None) -> None:
        """Store a mark, with the triggers that keep to it."""

        def change(db: apsw.Connection) -> None:
            for (name,) in db.execute(SQL["own_triggers"]).fetchall():
                db.execute(f"DROP TRIGGER {name}")
            db.execute(SQL["drop_mark"])
            if mark is None:
                return
            _put_mark(db, mark)
            text = apsw.format_sql_value(told(mark, self.shown))
            if mark.phase == "draining":
                db.execute(_CLAIM.format(told=text))
                if mark.sealed:
                    db.execute(_SEAL.format(told=text))
            elif mark.is_source:
                if db.execute(SQL["is_leased"]).get:
                    raise EngineError("a worker has leases: nothing is closed while it runs")
                for (table,) in db.execute(SQL["own_tables"]).fetchall():
                    if table not in WRITABLE:
                        for event in ("INSERT", "UPDATE", "DELETE"):
                            db.execute(
                                f"CREATE TRIGGER moved_{table}_{event} BEFORE {event} ON {table} "
                                f"BEGIN SELECT RAISE(ABORT, {text}); END"
                            )

        self._change(change)

    def _change(self, change: Callable[[apsw.Connection], Any]) -> Any:
        with self._writer.lock, self._writer.writing() as db:
            db.execute("BEGIN IMMEDIATE")
            done = change(db)
            db.execute("COMMIT")
        return done

    # Of the source

    def log_places(self, stream: Stream) -> list[LogPlace]:
        """Return the logs of a stream, in the stream's order."""
        with self._reader.lock, self._reader.reading() as db:
            return [LogPlace(*row) for row in db.execute(SQL["log_places"], (stream.id,))]

    def raw_records(self, lo: int, hi: int, limit: int, size: int) -> list[RawRecord]:
        """Return the first records at lo <= p < hi as they are kept."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["records"], (lo, hi, limit))
            return [
                RawRecord(pos, task, body, meta, seq or 0, head, micros)
                for pos, task, body, meta, seq, head, micros in _some(found, size, (2, 3))
            ]

    def leases_to_move(self, group: Group) -> list[Lease]:
        """Return a group's leases."""
        return self.leases(group)

    leases: Callable[[Group], list[Lease]]

    def state_rows(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        """Return rows with a key past `after`, in the order of keys."""
        key = ", ".join(table.key)
        past = f"AND ({key}) > ({', '.join('?' * len(table.key))})" if after is not None else ""
        statement = (
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE grp = ? {past} ORDER BY {key} LIMIT ?"
        )
        sized = [table.columns.index(column) for column in table.sized]
        with self._reader.lock, self._reader.reading() as db:
            return _some(db.execute(statement, (group, *(after or ()), limit)), size, sized)

    def numbers_given(self) -> dict[str, int]:
        """Return the highest numbers that were given out."""
        with self._reader.lock, self._reader.reading() as db:
            return {name: db.execute(SQL["number_given"], (name,)).get for name in NUMBERED}

    def blob_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[BlobRow]:
        """Return the payloads past (digest, stamp)."""
        with self._reader.lock, self._reader.reading() as db:
            return [BlobRow(*row) for row in db.execute(SQL["blob_rows"], (*(after or (b"", 0)), limit))]

    # Of the target

    def take_stream(self, mark: Mark, stream: Stream, places: Sequence[LogPlace]) -> Mark:
        """Create an incoming stream; return the mark with its numbers."""

        def take(db: apsw.Connection) -> Mark:
            settings = json.dumps(stream.settings)
            bound = (stream.kind, INCOMING + stream.app, stream.name, settings, stream.created)
            ours = db.execute(SQL["take_stream"], (_number(mark, stream.id), *bound)).get
            logs = {place.log: _take_log(db, ours, place, _number(mark, place.log)) for place in places}
            kept = mark.with_names(streams={stream.id: ours}, logs=logs)
            _put_mark(db, kept)
            return kept

        return self._change(take)  # type: ignore[no-any-return]

    def take_group(
        self, mark: Mark, stream: int, group: Group, bounds: Sequence[Bounds], leases: Sequence[Lease]
    ) -> Mark:
        """Create a group of an incoming stream; return the mark with its number."""

        def take(db: apsw.Connection) -> Mark:
            settings = json.dumps(group.settings)
            bound = (stream, group.app, group.name, group.kind, settings, group.generation, group.created)
            id = db.execute(SQL["take_group"], (_number(mark, group.id), *bound)).get
            for at in bounds:
                db.execute(SQL["take_position"], (id, at.log, at.cursor, at.start, at.stop))
            for lease in leases:
                number = 1 + db.execute(SQL["number_given"], ("worker",)).get  # no worker's: unique for good
                _give_no_number(db, "worker", number)
                bodies = _pack(lease.bodies) if lease.bodies else None
                spans = _pack(lease.spans)
                whose = (number << OFFSET_BITS, id, None, 0)
                db.execute(SQL["put_lease"], (*whose, spans, bodies, lease.since, None, lease.keys or None))
            kept = mark.with_names(groups={group.id: id})
            _put_mark(db, kept)
            return kept

        return self._change(take)  # type: ignore[no-any-return]

    def take_records(self, mark: Mark, log: int, rows: Sequence[RawRecord]) -> list[int]:
        """Append records at their positions."""

        def take(db: apsw.Connection) -> None:
            floor = db.execute(SQL["floor"], (log,)).get
            try:
                db.executemany(SQL["take_record"], _as_kept(rows, floor))
            except apsw.ConstraintError as error:
                raise ConfigError(f"an id of the source is taken in {self.shown}: {error}") from error
            _put_at(db, mark)

        self._change(take)
        return [row.pos for row in rows]

    def take_state(self, mark: Mark, table: StateTable, group: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add what a group knows."""
        statement = (
            f"INSERT INTO {table.name} (grp, {', '.join(table.columns)}) "
            f"VALUES (?{', ?' * len(table.columns)})"
        )

        def take(db: apsw.Connection) -> None:
            db.executemany(statement, ((group, *row) for row in rows))
            _put_at(db, mark)

        self._change(take)

    def take_blobs(self, mark: Mark, rows: Sequence[BlobRow]) -> None:
        """Enter large payloads."""

        def take(db: apsw.Connection) -> None:
            try:
                db.executemany(SQL["take_blob"], rows)
            except apsw.ConstraintError as error:
                raise same_payload(self.shown) from error
            _put_at(db, mark)

        self._change(take)

    def take_worker_number(self, number: int) -> None:
        """Give out no worker's number up to this one."""
        self._change(lambda db: _give_no_number(db, "worker", number))

    def give_names(self, mark: Mark) -> None:
        """Give the incoming streams their names, and drop the mark."""

        def give(db: apsw.Connection) -> None:
            try:
                db.execute(SQL["give_names"], (INCOMING,))
            except apsw.ConstraintError as error:
                raise ConfigError(
                    f"a stream of the same name was made in {self.shown} meanwhile: {error}"
                ) from error
            db.execute(SQL["drop_mark"])

        self._change(give)

    def discard(self, stream: Stream, limit: int) -> bool:
        """Remove a stream with all that is known of it, in steps."""

        def remove(db: apsw.Connection) -> bool:
            for log in stream.logs:
                db.execute(SQL["discard_references"], (first_pos(log), first_pos(log + 1)))
                db.execute(SQL["discard_records"], (first_pos(log), first_pos(log + 1), limit))
                if db.changes():
                    return True
            groups = [row[0] for row in db.execute(SQL["groups"]).fetchall() if row[1] == stream.id]
            for group in groups:
                for table in ("position", "lease", *STATE_TABLES):
                    db.execute(f"DELETE FROM {table} WHERE grp = ?", (group,))
                db.execute(SQL["drop_group"], (group,))
            db.execute(SQL["drop_logs"], (stream.id,))
            db.execute(SQL["drop_stream"], (stream.id,))
            return False

        return bool(self._change(remove))


def read_mark(db: apsw.Connection) -> Mark | None:
    """Return the store's mark."""
    row = db.execute(SQL["mark"]).fetchone()
    if row is None:
        return None
    mark = msgspec.json.decode(row[0], type=Mark)
    return msgspec.structs.replace(mark, at=tuple(msgspec.json.decode(row[1])))


def refuse_incoming(db: apsw.Connection, shown: str, kind: str, app: str, name: str) -> None:
    """Raise LogMoved where a stream that is to be made is just being filled by a transfer."""
    mark = read_mark(db)
    if (
        mark is not None
        and (kind, INCOMING + app, name) in db.execute(SQL["incoming"], (INCOMING,)).fetchall()
    ):
        raise LogMoved(told(mark, shown))


def _put_mark(db: apsw.Connection, mark: Mark) -> None:
    encode = msgspec.json.encode
    text = encode(msgspec.structs.replace(mark, at=())).decode()
    db.execute(SQL["put_mark"], (text, encode(mark.at).decode()))


def _put_at(db: apsw.Connection, mark: Mark) -> None:
    db.execute(SQL["put_mark_at"], (msgspec.json.encode(mark.at).decode(),))


def _number(mark: Mark, theirs: int) -> int | None:
    """Return which number something gets; None: the next one."""
    return theirs if mark.same_numbers else None


def _give_no_number(db: apsw.Connection, table: str, number: int) -> None:
    db.execute(SQL["first_number"], (table, number))
    db.execute(SQL["give_no_number"], (table, number))


def _take_log(db: apsw.Connection, stream: int, place: LogPlace, number: int | None) -> int:
    bound = (stream, place.priority, place.partition, 0)
    log = int(db.execute(SQL["take_log"], (number, *bound)).get)
    by = (log - place.log) << OFFSET_BITS
    # Where the last positions are empty, they are not given out again (H10).
    db.execute(SQL["move_floor"], (log, place.floor + by))
    return log


def _as_kept(rows: Sequence[RawRecord], floor: int) -> Iterable[tuple[Any, ...]]:
    for row, head, seq in arranged(rows, floor):
        if seq:
            yield row.pos, row.task, row.body, row.meta, seq, None, None, row.key
        else:  # below the floor nobody asks for it by its time
            mark = None if row.pos < floor else head_seq(head, row.micros / _MICRO)
            yield row.pos, row.task, row.body, row.meta, mark, head, row.micros, row.key


def _some(rows: Any, size: int, sized: Sequence[int]) -> list[Any]:
    """Return rows until they have so many bytes; the rest stays unread."""
    found = []
    for row in rows:
        found.append(row)
        for column in sized:
            size -= len(row[column] or b"")
        size -= 100
        if size <= 0:
            break
    rows.close()
    return found
