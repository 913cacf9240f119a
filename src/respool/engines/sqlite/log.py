"""The log in SQLite: appending, reading, finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import apsw

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...delivery.spans import Span
from ...errors import BlobsUnavailable, EngineError
from ...record import NO_META, Id, Row, first_pos, id_of, read_meta
from ...reference import is_reference, unpack
from .. import stored_id
from ..base import Conflict, LeaseLost, Record, Stream
from ..columns import in_micros
from .part import Part
from .sql import SQL

ROWS_A_STATEMENT = 256
_FIELDS = 7
_OFFLOADED_FIELDS = 10
_MICRO = 1_000_000
_APPEND_RUN, _APPEND_ROW = SQL["append_run"], SQL["append_row"]
_PLACE_OF_RUN, _APPEND_RUN_AT = SQL["place_of_run"], SQL["append_run_at"]


def append_run(
    db: Any, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
) -> int:
    """Append a run in one statement; return how many records that added (0: the head is known)."""
    run = apsw.carray(bodies if isinstance(bodies, tuple) else tuple(bodies))
    first, last = log_ends(log)
    bound = (log, task, run, meta, head, int(now * _MICRO), first, last, head_seq(head, now))
    try:
        db.execute(_APPEND_RUN, bound)
    except apsw.MismatchError:
        raise no_such_log(log) from None
    return int(db.changes())


def append_run_alone(
    db: Any, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
) -> None:
    """Append a run outside of any transaction: as `append_run`, in two thirds of its time."""
    if not _append_upon_snapshot(db, log, task, bodies, meta, head, now):
        append_run(db, log, task, bodies, meta, head, now)


def _append_upon_snapshot(
    db: Any, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
) -> bool:
    """Append a run by a statement that reads no record; False where somebody is in the way.

    One that reads the table it fills puts all rows into a temporary one first. So what is to be known is read
    before, and that snapshot held until the run is written: SQLite writes upon the latest one only, and
    refuses at once where another has committed meanwhile or is about to.
    """
    held = db.execute(_PLACE_OF_RUN, (log, *log_ends(log), head))
    try:
        place, known = held.fetchone() or (None, False)
        if known or place is None:
            return bool(known)
        run = apsw.carray(bodies if isinstance(bodies, tuple) else tuple(bodies))
        db.execute(_APPEND_RUN_AT, (place, task, run, meta, head, int(now * _MICRO), head_seq(head, now)))
    except apsw.BusyError:
        return False
    finally:
        held.close(True)
    return True


@cache
def log_ends(log: int) -> tuple[int, int]:
    """Return the first and the last position that a log can have."""
    return first_pos(log), first_pos(log + 1) - 1


def head_seq(id: Id, time: float) -> int | None:
    """Return what marks a head: None where its id tells its time, 0 where the index on time must."""
    return None if id[:6] == int(time * 1000).to_bytes(6, "big") else 0


def append_row(db: Any, row: NewCall) -> int | Conflict:
    """Append one record; return where it is. The path of `delay()`: no more than one row needs."""
    id, time, log = row.id, row.time, row.log
    if row.meta is not None and is_reference(row.body):
        refused = [conflict for conflict in append_rows(db, (row,), None) if not conflict.same]
        place = db.execute(SQL["by_id"], (id,)).get
        return refused[0] if refused else int(_place_in_a_run(db, id) if place is None else place)  # type: ignore[arg-type]
    if (member := _place_in_a_run(db, id)) is not None:
        return _known(db, row, member)
    first, last = log_ends(log)
    bound = (
        log,
        first,
        last,
        row.task,
        row.body,
        row.meta,
        id,
        int(time * _MICRO),
        head_seq(id, time),
        row.key,
    )
    try:
        db.execute(_APPEND_ROW, bound)
    except apsw.MismatchError:
        raise no_such_log(log) from None
    if db.changes():
        return int(db.last_insert_rowid())
    return _known(db, row, db.execute(SQL["by_id"], (id,)).get)


def _known(db: Any, row: NewCall, pos: int) -> int | Conflict:
    """Return where a record is that has a row's id, or that it is another one."""
    return next((each for each in _conflict(db, 0, row, pos) if not each.same), pos)


def no_such_log(log: int) -> EngineError:
    """Return the error for a log that is not there."""
    return EngineError(f"log {log} does not exist: its stream was dropped")


