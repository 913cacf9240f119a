"""What commands and `check` ask of a log and its groups: in pages, each from one snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw

from ...delivery.model import MAX_LEASE, Parked
from ...delivery.spans import ranges_of
from ...record import NO_META, first_pos, id_of, read_meta
from ..base import Group, ParkedFilter
from ..columns import in_micros, lease_of, outcome_of
from ..inspect import Bounds, Brief, Gaps, GroupPage, GroupState, LogState
from .looks import bound_of
from .part import Part
from .sql import SQL
from .view import parked_of

_MICRO = 1_000_000


class SQLiteInspect(Part):
    """Reads for people. No read transaction lasts longer than a page takes."""

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """Give the reader; what SQLite finds wrong comes out as an error of ours."""
        with self._reader.lock, self._reader.reading() as db:
            try:
                yield db
            except apsw.Error as error:
                raise self._reader._translated(error) from error

    @contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")

    def task_counts(self, lo: int, hi: int, since: float | None, until: float | None) -> dict[str, int]:
        """Return how many records of each task there are at lo <= p < hi and since <= time < until."""
        with self._reading() as db:
            return dict(_all(db, "tasks_between", (lo, hi, *in_micros(since, until))))

    def briefs(
        self, lo: int, hi: int, task: str | None, since: float | None, until: float | None, max_body: int
    ) -> list[Brief]:
        """Return the records at lo <= p < hi that match, without bodies of more than `max_body` bytes."""
        with self._reading() as db:
            found = _all(db, "briefs", (lo, hi, task, *in_micros(since, until), max_body))
        return [_brief(row) for row in found]

    def group_bounds(self, group: Group) -> list[Bounds]:
        """Return what a group reads of each log."""
        with self._reading() as db:
            return _bounds(db, group.id)

    def parked_after(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, task) of parked records in one group past `after`, in the order of positions.

        Paging by position, unlike `parked` with its order by age, costs the same for each page.
        """
        with self._reading() as db:
            return _all(db, "parked_after", _chosen(chosen, group, after, limit))

    def parked_page(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[Parked]:
        """Return the same records as `parked_after`, with all that is kept of them."""
        with self._reading() as db:
            return [parked_of(row) for row in _all(db, "parked_page", _chosen(chosen, group, after, limit))]

    def parked_by_task(self, group: int) -> list[tuple[str, str, int]]:
        """Return (reason, task, how many) of a group's parked records."""
        with self._reading() as db:
            return _all(db, "parked_by_task", (group,))

    def group_page(self, group: Group, lo: int, hi: int) -> GroupPage:
        """Return all a group knows of lo <= p < hi, from one snapshot."""
        with self._snapshot() as db:
            bounds = next(b for b in _bounds(db, group.id) if b.log == lo >> 40)
            return GroupPage(
                lo,
                hi,
                bounds,
                [lease_of(row) for row in _all(db, "leases", (group.id,))],
                [parked_of(row) for row in _all(db, "parked_within", (group.id, lo, hi))],
                [outcome_of(row) for row in _all(db, "outcomes_within", (group.id, lo, hi))],
                [row[:3] for row in _all(db, "journal_within", (group.id, lo, hi, lo - MAX_LEASE))],
                _present(db, lo, hi),
            )

    def group_state(self, group: Group, limit: int) -> GroupState:
        """Return a group as a whole, from one snapshot; of what is astray at most `limit`."""
        with self._snapshot() as db:
            return GroupState(
                _bounds(db, group.id),
                [lease_of(row) for row in _all(db, "leases", (group.id,))],
                {row[0] for row in _all(db, "worker_ids")},
                [row[0] for row in _all(db, "stray_parked", (group.id, limit))],
            )

    def log_states(self) -> list[LogState]:
        """Return all logs."""
        with self._snapshot() as db:
            return [
                LogState(log, stream if known else None, floor, *_range(db, log, floor))
                for log, stream, floor, known in _all(db, "all_logs")
            ]

    def gaps(self, group: int) -> Gaps | None:
        """Return nothing: a record is seen as soon as it has its number."""
        return None

    def broken_runs(self, lo: int, hi: int, limit: int) -> list[int]:
        """Return positions of records at lo <= p < hi whose id and time cannot be told: at most `limit`."""
        with self._reading() as db:
            return [row[0] for row in _all(db, "broken_runs", (lo, hi, limit))]

    def record_count(self, lo: int, hi: int) -> int:
        """Return how many records there are at lo <= p < hi."""
        with self._reading() as db:
            return int(_one(db, "count_between", (lo, hi)))

    def first_record(self, lo: int, hi: int) -> int | None:
        """Return the first position at lo <= p < hi that holds a record."""
        with self._reading() as db:
            found: int | None = _one(db, "first_between", (lo, hi))
            return found

    def losses(self) -> list[str]:
        """Return nothing: what a group loses is counted there."""
        return []

    def damage(self) -> list[str]:
        """Return what SQLite's own check finds wrong with the file, be it that it cannot even be checked."""
        with self._reader.lock, self._reader.reading() as db:
            try:
                found = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
            except (apsw.CorruptError, apsw.NotADBError) as error:
                return [str(error)]
        return [] if found == ["ok"] else found

    def orphans(self) -> list[tuple[str, int]]:
        """Return (what, group) of state that belongs to groups that are gone."""
        with self._reading() as db:
            return _all(db, "orphans")


def _chosen(chosen: ParkedFilter, group: int, after: int, limit: int) -> dict[str, Any]:
    return {"grp": group, "after": after, "limit": limit, **bound_of(chosen)}


def _all(db: apsw.Connection, name: str, bound: Sequence[Any] | dict[str, Any] = ()) -> list[Any]:
    return db.execute(SQL[name], bound).fetchall()


def _one(db: apsw.Connection, name: str, bound: Sequence[Any]) -> Any:
    return db.execute(SQL[name], bound).get


def _brief(row: Any) -> Brief:
    pos, task, size, body, meta, seq, head, micros = row
    meta = read_meta(meta) if meta else NO_META
    return Brief(pos, id_of(head, seq), micros / _MICRO, task, size, body, meta)


def _bounds(db: apsw.Connection, group: int) -> list[Bounds]:
    return [Bounds(*row) for row in _all(db, "group_bounds", (group,))]


def _present(db: apsw.Connection, lo: int, hi: int) -> list[tuple[int, int]]:
    """Return the ranges of positions that hold records; most logs have no gaps."""
    if _one(db, "count_between", (lo, hi)) == hi - lo:
        return [(lo, hi)]
    return ranges_of(pos for (pos,) in _all(db, "positions_between", (lo, hi)))


def _range(db: apsw.Connection, log: int, floor: int) -> tuple[int, int]:
    first = _one(db, "first_between", (floor, first_pos(log + 1)))  # below it is what stayed behind (H15)
    if first is None:
        return floor, floor
    last = _one(db, "last_between", (first_pos(log), first_pos(log + 1)))
    return first, max(floor, last + 1)
