"""Appending to the log in PostgreSQL: single records, runs, and many at once.

A number is given out when a record is inserted, and seen when its transaction commits; see `gaps.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...errors import EngineError, EngineUnavailable, PartlyAppended
from ...record import is_fresh
from ..base import Conflict, LeaseLost
from ..columns import append_in_parts, places_by_log
from .batch import Encoded, Executes
from .connection import NOTHING_SENT, Bounded
from .ids import find, id_bytes, may_be_member
from .part import Part
from .partitions import LOCK_PATIENCE, SIZE
from .references import hold, offloaded, refer
from .sql import quoted

ROWS_A_STATEMENT = 256
ROWS_AT_ONCE = 2048  # of many logs, or a few more
LOGS_AT_ONCE = 64  # each of them is a table or more, which the transaction locks
LATELY = 60.0  # seconds for which ids of rows that were collected are taken to be new
JUST_NOW = 1.0  # seconds for which an id is taken to be new: where it is not, a number is burnt
HELD_TRIES = 2  # of what an open transaction holds up, each for no longer than a lock is waited for
HELD_PAUSE = 0.05  # seconds between them, for what others append
_MICRO = 1_000_000
_MISSING = pg.CheckViolation, pg.UndefinedTable, pg.UndefinedObject  # a partition, or the log
T = TypeVar("T")
_TYPES = {  # of the values of `append_fresh`, as the server numbers them
    "sequence": 25, "task": 25, "body": 17, "meta": 17, "id": 17, "time": 20, "key": 23, "said": 25,
}  # fmt: skip


class PostgresAppends(Part):
    """Appends on the writer's connection."""

    ring_log: Callable[..., None]
    said_of_one: Callable[[int], str]
    think_ahead: Callable[[int], None]
    ringing: dict[str, bytes]
    add_partitions: Callable[..., None]
    _sequences: dict[int, int]  # the numbers of logs' sequences, as far as they were asked for
    _names: dict[int, tuple[bytes, bytes]]  # of a log's sequence, and of what is said for it, once used

    def _sequence(self, log: int) -> str:
        return f"{quoted(self.options.schema)}.log_{log}"

    def append_run(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> None:
        """Append records that share all but their bodies; the same head again appends nothing."""
        bound = self._run_values(log, task, bodies, meta, head, now)

        def run(db: Bounded) -> None:
            try:
                db.batch.run(self._sql["append_run"], bound, binary=True)
            except pg.UniqueViolation:
                return  # by another connection, between the look and the append
            self._rung(db, (log,), everyone=len(bodies) > 1)

        self._appending(log, run)

    def _run_values(
        self, log: int, task: str, bodies: Sequence[bytes], meta: bytes | None, head: bytes, now: float
    ) -> dict[str, Any]:
        return {
            "sequence": self._sequence(log), "bodies": list(bodies), "head": id_bytes(head), "task": task,
            "meta": meta, "time": int(now * _MICRO),
        }  # fmt: skip

    def append_row(self, row: NewCall) -> int | Conflict:
        """Append one record; return its position, or the conflict where its id is another record's."""
        large = row.meta is not None and offloaded((row,))
        if not large and is_fresh(row.id, row.time) and wall_clock() - row.time < JUST_NOW:
            pos = self._writer.append(partial(self._append_fresh, row))
        elif may_be_member(row.id) and (place := self._place(row)) is not None:
            return place
        elif large:
            refused = [conflict for conflict in self.append_rows((row,)) if not conflict.same]
            if refused:
                return refused[0]
            pos = None
        else:
            pos = self._unheld("the same id", partial(self._writer.append, partial(self._append_known, row)))
        if pos is None:
            place = self._place(row)
            assert place is not None
            if isinstance(place, Conflict):
                return place
            pos = place
        if pos & SIZE >> 1:
            self.think_ahead(pos)
        return pos

    def _append_fresh(self, row: NewCall, db: Bounded) -> int | None:
        """Append a record whose id was made for it; None where it was sent before, and stored.

        This is the hottest path of all, a call of it each: what is not needed for every call is elsewhere.
        """
        batch, log, key = db.batch, row.log, row.key
        names = self._names.get(log) or self._named(log, batch.encoding)
        values = (
            names[0], row.task.encode(batch.encoding), row.body, row.meta, row.id,
            int(row.time * _MICRO).to_bytes(8), None if key is None else key.to_bytes(4, signed=True),
            names[1],
        )  # fmt: skip
        try:
            return int.from_bytes(batch.run_encoded(self._fresh, values).get_value(0, 0))
        except (pg.UniqueViolation, *_MISSING):
            pass  # it is known, or something has to be made first
        return self._append_known(row, db)

    @cached_property
    def _fresh(self) -> Encoded:
        return Encoded(self.ringing["append_fresh"], _TYPES)

    def _named(self, log: int, encoding: str) -> tuple[bytes, bytes]:
        known = self._names
        known[log] = names = self._sequence(log).encode(encoding), self.said_of_one(log).encode(encoding)
        return names

    def _append_known(self, row: NewCall, db: Bounded) -> int | None:
        """Append a record whose id may be known; None where it is."""
        bound = {
            "sequence": self._sequence(row.log), "id": id_bytes(row.id), "task": row.task, "body": row.body,
            "meta": row.meta, "time": int(row.time * _MICRO), "key": row.key,
            "said": self.said_of_one(row.log), "patience": LOCK_PATIENCE,
        }  # fmt: skip

        def run(db: Bounded) -> Any:
            return db.batch.run(self.ringing["append_row"], bound, binary=True).fetchone()

        found = self._with_partition(db, row.log, run)
        return None if found is None else int(found[0])

    def _place(self, row: NewCall) -> int | Conflict | None:
        """Return where the record with a row's id is, or that it is another one; None: there is none."""
        pos = self._reader.read(lambda db: find(db, self._sql, row.id))
        if pos is None:
            return None
        found = self._reader.read(lambda db: _compare(db, self._sql, [(0, row, pos)]))
        return next((each for each in found if not each.same), pos)

    def append_rows(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records of one log, each with an id of its own, in one statement for each 256."""
        conflicts: list[Conflict] = []
        for start in range(0, len(rows), ROWS_A_STATEMENT):
            some = rows[start : start + ROWS_A_STATEMENT]
            append = partial(self._appending, some[0].log, self._appender(some, start, fence))
            try:
                conflicts += self._unheld("the same id", append)
            except EngineUnavailable as error:
                if fence is None and _is_held(error):
                    self._append_others(some, start, error)
                raise
        return conflicts

    def _append_others(self, rows: Sequence[NewCall], start: int, error: EngineUnavailable) -> None:
        """Append those rows whose ids are none of a user's own, which an open transaction could have entered.

        They may be of others, who came at the same moment. Raises: PartlyAppended, unless there are none.
        """
        places = [n for n, row in enumerate(rows) if not isinstance(row.id, str)]
        if not places or len(places) == len(rows):
            return
        others = [rows[n] for n in places]
        known = self._appending(others[0].log, self._appender(others, 0, None))
        refused = {each.row for each in known if not each.same}
        stored = [*range(start), *(start + n for at, n in enumerate(places) if at not in refused)]
        raise PartlyAppended(error, len(stored), stored) from error

    def append_many(self, rows: Sequence[NewCall]) -> None:
        """Append records of any logs whose ids were made for them: many logs in one statement."""
        now = wall_clock()
        fresh = all(is_fresh(row.id, row.time) and now - row.time < LATELY for row in rows)

        def append(some: list[NewCall]) -> None:
            done = fresh and not offloaded(some)
            if not (done and self._writer.append(partial(self._append_fresh_rows, some))):
                append_in_parts(some, places_by_log(some), self.append_rows)

        append_in_parts(rows, _portions(places_by_log(rows)), append)

    def _append_fresh_rows(self, rows: Sequence[NewCall], db: Bounded) -> bool:
        """Append rows of some logs by one statement; False where that cannot be, and nothing was done."""
        logs = {row.log for row in rows}
        if unknown := logs - self._sequences.keys():
            self._sequences |= dict(db.execute(self._sql["sequences"], (list(unknown),)).fetchall())
        if not logs <= self._sequences.keys():
            return False
        bound = {"sequences": _numbers(self._sequences[row.log] for row in rows), **_columns(rows)}
        try:
            db.batch.run(self._sql["append_fresh_rows"], bound)
        except (pg.UniqueViolation, pg.InternalError_, *_MISSING):
            self._sequences.clear()  # it may be that one is gone, with its stream
            return False
        self._rung(db, logs, everyone=len(rows) > 1)
        return True

    def _appender(self, rows: Sequence[NewCall], start: int, fence: tuple[int, int] | None) -> Any:
        def run(db: Bounded) -> list[Conflict]:
            with db.batch as batch:
                conflicts = insert(
                    batch, self._sql, self._sequence, rows, start, fence, patience=LOCK_PATIENCE
                )
            self._rung(db, (rows[0].log,), everyone=len(rows) > 1)
            return conflicts

        def run_at_once(db: Bounded) -> list[Conflict]:
            with db.transaction():
                conflicts = insert(db, self._sql, self._sequence, rows, start, fence, patience=LOCK_PATIENCE)
            self._rung(db, (rows[0].log,), everyone=len(rows) > 1)
            return conflicts

        return run_at_once if fence is not None or offloaded(rows) else run

    def _rung(self, db: Bounded, logs: Iterable[int], *, everyone: bool) -> None:
        """Ring for what was appended, and is committed: a hint, so an error is no error of the append."""
        try:
            with db.batch as batch:
                for log in logs:
                    self.ring_log(batch, log, everyone=everyone)
        except psycopg.Error:
            return  # who sleeps finds out by looking

    def _appending(self, log: int, run: Any) -> Any:
        """Run an append; where the log's next partition is missing, make it first."""
        return self._writer.append(lambda db: self._with_partition(db, log, run))

    def _unheld(self, sent: str, append: Callable[[], T], tries: int = HELD_TRIES) -> T:
        """Append what an open transaction may hold up that has sent the same: all others wait behind it here.

        So it is given up soon, and tried again with others in between.
        """
        while True:
            tries -= 1
            try:
                return append()
            except EngineUnavailable as error:
                if not _is_held(error):
                    raise
                if not tries:
                    raise EngineUnavailable(
                        f"{self.options.shown}: an open transaction has sent a call of {sent}{NOTHING_SENT}: "
                        "whether there is one is known when that has ended"
                    ) from error.__cause__
            time.sleep(HELD_PAUSE)

    def _with_partition(self, db: Bounded, log: int, run: Any) -> Any:
        try:
            return run(db)
        except pg.CheckViolation:  # no partition for the number
            self.add_partitions(db, log)
            return run(db)
        except (pg.UndefinedTable, pg.UndefinedObject) as error:
            if f"log_{log}" in str(error):
                raise EngineError(f"log {log} does not exist: its stream was dropped") from None
            raise


def insert(
    db: Executes,
    sql: dict[str, bytes],
    sequence: Any,
    rows: Sequence[NewCall],
    start: int,
    fence: tuple[int, int] | None,
    *,
    settling: bool = False,
    placed: list[int] | None = None,
    patience: str = "",
) -> list[Conflict]:
    """Insert rows of one log in one statement; return those whose id is taken. Raises LeaseLost.

    Where the others are is added to `placed`. An open transaction that has one of the ids is waited for no
    longer than `patience`, which then holds for the rest of the transaction.

    Where there is a fence, or some refer to blobs, it is several statements, in a transaction of the
    caller's, and raises BlobsUnavailable where one was removed; not with `settling`.
    """
    if large := offloaded(rows):
        large = hold(db, sql, large, settling=settling)
        conflicts = _insert(db, sql, sequence, rows, start, fence, placed, patience)
        refer(db, sql, large, [id_bytes(row.id) for row in large])
        return conflicts
    return _insert(db, sql, sequence, rows, start, fence, placed, patience)


def _insert(
    db: Executes,
    sql: dict[str, bytes],
    sequence: Any,
    rows: Sequence[NewCall],
    start: int,
    fence: tuple[int, int] | None,
    placed: list[int] | None,
    patience: str,
) -> list[Conflict]:
    log = rows[0].log
    known = [
        (start + n, row, pos)
        for n, row in enumerate(rows)
        if may_be_member(row.id) and (pos := find(db, sql, row.id)) is not None
    ]
    passed = {n for n, _, _ in known}
    new = [(start + n, row) for n, row in enumerate(rows) if start + n not in passed]
    if new:
        if fence is not None and db.execute(sql["hold_fence"], fence).fetchone() is None:
            raise LeaseLost
        bound = {"sequence": sequence(log), "patience": patience, **_columns([row for _, row in new])}
        added = {bytes(id): pos for pos, id in db.execute(sql["append_rows"], bound, binary=True).fetchall()}
        if placed is not None:
            placed += added.values()
        if len(added) < len(new):
            for n, row in new:
                pos = added.pop(id_bytes(row.id), None)  # the second with an id is a conflict with the first
                if pos is None:
                    pos = find(db, sql, row.id)
                    assert pos is not None
                    known.append((n, row, pos))
    return _compare(db, sql, known) if known else []


def _is_held(error: EngineUnavailable) -> bool:
    return isinstance(error.__cause__, pg.LockNotAvailable)


def _portions(logs: list[list[int]]) -> Iterator[list[int]]:
    """Yield the places of rows, log by log, as many at a time as one statement takes."""
    part: list[int] = []
    held = 0
    for places in logs:
        part += places
        held += 1
        if len(part) >= ROWS_AT_ONCE or held >= LOGS_AT_ONCE:
            yield part
            part, held = [], 0
    if part:
        yield part


def _columns(rows: Sequence[NewCall]) -> dict[str, Any]:
    """Return rows as a statement takes them."""
    return {
        "ids": [id_bytes(row.id) for row in rows],
        "tasks": [row.task for row in rows],
        "bodies": [row.body for row in rows],
        "metas": [row.meta for row in rows],
        "times": _numbers(int(row.time * _MICRO) for row in rows),
        "keys": _numbers("NULL" if row.key is None else row.key for row in rows),
    }


def _numbers(values: Iterable[int | str]) -> str:
    """Return numbers as the server reads an array of them: as a list each would be converted by itself."""
    return "{" + ",".join(map(str, values)) + "}"


def _compare(db: Executes, sql: dict[str, bytes], known: list[tuple[int, NewCall, int]]) -> list[Conflict]:
    """Compare rows with the records that have their ids: what is the same in all is no conflict."""
    places = [pos for _, _, pos in known]
    found = {row[0]: row[1:] for row in db.execute(sql["whole"], (places, places), binary=True).fetchall()}
    conflicts = []
    for n, row, pos in known:
        task, body, time = found.get(pos, (None, None, None))
        same = task == row.task and body == row.body
        if not (same and time == int(row.time * _MICRO)):
            conflicts.append(Conflict(n, pos, same))
    return conflicts