def append_rows(
    db: Any, rows: Sequence[NewCall], fence: tuple[int, int] | None, *, settling: bool = False
) -> list[Conflict]:
    """Append records of one log with ids of their own, in one statement for each 256.

    Positions are counted up from the first free one; an id that is known leaves its position empty. Where the
    payload of one was removed it is refused; with `settling` it is appended, and its run will say so.
    """
    conflicts: list[Conflict] = []
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        conflicts += _append_some(db, rows[start : start + ROWS_A_STATEMENT], start, fence, settling)
    return conflicts


def _append_some(
    db: Any, rows: Sequence[NewCall], start: int, fence: tuple[int, int] | None, settling: bool
) -> list[Conflict]:
    conflicts, new = [], []
    for index, row in enumerate(rows, start):
        pos = _place_in_a_run(db, row.id)
        if pos is None:
            new.append((index, row))
        else:
            conflicts += _conflict(db, index, row, pos)
    if new and not _insert(db, [row for _, row in new], fence, settling):
        if fence is not None and db.execute(SQL["fence"], fence).get is None:
            raise LeaseLost
        for index, row in new:
            conflicts += _conflict(db, index, row, db.execute(SQL["by_id"], (row.id,)).get)
    return conflicts


def _insert(db: Any, rows: Sequence[NewCall], fence: tuple[int, int] | None, settling: bool) -> bool:
    """Insert rows in one statement; False where not all of them were new, or the fence was gone."""
    if any(row.meta is not None and is_reference(row.body) for row in rows):
        return _insert_offloaded(db, rows, fence, settling)
    log = rows[0].log
    bound: list[Any] = [log, *(fence or (None, None)), *log_ends(log)]
    for row in rows:
        time = row.time
        seq = head_seq(row.id, time)
        bound += (row.task, row.body, row.meta, row.id, int(time * _MICRO), seq, row.key)
    try:
        db.execute(_rows_statement(len(rows)), bound)
    except apsw.MismatchError:
        raise no_such_log(log) from None
    return bool(db.changes() == len(rows))


def _insert_offloaded(
    db: Any, rows: Sequence[NewCall], fence: tuple[int, int] | None, settling: bool
) -> bool:
    """Insert rows some of which refer to blobs, and these references, in one statement (H1, H18).

    Returns: False, always: what a trigger has inserted is not counted.
    """
    log, now = rows[0].log, wall_clock()
    bound: list[Any] = [log, *(fence or (None, None)), *log_ends(log)]
    for row in rows:
        blob: tuple[Any, Any] = (None, None)
        if row.meta is not None and is_reference(row.body):
            digest, _, stamp = unpack(row.body)
            if not settling or db.execute(SQL["living_blob"], (digest, stamp)).get:
                blob = digest, stamp
        time = row.time
        bound += (row.task, row.body, row.meta, row.id, int(time * _MICRO), head_seq(row.id, time))
        bound += (row.key, *blob, now)
    try:
        db.execute(_rows_statement(len(rows), "append_offloaded", _OFFLOADED_FIELDS), bound)
    except apsw.MismatchError:
        raise no_such_log(log) from None
    except apsw.ConstraintError as error:
        if "payload removed" not in str(error):
            raise
        raise BlobsUnavailable(
            "a payload was removed from the blob store before its record was written, more than a day after "
            "it was stored; nothing was sent: send it again"
        ) from None
    return False


def _place_in_a_run(db: Any, id: Id) -> int | None:
    """Return where an id is, if it is that of a run's member, which the index of heads does not have."""
    if isinstance(id, str) or id.endswith(b"\0\0\0"):
        return None
    return find(db, "", id)


def _conflict(db: Any, index: int, row: NewCall, pos: int) -> list[Conflict]:
    """Compare a row with the one that has its id: our own, just inserted, is none to speak of."""
    task, body, time = db.execute(SQL["whole"], (pos,)).get or (None, None, None)  # None: trimmed just now
    same = task == row.task and body == row.body
    return [] if same and time == int(row.time * _MICRO) else [Conflict(index, pos, same)]


@cache
def _rows_statement(rows: int, name: str = "append_rows", fields: int = _FIELDS) -> str:
    """Return the insert of so many rows: fixed text and placeholders, nothing of the rows themselves."""
    values = ", ".join(
        f"({n}, " + ", ".join(f"?{6 + fields * n + field}" for field in range(fields)) + ")"
        for n in range(rows)
    )
    return SQL[name].replace("(values)", f"(VALUES {values})")


