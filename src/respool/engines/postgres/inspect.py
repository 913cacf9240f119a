"""What commands and `check` ask of a log and its groups: in pages, each from one snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...delivery.model import MAX_LEASE, Parked
from ...delivery.spans import ranges_of
from ...record import NO_META, first_pos, id_of, read_meta
from ..base import Group, ParkedFilter
from ..columns import in_micros, lease_of, outcome_of
from ..inspect import Bounds, Brief, Gaps, GroupPage, GroupState, LogState
from . import gaps
from .connection import Bounded, snapshot
from .ids import id_from
from .looks import bound_of
from .part import Part
from .view import parked_of

T = TypeVar("T")
_MICRO = 1_000_000


class PostgresInspect(Part):
    """Reads for people. No transaction lasts longer than a page takes."""

    def _all(self, name: str, bound: Any = ()) -> list[Any]:
        return self._reader.read(lambda db: db.execute(self._sql[name], bound, binary=True).fetchall())

    def _first(self, name: str, bound: Any) -> Any:
        found = self._all(name, bound)
        return found[0][0] if found else None

    def _at_once(self, run: Callable[[Bounded], T]) -> T:
        def inside(db: Bounded) -> T:
            with snapshot(db):
                return run(db)

        return self._reader.read(inside)

    def task_counts(self, lo: int, hi: int, since: float | None, until: float | None) -> dict[str, int]:
        """Return how many records of each task there are at lo <= p < hi and since <= time < until."""
        return dict(self._all("tasks_between", (lo, hi, *in_micros(since, until))))

    def briefs(
        self, lo: int, hi: int, task: str | None, since: float | None, until: float | None, max_body: int
    ) -> list[Brief]:
        """Return the records at lo <= p < hi that match, without bodies of more than `max_body` bytes."""
        low, high = in_micros(since, until)
        bound = {"lo": lo, "hi": hi, "task": task, "since": low, "until": high, "most": max_body}
        return [_brief(row) for row in self._all("briefs", bound)]

    def group_bounds(self, group: Group) -> list[Bounds]:
        """Return what a group reads of each log."""
        return [Bounds(*row) for row in self._all("group_bounds", (group.id,))]

    def parked_after(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, task) of parked records in one group past `after`, in the order of positions."""
        return self._all("parked_after", _chosen(chosen, group, after, limit))

    def parked_page(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[Parked]:
        """Return the same records as `parked_after`, with all that is kept of them."""
        return [parked_of(row) for row in self._all("parked_page", _chosen(chosen, group, after, limit))]

    def group_page(self, group: Group, lo: int, hi: int) -> GroupPage:
        """Return all a group knows of lo <= p < hi, from one snapshot."""
        sql = self._sql
        within = {"grp": group.id, "lo": lo, "hi": hi, "low": lo - MAX_LEASE, "first": first_pos(lo >> 40)}

        def page(db: Bounded) -> GroupPage:
            bounds = [Bounds(*row) for row in db.execute(sql["group_bounds"], (group.id,)).fetchall()]
            parked = [
                parked_of(row) for row in db.execute(sql["parked_within"], (group.id, lo, hi)).fetchall()
            ]
            present = ranges_of(pos for (pos,) in db.execute(sql["records_between"], within).fetchall())
            return GroupPage(
                lo,
                hi,
                next(each for each in bounds if each.log == lo >> 40),
                [lease_of(row) for row in db.execute(sql["leases"], (group.id,)).fetchall()],
                sorted(parked + _in_gaps(db.execute(sql["gaps_within"], within).fetchall(), present)),
                [
                    outcome_of(row)
                    for row in db.execute(sql["outcomes_within"], (group.id, lo, hi)).fetchall()
                ],
                db.execute(sql["journal_within"], within).fetchall(),
                present,
            )

        return self._at_once(page)

    def group_state(self, group: Group, limit: int) -> GroupState:
        """Return a group as a whole, from one snapshot; of what is astray at most `limit`."""
        sql = self._sql
        return self._at_once(
            lambda db: GroupState(
                [Bounds(*row) for row in db.execute(sql["group_bounds"], (group.id,)).fetchall()],
                [lease_of(row) for row in db.execute(sql["leases"], (group.id,)).fetchall()],
                {row[0] for row in db.execute(sql["worker_ids"]).fetchall()},
                [row[0] for row in db.execute(sql["stray_parked"], (group.id, limit)).fetchall()],
            )
        )

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the names of tasks that no worker knew so far (P11)."""
        return {row[0] for row in self._all("unknown_tasks", (group,))}

    def log_states(self) -> list[LogState]:
        """Return all logs."""

        def states(db: Bounded) -> list[LogState]:
            found = []
            for log, stream, floor, known in db.execute(self._sql["all_logs"]).fetchall():
                lo, hi = max(floor, first_pos(log)), first_pos(log + 1)
                first = db.execute(self._sql["first_between"], (lo, hi)).fetchone()
                last = db.execute(self._sql["last_between"], (lo, hi)).fetchone()
                ends = (first[0], last[0] + 1) if first and last else (lo, lo)
                found.append(LogState(log, stream if known else None, lo, *ends))
            return found

        return self._at_once(states)

    def gaps(self, group: int) -> Gaps | None:
        """Return how many numbers a group has passed that may yet hold records (G4)."""
        ((numbers, ranges, since),) = self._all("gaps_kept", (group,))
        return Gaps(numbers, ranges, gaps.MAX_GAPS, since) if ranges else None

    def broken_runs(self, lo: int, hi: int, limit: int) -> list[int]:
        """Return nothing: each record has its id and its time."""
        return []

    def record_count(self, lo: int, hi: int) -> int:
        """Return how many records there are at lo <= p < hi."""
        return int(self._first("record_count", {"lo": lo, "hi": hi}))

    def first_record(self, lo: int, hi: int) -> int | None:
        """Return the first position at lo <= p < hi that holds a record."""
        found: int | None = self._first("first_record", {"lo": lo, "hi": hi})
        return found

    def losses(self) -> list[str]:
        """Return nothing: what a group loses is counted there."""
        return []

    def damage(self) -> list[str]:
        """Return nothing: a server checks its pages itself, where data checksums are on."""
        return []

    def orphans(self) -> list[tuple[str, int]]:
        """Return (what, group) of state that belongs to groups that are gone."""
        return self._all("orphans")


def _chosen(chosen: ParkedFilter, group: int, after: int, limit: int) -> dict[str, Any]:
    return {"grp": group, "after": after, "limit": limit, **bound_of(chosen)}


def _in_gaps(gaps: list[Any], present: list[tuple[int, int]]) -> list[Parked]:
    """Return the records that have come in a group's gaps, and are not yet handed out, as parked."""
    return [
        Parked(pos, "gap", None, "", at=since)
        for lo, hi, since in gaps
        for low, high in present
        for pos in range(max(lo, low), min(hi, high))
    ]


def _brief(row: Any) -> Brief:
    pos, task, size, body, meta, seq, head, micros = row
    meta = read_meta(meta) if meta else NO_META
    return Brief(pos, id_of(id_from(head), seq), micros / _MICRO, task, size, body, meta)