class SQLiteLog(Part):
    """Reads of the log, on a connection that never holds a read transaction open."""

    def rows(self, spans: Iterable[Span]) -> list[Row]:
        """Return the records that exist in the spans, in the spans' order.

        Read where leases are claimed: that connection has just seen the end of the log, and need not look
        into the file again.
        """
        found: list[Any] = []
        with self._state.lock, self._state.reading() as db:
            for span in spans:
                found += db.execute(SQL["rows"], (span.lo, span.hi))
        return found

    def records(self, lo: int, hi: int, limit: int) -> list[Record]:
        """Return the records at lo <= p < hi in full, at most `limit`."""
        with self._reader.lock, self._reader.reading() as db:
            found = db.execute(SQL["records"], (lo, hi, limit)).fetchall()
        return [
            Record(pos, id_of(head, seq), micros / _MICRO, task, body, read_meta(meta) if meta else NO_META)
            for pos, task, body, meta, seq, head, micros in found
        ]

    def find(self, namespace: str, id: Id) -> int | None:
        """Return the position of the record with this id."""
        with self._reader.lock, self._reader.reading() as db:
            return find(db, namespace, id)

    def run_spans(self, head: bytes, size: int) -> list[tuple[int, int]] | None:
        """Return the ranges of positions of a run: one, unless it came from another engine in parts."""
        with self._reader.lock, self._reader.reading() as db:
            parts = db.execute(SQL["run_heads"], (head, id_of(head, size - 1))).fetchall()
        if not parts or parts[0][1] != head:
            return None
        starts = [int.from_bytes(id[13:], "big") - int.from_bytes(head[13:], "big") for _, id in parts]
        return [
            (pos, pos + next_start - start)
            for (pos, _), start, next_start in zip(parts, starts, [*starts[1:], size], strict=True)
        ]

    def window(self, stream: Stream, since: float | None, until: float | None) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position that can have a time in since <= t < until."""
        if since is None and until is None:
            return self.bounds(stream)
        low, high = in_micros(since, until)
        ids = _id_at(low - 1000), _id_at(high + 1999)
        windows = []
        with self._reader.lock, self._reader.reading() as db:
            for log, first, end in db.execute(SQL["log_bounds"], (stream.id,)).fetchall():
                lo, head = db.execute(SQL["heads_between"], (log, first, end - 1, *ids, low, high)).get
                if lo is None:
                    windows.append((log, end, end))
                else:
                    windows.append((log, lo, db.execute(SQL["next_head"], (head, end - 1)).get or end))
        return windows

    def outside(self, spans: Iterable[Span], since: float | None, until: float | None) -> list[int]:
        """Return the positions in the spans whose time is not in since <= t < until."""
        low, high = in_micros(since, until)
        with self._reader.lock, self._reader.reading() as db:
            return [
                pos
                for span in spans
                for (pos,) in db.execute(SQL["outside"], (span.lo, span.hi, low, high)).fetchall()
            ]

    def bounds(self, stream: Stream) -> list[tuple[int, int, int]]:
        """Return (log, first, one past the last) position there is."""
        with self._reader.lock, self._reader.reading() as db:
            return [tuple(row) for row in db.execute(SQL["log_bounds"], (stream.id,))]


def _id_at(micros: int) -> bytes:
    """Return what an id begins with that was made at a time.

    Ids are as fine as milliseconds, and a float may round to the one beside: ask for a millisecond more.
    """
    return min(max(micros // 1000, 0), (1 << 48) - 1).to_bytes(6, "big")


def find(db: Any, namespace: str, id: Id) -> int | None:
    """Return the position of an id: one given as text, or a member of a run."""
    if isinstance(id, str):
        given: int | None = db.execute(SQL["by_id"], (stored_id(namespace, id),)).get
        return given
    found = db.execute(SQL["by_run_id"], (id, id[:13] + b"\0\0\0")).get
    if found is None:
        return None
    pos, head = found
    seq = int.from_bytes(id[13:], "big") - int.from_bytes(head[13:], "big")
    if seq == 0:
        return int(pos)
    return pos + seq if db.execute(SQL["is_member"], (pos + seq, seq)).get else None
